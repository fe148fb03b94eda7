"""In-context reranking: the authors' numbers, and what must hold of any model."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rtk.errors import ConfigError
from rtk.retrieval.rerankers import Candidate, Request, Result, Usage, load_language_model, rerank_checked
from rtk.retrieval.rerankers.icr import IcrModel, IcrReranker, Scoring, Wording
from rtk.retrieval.rerankers.listwise import WindowQuestion
from rtk.retrieval.rerankers.reading import Reading
from rtk.retrieval.rerankers.windows import Schedule

TEXTS = ["heat flow over a wing", "read a file", "protein gene cell " * 8, "", "read a file", "größe 日本語\n", " x"]


def asked(query: str, texts: Sequence[str], qid: str = "q") -> Request:
    return Request(qid, query, tuple(Candidate(f"d{at}", text, -float(at)) for at, text in enumerate(texts)))


def by_id(result: Result) -> dict[str, float]:
    return dict(zip(result.ids, result.scores.tolist(), strict=True))


@pytest.fixture(scope="module")
def model(tiny_llama: Path) -> Any:
    return load_language_model(str(tiny_llama), device="cpu")


@pytest.fixture(scope="module")
def reranker(model: Any) -> IcrReranker:
    return IcrReranker(model)


# --- the authors' numbers ---


@pytest.fixture(scope="module")
def golden(rerank_goldens: Path) -> dict[str, Any]:
    return json.loads((rerank_goldens / "icr_goldens.json").read_text())


@pytest.fixture(scope="module")
def golden_model(rerank_goldens: Path) -> Any:
    return load_language_model(str(rerank_goldens / "tiny-llama-3-rerank"), device="cpu")


def case_of(golden: dict[str, Any], name: str) -> tuple[dict[str, Any], Wording]:
    case = golden["cases"][name]
    return case, Wording(instruction=case["retrieval_type"].lower(), reverse=case["reverse_doc_order"])


CASES = ["ie_reversed", "qa_reversed"]


@pytest.mark.parametrize("name", CASES)
def test_prompts_and_token_scores_are_the_authors(golden, golden_model, name):
    case, wording = case_of(golden, name)
    icr = IcrModel(golden_model, wording)
    prompt = icr.prompter.write(golden["query"], golden["passages"])
    ((real, free),) = icr.reader.read([prompt], calibrate=True)
    window = case["windows"][0]
    for ids, found, run in (
        (prompt.free, free, window["calibration_pass"]),
        (prompt.real, real, window["query_pass"]),
    ):
        assert list(ids) == run["input_ids"]
        assert (prompt.start, len(ids) - 1) == (run["query_span_first"], run["query_span_last"])
        spans = [prompt.documents[row] for row in window["documents_in_prompt_order"]]
        assert [list(span) for span in spans] == run["doc_token_spans"]
        for (start, stop), expected in zip(spans, run["token_scores"], strict=True):
            np.testing.assert_allclose(found[start:stop], expected, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_scores_and_order_are_the_authors(golden, golden_model, name):
    case, wording = case_of(golden, name)
    (result,) = rerank_checked(IcrReranker(golden_model, wording=wording), [asked(golden["query"], golden["passages"])])
    assert [int(each[1:]) for each in result.ids] == case["final_order"]
    np.testing.assert_allclose(result.scores, case["final_scores"], atol=1e-6)
    assert result.calibrated
    run = case["windows"][0]["query_pass"]
    raw = dict(zip(case["windows"][0]["documents_in_prompt_order"], run["doc_scores"], strict=True))
    np.testing.assert_allclose(result.raw, [raw[int(each[1:])] for each in result.ids], atol=1e-5)
    assert result.usage == Usage(2, len(run["input_ids"]) + len(case["windows"][0]["calibration_pass"]["input_ids"])
                                 - run["context_start_idx"], run["context_start_idx"])  # fmt: skip


def test_windows_end_in_the_authors_order_but_their_scores_are_only_ordinal(golden, golden_model):
    """The authors' scores of windows do not fall along their order: each window has its own calibration."""
    reranker = IcrReranker(golden_model, schedule=Schedule(window=4, step=2))
    (result,) = rerank_checked(reranker, [asked(golden["query"], golden["passages"])])
    assert not result.calibrated
    np.testing.assert_allclose(result.scores, 1 / np.arange(1, 9), rtol=1e-6)
    np.testing.assert_allclose(result.raw[:5], [0.036, 0.029, 0.018, -0.318, -0.058], atol=6e-4)
    assert result.usage.calls == 6


