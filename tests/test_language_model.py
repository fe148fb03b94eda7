"""The contract of language models: ids in, numbers or text out, whatever they were batched with."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from rtk.errors import BackendError, ConfigError, DataError
from rtk.retrieval.rerankers.base import Usage
from rtk.retrieval.rerankers.language_model import (
    ChatRenderer,
    LanguageModel,
    Message,
    Prompt,
    Sampling,
    load_language_model,
    share_prefix,
)

HEADER = "Rank these passages by how well they answer the question, the best of them first: "
TEXTS = ["a wing", "heat and air flow over the wing " * 9, "", "größe 日本語 text", "protein gene cell " * 30]
TOKENS = [5, 60, 130, 301]


@pytest.fixture(scope="module")
def model(tiny_llama) -> Any:
    return load_language_model(str(tiny_llama), device="cpu")


@pytest.fixture(scope="module")
def prompts(chat_tokenizer) -> list[Prompt]:
    renderer = ChatRenderer(chat_tokenizer)
    return share_prefix([renderer.render([Message("user", HEADER + text)]) for text in TEXTS])


def reference(model: Any, prompt: Prompt) -> torch.Tensor:
    """(length, vocabulary) logits of one prompt alone, by the model itself."""
    with torch.inference_mode():
        return model.model(torch.tensor([prompt.ids])).logits[0].double()


def settings(model: Any, **changed: Any) -> Any:
    return load_language_model((model.model, model.tokenizer), **changed)


# --- logits ---


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("batch_tokens", [1, 500, 100_000])
def test_logits_are_those_of_each_prompt_alone(model, prompts, share, batch_tokens):
    found = settings(model, share_prefixes=share, batch_tokens=batch_tokens).next_token_logits(prompts, TOKENS)
    expected = np.stack([reference(model, prompt)[-1, TOKENS].numpy() for prompt in prompts])
    assert found.values.dtype == np.float32
    np.testing.assert_allclose(found.values, expected, atol=2e-5)


def test_a_shared_prefix_is_read_once_and_counted_as_cached_by_the_others(model, prompts):
    shared = prompts[0].shared
    assert shared > 20
    found = model.next_token_logits(prompts, TOKENS)
    total = sum(map(len, prompts))
    assert found.usage == Usage(len(prompts), total - shared * (len(prompts) - 1), shared * (len(prompts) - 1))
    assert sorted(usage.cached_tokens for usage in found.usages)[:2] == [0, shared]
    alone = settings(model, share_prefixes=False).next_token_logits(prompts, TOKENS)
    assert alone.usage == Usage(len(prompts), total)


def test_the_forward_really_reads_the_prefix_once(model, prompts):
    """Counted where it happens, in the first layer."""
    read = []
    hook = model.model.model.layers[0].register_forward_pre_hook(
        lambda _, args, kwargs: read.append((args[0] if args else kwargs["hidden_states"]).shape[:2]), with_kwargs=True
    )
    try:
        used = settings(model, batch_tokens=1).next_token_logits(prompts, TOKENS).usage
    finally:
        hook.remove()
    assert sum(rows * width for rows, width in read) == used.prompt_tokens


def test_only_the_last_position_meets_the_vocabulary(model, prompts):
    shapes = []
    hook = model.model.get_output_embeddings().register_forward_hook(lambda _, given, made: shapes.append(made.shape))
    try:
        model.next_token_logits(prompts, TOKENS)
    finally:
        hook.remove()
    assert shapes
    assert all(shape[1] == 1 for shape in shapes)


def test_half_precision_gives_float32_scores_that_are_not_rounded_to_halves(tiny_llama, prompts):
    half = load_language_model(str(tiny_llama), device="cpu", dtype="bfloat16")
    assert half.identity()["dtype"] == "bfloat16"
    found = half.next_token_logits(prompts, list(range(5, 100))).values
    assert found.dtype == np.float32
    assert (found != torch.from_numpy(found).bfloat16().float().numpy()).mean() > 0.9


def test_no_prompts_give_no_answers(model):
    assert model.next_token_logits([], TOKENS).values.shape == (0, 4)
    assert model.next_token_logits([], TOKENS).usage == Usage()
    assert model.continuation_log_probs([], []).values.shape == (0,)
    assert model.generate([], Sampling()).values == []


def test_nan_names_the_prompt(tiny_llama, prompts):
    model = load_language_model(str(tiny_llama), device="cpu")
    bad = next(token for token in prompts[3].ids if all(token not in p.ids for p in prompts if p is not prompts[3]))
    with torch.no_grad():
        model.model.get_input_embeddings().weight[bad] = float("nan")
    for call in (
        lambda: model.next_token_logits(prompts, TOKENS),
        lambda: model.generate(prompts, Sampling(max_new_tokens=1)),
        lambda: model.continuation_log_probs(prompts, [[7]] * len(prompts)),
    ):
        with pytest.raises(BackendError, match=r"prompt 3.*NaN"):
            call()


@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_an_infinite_logit_that_is_asked_for_names_the_prompt(tiny_llama, prompts, value):
    broken = load_language_model(str(tiny_llama), device="cpu")
    head = broken.model.get_output_embeddings()
    head.bias = torch.nn.Parameter(torch.zeros(head.out_features))
    with torch.no_grad():
        head.bias[60] = value
    with pytest.raises(BackendError, match=rf"prompt \d: the model gave {value}"):
        broken.next_token_logits(prompts, TOKENS)
    assert np.isfinite(broken.next_token_logits(prompts, [5, 130]).values).all()
    if value > 0:
        with pytest.raises(BackendError, match="the model gave inf"):
            broken.generate(prompts, Sampling(2))
    else:  # in a whole vocabulary that is a token which is never said
        assert len(broken.generate(prompts, Sampling(2)).values) == len(prompts)


def test_a_prompt_longer_than_the_context_is_refused_with_its_number(model, prompts):
    short = settings(model, context_length=len(prompts[2]) + 3)
    short.next_token_logits([prompts[2]], TOKENS)
    with pytest.raises(ConfigError, match="prompt 1 has"):
        short.next_token_logits([prompts[2], prompts[1]], TOKENS)
    with pytest.raises(ConfigError, match="room for 4 more"):
        short.generate([prompts[2]], Sampling(max_new_tokens=4))


# --- log-probabilities ---


@pytest.mark.parametrize("share", [False, True])
def test_log_probabilities_of_continuations(model, prompts, share):
    continuations = [[100, 7, 33], [], [8], [250, 251, 252, 253, 254], [9, 9]]
    found = settings(model, share_prefixes=share).continuation_log_probs(prompts, continuations)
    assert found.values.dtype == np.float64
    for prompt, continuation, value in zip(prompts, continuations, found.values, strict=True):
        steps = reference(model, Prompt((*prompt.ids, *continuation))).log_softmax(-1)[len(prompt) - 1 : -1]
        assert value == pytest.approx(float(sum(steps[at, token] for at, token in enumerate(continuation))), abs=2e-4)
    assert found.usage.prompt_tokens + found.usage.cached_tokens == sum(map(len, prompts)) + 11


# --- generation ---


def greedy(model: Any, prompt: Prompt, length: int) -> tuple[int, ...]:
    ids = list(prompt.ids)
    for _ in range(length):
        ids.append(int(reference(model, Prompt(tuple(ids)))[-1].argmax()))
        if ids[-1] == model.tokenizer.eos_token_id:
            break
    return tuple(ids[len(prompt) :])


@pytest.mark.parametrize("share", [False, True])
def test_greedy_text_is_that_of_each_prompt_alone(model, prompts, share):
    found = settings(model, share_prefixes=share).generate(prompts, Sampling(max_new_tokens=6))
    assert [answers[0].ids for answers in found.values] == [greedy(model, prompt, 6) for prompt in prompts]
    assert found.usage.generated_tokens == sum(len(answers[0].ids) for answers in found.values)


def test_a_cache_that_grows_in_place_holds_what_one_that_is_copied_holds():
    from transformers.cache_utils import DynamicCache

    from rtk.retrieval.rerankers.growing_cache import GrowingLayer, grow_in_place

    draw = torch.Generator().manual_seed(0)
    caches = DynamicCache(), DynamicCache()

    def append(rows: int, tokens: int) -> None:
        keys, values = torch.rand(2, rows, 2, tokens, 4, generator=draw)
        for layer in (0, 1):
            given = [cache.update(keys + layer, values, layer) for cache in caches]
            assert all(torch.equal(one, other) for one, other in zip(*given, strict=True))

    append(3, 7)
    expanded = caches[1].layers[0]
    expanded.keys = expanded.keys[:1].expand(3, -1, -1, -1)  # as a shared prefix is
    caches[0].layers[0].keys = expanded.keys.clone()
    before = expanded.keys.clone()
    shared = expanded.keys
    grow_in_place(caches[1])
    assert all(isinstance(layer, GrowingLayer) for layer in caches[1].layers)
    for _ in range(50):  # beyond the room that there is at first
        append(3, 1)
    place = caches[1].layers[1].values.data_ptr()
    append(3, 1)
    assert caches[1].layers[1].values.data_ptr() == place  # nothing was copied
    for cache in caches:
        cache.batch_select_indices(torch.tensor([2, 0]))
    append(2, 1)
    for cache in caches:
        cache.batch_repeat_interleave(2)
    append(4, 3)
    assert caches[0].get_seq_length() == caches[1].get_seq_length() == 62
    assert torch.equal(shared, before)


@pytest.mark.parametrize("share", [False, True])
def test_long_text_is_that_of_each_prompt_alone(model, prompts, share):
    """Longer than the room that a cache has at first; some rows end before others."""
    found = settings(model, share_prefixes=share).generate(prompts, Sampling(max_new_tokens=45))
    assert [answers[0].ids for answers in found.values] == [greedy(model, prompt, 45) for prompt in prompts]


def test_samples_depend_on_prompt_seed_and_number_alone(model, prompts):
    sampling = Sampling(max_new_tokens=8, temperature=1.5, samples=3, seed=4)
    together = model.generate(prompts, sampling).values
    assert model.generate(prompts[3:4], sampling).values[0] == together[3]
    assert model.generate(prompts[::-1], sampling).values[::-1] == together
    assert len({answer.ids for answer in together[0]}) == 3
    assert model.generate(prompts, dataclasses.replace(sampling, seed=5)).values != together
    one = dataclasses.replace(sampling, samples=1)
    assert [answers[0] for answers in model.generate(prompts, one).values] == [answers[0] for answers in together]


def test_draws_follow_the_distribution():
    from rtk.retrieval.rerankers.decoding import Row, draw

    chances = torch.tensor([0.5, 0.1, 0.3, 0.1])
    logits = chances.log().repeat(4000, 1)
    rows = [Row.seeded(0, [1], sample) for sample in range(4000)]
    counts = np.bincount(draw(logits, Sampling(temperature=1.0), rows), minlength=4) / 4000
    np.testing.assert_allclose(counts, chances, atol=0.03)
    assert set(draw(logits, Sampling(temperature=1.0, top_p=0.6), rows)) == {0, 2}
    assert set(draw(logits, Sampling(temperature=1.0, top_k=1), rows)) == {0}
    assert set(draw(logits, Sampling(temperature=0.0), rows)) == {0}


def test_texts_end_at_the_end_token_at_a_stop_string_or_at_the_length(model, prompts):
    free = model.generate(prompts, Sampling(max_new_tokens=6)).values
    ids = free[1][0].ids
    with_end = settings(model)
    with_end.model.generation_config.eos_token_id = [ids[2]]
    try:
        ended = with_end.generate(prompts[1:2], Sampling(max_new_tokens=6)).values[0][0]
        longer = with_end.generate(prompts[1:2], Sampling(max_new_tokens=6, min_new_tokens=6)).values[0][0]
    finally:
        with_end.model.generation_config.eos_token_id = model.tokenizer.eos_token_id
    assert (ended.ids, ended.finish) == (ids[:3], "stop")
    assert len(longer.ids) == 6
    text = free[1][0].text
    stopped = model.generate(prompts[1:2], Sampling(max_new_tokens=6, stop=(text[2],))).values[0][0]
    assert (stopped.text, stopped.finish) == (text[: text.index(text[2])], "stop")
    assert free[1][0].finish == "length"


def test_impossible_samplings_are_refused_with_every_problem():
    with pytest.raises(ConfigError) as caught:
        Sampling(max_new_tokens=0, temperature=-1, top_p=0, samples=0, stop=("",))
    assert len(caught.value.problems) == 5


# --- other models ---


def test_a_sliding_window_is_no_different(chat_tokenizer, prompts):
    """Its cache cannot have gaps, so texts of different lengths are not generated together."""
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(1)
    config = MistralConfig(
        vocab_size=len(chat_tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, sliding_window=40, initializer_range=0.3, eos_token_id=3,
    )  # fmt: skip
    model = load_language_model((MistralForCausalLM(config).eval(), chat_tokenizer))
    expected = np.stack([reference(model, prompt)[-1, TOKENS].numpy() for prompt in prompts])
    np.testing.assert_allclose(model.next_token_logits(prompts, TOKENS).values, expected, atol=2e-5)
    found = model.generate(prompts, Sampling(max_new_tokens=5)).values
    assert [answers[0].ids for answers in found] == [greedy(model, prompt, 5) for prompt in prompts]


def test_capped_logits_keep_their_cap(chat_tokenizer, prompts):
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(1)
    config = Gemma2Config(
        vocab_size=len(chat_tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, head_dim=8,
        num_attention_heads=4, num_key_value_heads=2, final_logit_softcapping=2.0, initializer_range=0.5,
    )  # fmt: skip
    model = load_language_model((Gemma2ForCausalLM(config).eval(), chat_tokenizer))
    expected = np.stack([reference(model, prompt)[-1, TOKENS].numpy() for prompt in prompts])
    assert np.abs(expected).max() <= 2
    np.testing.assert_allclose(model.next_token_logits(prompts, TOKENS).values, expected, atol=2e-5)


def test_encoder_decoders_answer_with_their_first_decoder_step(chat_tokenizer):
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(1)
    config = T5Config(
        vocab_size=len(chat_tokenizer), d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4,
        decoder_start_token_id=4, eos_token_id=3, pad_token_id=4, initializer_factor=3.0,
    )  # fmt: skip
    t5 = T5ForConditionalGeneration(config).eval()
    model = load_language_model((t5, chat_tokenizer))
    assert isinstance(model, LanguageModel)
    renderer = ChatRenderer(chat_tokenizer, template="plain")
    prompts = [renderer.render([Message("user", f"Query: wing Document: {text} Relevant:")]) for text in TEXTS]

    def alone(prompt: Prompt, decoded: list[int]) -> torch.Tensor:
        with torch.inference_mode():
            given = torch.tensor([prompt.ids])
            return t5(input_ids=given, decoder_input_ids=torch.tensor([[4, *decoded]])).logits[0].double()

    found = model.next_token_logits(prompts, TOKENS)
    np.testing.assert_allclose(found.values, [alone(p, [])[0, TOKENS].numpy() for p in prompts], atol=1e-4)
    assert found.usage == Usage(5, sum(map(len, prompts)))
    likely = model.continuation_log_probs(prompts, [[9, 10], [11], [], [12], [5]])
    steps = alone(prompts[0], [9]).log_softmax(-1)
    assert likely.values[0] == pytest.approx(float(steps[0, 9] + steps[1, 10]), abs=1e-3)
    for prompt, answers in zip(prompts, model.generate(prompts, Sampling(max_new_tokens=4)).values, strict=True):
        ids: list[int] = []
        while len(ids) < 4 and 3 not in ids:
            ids.append(int(alone(prompt, ids)[-1].argmax()))
        assert list(answers[0].ids) == ids


# --- loading ---


def test_loading_by_path_names_its_errors(tiny_llama, tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'transformers'"):
        load_language_model(str(tiny_llama), engine="transformer")
    with pytest.raises(BackendError, match="cannot load"):
        load_language_model(str(tmp_path / "nothing"))
    with pytest.raises(ConfigError, match="dtype 'float7'"):
        load_language_model(str(tiny_llama), dtype="float7")
    with pytest.raises(BackendError, match="cannot be put on"):
        load_language_model(str(tiny_llama), device="xpu:99")
    with pytest.raises(ConfigError, match="did you mean 'batch_tokens'"):
        load_language_model(str(tiny_llama), batch_token=3)
    with pytest.raises(ConfigError, match="engine_options"):
        load_language_model(str(tiny_llama), engine="vllm", batch_tokens=3)
    with pytest.raises(BackendError, match="no language model"):
        load_language_model(object())


def test_identity_follows_the_weights(model, tiny_llama):
    again = load_language_model(str(tiny_llama), device="cpu")
    assert again.identity() == model.identity() | {"model": str(tiny_llama)}
    with torch.no_grad():
        again.model.get_input_embeddings().weight[0] += 1
    assert again.identity()["fingerprint"] != model.identity()["fingerprint"]
    assert load_language_model(again) is again
    with pytest.raises(ConfigError, match="loaded already"):
        load_language_model(again, dtype="bfloat16")


def test_a_prompt_is_never_empty():
    with pytest.raises(DataError):
        Prompt(())
    with pytest.raises(DataError):
        Prompt((1, 2), shared=3)


# --- vLLM ---


class _Entry:
    def __init__(self, logprob: float) -> None:
        self.logprob = logprob


class _FakeVllm:
    """The part of `vllm.LLM` that the engine uses, answered by transformers: what is asked for decides the answer."""

    def __init__(self, model: Any) -> None:
        from types import SimpleNamespace

        self.model, self.space = model, SimpleNamespace
        config = SimpleNamespace(max_model_len=model.context_length, dtype="float32", logprobs_mode="processed_logits")
        self.llm_engine = SimpleNamespace(model_config=config)

    def get_tokenizer(self) -> Any:
        return self.model.tokenizer

    def generate(self, prompts: list[dict[str, Any]], parameters: list[Any], use_tqdm: bool) -> list[Any]:
        return [
            self._answer(Prompt(tuple(given["prompt_token_ids"])), asked)
            for given, asked in zip(prompts, parameters, strict=True)
        ]

    def _answer(self, prompt: Prompt, asked: dict[str, Any]) -> Any:
        allowed, samples = asked.get("allowed_token_ids"), asked.get("n", 1)
        sampling = Sampling(
            asked["max_tokens"], temperature=asked["temperature"], samples=samples, seed=asked.get("seed") or 0
        )
        answers = self.model.generate([prompt], sampling).values[0]
        logprobs, read = None, None
        if allowed is not None:
            logits = self.model.next_token_logits([prompt], allowed).values[0]
            best = sorted(zip(logits, allowed, strict=True), reverse=True)[: asked["logprobs"]]
            logprobs = [{token: _Entry(float(value)) for value, token in best}]
        if "prompt_logprobs" in asked:
            steps = reference(self.model, prompt).log_softmax(-1)
            read = [None, *({token: _Entry(float(steps[at, token]))} for at, token in enumerate(prompt.ids[1:]))]
        outputs = [
            self.space(text=each.text, token_ids=list(each.ids), finish_reason=each.finish, logprobs=logprobs)
            for each in answers
        ]
        cached = len(prompt) // 16 * 16 - 16
        return self.space(
            outputs=outputs, prompt_logprobs=read, num_cached_tokens=cached, prompt_token_ids=list(prompt.ids)
        )


@pytest.fixture(scope="module")
def vllm_like(model) -> Any:
    from rtk.retrieval.rerankers.engine_vllm import VllmModel

    return VllmModel(_FakeVllm(model), dict, name="fake")


def test_what_is_asked_of_vllm_gives_the_contracts_answers(model, vllm_like, prompts):
    """Not vLLM itself: that what the adapter asks for and reads back is what the contract means."""
    assert isinstance(vllm_like, LanguageModel)
    np.testing.assert_allclose(
        vllm_like.next_token_logits(prompts, TOKENS).values, model.next_token_logits(prompts, TOKENS).values, atol=2e-5
    )
    continuations = [[100, 7], [], [8], [9, 9, 9], [5]]
    found = vllm_like.continuation_log_probs(prompts, continuations)
    np.testing.assert_allclose(found.values, model.continuation_log_probs(prompts, continuations).values, atol=2e-4)
    sampling = Sampling(max_new_tokens=3, temperature=1.0, samples=2, seed=3)
    made = vllm_like.generate(prompts, sampling)
    assert made.values == model.generate(prompts, sampling).values
    assert made.usage.generated_tokens == sum(len(each.ids) for answers in made.values for each in answers)
    assert made.usage.cached_tokens == sum(len(prompt) // 16 * 16 - 16 for prompt in prompts)
    assert vllm_like.next_token_logits([], TOKENS).values.shape == (0, 4)


def test_a_document_longer_than_vllms_context_is_cut_to_what_fits(model):
    """A token has to be drawn after every prompt: one that fills the whole of vLLM's context never fits."""
    from rtk.retrieval.rerankers import load_reranker, rerank_checked
    from rtk.retrieval.rerankers.base import Candidate, Request
    from rtk.retrieval.rerankers.engine_vllm import VllmModel

    small = settings(model, context_length=200)
    request = Request("q", "wing", (Candidate("long", "protein gene cell " * 150), Candidate("short", "heat")))
    answers: dict[str, dict[str, Any]] = {"yes-no": {"yes": "Y", "no": "N"}, "query-likelihood": {}}
    for name, more in answers.items():
        vllm_like = VllmModel(_FakeVllm(small), dict, name="fake")
        (result,) = rerank_checked(load_reranker(name, vllm_like, words=None, **more), [request])
        assert result.error is None, name
        assert result.usage.cut == 1, name
        alike = load_reranker(name, settings(model, context_length=199), words=None, **more)
        np.testing.assert_allclose(result.scores, rerank_checked(alike, [request])[0].scores, atol=2e-4)


