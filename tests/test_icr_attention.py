"""ICR's attention against eager attention maps, architecture by architecture, with and without the cache."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rtk.errors import BackendError, ConfigError
from rtk.retrieval.rerankers import icr_attention
from rtk.retrieval.rerankers.icr_passes import AttentionReader
from rtk.retrieval.rerankers.icr_prompt import IcrPrompt

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "cohere": {},
    "deepseek_v3": {"num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8,
                    "qk_nope_head_dim": 8, "v_head_dim": 8, "n_routed_experts": 4, "n_group": 1, "topk_group": 1,
                    "num_experts_per_tok": 2, "first_k_dense_replace": 3},
    "gemma": {"head_dim": 8},
    "gemma2": {"head_dim": 8, "attn_logit_softcapping": 3.0, "sliding_window": 400},
    "gemma3_text": {"head_dim": 8, "sliding_window": 400},
    "gpt2": {},
    "gpt_neox": {},
    "granite": {},
    "llama": {},
    "mistral": {"sliding_window": None},
    "mixtral": {"num_local_experts": 4},
    "olmo2": {},
    "opt": {"word_embed_proj_dim": 32, "ffn_dim": 64},
    "phi": {"num_key_value_heads": 4},
    "phi3": {},
    "qwen2": {},
    "qwen3": {"head_dim": 16},
    "stablelm": {},
    "starcoder2": {},
}  # fmt: skip


def tiny(kind: str, **changed: Any) -> Any:
    """A random decoder whose attention is far from uniform."""
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = {
        "vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "initializer_range": 0.4,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    config = AutoConfig.for_model(kind, **{**settings, **ARCHITECTURES[kind], **changed})
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).float().eval()


def prompt(before: int, free: int, real: int, seed: int = 0) -> IcrPrompt:
    draw = np.random.default_rng(seed)
    start, first, second = (tuple(draw.integers(3, 300, count).tolist()) for count in (before, free, real))
    return IcrPrompt(start + first, start + second, before, ((2, 9), (10, before - 1)))


PROMPTS = [prompt(120, 12, 20, 0), prompt(90, 12, 9, 1), prompt(160, 12, 30, 2)]


def eager(model: Any, ids: tuple[int, ...], start: int, weights: np.ndarray | None = None) -> np.ndarray:
    """Mean over the positions from `start` on of attention summed over layers and heads, from whole maps."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    with torch.inference_mode():
        maps = model(torch.tensor([ids]), output_attentions=True).attentions
    model.set_attn_implementation(before)
    chosen = np.ones((len(maps), maps[0].shape[1])) if weights is None else weights
    total = torch.zeros(len(ids), dtype=torch.float64)
    for each, row in zip(maps, chosen, strict=True):
        total += (each[0].double() * torch.from_numpy(row).double()[:, None, None]).sum(0)[start:].mean(0)
    return total.numpy()


def reader(model: Any, weights: np.ndarray | None = None) -> AttentionReader:
    made = AttentionReader(model, 0)
    made.choose(np.ones((made.layers, made.heads), np.float32) if weights is None else weights)
    return made


@pytest.mark.parametrize("kind", sorted(ARCHITECTURES))
def test_token_scores_are_those_of_eager_maps(kind):
    """The content-free pass is whole, the other one stands on its cache; three prompts of three lengths in a batch."""
    model = tiny(kind)
    for given, (real, free) in zip(PROMPTS, reader(model).read(PROMPTS, calibrate=True), strict=True):
        assert free is not None
        for ids, found in ((given.free, free), (given.real, real)):
            expected = eager(model, ids, given.start)
            assert expected.max() > 3 / len(ids)  # nothing would be shown by uniform attention
            np.testing.assert_allclose(found, expected, atol=1e-5)
            assert found.sum() == pytest.approx(12, abs=1e-4)  # layers x heads: normalised over all keys


@pytest.mark.parametrize("kind", ["gemma2", "llama", "qwen3"])
def test_with_and_without_the_cache(kind):
    made = reader(tiny(kind))
    cached = made.read(PROMPTS, calibrate=True)
    whole = made.read(PROMPTS, calibrate=False)
    for (one, _), (other, free) in zip(cached, whole, strict=True):
        assert free is None
        np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("kind", ["gemma2", "llama"])