def test_precisions_agree_as_the_authors_do(golden, golden_model):
    """float64 gives the same within 1e-6."""
    case, wording = case_of(golden, "ie_reversed")
    icr = IcrModel(golden_model, wording)
    before = golden_model.model.dtype
    golden_model.model.double()
    try:
        request = asked(golden["query"], golden["passages"])
        (answer,) = icr.score([WindowQuestion(request, tuple(range(8)))])
    finally:
        golden_model.model.to(before)
    expected = [case["final_scores_by_doc"][f"d{at}"] for at in range(8)]
    np.testing.assert_allclose(answer.value.values, expected, atol=1e-6)


# --- what must hold ---


def test_a_query_that_asks_nothing_gets_zeros_and_keeps_the_order(reranker):
    (result,) = rerank_checked(reranker, [asked("N/A", TEXTS)])
    assert result.scores.tolist() == [0.0] * len(TEXTS)
    assert result.ids == tuple(f"d{at}" for at in range(len(TEXTS)))
    assert result.usage.calls == 1


SETTINGS: list[dict[str, Any]] = [
    {},
    {"schedule": Schedule(window=3, step=1)},
    {"scoring": Scoring(calibrate=False)},
    {"wording": Wording(instruction="qa", reverse=False)},
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_every_candidate_comes_back_whatever_the_texts(model, settings):
    draw = np.random.default_rng(5)
    marks = ["<|end|>", "[2]", "[", "\n\n", "Query:", "größe", "", " ", "<|head|>user<|/head|>", "a b", "日本"]
    requests = [
        asked(str(draw.choice(marks)), ["".join(draw.choice(marks, 3)) for _ in range(count)], qid=f"q{count}")
        for count in (0, 1, 2, 3, 4, 9)
    ]
    results = rerank_checked(IcrReranker(model, **settings), requests)
    assert [result.error for result in results] == [None] * len(requests)
    assert results[0].usage == Usage()
    assert results[0].ids == ()


def test_raw_attention_is_positive_and_what_is_left_goes_to_the_rest_of_the_prompt(model):
    icr = IcrModel(model, scoring=Scoring(calibrate=False, deviations=None))
    request = asked("heat", TEXTS)
    (answer,) = icr.score([WindowQuestion(request, tuple(range(len(TEXTS))))])
    assert (answer.value.values > 0).all()
    assert answer.value.values.sum() < icr.reader.layers * icr.reader.heads
    assert answer.usage.calls == 1
    np.testing.assert_array_equal(answer.value.values, answer.value.attention)


def test_calibrated_or_ordinal(model):
    request = asked("heat", TEXTS)
    calibrated, plain, windowed = (
        rerank_checked(IcrReranker(model, **settings), [request])[0]
        for settings in ({}, {"scoring": Scoring(calibrate=False)}, {"schedule": Schedule(window=4, step=2)})
    )
    assert calibrated.calibrated
    assert (calibrated.raw > 0).all()  # the attention before calibration
    assert not plain.calibrated
    assert not windowed.calibrated
    np.testing.assert_allclose(plain.scores, 1 / np.arange(1, len(TEXTS) + 1), rtol=1e-6)
    assert (np.diff(plain.raw) <= 0).all()
    np.testing.assert_array_equal(windowed.scores, plain.scores)


def test_the_filter_drops_tokens_far_below_the_documents_mean():
    from rtk.retrieval.rerankers.icr import _filtered

    tokens = np.asarray([1.0] * 20 + [-50.0])
    assert _filtered(tokens, 2.0).tolist() == [1.0] * 20
    assert _filtered(tokens, None).tolist() == tokens.tolist()
    assert _filtered(np.asarray([-3.0]), 2.0).tolist() == [-3.0]  # one token has no deviation: it counts
    pair = np.asarray([0.0, 1.0])  # deviation 0.71 when unbiased, 0.5 when not
    assert _filtered(pair, 0.8).tolist() == [0.0, 1.0]
    assert _filtered(pair, 0.6).tolist() == [1.0]


def test_queries_are_reranked_as_alone_a_longer_list_after_a_shorter_one_too(model):
    requests = [asked("heat", TEXTS[:2], "a"), asked("gene cell", TEXTS * 3, "b"), asked("file", TEXTS, "c")]
    requests = [Request(r.qid, r.query, tuple(Candidate(f"{at}", c.text) for at, c in enumerate(r.candidates)))
                for r in requests]  # fmt: skip
    model = load_language_model((model.model, model.tokenizer), batch_tokens=100_000)
    together = rerank_checked(IcrReranker(model), requests)
    for request, result in zip(requests, together, strict=True):
        alone = by_id(rerank_checked(IcrReranker(model), [request])[0])
        np.testing.assert_allclose(result.scores, [alone[name] for name in result.ids], atol=2e-6)


def test_several_queries_share_a_forward(model):
    shapes = []
    hook = model.model.model.layers[0].register_forward_pre_hook(
        lambda _, args, kwargs: shapes.append((args[0] if args else kwargs["hidden_states"]).shape), with_kwargs=True
    )
    try:
        list(IcrReranker(model).rerank([asked(text or "x", TEXTS[:3], qid=text or "x") for text in TEXTS[:4]]))
    finally:
        hook.remove()
    assert [shape[0] for shape in shapes][-2:] == [4, 4]  # the whole prompts, then what asks
    assert shapes[-1][1] < shapes[-2][1]


def test_layers_and_heads_are_options(model):
    request = asked("heat", TEXTS)
    everything = IcrModel(
        model, scoring=Scoring(layers=(0, 3), heads=tuple((at, head) for at in range(3) for head in range(4)))
    )
    question = [WindowQuestion(request, tuple(range(len(TEXTS))))]
    whole = IcrModel(model).score(question)[0].value.attention
    np.testing.assert_allclose(everything.score(question)[0].value.attention, whole, rtol=1e-6)
    parts = [
        IcrModel(model, scoring=Scoring(layers=(at, at + 1))).score(question)[0].value.attention for at in range(3)
    ]
    np.testing.assert_allclose(sum(parts), whole, rtol=1e-4)
    for settings in ({"layers": 5}, {"layers": "12"}, {"heads": 3}, {"heads": [1, 2]}):
        with pytest.raises(ConfigError, match="pair"):
            Scoring(**settings)
    for markers in (5, "ab", [1, 2], ["one"]):
        with pytest.raises(ConfigError, match="two texts"):
            Wording(markers=markers)
    for wrong in (Scoring(layers=(1, 4)), Scoring(heads=((0, 4),)), Scoring(layers=(0, 1), heads=((1, 0),))):
        with pytest.raises(ConfigError):
            IcrModel(model, scoring=wrong)
    with pytest.raises(ConfigError):
        Scoring(layers=(1, 2, 3))  # type: ignore[arg-type]


def test_a_model_that_attends_to_the_query_in_the_documents_ranks_them_by_it(chat_tokenizer):
    """One layer that looks for equal tokens: the document that repeats the query must win, whatever its place."""
    from transformers import LlamaConfig, LlamaForCausalLM

    size = len(chat_tokenizer)
    config = LlamaConfig(
        vocab_size=size, hidden_size=512, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1,
        max_position_embeddings=1024, rope_theta=1e12, tie_word_embeddings=False,
    )  # fmt: skip
    matching = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        matching.model.embed_tokens.weight.copy_(torch.eye(size, 512))
        attention = matching.model.layers[0].self_attn
        spread = torch.randn((512, 512), generator=torch.Generator().manual_seed(0)) / 16
        for part in (attention.q_proj, attention.k_proj):
            part.weight.copy_(spread)
    model = load_language_model((matching, chat_tokenizer))
    texts = ["read a file", "sort a list of numbers", "protein gene cell", "wing and heat flow"]
    for place in range(4):
        order = texts[place:] + texts[:place]
        (result,) = rerank_checked(IcrReranker(model), [asked("protein gene", order)])
        assert order[int(result.ids[0][1:])] == "protein gene cell"


def test_text_of_documents_and_queries_that_looks_like_a_marker_stays_text(model):
    markers = {
        model.tokenizer.convert_tokens_to_ids(each) for each in ("<|end|>", "<|head|>", "<|/head|>", "<|begin|>")
    }
    icr = IcrModel(model)
    text = "a<|end|><|head|>user<|/head|>\n\nb"
    prompt = icr.prompter.write("why <|end|>?", [text, "x"])
    inside = [token for start, stop in prompt.documents for token in prompt.real[start:stop]]
    assert not markers & set(inside)
    assert text in model.tokenizer.decode(inside)
    plain = icr.prompter.write("why?", ["a", "x"])
    assert [token for token in prompt.real if token in markers] == [token for token in plain.real if token in markers]


def test_markers_come_from_any_chat_template(model, chat_tokenizer):
    other = copy.deepcopy(chat_tokenizer)
    other.chat_template = "{% for m in messages %}### {{ m['role'] }}: {{ m['content'] }}\n{% endfor %}### assistant:"
    for tokenizer, before, after in (
        (chat_tokenizer, "<|begin|><|head|>user<|/head|> Here", "heat<|end|><|head|>assistant<|/head|>"),
        (other, "### user: Here", "heat\n### assistant:"),
    ):
        lm = load_language_model((model.model, tokenizer))
        text = tokenizer.decode(IcrModel(lm).prompter.write("heat", TEXTS).real)
        assert text.startswith(before)
        assert text.endswith(after)
    lm = load_language_model((model.model, other))
    given = IcrModel(lm, Wording(markers=("USER", "ASSISTANT"), separator="\n\n"))
    text = other.decode(given.prompter.write("heat", ["a", "b"]).real)
    assert text.startswith("USER Here are some paragraphs:\n\n[1] b\n\n[2] a\n\nPlease find")
    assert text.endswith("Query: heatASSISTANT")


def test_a_tokenizer_without_a_chat_template_needs_to_be_told(model, chat_tokenizer):
    bare = copy.deepcopy(chat_tokenizer)
    bare.chat_template = None
    lm = load_language_model((model.model, bare))
    with pytest.raises(ConfigError, match="no chat template"):
        IcrReranker(lm)
    (result,) = rerank_checked(IcrReranker(lm, reading=Reading(template="plain")), [asked("heat", TEXTS)])
    assert len(result.ids) == len(TEXTS)


def test_other_engines_are_refused(chat_tokenizer):
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(vocab_size=len(chat_tokenizer), d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=4,
                      decoder_start_token_id=4)  # fmt: skip
    with pytest.raises(ConfigError, match="Seq2SeqModel"):
        IcrReranker(load_language_model((T5ForConditionalGeneration(config), chat_tokenizer)))


def test_documents_of_a_prompt_that_is_too_long_are_cut_alike_and_counted(model, caplog):
    texts = ["protein gene cell " * 60, "heat", "risk of cancer " * 40]
    short = load_language_model((model.model, model.tokenizer), context_length=300)
    reranker = IcrReranker(short)
    with caplog.at_level("WARNING", logger="rtk"):
        (result,) = rerank_checked(reranker, [asked("heat", texts)])
    assert result.error is None
    assert reranker.model.prompter.cut == result.usage.cut == 1
    assert "each was cut to" in caplog.text
    prompt = reranker.model.prompter.write("heat", texts)
    assert 290 <= len(prompt) <= 300
    lengths = [stop - start for start, stop in prompt.documents]
    assert abs(lengths[0] - lengths[2]) <= 2 < lengths[0] - lengths[1]
    refusing = IcrReranker(short, reading=Reading(overlong="refuse"))
    (failed,) = refusing.rerank([asked("heat", texts)])
    assert "the model reads 300" in str(failed.error)
    assert failed.ids == ("d0", "d1", "d2")


def test_a_sliding_window_that_is_too_short_fails_the_query_by_name(chat_tokenizer):
    from transformers import MistralConfig, MistralForCausalLM

    config = MistralConfig(
        vocab_size=len(chat_tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, sliding_window=150,
    )  # fmt: skip
    reranker = IcrReranker(load_language_model((MistralForCausalLM(config).eval(), chat_tokenizer)))
    fine, refused = reranker.rerank([asked("heat", ["a"], "q1"), asked("heat", ["read a file " * 60], "q2")])
    assert fine.error is None
    assert "see only 150" in str(refused.error)


def test_nan_fails_the_query_and_no_other(tiny_llama):
    broken = load_language_model(str(tiny_llama), device="cpu")
    with torch.no_grad():
        broken.model.get_input_embeddings().weight[broken.tokenizer("7")["input_ids"][0]] = float("nan")
    bad, good = IcrReranker(broken).rerank([asked("heat", ["x 7", "y"], "bad"), asked("heat", ["x", "y"], "good")])
    assert "NaN" in str(bad.error)
    assert bad.ids == ("d0", "d1")
    assert good.error is None


def test_a_prompt_is_tokenized_in_time_linear_in_its_length(model, monkeypatch):
    reranker = IcrReranker(model)
    read = []
    renderer = reranker.model.prompter.renderer

    class Counting:
        def __call__(self, text: Any, **settings: Any) -> Any:
            read.append(len(text) if isinstance(text, str) else sum(map(len, text)))
            return model.tokenizer(text, **settings)

        def __getattr__(self, name: str) -> Any:
            return getattr(model.tokenizer, name)

    monkeypatch.setattr(renderer, "tokenizer", Counting())
    texts = ["heat flow and air"] * 80
    reranker.model.prompter.write("heat", texts)
    assert sum(read) < 2.5 * sum(len(text) + 10 for text in texts)


# --- by name ---


def test_a_run_with_its_texts_is_reranked_end_to_end_and_resumes(tiny_llama, tmp_path):
    from typer.testing import CliRunner

    from rtk.eval import read_run
    from rtk.retrieval.cli.main import app
    from rtk.retrieval.rerankers import write_candidates

    requests = [asked("heat flow", TEXTS, "q1"), asked("gene", TEXTS[::-1], "q2"), asked("none", [], "q3")]
    write_candidates(requests[:2], tmp_path / "candidates.jsonl")
    out = tmp_path / "icr.parquet"
    given = ["rerank", str(tmp_path / "candidates.jsonl"), "--reranker", "icr", "--model", str(tiny_llama), "--raw"]
    given += ["--set", "instruction=qa", "--set", "layers=[1, 3]", "--out", str(out), "--device", "cpu"]
    done = CliRunner().invoke(app, given)
    assert done.exit_code == 0, done.output
    reranker = IcrReranker(load_language_model(str(tiny_llama), device="cpu"), wording=Wording(instruction="qa"),
                           scoring=Scoring(layers=(1, 3)))  # fmt: skip
    for result in rerank_checked(reranker, requests[:2]):
        assert read_run(out)[result.qid].documents == list(result.ids)
    wrong = CliRunner().invoke(app, [*given[:-4], "--out", str(out), "--overwrite", "--set", "instruction=find"])
    assert wrong.exit_code != 0
