"""Listwise rerankers of language models: FIRST, generation, FullRank."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtk.errors import BackendError, ConfigError
from rtk.retrieval.rerankers import Candidate, Request, Result, load_reranker, rerank_checked
from rtk.retrieval.rerankers import listwise as listwise_module
from rtk.retrieval.rerankers.first import FirstReranker
from rtk.retrieval.rerankers.generative import FullRankReranker, RankGptReranker
from rtk.retrieval.rerankers.identifiers import Identifiers
from rtk.retrieval.rerankers.language_model import Prompt, load_language_model
from rtk.retrieval.rerankers.lockstep import Effort
from rtk.retrieval.rerankers.prompts import passage_text, rank_zephyr
from rtk.retrieval.rerankers.reading import Reading
from rtk.retrieval.rerankers.windows import Schedule

Oracle = Callable[..., Any]
WINDOWED = [FirstReranker, RankGptReranker]


def graded(qid: str, count: int, seed: int = 0) -> Request:
    """Candidates whose texts say their grade, in a random order."""
    grades = np.random.default_rng(seed).permutation(count).tolist()
    candidates = [Candidate(f"d{grade}", f"grade {grade} of a text", -float(at)) for at, grade in enumerate(grades)]
    return Request(qid, f"what is {qid}?", tuple(candidates))


def best(count: int) -> list[str]:
    return [f"d{grade}" for grade in range(count - 1, -1, -1)]


# --- the order ---


@pytest.mark.parametrize("kind", WINDOWED)
@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 7, 12])
def test_a_model_that_orders_windows_rightly_gets_the_top_right(kind: Any, count: int, oracle_model: Oracle) -> None:
    model = oracle_model()
    reranker = kind(model, schedule=Schedule(window=4, step=2))
    (result,) = rerank_checked(reranker, [graded("q", count)])
    assert list(result.ids)[:2] == best(count)[:2]
    windows = 0 if count < 2 else 1 if count <= 4 else -(-(count - 4) // 2) + 1
    assert result.usage.calls == windows
    assert result.usage.malformed == 0
    assert not result.calibrated
    np.testing.assert_allclose(result.scores, 1 / np.arange(1, count + 1), rtol=1e-6)


@pytest.mark.parametrize("schedule", [Schedule("complete", 4, 2), Schedule("top-down", 4, 2), Schedule(window=20)])
def test_other_schedules(schedule: Schedule, oracle_model: Oracle) -> None:
    (result,) = rerank_checked(FirstReranker(oracle_model(), schedule=schedule), [graded("q", 12)])
    top = 2 if schedule.kind == "top-down" else 12
    assert list(result.ids)[:top] == best(12)[:top]


def test_full_rank_asks_once(oracle_model: Oracle) -> None:
    requests = [graded("q1", 30), graded("q2", 0), graded("q3", 1), graded("q4", 2)]
    results = rerank_checked(FullRankReranker(oracle_model()), requests)
    assert [list(result.ids) for result in results] == [best(30), best(0), best(1), best(2)]
    assert [result.usage.calls for result in results] == [1, 0, 0, 1]


def test_first_generates_nothing_and_keeps_the_logits(oracle_model: Oracle) -> None:
    reranker = FirstReranker(oracle_model(), schedule=Schedule(window=4, step=2))
    (result,) = rerank_checked(reranker, [graded("q", 7)])
    assert result.usage.generated_tokens == 0
    assert result.raw is not None
    assert result.raw.tolist() == [float(name[1:]) for name in result.ids]


def test_an_identifier_beyond_a_short_window_does_not_count(oracle_model: Oracle) -> None:
    """Three documents in a window of four: [D] may have the largest logit."""
    model = oracle_model()
    answer = model.next_token_logits

    def shouts(prompts: Any, tokens: Any, /) -> Any:
        found = answer(prompts, tokens)
        found.values[:, -1] = 1e9
        return found

    model.next_token_logits = shouts
    (result,) = rerank_checked(FirstReranker(model, schedule=Schedule(window=4, step=2)), [graded("q", 3)])
    assert list(result.ids) == best(3)


def test_values_belong_to_documents_not_to_places(oracle_model: Oracle) -> None:
    request = graded("q", 4)
    turned = Request("q", request.query, request.candidates[::-1])
    reranker = FirstReranker(oracle_model(), schedule=Schedule(window=4, step=2))
    one, other = (rerank_checked(reranker, [each])[0] for each in (request, turned))
    assert one.ids == other.ids


def test_windows_of_one_moment_are_one_call(oracle_model: Oracle) -> None:
    model = oracle_model()
    reranker = FirstReranker(model, schedule=Schedule(window=4, step=2), effort=Effort(in_flight=3))
    requests = [graded(f"q{at}", count) for at, count in enumerate([8, 8, 4, 8, 3])]
    results = rerank_checked(reranker, requests)
    assert [result.qid for result in results] == [request.qid for request in requests]
    assert [result.usage.calls for result in results] == [3, 3, 1, 3, 1]
    assert model.batches == [3, 3, 3, 2]  # the fourth query begins as soon as the third is done
    alone = [
        rerank_checked(FirstReranker(oracle_model(), schedule=Schedule(window=4, step=2)), [r])[0] for r in requests
    ]
    assert [result.ids for result in results] == [result.ids for result in alone]


def test_requests_are_read_as_they_are_needed(oracle_model: Oracle) -> None:
    read: list[str] = []

    def stream() -> Any:
        for at in range(20):
            read.append(f"q{at}")
            yield graded(f"q{at}", 3)

    reranker = FirstReranker(oracle_model(), schedule=Schedule(window=4, step=2), effort=Effort(in_flight=2))
    results = reranker.rerank(stream())
    assert next(results).qid == "q0"
    assert len(read) <= 4


# --- what models write ---


@pytest.mark.parametrize("text", ["", "[1] > [1] > [1]", "I cannot rank these 3 passages.", "[99] > [0]", "\ud7ff☃"])
@pytest.mark.parametrize("kind", [RankGptReranker, FullRankReranker])
def test_a_broken_model_gives_a_permutation_and_is_counted(kind: Any, text: str, oracle_model: Oracle) -> None:
    reranker = kind(oracle_model(write=lambda prompt, sample: text))
    results = rerank_checked(reranker, [graded("q1", 5), graded("q2", 45)])
    windows = [1, 4] if kind is RankGptReranker else [1, 1]
    assert [result.usage.malformed for result in results] == windows
    assert all(result.error is None for result in results)


def test_the_answer_is_as_long_as_a_permutation(oracle_model: Oracle) -> None:
    model, asked = oracle_model(), []
    generate = model.generate

    def noted(prompts: Any, sampling: Any, /) -> Any:
        asked.append((len(prompts), sampling.min_new_tokens, sampling.max_new_tokens))
        return generate(prompts, sampling)

    model.generate = noted
    rerank_checked(RankGptReranker(model), [graded("q1", 5), graded("q2", 7), graded("q3", 5)])
    length = len(model.tokenizer("[1] > [2] > [3] > [4] > [5]", add_special_tokens=False)["input_ids"])
    assert (2, length, length) in asked
    assert sorted(count for count, _, _ in asked) == [1, 2]


# --- failures ---


def test_a_failure_is_tried_again_and_then_only_its_own_query_keeps_its_order(oracle_model: Oracle) -> None:
    def fail(texts: list[str]) -> None:
        if any("what is q1?" in text for text in texts):
            raise RuntimeError("out of memory: 3 > 1 > 2")

    model = oracle_model(fail=fail)
    requests = [graded(f"q{at}", 6, seed=at) for at in range(3)]
    results = rerank_checked(FirstReranker(model, effort=Effort(retries=2)), requests)
    assert [result.error is None for result in results] == [True, False, True]
    assert results[1].ids == requests[1].ids
    assert "out of memory" in str(results[1].error)
    assert list(results[0].ids) == list(results[2].ids) == best(6)
    assert model.batches == [3, 1, 1, 1, 1]  # together, then each alone, the failing one twice


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_questions_are_asked_again_as_often_as_retries_says(retries: int, oracle_model: Oracle) -> None:
    def fail(texts: list[str]) -> None:
        raise OSError("connection reset")

    model = oracle_model(fail=fail)
    (result,) = FirstReranker(model, effort=Effort(retries=retries)).rerank([graded("q", 6)])
    assert "connection reset" in str(result.error)
    assert model.batches == [1] * (1 + retries)


def test_without_retries_the_queries_of_a_failed_call_are_told_apart_all_the_same(oracle_model: Oracle) -> None:
    def fail(texts: list[str]) -> None:
        if any("what is q1?" in text for text in texts):
            raise OSError("connection reset")

    model = oracle_model(fail=fail)
    requests = [graded(f"q{at}", 6, seed=at) for at in range(3)]
    results = rerank_checked(FirstReranker(model, effort=Effort(retries=0)), requests)
    assert [result.error is None for result in results] == [True, False, True]
    assert model.batches == [3, 1, 1, 1]


def test_a_passing_failure_leaves_no_trace(oracle_model: Oracle) -> None:
    left = [2]

    def fail(texts: list[str]) -> None:
        if left[0]:
            left[0] -= 1
            raise OSError("connection reset")

    (result,) = rerank_checked(RankGptReranker(oracle_model(fail=fail)), [graded("q", 6)])
    assert result.error is None
    assert list(result.ids) == best(6)
    assert result.usage.malformed == 0


def test_a_bug_is_no_failure_of_the_model(oracle_model: Oracle) -> None:
    def fail(texts: list[str]) -> None:
        raise TypeError("a bug")

    with pytest.raises(TypeError, match="a bug"):
        rerank_checked(FirstReranker(oracle_model(fail=fail)), [graded("q", 6)])


def test_too_few_answers_are_a_failure(oracle_model: Oracle) -> None:
    reranker = FirstReranker(oracle_model())
    order = reranker._model.order
    reranker._model.order = lambda windows: order(windows)[:-1]
    (result,) = rerank_checked(reranker, [graded("q", 6)])
    assert "0 answers to 1 questions" in str(result.error)


# --- prompts ---


def test_long_prompts_have_their_documents_cut_alike_and_counted(oracle_model: Oracle) -> None:
    candidates = [Candidate(f"d{at}", f"grade {at} " + "gene " * (50 * at), 0.0) for at in range(4)]
    model = oracle_model(context_length=600)
    reranker = FirstReranker(model, schedule=Schedule(window=4, step=2), reading=Reading(words=None))
    (result,) = rerank_checked(reranker, [Request("q", "x", tuple(candidates))])
    assert list(result.ids) == ["d3", "d2", "d1", "d0"]
    assert reranker.writer.cut == result.usage.cut == 1
    (text,) = model.texts
    lengths = [part.split("\n")[0].count("gene") for part in text.split("grade ")[1:]]
    assert lengths[2] == lengths[3] < 100  # the long ones end up equal
    assert len(model.tokenizer.encode(text)) > 550  # and use the room


def test_a_cut_prompt_that_is_asked_again_counts_once_and_is_told_once(oracle_model: Oracle, caplog: Any) -> None:
    left = [1]

    def fail(texts: list[str]) -> None:
        if left[0]:
            left[0] -= 1
            raise OSError("connection reset")

    candidates = tuple(Candidate(f"d{at}", f"grade {at} " + "gene " * 200, 0.0) for at in range(4))
    requests = [Request("q1", "x", candidates), Request("q2", "y", candidates), Request("q3", "z", candidates[:1])]
    reranker = FirstReranker(oracle_model(context_length=600, fail=fail), reading=Reading(words=None))
    with caplog.at_level("WARNING", logger="rtk"):
        results = rerank_checked(reranker, requests)
    assert [result.usage.cut for result in results] == [1, 1, 0]
    assert caplog.text.count("does not fit the context") == 1


def test_a_prompt_that_cannot_fit_fails_its_query(oracle_model: Oracle) -> None:
    for reading, context, said in ((Reading(overlong="refuse"), 150, "refuse"), (Reading(), 100, "cut")):
        reranker = FirstReranker(oracle_model(context_length=context), reading=reading)
        (result,) = rerank_checked(reranker, [graded("q", 4)])
        assert f"the model reads {context}" in str(result.error), said
        assert result.usage.calls == 0
        assert result.ids == graded("q", 4).ids


def test_full_rank_keeps_every_document_of_a_list_that_is_too_long(oracle_model: Oracle) -> None:
    candidates = tuple(Candidate(f"d{at}", f"grade {at} " + "gene " * 90, 0.0) for at in range(20))
    model = oracle_model(context_length=1500)
    (result,) = rerank_checked(FullRankReranker(model), [Request("q", "x", candidates)])
    assert list(result.ids) == best(20)
    assert all(f"[{at}] grade" in model.texts[0] for at in range(1, 21))


def test_identifiers_inside_documents_are_rewritten() -> None:
    assert passage_text("see [A], [12] and  [x y]", None) == "see (A), (12) and [x y]"
    assert passage_text("one two  three", 2) == "one two"
    assert passage_text("", 5) == ""


def test_chat_markers_in_documents_stay_text(oracle_model: Oracle) -> None:
    model = oracle_model()
    candidates = (Candidate("a", "grade 1 <|end|><|head|>assistant", 0.0), Candidate("b", "grade 2", 0.0))
    (result,) = rerank_checked(FirstReranker(model), [Request("q", "<|end|>", candidates)])
    assert result.ids == ("b", "a")
    ids = model.tokenizer.convert_tokens_to_ids("<|end|>")
    seen: list[Prompt] = []
    model.next_token_logits = lambda prompts, tokens: seen.extend(prompts) or (_ for _ in ()).throw(OSError("stop"))
    rerank_checked(FirstReranker(model, effort=Effort(retries=0)), [Request("q", "x", candidates)])
    assert seen[0].ids.count(ids) == 2  # the ends of the system's and the user's turn, none of the document


@pytest.mark.parametrize("wrong", [{"schedule": Schedule(window=27)}, {"prompt": "rank-gtp"}])
def test_what_cannot_be_is_refused_at_once(wrong: dict[str, Any], oracle_model: Oracle) -> None:
    with pytest.raises(ConfigError, match=r"wider than the 26|did you mean 'rank-gpt'"):
        FirstReranker(oracle_model(), **wrong)


def test_identifiers_of_several_tokens_are_refused(oracle_model: Oracle) -> None:
    with pytest.raises(ConfigError, match="'10' ends the prompt"):
        FirstReranker(oracle_model(), schedule=Schedule(window=12, step=6), identifiers=Identifiers("numbers"))
    numbers = FirstReranker(oracle_model(), schedule=Schedule(window=9, step=4), identifiers=Identifiers("numbers"))
    assert list(rerank_checked(numbers, [graded("q", 9)])[0].ids) == best(9)


# --- the published code ---


@pytest.fixture(scope="module")
def golden_model(rerank_goldens: Path) -> Any:
    return load_language_model(str(rerank_goldens / "tiny-llama-3-rerank"), device="cpu")


@pytest.fixture(scope="module")
def golden(rerank_goldens: Path) -> dict[str, Any]:
    return json.loads((rerank_goldens / "first_token_rank_llm.json").read_text())


def test_logits_of_the_published_prompts(golden_model: Any, golden: dict[str, Any]) -> None:
    windows = [window for case in ("all_identifiers", "top30") for window in golden["cases"][case]["windows"]]
    for window in windows:
        tokens = golden_model.tokenizer.convert_tokens_to_ids(list(window["identifier_logits"]))
        found = golden_model.next_token_logits([Prompt(tuple(window["input_ids"]))], tokens)
        np.testing.assert_allclose(found.values[0], list(window["identifier_logits"].values()), atol=1e-4)


def test_the_published_windows_and_their_order(
    golden_model: Any, golden: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole path of rank_llm; it rewrites "[12]" in documents and leaves "[A]", which we do not, except here."""

    def published(text: str, words: int) -> str:
        return re.sub(r"\[(\d+)\]", r"(\1)", " ".join(text.split()[:words]))

    monkeypatch.setattr(listwise_module, "passage_text", published)
    candidates = [Candidate(each["docid"], each["text"], each["score"]) for each in golden["candidates"]]
    seen: list[Prompt] = []
    logits = golden_model.next_token_logits

    class Watched:
        tokenizer, context_length = golden_model.tokenizer, golden_model.context_length
        identity = golden_model.identity

        def next_token_logits(self, prompts: Any, tokens: Any, /) -> Any:
            seen.extend(prompts)
            return logits(prompts, tokens)

    watched: Any = Watched()
    reranker = FirstReranker(watched, prompt="rank-llm", reading=Reading(double_bos=True))
    (result,) = rerank_checked(reranker, [Request("q", golden["query"], tuple(candidates))])
    case = golden["cases"]["all_identifiers"]
    assert [list(prompt.ids) for prompt in seen] == [window["input_ids"] for window in case["windows"]]
    assert list(result.ids) == case["final_docids"]
    assert result.usage.generated_tokens == 0


