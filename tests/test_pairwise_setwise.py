"""Rerankers that compare: pairs (PRP, duoT5) and sets (Setwise, Rank-R1)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from rtk.errors import ConfigError
from rtk.retrieval.rerankers import Candidate, Request, Usage, load_reranker, rerank_checked
from rtk.retrieval.rerankers.lockstep import Answer, Effort
from rtk.retrieval.rerankers.pairwise import DuoT5Reranker, PairQuestion, PairwiseReranker, PrpReranker
from rtk.retrieval.rerankers.setwise import RankR1Reranker, SetSort, SetwiseReranker, SetwiseSorter
from rtk.retrieval.rerankers.setwise_prompts import read_choice

Oracle = Callable[..., Any]


def graded(qid: str, count: int, seed: int = 0) -> Request:
    grades = np.random.default_rng(seed).permutation(count).tolist()
    candidates = [Candidate(f"d{grade}", f"grade {grade}", -float(at)) for at, grade in enumerate(grades)]
    return Request(qid, f"what is {qid}?", tuple(candidates))


def best(count: int) -> list[str]:
    return [f"d{grade}" for grade in range(count - 1, -1, -1)]


class Prefers:
    """Prefers by a rule over a question; counts what it was asked."""

    def __init__(self, rule: Callable[[PairQuestion], float]) -> None:
        self.rule, self.asked, self.calls = rule, 0, 0

    def identity(self) -> dict[str, Any]:
        return {"reranker": "rule"}

    def prefer(self, pairs: Any, /) -> list[Answer[float]]:
        self.asked += len(pairs)
        self.calls += 1
        return [Answer(self.rule(pair), Usage(1)) for pair in pairs]


def knows(question: PairQuestion) -> float:
    first, second = (int(text.split()[1]) for text in question.texts)
    return 0.9 if first > second else 0.1


# --- pairs ---


@pytest.mark.parametrize("count", [0, 1, 2, 5, 12])
@pytest.mark.parametrize("sorting", ["all-pairs", "heap", "bubble"])
@pytest.mark.parametrize("soft", [False, True])
def test_pairs_by_a_model_that_knows(sorting: Any, count: int, soft: bool) -> None:
    model = Prefers(knows)
    (result,) = rerank_checked(PairwiseReranker(model, sorting=sorting, k=4, soft=soft), [graded("q", count)])
    top = count if sorting == "all-pairs" else 4
    assert list(result.ids)[:top] == best(count)[:top]
    assert result.usage.calls == model.asked
    if sorting == "all-pairs":
        assert model.asked == count * (count - 1)


def test_half_the_pairs_in_one_order() -> None:
    model = Prefers(knows)
    reranker = PairwiseReranker(model, sorting="all-pairs", soft=True, both_orders=False)
    (result,) = rerank_checked(reranker, [graded("q", 6)])
    assert list(result.ids) == best(6)
    assert model.asked == 15
    assert result.raw is not None
    np.testing.assert_allclose(result.raw, [5 * 0.9, 0.1 + 4 * 0.9, 0.2 + 3 * 0.9, 0.3 + 2 * 0.9, 0.4 + 0.9, 0.5])


@pytest.mark.parametrize("sorting", ["all-pairs", "heap", "bubble"])
def test_a_model_that_always_names_the_first_changes_nothing(sorting: Any) -> None:
    request = graded("q", 12)
    (result,) = rerank_checked(PairwiseReranker(Prefers(lambda pair: 1.0), sorting=sorting, k=5), [request])
    assert result.ids == request.ids


def test_pairs_of_several_queries_share_calls() -> None:
    requests = [graded(f"q{at}", 8, at) for at in range(4)]
    model, alone = Prefers(knows), Prefers(knows)
    results = rerank_checked(PairwiseReranker(model, k=3), requests)
    rerank_checked(
        PairwiseReranker(alone, k=3, effort=Effort(in_flight=1)), [graded(f"q{at}", 8, at) for at in range(4)]
    )
    assert [list(result.ids)[:3] for result in results] == [best(8)[:3]] * 4
    assert model.asked == alone.asked
    assert model.calls < alone.calls / 2


def test_prp_by_an_oracle(oracle_model: Oracle) -> None:
    model = oracle_model()
    (result,) = rerank_checked(PrpReranker(model, k=4), [graded("q", 10)])
    assert list(result.ids)[:4] == best(10)[:4]
    assert result.usage.generated_tokens == 0
    assert 'Passage A: "grade' in model.texts[0]
    assert model.texts[0].endswith("Passage")


def test_duo_t5_sums_probabilities_of_both_orders(answer_tokenizer: Any) -> None:
    class Knows:
        tokenizer, context_length = answer_tokenizer, 512
        seen: list[str]

        def identity(self) -> dict[str, Any]:
            return {}

        def next_token_logits(self, prompts: Any, tokens: Any, /) -> Any:
            from rtk.retrieval.rerankers.language_model import Answers

            self.seen = [answer_tokenizer.decode(prompt.ids) for prompt in prompts]
            grades = [[int(part.split()[1]) for part in text.split("Document")[1:]] for text in self.seen]
            logits = np.asarray([[first - second, 0.0] for first, second in grades], dtype=np.float32)
            return Answers(logits, tuple(Usage(1, len(prompt)) for prompt in prompts))

    candidates = tuple(Candidate(f"d{at}", str(at), 0.0) for at in (0, 2, 1))
    model: Any = Knows()
    (result,) = rerank_checked(DuoT5Reranker(model), [Request("q", "x", candidates)])
    assert result.ids == ("d2", "d1", "d0")
    assert model.seen[0] == "Query: x Document0: 0 Document1: 2 Relevant:"
    chance = [1 / (1 + np.exp(-gap)) for gap in (1, 2)]
    assert result.raw is not None
    np.testing.assert_allclose(result.raw, [chance[0] + chance[1], 1.0, 2 - chance[0] - chance[1]], rtol=1e-5)


# --- sets ---


@pytest.mark.parametrize("sorting", ["heap", "bubble"])
@pytest.mark.parametrize("presentation", ["first-stage", "sorted", "shuffled"])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 9, 30])
def test_sets_by_an_oracle(sorting: Any, presentation: Any, count: int, oracle_model: Oracle) -> None:
    sort = SetSort(sorting, k=4, children=3, presentation=presentation)
    for reranker in (
        SetwiseReranker(oracle_model(), sort=sort),
        SetwiseReranker(oracle_model(), sort=sort, labels="brackets"),
        RankR1Reranker(oracle_model(), sort=sort),
    ):
        (result,) = rerank_checked(reranker, [graded("q", count)])
        assert list(result.ids)[:4] == best(count)[:4]
        assert result.usage.malformed == 0
        assert (result.usage.generated_tokens > 0) == (isinstance(reranker, RankR1Reranker) and count > 1)


@pytest.mark.parametrize("sorting", ["heap", "bubble"])
@pytest.mark.parametrize("text", ["", "<answer>[1]</answer>", "<think>x</think><answer>the first</answer>"])
def test_answers_that_name_nothing_leave_the_first_order(sorting: Any, text: str, oracle_model: Oracle) -> None:
    model = oracle_model(write=lambda prompt, sample: text)
    request = graded("q", 20)
    sort = SetSort(sorting, k=5, children=3, presentation="shuffled")
    (result,) = rerank_checked(RankR1Reranker(model, sort=sort), [request])
    assert result.ids == request.ids
    assert result.usage.malformed == result.usage.calls > 0


class FirstOfSet:
    """Always names the first document that it sees."""

    def identity(self) -> dict[str, Any]:
        return {}

    def choose(self, sets: Any, /) -> list[Answer[int | None]]:
        return [Answer(0, Usage(1)) for _ in sets]


@pytest.mark.parametrize("sorting", ["heap", "bubble"])
def test_a_model_that_always_names_the_first_of_a_set_changes_nothing(sorting: Any) -> None:
    request = graded("q", 20)
    (result,) = rerank_checked(SetwiseSorter(FirstOfSet(), sort=SetSort(sorting, k=6)), [request])
    assert result.ids == request.ids


def test_shuffles_belong_to_query_seed_and_set() -> None:
    one, other = graded("q1", 10), graded("q2", 10)
    sort, again = SetSort(presentation="shuffled"), SetSort(presentation="shuffled", seed=1)
    group = (7, 2, 9, 4, 0, 1, 3)
    assert sort.shown(one, group) == sort.shown(one, group[::-1])
    assert sorted(sort.shown(one, group)) == sorted(group)
    assert sort.shown(one, group) != sort.shown(other, group)
    assert sort.shown(one, group) != again.shown(one, group)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("<think>a</think> <answer>[3]</answer>", 2),
        ("<THINK>a\nb</THINK>\n<ANSWER> [1] </ANSWER>", 0),
        ("<think>a</think><answer>3</answer>", None),
        ("<answer>[3]</answer>", None),
        ("<think>a</think><answer>[4]</answer>", None),
        ("<think>a</think><answer>[0]</answer>", None),
        ("<think>x</think> <answer>[1]</answer> <think>y</think> <answer>[3]</answer>", 0),
        ("", None),
    ],
)
def test_reading_a_choice(text: str, place: int | None) -> None:
    assert read_choice(text, 3) == place


def test_what_cannot_be_is_refused(oracle_model: Oracle, chat_tokenizer: Any) -> None:
    with pytest.raises(ConfigError, match="27 documents"):
        SetwiseReranker(oracle_model(), sort=SetSort(children=26))
    with pytest.raises(ConfigError, match="at least 2"):
        SetSort(children=1)
    with pytest.raises(ConfigError, match=r"sorting 'quick'"):
        load_reranker("prp", oracle_model(), sorting="quick")
    model = oracle_model()
    model.tokenizer = chat_tokenizer
    with pytest.raises(ConfigError, match="' A' ends the prompt"):
        SetwiseReranker(model)


def test_named_with_flat_settings(oracle_model: Oracle) -> None:
    reranker: Any = load_reranker("rank-r1", oracle_model(), children=9, k=3, tokens=100)
    identity = reranker.identity()
    assert (identity["children"], identity["k"], identity["presentation"]) == (9, 3, "shuffled")
    assert identity["reading"]["tokens"] == 100
