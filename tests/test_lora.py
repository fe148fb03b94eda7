"""Low-rank adapters: what is trained, resumed, merged, saved and loaded, for each kind of model and of loss."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from rtk import extras
from rtk.errors import ConfigError, MissingExtra

pytest.importorskip("peft")

TEXTS = ["read the file", "cell protein gene", "heat flow", "cancer"]
WORDS = [
    ("file", "json"),
    ("cell", "date"),
    ("wing", "path"),
    ("heat", "flow"),
    ("vitamin", "gene"),
    ("cancer", "list"),
]


@pytest.fixture
def toy(beir_folder: Callable[..., Path]) -> Path:
    return beir_folder(
        "toy",
        corpus=[{"_id": f"d{n}", "title": "", "text": document} for n, (_, document) in enumerate(WORDS)],
        queries=[{"_id": f"q{n}", "text": query} for n, (query, _) in enumerate(WORDS)],
        qrels={split: [(f"q{n}", f"d{n}", 1) for n in range(len(WORDS))] for split in ("train", "dev")},
    )


@pytest.fixture
def config(toy: Path, tiny_models: Path, tmp_path: Path) -> dict[str, Any]:
    return {
        "method": "contrastive",
        "model": str(tiny_models / "dense"),
        "data": {"collection": str(toy)},
        "lora": {"rank": 4, "alpha": 8, "dropout": 0.1},
        "trainer": {
            **{"per_device_train_batch_size": 3, "learning_rate": 1e-2, "max_steps": 8},
            **{"use_cpu": True, "save_steps": 4},
        },
        "output": str(tmp_path / "model"),
    }


def as_reranker(config: dict[str, Any], tiny_models: Path) -> dict[str, Any]:
    cross_encoder = {"method": "cross-encoder", "model": str(tiny_models / "cross_encoder")}
    return {**config, **cross_encoder, "sampling": {"negatives": 2}}


def as_contriever(config: dict[str, Any]) -> dict[str, Any]:
    sampling = {"chunk_length": 2, "ratio_min": 0.5, "ratio_max": 1.0, "augmentation": "none"}
    loss = [{"name": "moco", "queue_size": 6, "momentum": 0.9}]
    trainer = {**config["trainer"], "per_device_train_batch_size": 2}
    return {**config, "method": "contriever", "sampling": sampling, "loss": loss, "trainer": trainer}


def as_adore(config: dict[str, Any], tiny_models: Path) -> dict[str, Any]:
    from rtk.retrieval.indexing import build_index

    index = Path(config["output"]).parent / "index"
    build_index(config["data"]["collection"], index, retriever=config["model"], backend="torch")
    data = {**config["data"], "index": str(index)}
    return {**config, "method": "adore", "data": data, "loss": [{"name": "adore", "k": 5, "metric_cut": 5}]}


def as_cet(config: dict[str, Any], tiny_models: Path) -> dict[str, Any]:
    from rtk.eval.files import write_run
    from rtk.eval.run import Run

    run = Path(config["output"]).parent / "negatives.run"
    everything, scores = [f"d{n}" for n in range(len(WORDS))], np.arange(len(WORDS), 0, -1, dtype=np.float32)
    write_run(Run.from_lists([(f"q{n}", everything, scores) for n in range(len(WORDS))]), run)
    data = {**config["data"], "runs": {"negatives": str(run)}}
    trainer = {**config["trainer"], "warmup_steps": 0}
    return {**as_reranker(config, tiny_models), "method": "cet", "data": data, "loss": ["cet"], "trainer": trainer}


def train(config: dict[str, Any], *overrides: str) -> Path:
    from rtk.retrieval.training.config import load_config
    from rtk.retrieval.training.trainer import train as run

    return run(load_config(config, overrides))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def with_lora(model: Any, **settings: Any) -> Any:
    """The model with adapters that are not zero, as after some training."""
    from rtk.retrieval.training.blocks import Lora
    from rtk.retrieval.training.lora import add_lora

    add_lora(model, Lora(**settings))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


# --- the model ---


def test_a_fresh_adapter_changes_nothing_and_only_it_is_trained(tiny_dense: Any):
    from rtk.retrieval.training.blocks import Lora
    from rtk.retrieval.training.lora import add_lora, has_adapters

    before = torch.as_tensor(tiny_dense.encode(TEXTS))
    assert not has_adapters(tiny_dense)
    add_lora(tiny_dense, Lora())
    assert has_adapters(tiny_dense)
    assert torch.equal(torch.as_tensor(tiny_dense.encode(TEXTS)), before)
    trained = [name for name, value in tiny_dense.named_parameters() if value.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)


@pytest.mark.parametrize("targets", [None, ("query", "key"), "all-linear"])
def test_the_merged_model_equals_the_unmerged_one(tiny_dense: Any, targets: Any):
    from rtk.retrieval.training.lora import has_adapters, merge_lora

    names, plain = list(tiny_dense.state_dict()), torch.as_tensor(tiny_dense.encode(TEXTS))
    with_lora(tiny_dense, target_modules=targets)
    unmerged = torch.as_tensor(tiny_dense.encode(TEXTS))
    assert (unmerged - plain).abs().max() > 1e-3
    merge_lora(tiny_dense)
    torch.testing.assert_close(torch.as_tensor(tiny_dense.encode(TEXTS)), unmerged, rtol=0, atol=1e-5)
    assert list(tiny_dense.state_dict()) == names
    assert not has_adapters(tiny_dense)


def test_a_merged_reranker_equals_the_unmerged_one_with_its_trained_head(tiny_cross_encoder: Any):
    from rtk.retrieval.training.lora import merge_lora

    pairs = [("file", text) for text in TEXTS]
    names = list(tiny_cross_encoder.state_dict())
    with_lora(tiny_cross_encoder)
    trained = [name for name, value in tiny_cross_encoder.named_parameters() if value.requires_grad]
    heads = [name for name in trained if "lora_" not in name]
    assert heads
    assert all("classifier" in name for name in heads)
    with torch.no_grad():
        for name, parameter in tiny_cross_encoder.named_parameters():
            if name in heads:
                parameter.add_(0.5)
    unmerged = torch.as_tensor(tiny_cross_encoder.predict(pairs))
    merge_lora(tiny_cross_encoder)
    torch.testing.assert_close(torch.as_tensor(tiny_cross_encoder.predict(pairs)), unmerged, rtol=0, atol=1e-5)
    assert list(tiny_cross_encoder.state_dict()) == names


def test_layers_that_are_not_there_are_refused(tiny_dense: Any):
    with pytest.raises(ConfigError, match=r"lora\.target_modules: \('nowhere',\)"):
        with_lora(tiny_dense, target_modules=("nowhere",))


def test_without_peft_the_command_that_installs_it_is_told(tiny_dense: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingExtra, match="lora") as caught:
        with_lora(tiny_dense)
    assert extras.EXTRAS["peft"].install in str(caught.value)


# --- training ---

_PLAIN = """
import sys
sys.modules["peft"] = None
import sentence_transformers, torch
model = getattr(sentence_transformers, sys.argv[1])(sys.argv[2], device="cpu")
print(sum(float(value.double().sum()) for value in model.state_dict().values()))
"""


@pytest.mark.parametrize("kind", ["SentenceTransformer", "CrossEncoder"])
def test_a_merged_result_is_a_plain_model_that_learned(
    config: dict[str, Any], tiny_models: Path, tmp_path: Path, kind: str
):
    given = config if kind == "SentenceTransformer" else as_reranker(config, tiny_models)
    output = train(given)
    assert not list(output.glob("adapter*"))
    before, after = weights(Path(given["model"])), weights(output)
    assert before.keys() == after.keys()
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    assert changed
    assert all("query" in name or "value" in name or "classifier" in name for name in changed)
    script = tmp_path / "plain.py"
    script.write_text(_PLAIN)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), kind, str(output)]
    found = subprocess.run(command, capture_output=True, text=True, check=True, cwd="/", env=environment)
    expected = sum(float(value.double().sum()) for value in after.values())
    assert float(found.stdout.split()[-1]) == pytest.approx(expected, rel=1e-6)


METHODS: dict[str, Callable[..., dict[str, Any]]] = {
    "contrastive": lambda config, tiny_models: config,
    "cross-encoder": as_reranker,
    "contriever": lambda config, tiny_models: as_contriever(config),
    "adore": as_adore,
    "cet": as_cet,
}


@pytest.mark.parametrize("method", METHODS)
def test_resumed_equals_uninterrupted_bit_for_bit(
    config: dict[str, Any], tiny_models: Path, method: str, interrupted: Callable[..., None]
):
    import sentence_transformers

    config = METHODS[method](config, tiny_models)
    reranker = method in ("cross-encoder", "cet")
    load = sentence_transformers.CrossEncoder if reranker else sentence_transformers.SentenceTransformer
    whole = load(str(train({**config, "output": config["output"] + "-whole"})), device="cpu").state_dict()
    interrupted(config, 6)
    halves = load(str(train(config)), device="cpu").state_dict()
    assert halves.keys() == whole.keys()
    assert not any("lora" in name for name in whole)
    assert all(torch.equal(value, whole[name]) for name, value in halves.items())
    before = load(config["model"], device="cpu").state_dict()
    assert any(name in before and not torch.equal(value, before[name]) for name, value in whole.items()) or (
        method == "adore"  # a Router, whose names are others
    )


@pytest.mark.slow
def test_two_processes_end_where_one_does(
    train_on_ranks: Callable[..., list[Path]], without_dropout: Callable[[str | Path], Path], config: dict[str, Any]
):
    model = without_dropout(config["model"])
    config["lora"]["dropout"] = 0.0
    outputs = train_on_ranks({**config, "model": str(model)}, 6, learning_rate=0.1, max_steps=4)
    before, one, two = (weights(folder) for folder in (model, *outputs))
    assert any(not torch.equal(value, before[name]) for name, value in one.items())
    for name, value in two.items():
        torch.testing.assert_close(value, one[name], rtol=1e-4, atol=1e-6)


def test_a_second_model_of_the_loss_is_merged_too(config: dict[str, Any], tiny_models: Path):
    output = train(as_cet(config, tiny_models))
    assert not list((output / "selection").glob("adapter*"))
    before, after = weights(tiny_models / "cross_encoder"), weights(output / "selection")
    assert before.keys() == after.keys()
    assert any(not torch.equal(value, before[name]) for name, value in after.items())


def test_a_second_model_that_is_named_has_adapters_and_loads_unmerged(config: dict[str, Any], tiny_models: Path):
    from sentence_transformers import CrossEncoder

    from rtk.retrieval.losses.selection import load_selection

    config = as_cet(config, tiny_models)
    config["loss"] = [{"name": "cet", "selection_model": str(tiny_models / "cross_encoder")}]
    adapter = train(config, "lora.merge=false")
    assert list((adapter / "selection").glob("adapter*"))
    merged = train({**config, "output": config["output"] + "-merged"})
    found = load_selection(adapter / "selection", device="cpu").encoder
    assert found is not None
    pairs = [(text, "wing heat") for text in TEXTS]
    scores = [cast(Any, found).predict(pairs), CrossEncoder(str(merged / "selection"), device="cpu").predict(pairs)]
    np.testing.assert_allclose(*scores, rtol=0, atol=1e-5)
    assert np.ptp(scores[0]) > 0


def test_adore_with_adapters_still_searches_the_old_index(config: dict[str, Any], tiny_models: Path):
    from sentence_transformers import SentenceTransformer

    from rtk.retrieval.encoders import load_encoder

    config = as_adore(config, tiny_models)
    output = train(config)
    before, after = (load_encoder(path, device="cpu") for path in (config["model"], str(output)))
    assert before.identity.fingerprint == after.identity.fingerprint
    plain = SentenceTransformer(str(output), device="cpu")
    first = SentenceTransformer(config["model"], device="cpu")
    assert (torch.as_tensor(plain.encode_query(TEXTS)) - torch.as_tensor(first.encode_query(TEXTS))).abs().max() > 1e-4


def test_the_best_checkpoint_is_the_one_that_is_merged(config: dict[str, Any], toy: Path):
    evaluation = {"collection": str(toy), "split": "dev", "every": 2, "measure": "RR@10"}
    config["trainer"] |= {"learning_rate": 0.3, "max_steps": 12, "save_steps": 2, "save_total_limit": 10}
    output = train({**config, "evaluation": evaluation})
    record = json.loads((output / "rtk-run.json").read_text())
    from sentence_transformers import SentenceTransformer

    from rtk.retrieval.training.blocks import Lora
    from rtk.retrieval.training.lora import add_lora, load_trained, merge_lora

    best = SentenceTransformer(config["model"], device="cpu")
    add_lora(best, Lora(**config["lora"]))
    load_trained(best, output / "checkpoints" / f"checkpoint-{record['best_step']}")
    merge_lora(best)
    final = SentenceTransformer(str(output), device="cpu")
    assert all(torch.equal(value, final.state_dict()[name]) for name, value in best.state_dict().items())


def test_an_adapter_on_its_own_loads_with_peft(config: dict[str, Any]):
    from sentence_transformers import SentenceTransformer

    adapter = SentenceTransformer(str(train(config, "lora.merge=false")), device="cpu")
    merged = SentenceTransformer(str(train({**config, "output": config["output"] + "-merged"})), device="cpu")
    vectors = [torch.as_tensor(model.encode(TEXTS)) for model in (adapter, merged)]
    torch.testing.assert_close(*vectors, rtol=0, atol=1e-5)


def test_a_checkpoint_of_other_adapters_is_refused(tiny_dense: Any, tiny_models: Path, tmp_path: Path):
    from sentence_transformers import SentenceTransformer

    from rtk.retrieval.training.lora import load_trained, save_trained

    save_trained(with_lora(tiny_dense, rank=4), tmp_path)
    other = with_lora(SentenceTransformer(str(tiny_models / "dense"), device="cpu"), rank=8)
    with pytest.raises(ConfigError, match="other adapters"):
        load_trained(other, tmp_path)


def test_gradient_checkpointing_trains_the_same_adapters(config: dict[str, Any]):
    config["lora"]["dropout"] = 0.0
    plain = weights(train(config))
    checkpointed = weights(train({**config, "output": config["output"] + "2"}, "trainer.gradient_checkpointing=true"))
    for name, value in checkpointed.items():
        torch.testing.assert_close(value, plain[name], rtol=1e-4, atol=1e-5)


def test_lora_with_attention_both_ways(config: dict[str, Any], tiny_models: Path, tmp_path: Path):
    from sentence_transformers import SentenceTransformer
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    from rtk.retrieval.encoders.bidirectional import sees_what_follows

    tokenizer = AutoTokenizer.from_pretrained(tiny_models / "bert")
    settings = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, pad_token_id=0, max_position_embeddings=64,
    )  # fmt: skip
    Qwen2ForCausalLM(settings).save_pretrained(tmp_path / "qwen")
    tokenizer.save_pretrained(tmp_path / "qwen")
    output = train({**config, "model": str(tmp_path / "qwen"), "attention": "bidirectional"})
    assert sees_what_follows(next(SentenceTransformer(str(output), device="cpu").children()))