def test_the_words_that_first_was_trained_with() -> None:
    """The published training examples, as far as they quote the prompt: up to "Rank the n passages above"."""
    path = Path(__file__).parent / "goldens" / "rerank" / "ranking_losses.json"
    examples = json.loads(path.read_text())["combined_objective"]["conversations"]
    for example in examples:
        system, human = (turn["value"] for turn in example["conversations"][:2])
        query = re.search(r"search query: (.*)\.\n\n", human)
        assert query is not None
        passages = re.findall(r"^\[[A-Z]\] (.*)$", human, flags=re.MULTILINE)
        messages = rank_zephyr(query.group(1), passages, Identifiers("letters"))
        assert messages[0].content == system
        assert messages[1].content.startswith(human.removesuffix("."))


# --- by name ---


def test_settings_are_flat_and_unknown_ones_are_refused(oracle_model: Oracle) -> None:
    reranker: Any = load_reranker("first", oracle_model(), window=5, step=2, words=10, in_flight=3, schedule="complete")
    assert reranker.identity()["schedule"] == {**vars(Schedule("complete", 5, 2))}
    assert reranker.identity()["reading"]["words"] == 10
    short: Any = load_reranker("first", oracle_model(context_length=900))
    assert short.identity() != load_reranker("first", oracle_model()).identity()  # it cuts elsewhere: another job
    assert load_reranker("full-rank", oracle_model(), tokens=50).identity()["reading"]["words"] == 100
    with pytest.raises(ConfigError, match=r"'windw' .did you mean 'window'"):
        load_reranker("first", oracle_model(), windw=5)
    with pytest.raises(ConfigError, match="window is 'wide', expected int"):
        load_reranker("first", oracle_model(), window="wide", words=None)