class EngineDeadError(Exception):
    """As vLLM's: no base class but Exception."""


def test_an_error_of_vllm_is_a_failure_that_is_counted_not_a_bug(model, prompts):
    from rtk.retrieval.rerankers import Candidate, Request, load_reranker
    from rtk.retrieval.rerankers.engine_vllm import VllmModel

    fake = _FakeVllm(model)

    def dead(*_: Any, **__: Any) -> Any:
        raise EngineDeadError("the engine core is gone")

    fake.generate = dead  # type: ignore[method-assign]
    vllm_like = VllmModel(fake, dict, name="fake")
    with pytest.raises(BackendError, match=r"call of 5 prompts: EngineDeadError: the engine core is gone"):
        vllm_like.generate(prompts, Sampling(3))
    reranker = load_reranker("yes-no", vllm_like, yes="Y", no="N")
    (result,) = reranker.rerank([Request("q", "wing", (Candidate("d", "heat"),))])
    assert "EngineDeadError" in str(result.error)


def test_vllm_gets_its_options_and_its_own_precision_from_the_command_line(rtk, model, monkeypatch, tmp_path):
    import sys
    from types import SimpleNamespace

    from rtk.retrieval.rerankers.engine_vllm import VllmModel
    from rtk.retrieval.rerankers.registry import load_reranker

    asked: dict[str, Any] = {}

    def engine(**given: Any) -> _FakeVllm:
        if "tensor_size" in given:
            raise TypeError("unexpected keyword argument 'tensor_size'")
        asked.update(given)
        return _FakeVllm(model)

    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=engine, SamplingParams=dict))
    monkeypatch.setattr(VllmModel, "identity", lambda self: {"engine": "fake"})
    (tmp_path / "c.jsonl").write_text('{"qid": "q", "query": "wing", "candidates": [{"docid": "d", "text": "heat"}]}\n')
    command = "rerank c.jsonl -r yes-no -m model --set engine=vllm --set 'yes=\"Y\"' --set 'no=\"N\"' --out"
    code, _, said = rtk(f"{command} a.trec --set 'engine_options={{tensor_parallel_size: 2}}'")
    assert code == 0, said
    assert (asked["dtype"], asked["tensor_parallel_size"]) == ("auto", 2)
    code, _, said = rtk(f"{command} b.trec --dtype bfloat16")
    assert code == 0, said
    assert asked["dtype"] == "bfloat16"
    wrong = {"2": "expected names", "{dtype: half}": "rtk sets dtype itself", "{tensor_size: 2}": "does not take"}
    for value, message in wrong.items():
        code, _, said = rtk(f"{command} c.trec --set 'engine_options={value}'")
        assert code == 2
        assert message in said
    with pytest.raises(ConfigError, match=r"'transformers' takes.*\n.*'engine_options'"):
        load_reranker("yes-no", "model", engine_options={})


