"""A masked-LM head for an encoder without one: near the identity, trained on documents, and a start for SPLADE."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rtk.errors import ConfigError
from rtk.retrieval.losses.masked_lm import IGNORED, Masking, hide_tokens, masked_lm_loss

MASKING = Masking(mask=99, first=10, last=19, probability=0.15)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RTK_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def config(tmp_path: Path, tiny_models: Path, beir_folder: Any) -> dict[str, Any]:
    pairs = ["merge sort", "protein gene", "vitamin risk", "wing flow"]  # each word tells the other
    corpus = [{"_id": f"d{n}", "text": " ".join([pairs[n % 4]] * 6)} for n in range(24)]
    folder = beir_folder(corpus=corpus, qrels={"train": [("q0", "d1", 1)], "test": [("q0", "d1", 1)]})
    trainer = {"per_device_train_batch_size": 8, "max_steps": 4, "use_cpu": True, "logging_steps": 4}
    return {
        "method": "masked-lm",
        "model": str(tiny_models / "dense"),
        "data": {"collection": str(folder)},
        "sampling": {"chunk_length": 12},
        "loss": [{"name": "masked-lm", "parameters": "all"}],
        "trainer": {**trainer, "learning_rate": 3e-3, "warmup_steps": 0, "lr_scheduler_type": "constant"},
        "output": str(tmp_path / "model"),
    }


def train(config: dict[str, Any], *overrides: str) -> Path:
    from rtk.retrieval.training.config import load_config
    from rtk.retrieval.training.trainer import train as run

    return run(load_config(config, overrides))


def weights(output: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(output / "model.safetensors")


def test_hidden_tokens_are_of_the_published_kinds_and_shares():
    tokens = np.arange(10, 20).repeat(4000)
    seen, targets = hide_tokens(tokens, MASKING, np.random.default_rng(0))
    asked = targets != IGNORED
    assert (targets[asked] == tokens[asked]).all()
    assert (seen[~asked] == tokens[~asked]).all()
    assert asked.mean() == pytest.approx(0.15, abs=0.01)
    assert (seen[asked] == 99).mean() == pytest.approx(0.8, abs=0.02)
    assert (seen[asked] == tokens[asked]).mean() == pytest.approx(0.1 + 0.1 / 10, abs=0.02)
    assert set(seen.tolist()) <= {99, *range(10, 20)}


def test_at_least_one_token_is_asked_for_and_the_seed_decides_which():
    tokens = np.arange(10, 13)
    found = [hide_tokens(tokens, MASKING, np.random.default_rng(seed)) for seed in range(50)]
    assert all((targets != IGNORED).any() for _, targets in found)
    assert len({tuple((targets != IGNORED).tolist()) for _, targets in found}) > 1
    again = hide_tokens(tokens, MASKING, np.random.default_rng(7))
    assert all((one == two).all() for one, two in zip(again, found[7], strict=True))


def test_the_loss_is_the_cross_entropy_summed():
    logits, targets = torch.randn(5, 7, dtype=torch.float64), torch.tensor([0, 3, 6, 1, 1])
    wanted = -sum(float(logits[row].softmax(0)[target].log()) for row, target in enumerate(targets.tolist()))
    assert float(masked_lm_loss(logits, targets)) == pytest.approx(wanted)


def test_a_new_head_is_tied_and_near_to_the_identity(tiny_dense: Any):
    from rtk.retrieval.encoders.masked_head import with_masked_head

    frequencies = np.arange(150.0)
    model, _ = with_masked_head(tiny_dense, frequencies)
    states = torch.randn(9, 32) * 0.5
    found = model.cls.predictions.transform(states)
    torch.testing.assert_close(found, torch.nn.functional.layer_norm(states, (32,)), rtol=0, atol=1e-3)
    embeddings = model.bert.embeddings.word_embeddings.weight
    head = model.get_output_embeddings()
    assert head.weight is embeddings
    torch.testing.assert_close(model.cls.predictions(states), found @ embeddings.T + head.bias)
    assert torch.equal(head.bias.argsort(), torch.arange(150))
    encoder = tiny_dense[0].model.state_dict()
    assert all(torch.equal(value, encoder[name]) for name, value in model.bert.state_dict().items())


def test_shifting_the_bias_sets_the_number_of_terms_and_leaves_the_loss(tiny_dense: Any, tmp_path: Path):
    from sentence_transformers.base.modules import Transformer

    from rtk.retrieval.encoders.masked_head import largest_logits_of, shift_to_active, with_masked_head

    model, tokenizer = with_masked_head(tiny_dense)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    reader = Transformer(str(tmp_path), transformer_task="fill-mask")
    texts = ["file cell of the", "wing", "heat vitamin risk"]
    before = largest_logits_of(reader, texts, length=16)
    shift = shift_to_active(reader, texts, 20, length=16)
    after = largest_logits_of(reader, texts, length=16)
    torch.testing.assert_close(after, before + shift)
    assert int((after > 1e-6).sum()) == pytest.approx(3 * 20, abs=1)
    torch.testing.assert_close(after.log_softmax(1), before.log_softmax(1))


def test_training_finds_hidden_tokens_and_gives_a_start_for_splade(config: dict[str, Any], tmp_path: Path):
    from sentence_transformers import SparseEncoder

    output = train(config, "trainer.max_steps=80", "trainer.logging_steps=20", "loss.0.active=10")
    states = sorted((output / "checkpoints").glob("*/trainer_state.json"))
    history = json.loads(states[-1].read_text())["log_history"]
    accuracy = [entry["masked-lm-accuracy"] for entry in history if "masked-lm-accuracy" in entry]
    assert accuracy[-1] > accuracy[0] + 0.3
    model = SparseEncoder(str(output), device="cpu")
    assert [type(module).__name__ for module in model.children()] == ["Transformer", "SpladePooling"]
    active = (model.encode_document(["merge sort merge sort"]).to_dense() > 0).sum()
    assert 1 <= int(active) <= 60
    splade = {
        "method": "splade",
        "model": str(output),
        "data": config["data"],
        "lengths": {"query": 8, "document": 16},
        "sampling": {"negatives": 0},
        "sparse": {"active": {"least": 0}},
        "loss": [{"name": "infonce"}, {"name": "flops", "weight": 0.001, "steps": 2}],
        "trainer": {**config["trainer"], "per_device_train_batch_size": 1, "max_steps": 1},
        "output": str(tmp_path / "splade"),
    }
    assert (train(splade) / "model.safetensors").is_file()


def test_the_head_alone_leaves_the_encoder_as_it_was(config: dict[str, Any]):
    from sentence_transformers import SentenceTransformer

    before = SentenceTransformer(config["model"], device="cpu")[0].model.state_dict()
    after = weights(train(config, "loss.0.parameters=head"))
    for name, value in before.items():
        if not name.startswith("pooler"):
            assert torch.equal(after[f"bert.{name}"], value), name
    transform = after["cls.predictions.transform.dense.weight"]
    assert not torch.equal(transform, torch.eye(32))


@pytest.mark.parametrize("kind", ["bert-mlm", "sparse", "sparse of before 5.4"])
def test_a_head_that_is_there_is_trained_on(
    kind: str, config: dict[str, Any], tiny_models: Path, tmp_path: Path, as_saved_before_5_4: Any
):
    model = Path(shutil.copytree(tiny_models / kind.partition(" ")[0], tmp_path / "start"))
    if kind.endswith("5.4"):
        as_saved_before_5_4(model)
    output = train({**config, "model": str(model)}, "trainer.learning_rate=1e-9")
    before = weights(model)
    name = "cls.predictions.transform.dense.weight"
    torch.testing.assert_close(weights(output)[name], before[name], rtol=0, atol=1e-6)


def test_weights_of_a_head_that_begin_at_random_are_said(
    config: dict[str, Any], tiny_models: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    from safetensors.torch import load_file, save_file

    from rtk.retrieval.training.config import load_config
    from rtk.retrieval.training.masked_lm import load_masked_lm

    folder = shutil.copytree(tiny_models / "bert-mlm", tmp_path / "headless")
    load_masked_lm(str(folder), load_config({**config, "model": str(folder)}))
    assert "at random" not in caplog.text
    weights = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in weights.items() if "transform" not in name}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    load_masked_lm(str(folder), load_config({**config, "model": str(folder)}))
    assert "cls.predictions.transform" in caplog.text
    assert "They begin at random" in caplog.text


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(config: dict[str, Any], interrupted: Any):
    from rtk.retrieval.training.config import load_config

    config["trainer"] |= {"save_steps": 2}
    whole = train({**config, "output": config["output"] + "-whole"})
    interrupted(load_config(config), 3)
    halves = weights(train(config))
    for name, value in weights(whole).items():
        assert torch.equal(value, halves[name]), name


def test_two_processes_train_what_one_does(config: dict[str, Any], train_on_ranks: Any, without_dropout: Any):
    config["model"] = str(without_dropout(config["model"]))
    one, two = train_on_ranks(config, 8, max_steps=3, learning_rate=0.1)
    for name, value in weights(one).items():
        torch.testing.assert_close(value, weights(two)[name], rtol=1e-4, atol=1e-5)
    transform = weights(one)["cls.predictions.transform.dense.weight"]
    assert (transform - torch.eye(32)).abs().max() > 1e-3


def test_what_masked_lm_training_cannot_use_is_refused(config: dict[str, Any]):
    from rtk.retrieval.training.config import load_config

    evaluation = {"collection": config["data"]["collection"], "split": "test"}
    with pytest.raises(ConfigError) as refused:
        load_config({**config, "lengths": {"document": 12}, "evaluation": evaluation, "loss": [{"name": "infonce"}]})
    text = str(refused.value)
    for part in ("lengths: ", "evaluation: ", "loss.0: 'infonce' does not go with method 'masked-lm'"):
        assert part in text
    with pytest.raises(ConfigError, match=r"loss\.0: 'masked-lm' does not go with method 'splade'"):
        load_config({**config, "method": "splade", "sampling": {}})