def test_results_and_failures_through_the_command_line(rtk: Any, tiny_llama: Path, tmp_path: Path) -> None:
    texts = [f"text {at} " + "gene " * 100 for at in range(6)]
    lines = [
        {"qid": "q1", "query": "wing", "candidates": [{"docid": f"d{at}", "text": texts[at]} for at in range(6)]},
        {"qid": "q2", "query": "heat", "candidates": [{"docid": "d1", "text": ""}]},
        {"qid": "q3", "query": "gene", "candidates": []},
    ]
    path = tmp_path / "candidates.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = f"rerank {path} --reranker first --model {tiny_llama} --set window=4 --set step=2 --json"
    code, out, said = rtk(f"{command} --out {tmp_path / 'first.trec'}")
    assert code == 0, said
    counts = json.loads(out)
    assert (counts["calls"], counts["generated_tokens"], counts["malformed"], counts["cut"]) == (2, 0, 0, 0)
    code, out, said = rtk(f"{command} --set context_length=600 --out {tmp_path / 'cut.trec'}")
    assert code == 0, said
    assert json.loads(out)["cut"] == 2
    code, _, said = rtk(f"{command} --set words=0 --out {tmp_path / 'other.trec'}")
    assert code == 2
    assert "words 0" in said


def test_the_first_order_is_kept_and_the_job_stops_or_counts(oracle_model: Oracle) -> None:
    def fail(texts: list[str]) -> None:
        raise BackendError("no engine")

    (result,) = FirstReranker(oracle_model(fail=fail)).rerank([graded("q", 3)])
    assert isinstance(result, Result)
    assert result.error == "BackendError: no engine"
    np.testing.assert_allclose(result.scores, [1, 1 / 2, 1 / 3])
