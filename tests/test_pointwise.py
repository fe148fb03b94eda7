"""Pointwise rerankers of language models: each document by itself, whatever else is in the call."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtk.errors import ConfigError
from rtk.retrieval.rerankers import Candidate, Request, load_reranker, rerank_checked
from rtk.retrieval.rerankers.language_model import Message, load_language_model
from rtk.retrieval.rerankers.pointwise import standardised
from rtk.retrieval.rerankers.pointwise_tokens import (
    GradedReranker,
    MonoT5Reranker,
    ProRankReranker,
    YesNoReranker,
    expected_grade,
    first_words,
)
from rtk.retrieval.rerankers.pointwise_written import ERankReranker, RetroReranker, Wording
from rtk.retrieval.rerankers.query_likelihood import QueryLikelihoodReranker
from rtk.retrieval.rerankers.reading import PromptWriter, Reading, decoder_tokens
from rtk.retrieval.rerankers.scores import ScoreFormat

Oracle = Callable[..., Any]
TEXTS = ["a wing", "heat and air flow over the wing " * 9, "", "größe 日本語 <|end|>", "a wing", "protein [A] (12)"]


def request_of(qid: str, texts: list[str]) -> Request:
    return Request(
        qid, f"what is {qid}?", tuple(Candidate(f"d{at}", text, -float(at)) for at, text in enumerate(texts))
    )


def graded(qid: str = "q", grades: tuple[int, ...] = (3, 9, 1, 7)) -> Request:
    candidates = (Candidate(f"d{grade}", f"grade {grade}", -float(at)) for at, grade in enumerate(grades))
    return Request(qid, "what?", tuple(candidates))


# --- by an oracle ---


@pytest.mark.parametrize("kind", [YesNoReranker, ProRankReranker, ERankReranker, RetroReranker])
def test_documents_stand_by_their_scores(kind: Any, oracle_model: Oracle) -> None:
    (result,) = rerank_checked(kind(oracle_model()), [graded()])
    assert result.ids == ("d9", "d7", "d3", "d1")
    assert result.calibrated
    assert result.usage.malformed == 0
    assert (result.usage.generated_tokens > 0) == (kind in (ERankReranker, RetroReranker))


def test_all_pairs_of_the_queries_in_flight_are_one_call(oracle_model: Oracle) -> None:
    model = oracle_model()
    rerank_checked(YesNoReranker(model), [graded("q1"), graded("q2", (5, 2)), graded("q3", ())])
    assert model.batches == [4 + 2]


def test_equal_texts_are_read_once_and_tie(oracle_model: Oracle) -> None:
    model = oracle_model()
    request = request_of("q", ["grade 5", "grade 7", "grade 5", "grade 7"])
    (result,) = rerank_checked(YesNoReranker(model), [request])
    assert result.ids == ("d1", "d3", "d0", "d2")
    assert model.batches == [2]
    assert result.usage.calls == 2


def test_expected_grade() -> None:
    logits = np.array([[0.0, 0.0, 0.0], [-1000, 0, 1000], [1, 2, 3]], dtype=np.float32)
    weights = np.exp([1.0, 2.0, 3.0])
    np.testing.assert_allclose(expected_grade(logits), [1.0, 2.0, (weights[1] + 2 * weights[2]) / weights.sum()])


def test_fusion_with_the_first_stage(oracle_model: Oracle) -> None:
    request = graded(grades=(3, 9, 1, 7))  # first-stage scores 0, -1, -2, -3
    first = rerank_checked(ERankReranker(oracle_model(), fusion=1.0), [request])[0]
    assert first.ids == request.ids
    assert not first.calibrated
    assert first.raw is not None
    assert first.raw[0] == pytest.approx(3 * 0.25)  # the model's own value, whatever it was mixed with
    mixed = rerank_checked(ERankReranker(oracle_model(), fusion=0.5), [request])[0]
    expected = standardised(np.array([0, -1, -2, -3])) + standardised(np.array([3, 9, 1, 7]))
    assert mixed.ids == tuple(request.ids[at] for at in np.argsort(-expected))
    assert standardised(np.array([2.0, 2.0])).tolist() == [0.0, 0.0]
    with pytest.raises(ConfigError, match="fusion 2"):
        ERankReranker(oracle_model(), fusion=2)


# --- written scores ---


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("<answer>10</answer>", 10),
        ("<answer> 07 </answer>", 7),
        ("<answer>0</answer>", 0),
        ("<answer>11</answer>", None),
        ("<answer>8.5</answer>", None),
        ("<answer>8/10</answer>", None),
        ("<answer>-3</answer>", None),
        ("<answer>٣</answer>", None),
        ("<answer></answer>", None),
        ("10", None),
        ("<answer>10", None),
        ("I write <answer>3</answer> or … <answer>4</answer>", 4),
        ("<answer>4</answer> no: <answer>none</answer>", None),
    ],
)
def test_a_written_score(text: str, value: int | None) -> None:
    found = ScoreFormat("answer", 10).read(text)
    assert (found and found.value) == value
    if found is not None:
        assert int(text[found.start : found.end]) == value


def test_a_score_of_a_hundred() -> None:
    assert ScoreFormat("score", 100).read("<score>\n100\n</score>") is not None
    assert ScoreFormat("score", 100).read("<score>101</score>") is None


def test_erank_weighs_a_score_by_the_probability_of_its_own_tokens(oracle_model: Oracle) -> None:
    model = oracle_model(write=lambda text, sample: "<think>3 or 4?</think><answer>10</answer>")
    (result,) = rerank_checked(ERankReranker(model), [graded(grades=(3,))])
    (before, answer), *_ = model.continued
    assert answer == "10"
    assert before.endswith("<think>3 or 4?</think><answer>")
    digits = len(model.tokenizer.encode("10"))
    assert result.scores[0] == pytest.approx(10 * 0.25**digits)


def test_retro_averages_the_samples_that_can_be_read(oracle_model: Oracle) -> None:
    said = ["<score>80</score>", "no idea", "<score>60</score>", "<score>300</score>"]
    model = oracle_model(write=lambda text, sample: said[sample] if "grade 3" in text else "nothing")
    (result,) = rerank_checked(RetroReranker(model, samples=4), [graded(grades=(3, 9))])
    assert result.ids == ("d3", "d9")
    assert result.scores.tolist() == [70.0, 0.0]
    assert result.usage.malformed == 2 + 4
    with pytest.raises(ConfigError, match="greedy samples"):
        RetroReranker(model, samples=2, temperature=0)


def test_a_checkpoints_own_words_come_from_a_file(oracle_model: Oracle, tmp_path: Path) -> None:
    path = tmp_path / "prompt.txt"
    path.write_text('{"why": {relevance}}: {query} | {document}')
    reranker = RetroReranker(oracle_model(), relevance="helps", prompt_file=str(path))
    assert reranker.identity()["prompt"] == ['{"why": helps}: {query} | {document}']
    assert Wording("{a}, {b}, {c}").substitute(a="{b}", b="x") == "{b}, x, {c}", "what is put in is not filled again"
    path.write_text("{query} only")
    with pytest.raises(ConfigError, match=r"lacks the places \{relevance\}, \{document\}"):
        RetroReranker(oracle_model(), prompt_file=str(path))
    with pytest.raises(ConfigError, match="cannot be read"):
        ERankReranker(oracle_model(), prompt_file=str(tmp_path / "nowhere"))


# --- by real models ---


@pytest.fixture(scope="module")
def llama(tiny_llama: Path) -> Any:
    return load_language_model(str(tiny_llama), device="cpu")


NAMED = {
    "graded": {},
    "prorank": {},
    "query-likelihood": {},
    "yes-no": {"yes": "Y", "no": "N"},
    "erank": {"max_new_tokens": 3},
    "retro": {"max_new_tokens": 3, "samples": 2},
}


@pytest.mark.parametrize("name", sorted(NAMED))
def test_scores_depend_on_the_pair_alone(name: str, llama: Any) -> None:
    requests = [request_of("q1", TEXTS), request_of("q2", TEXTS[::-1]), request_of("q3", []), request_of("q4", [""])]
    together = rerank_checked(load_reranker(name, llama, **NAMED[name]), requests)
    assert [len(result.ids) for result in together] == [6, 6, 0, 1]
    for request, result in zip(requests, together, strict=True):
        alone = rerank_checked(load_reranker(name, llama, in_flight=1, **NAMED[name]), [request])[0]
        scores = dict(zip(alone.ids, alone.scores.tolist(), strict=True))
        np.testing.assert_allclose(result.scores, [scores[each] for each in result.ids], atol=2e-4)
    (result, *_) = together
    scores = dict(zip(result.ids, result.scores.tolist(), strict=True))
    assert scores["d0"] == scores["d4"]  # equal texts


def test_yes_no_is_the_difference_of_two_logits(llama: Any) -> None:
    reranker = YesNoReranker(llama, yes="Y", no="N")
    (result,) = rerank_checked(reranker, [request_of("q", ["a wing"])])
    content = "Passage: a wing\nQuery: what is q?\nDoes the passage answer the query? Answer 'Yes' or 'No'"
    prompt = PromptWriter(llama).renderer.render([Message("user", content)])
    yes, no = llama.next_token_logits([prompt], llama.tokenizer.convert_tokens_to_ids(["Y", "N"])).values[0]
    assert result.scores[0] == pytest.approx(yes - no, abs=1e-5)


def test_answers_of_several_tokens_are_refused(llama: Any) -> None:
    with pytest.raises(ConfigError, match="'Yes' ends the prompt in"):
        YesNoReranker(llama)
    with pytest.raises(ConfigError, match="same token"):
        YesNoReranker(llama, yes="Y", no="Y")
    with pytest.raises(ConfigError, match="grades 0 to 12"):
        GradedReranker(llama, most=12)


def test_answers_that_yaml_takes_for_truth_values_are_told_how_to_be_written(llama: Any) -> None:
    with pytest.raises(ConfigError, match=r"""yes is True.*--set 'yes="yes"'"""):
        load_reranker("yes-no", llama, yes=True)


def test_a_plain_template_where_there_is_no_chat(llama: Any) -> None:
    reranker = YesNoReranker(llama, yes="Y", no="N", reading=Reading(template="plain"))
    (result,) = rerank_checked(reranker, [request_of("q", TEXTS)])
    assert result.error is None


def test_query_likelihood_is_a_mean_or_a_sum(llama: Any) -> None:
    request = request_of("q", ["a wing", "heat"])
    mean, total = (
        rerank_checked(QueryLikelihoodReranker(llama, reduction=how), [request])[0] for how in ("mean", "sum")
    )
    length = len(llama.tokenizer(request.query, add_special_tokens=False)["input_ids"])
    np.testing.assert_allclose(mean.scores * length, total.raw, rtol=1e-5)
    assert (mean.calibrated, total.calibrated) == (True, False)
    (failed,) = rerank_checked(QueryLikelihoodReranker(llama), [Request("e", "", request.candidates)])
    assert "no tokens whose likelihood" in str(failed.error)


def test_the_likelihood_of_a_query_does_not_depend_on_a_longer_one_beside_it(llama: Any) -> None:
    short = load_language_model((llama.model, llama.tokenizer), context_length=160)
    document = "heat and air flow over the wing " * 20
    asked = Request("short", "wing", (Candidate("d", document),))
    longer = Request("long", "heat flow " * 20, (Candidate("d", document),))
    (alone,) = rerank_checked(QueryLikelihoodReranker(short), [asked])
    beside, other = rerank_checked(QueryLikelihoodReranker(short), [asked, longer])
    assert (alone.usage.cut, other.usage.cut) == (1, 1)
    np.testing.assert_allclose(beside.scores, alone.scores, atol=1e-5)


def test_proranks_cut_of_a_query_is_counted(llama: Any) -> None:
    short = load_language_model((llama.model, llama.tokenizer), context_length=1200)
    long, fits = Request("q1", "heat " * 1100, (Candidate("d", "x"),)), request_of("q2", ["x"])
    cut, whole = rerank_checked(load_reranker("prorank", short), [long, fits])
    assert (cut.usage.cut, whole.usage.cut) == (1, 0)


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("name", ["graded", "prorank", "yes-no", "query-likelihood"])
def test_a_value_that_is_not_finite_fails_the_query(name: str, oracle_model: Oracle) -> None:
    model = oracle_model()
    logits, likelihoods = model.next_token_logits, model.continuation_log_probs

    def infinite(ask: Any) -> Any:
        def answer(*given: Any) -> Any:
            answers = ask(*given)
            answers.values[:] = np.inf
            return answers

        return answer

    model.next_token_logits, model.continuation_log_probs = infinite(logits), infinite(likelihoods)
    (result,) = load_reranker(name, model, retries=0).rerank([graded()])
    assert "values must be finite" in str(result.error)
    assert result.ids == graded().ids


@pytest.fixture(scope="module")
def t5(answer_tokenizer: Any) -> Any:
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=len(answer_tokenizer), d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4,
        pad_token_id=answer_tokenizer.pad_token_id,
        eos_token_id=answer_tokenizer.eos_token_id, initializer_factor=5.0,
    )  # fmt: skip
    config.decoder_start_token_id = answer_tokenizer.pad_token_id
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return load_language_model((T5ForConditionalGeneration(config), answer_tokenizer), context_length=128)


def test_mono_t5_reads_the_first_step_of_the_decoder(t5: Any) -> None:
    import torch

    reranker = MonoT5Reranker(t5)
    (result,) = rerank_checked(reranker, [request_of("q", ["a wing", "heat " * 300])])
    assert reranker.writer.cut == result.usage.cut == 1
    ids = t5.tokenizer("Query: what is q? Document: a wing Relevant:")["input_ids"]
    true, false = decoder_tokens(t5.tokenizer, ["true", "false"])
    with torch.inference_mode():
        start = torch.tensor([[t5.model.config.decoder_start_token_id]])
        logits = t5.model(input_ids=torch.tensor([ids]), decoder_input_ids=start).logits[0, 0]
    by_id = dict(zip(result.ids, result.scores.tolist(), strict=True))
    assert by_id["d0"] == pytest.approx(float(logits[true] - logits[false]), abs=1e-4)


def test_a_cut_document_leaves_the_prompts_end(t5: Any) -> None:
    seen: list[str] = []
    ask = t5.next_token_logits

    class Watched:
        tokenizer, context_length, identity = t5.tokenizer, t5.context_length, t5.identity

        def next_token_logits(self, prompts: Any, tokens: Any, /) -> Any:
            seen.extend(t5.tokenizer.decode(prompt.ids) for prompt in prompts)
            return ask(prompts, tokens)

    watched: Any = Watched()
    rerank_checked(MonoT5Reranker(watched), [request_of("q", ["heat " * 300])])
    assert seen[0].endswith("Relevant:")


def test_first_words_keep_their_spacing() -> None:
    assert first_words("a  b\nc d", 3) == "a  b\nc"
    assert first_words("a b", 5) == "a b"
    assert first_words("a b ", None) == "a b "