def test_vllm_refuses_what_it_cannot_do(model, vllm_like, prompts):
    from rtk.retrieval.rerankers.engine_vllm import VllmModel

    with pytest.raises(ConfigError, match="at most 256"):
        vllm_like.next_token_logits(prompts, range(300))
    with pytest.raises(ConfigError, match="device"):
        load_language_model("model", engine="vllm", device="cpu")
    other = _FakeVllm(model)
    other.llm_engine.model_config.logprobs_mode = "raw_logprobs"
    with pytest.raises(ConfigError, match="processed_logits"):
        VllmModel(other, dict, name="fake")


def test_without_vllm_the_command_that_installs_it_is_named(tiny_llama):
    from rtk.errors import MissingExtra
    from rtk.extras import available

    if available("vllm"):
        pytest.skip("vLLM is installed")
    with pytest.raises(MissingExtra, match=r"pip install .*\[vllm\]"):
        load_language_model(str(tiny_llama), engine="vllm")


def test_vllm_and_transformers_agree(tiny_llama, prompts):
    pytest.importorskip("vllm", reason="vLLM is not installed: the two engines cannot be compared here")
    ours = load_language_model(str(tiny_llama))
    theirs = load_language_model(str(tiny_llama), engine="vllm", dtype="float32")
    np.testing.assert_allclose(
        theirs.next_token_logits(prompts, TOKENS).values, ours.next_token_logits(prompts, TOKENS).values, atol=1e-2
    )
    continuations = [[100, 7], [], [8], [9, 9, 9], [5]]
    np.testing.assert_allclose(
        theirs.continuation_log_probs(prompts, continuations).values,
        ours.continuation_log_probs(prompts, continuations).values,
        atol=1e-1,
    )
    sampling = Sampling(max_new_tokens=4)
    assert [a[0].ids for a in theirs.generate(prompts, sampling).values] == [
        a[0].ids for a in ours.generate(prompts, sampling).values
    ]
