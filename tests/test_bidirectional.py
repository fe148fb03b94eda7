"""Decoders that attend both ways: the last token reaches the first, in every implementation, and after saving."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from rtk.errors import ConfigError
from rtk.retrieval.encoders.bidirectional import attend_both_ways, sees_what_follows

ARCHITECTURES = ("Llama", "Qwen2", "Mistral", "Gemma")
TEXTS = ("cell gene file", "cell gene wing")  # they differ in their last token only


@pytest.fixture(scope="module")
def decoders(tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of tiny random causal language models."""
    import transformers

    folder = tmp_path_factory.mktemp("decoders")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_models / "bert")
    settings = {
        **{"vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2},
        **{"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4, "max_position_embeddings": 64},
        **{"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "initializer_range": 0.3},
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for name in ARCHITECTURES:
            config = getattr(transformers, f"{name}Config")(**settings)
            getattr(transformers, f"{name}ForCausalLM")(config).save_pretrained(folder / name)
            tokenizer.save_pretrained(folder / name)
    return folder


def load(path: Path, attention: str = "sdpa") -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(path), device="cpu", model_kwargs={"attn_implementation": attention})


def first_states(model: Any, *, padded: bool = False) -> torch.Tensor:
    """The states of the first token of both texts, at a prompt-free position that they share."""
    texts = [*TEXTS, "cell gene of the file and a list"] if padded else list(TEXTS)
    with torch.no_grad():
        states = model.encode(texts, output_value="token_embeddings", convert_to_numpy=False)
    return torch.stack([states[0][0], states[1][0]])


@pytest.mark.parametrize("padded", [False, True], ids=["alone", "padded"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_last_token_changes_the_first_ones_state(decoders: Path, name: str, attention: str, padded: bool):
    model = load(decoders / name, attention)
    before = first_states(model, padded=padded)
    torch.testing.assert_close(before[0], before[1], rtol=1e-5, atol=1e-6)
    after = first_states(attend_both_ways(model), padded=padded)
    assert (after[0] - after[1]).abs().max() > 1e-3


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_saved_model_loads_in_plain_sentence_transformers_as_it_was(
    decoders: Path, tmp_path: Path, name: str, attention: str
):
    model = attend_both_ways(load(decoders / name))
    model.save_pretrained(str(tmp_path / "model"))
    again = load(tmp_path / "model", attention)
    vectors = [torch.as_tensor(each.encode(list(TEXTS))) for each in (model, again)]
    torch.testing.assert_close(*vectors, rtol=1e-5, atol=1e-5)
    assert json.loads((tmp_path / "model" / "config.json").read_text())["is_causal"] is False
    assert sees_what_follows(next(again.children()))


def test_both_implementations_agree_and_padding_changes_nothing(decoders: Path):
    models = [attend_both_ways(load(decoders / "Llama", attention)) for attention in ("eager", "sdpa")]
    texts = ["cell gene", "read the file and sort the list"]
    vectors = [torch.as_tensor(model.encode(texts)) for model in models]
    torch.testing.assert_close(*vectors, rtol=1e-4, atol=1e-5)
    alone = torch.as_tensor(models[1].encode(texts[:1]))
    torch.testing.assert_close(alone, vectors[1][:1], rtol=1e-4, atol=1e-5)


def test_the_mean_takes_the_place_of_the_last_token(decoders: Path):
    model = load(decoders / "Qwen2")
    assert model[1].pooling_mode == "lasttoken"
    attend_both_ways(model)
    assert model[1].pooling_mode == "mean"
    states = model.encode(TEXTS[0], output_value="token_embeddings", convert_to_numpy=False)
    expected = states.mean(dim=0)
    torch.testing.assert_close(torch.as_tensor(model.encode(TEXTS[0])), expected, rtol=1e-4, atol=1e-5)


def test_a_model_that_attends_both_ways_already_stays_as_it_is(tiny_dense: Any):
    before = torch.as_tensor(tiny_dense.encode(list(TEXTS)))
    tiny_dense.train()
    attend_both_ways(tiny_dense)
    assert tiny_dense.training
    assert not hasattr(tiny_dense[0].config, "is_causal")
    assert torch.equal(torch.as_tensor(tiny_dense.encode(list(TEXTS))), before)


def test_a_model_that_stays_causal_is_refused(tiny_models: Path, tmp_path: Path):
    """GPT-Neo builds its mask itself, whatever the configuration says."""
    from transformers import AutoTokenizer, GPTNeoConfig, GPTNeoForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(tiny_models / "bert")
    config = GPTNeoConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_layers=2, attention_types=[[["global"], 2]], num_heads=4,
        max_position_embeddings=64, bos_token_id=2, eos_token_id=3,
    )  # fmt: skip
    GPTNeoForCausalLM(config).save_pretrained(tmp_path / "neo")
    tokenizer.save_pretrained(tmp_path / "neo")
    with pytest.raises(ConfigError, match=r"GPTNeo.* stays causal"):
        attend_both_ways(load(tmp_path / "neo", "eager"))


def test_a_model_without_a_transformer_is_refused(tiny_models: Path):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_models / "bert")
    static = SentenceTransformer(modules=[StaticEmbedding(tokenizer.backend_tokenizer, embedding_dim=8)], device="cpu")
    with pytest.raises(ConfigError, match="no transformer"):
        attend_both_ways(static)


def test_training_by_configuration_and_the_encoder_that_comes_of_it(decoders: Path, beir_folder: Any, tmp_path: Path):
    from rtk.retrieval.encoders import load_encoder
    from rtk.retrieval.training.trainer import train

    folder = beir_folder("toy", qrels={"train": [("q0", "007", 1), ("q1", "7", 1), ("q2", "d4", 1)]})
    output = train(
        {
            "method": "contrastive",
            "model": str(decoders / "Qwen2"),
            "attention": "bidirectional",
            "data": {"collection": str(folder)},
            "trainer": {"per_device_train_batch_size": 3, "max_steps": 2, "use_cpu": True},
            "output": str(tmp_path / "model"),
        }
    )
    assert sees_what_follows(next(load(output).children()))
    encoder = load_encoder(str(output), device="cpu")
    causal = load_encoder(str(decoders / "Qwen2"), device="cpu")
    assert encoder.identity.fingerprint != causal.identity.fingerprint
    expected = torch.as_tensor(load(output).encode(list(TEXTS)))
    torch.testing.assert_close(torch.as_tensor(encoder.encode_document(list(TEXTS))), expected, rtol=1e-4, atol=1e-5)


def test_pooling_that_was_asked_for_stays(decoders: Path, tmp_path: Path):
    from rtk.retrieval.training.config import load_config
    from rtk.retrieval.training.models import load_model

    given = {
        **{"method": "contrastive", "model": str(decoders / "Qwen2"), "data": {"collection": "x"}, "trainer": {}},
        **{"attention": "bidirectional", "output": str(tmp_path / "model")},
    }
    for pooling, expected in ((None, "mean"), ("lasttoken", "lasttoken"), ("mean", "mean")):
        model = load_model(load_config({**given, "pooling": pooling}))
        assert model[1].pooling_mode == expected
        assert sees_what_follows(model[0])


def test_rerankers_and_lone_adapters_are_refused(decoders: Path, tmp_path: Path):
    from rtk.retrieval.training.config import load_config

    given = {
        "model": str(decoders / "Qwen2"),
        "attention": "bidirectional",
        "data": {"collection": "x"},
        "trainer": {},
        "output": str(tmp_path / "model"),
    }
    with pytest.raises(ConfigError, match="attention: is for bi-encoders"):
        load_config({**given, "method": "cross-encoder"})
    with pytest.raises(ConfigError, match=r"lora\.merge: an adapter"):
        load_config({**given, "method": "contrastive", "lora": {"merge": False}})