def test_a_prompt_in_a_batch_is_as_alone(kind):
    made = reader(tiny(kind))
    same = IcrPrompt(PROMPTS[1].free, PROMPTS[1].free, PROMPTS[1].start, PROMPTS[1].documents)
    prompts = [PROMPTS[0], same, *PROMPTS[1:]]
    for given, (real, free) in zip(prompts, made.read(prompts, calibrate=True), strict=True):
        ((alone_real, alone_free),) = made.read([given], calibrate=True)
        np.testing.assert_allclose(real, alone_real, atol=1e-6)
        np.testing.assert_allclose(free, alone_free, atol=1e-6)
    np.testing.assert_array_equal(*made.read(prompts, calibrate=True)[1])


def test_layers_and_heads_that_count_and_no_layer_runs_after_the_last():
    model = tiny("llama")
    weights = np.zeros((3, 4), np.float32)
    weights[0, 1] = weights[1, 2] = weights[1, 3] = 1
    ran = []
    hooks = [
        layer.mlp.register_forward_hook(lambda *_, at=at: ran.append(at)) for at, layer in enumerate(model.model.layers)
    ]
    found = reader(model, weights).read(PROMPTS, calibrate=True)
    for hook in hooks:
        hook.remove()
    for given, (real, _) in zip(PROMPTS, found, strict=True):
        np.testing.assert_allclose(real, eager(model, given.real, given.start, weights), atol=1e-5)
    probed = [0, 1]  # the look at the model when it is loaded
    assert ran[len(probed) :] == [0, 0]  # a pass ends in the attention of layer 1


def test_soft_capped_attention_in_blocks_is_that_of_the_model(monkeypatch):
    model = tiny("gemma2")
    monkeypatch.setattr(icr_attention, "_BLOCK", 1000)  # some rows at a time, and one key head at a time
    for given, (real, free) in zip(PROMPTS, reader(model).read(PROMPTS, calibrate=True), strict=True):
        assert free is not None
        np.testing.assert_allclose(free, eager(model, given.free, given.start), atol=1e-5)
        np.testing.assert_allclose(real, eager(model, given.real, given.start), atol=1e-5)


class _Largest(TorchDispatchMode):
    """The most numbers of any tensor that an operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for each in made if isinstance(made, tuple | list) else (made,):
            if isinstance(each, torch.Tensor):
                self.numbers = max(self.numbers, each.numel())
        return made


@pytest.mark.parametrize("kind", ["gemma2", "llama"])
def test_no_tensor_grows_with_the_length_squared(kind, monkeypatch):
    monkeypatch.setattr(icr_attention, "_BLOCK", 20_000)
    model = tiny(kind, max_position_embeddings=4096, **({"sliding_window": 4096} if kind == "gemma2" else {}))
    made = reader(model)
    largest = []
    for before in (500, 2000):
        with _Largest() as seen:
            made.read([prompt(before, 10, 12)], calibrate=True)
        largest.append(seen.numbers)
    assert largest[1] < 4.2 * largest[0]
    assert largest[1] < 2000 * 2000 / 10


def test_the_head_never_runs_and_the_attention_is_given_back():
    model = tiny("llama")
    model.set_attn_implementation("eager")
    model.get_output_embeddings().register_forward_pre_hook(lambda *_: pytest.fail("the head ran"))
    reader(model).read(PROMPTS, calibrate=True)
    assert model.config._attn_implementation == "eager"


def test_half_precision_is_summed_in_float32():
    model = tiny("llama").to(torch.bfloat16)
    for real, _ in reader(model).read(PROMPTS, calibrate=True):
        assert real.sum() == pytest.approx(12, abs=1e-4)  # bfloat16 sums would be off by a hundredth


def test_a_window_that_cannot_see_the_prompt_is_refused():
    made = reader(tiny("mistral", sliding_window=100))
    assert made.window == 100
    made.check("q7", 100)
    with pytest.raises(ConfigError, match=r"'q7'.*101 tokens.*only 100"):
        made.check("q7", 101)
    assert reader(tiny("gemma3_text")).window == 400
    assert reader(tiny("qwen2")).window is None


def test_other_attention_is_refused():
    from transformers import (
        BloomConfig,
        BloomForCausalLM,
        GptOssConfig,
        GptOssForCausalLM,
        MambaConfig,
        MambaForCausalLM,
    )

    sinks = GptOssConfig(
        vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, num_local_experts=4, num_experts_per_tok=2,
    )  # fmt: skip
    with pytest.raises(ConfigError, match="s_aux"):
        AttentionReader(GptOssForCausalLM(sinks).eval(), 0)
    for model in (
        BloomForCausalLM(BloomConfig(vocab_size=300, hidden_size=32, n_layer=2, n_head=4)),
        MambaForCausalLM(MambaConfig(vocab_size=300, hidden_size=32, num_hidden_layers=2)),
    ):
        with pytest.raises(BackendError, match="attention interface"):
            AttentionReader(model.eval(), 0)
