"""Yes/no rerankers in training: GMR's weights and directions, and one model for three ways to score."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from rtk.errors import ConfigError
from rtk.retrieval.losses.yes_no import unified_yes_no
from rtk.retrieval.rerankers.base import Candidate, Request
from rtk.retrieval.rerankers.registry import load_reranker
from rtk.retrieval.training.config import load_config
from rtk.retrieval.training.trainer import train

ASKED = {"positive_answer": "Y", "negative_answer": "N"}
KINDS = ["contrastive", "supervised"]
PAIRS = [
    ("heat flow", "wing  air\nflow"),
    ("cell", "gene protein vitamin risk cancer study"),
    ("risk of cancer", "a list of text that goes on for longer than the others do, with file and path"),
    ("x", ""),
]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RTK_CACHE", str(tmp_path / "cache"))


# --- the loss ---


@pytest.fixture
def hidden() -> tuple[torch.Tensor, torch.Tensor]:
    """(B, N, d) last hidden states and the two rows of the head, float64."""
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(3, 5, 7, generator=generator, dtype=torch.float64, requires_grad=True)
    return states, torch.randn(2, 7, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("direction", KINDS)
@pytest.mark.parametrize("weights", KINDS)
def test_the_gradient_is_weight_times_direction(hidden: Any, weights: str, direction: str):
    states, head = hidden
    yes, no = states @ head[0], states @ head[1]
    labels = torch.zeros(3, 5)
    labels[:, 0] = 1
    loss = unified_yes_no(yes, no, labels, weights=weights, direction=direction)
    (found,) = torch.autograd.grad(loss, states)
    p = torch.softmax(torch.stack([yes, no]), dim=0)[0].detach()
    e = yes.detach().exp()
    if weights == "supervised":
        pushes = torch.cat([-(1 - p[:, :1]), p[:, 1:]], dim=1) / labels.numel()
    else:
        share = e / e.sum(dim=1, keepdim=True)
        up = e[:, 1:].sum(dim=1, keepdim=True) / e.sum(dim=1, keepdim=True)
        pushes = torch.cat([-up, share[:, 1:]], dim=1) / len(labels)
    towards = head[0] - head[1] if direction == "supervised" else head[0]
    torch.testing.assert_close(found, pushes[:, :, None] * towards, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_and_direction_of_one_kind_are_its_loss(hidden: Any, kind: str):
    states, head = hidden
    labels = torch.zeros(3, 5)
    labels[:, 0] = 1
    yes, no = states @ head[0], states @ head[1]
    both = torch.stack([no, yes], dim=-1)
    if kind == "supervised":
        plain = F.cross_entropy(both.flatten(0, 1), labels.long().flatten())
    else:
        plain = F.cross_entropy(yes, torch.zeros(3, dtype=torch.long))
    found = unified_yes_no(yes, no, labels, weights=kind, direction=kind)
    assert found.item() == pytest.approx(plain.item(), abs=1e-6)
    ours, theirs = (torch.autograd.grad(value, states, retain_graph=True)[0] for value in (found, plain))
    torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-6)


# --- the model ---


@pytest.fixture
def config(tiny_llama: Path, tmp_path: Path, next_word: tuple[Path, Path]) -> dict[str, Any]:
    folder, run = next_word
    return {
        "method": "yes-no",
        "model": str(tiny_llama),
        "data": {"collection": str(folder), "runs": {"negatives": str(run)}},
        "prompt": ASKED,
        "sampling": {"negatives": 2},
        "lora": None,
        "trainer": {
            **{"per_device_train_batch_size": 3, "gradient_accumulation_steps": 1, "learning_rate": 3e-3},
            **{"max_steps": 4, "use_cpu": True, "bf16": False, "gradient_checkpointing": False},
        },
        "output": str(tmp_path / "model"),
    }


def scores(reranker: Any) -> list[float]:
    found = reranker.rerank(
        [Request(str(at), query, (Candidate("d", text),)) for at, (query, text) in enumerate(PAIRS)]
    )
    return [float(result.raw[0]) for result in found]


@pytest.mark.parametrize("prompt", [{}, {"template": "plain"}, {"instruction": "Is it so?", "words": 4}])
def test_training_and_both_rerankers_score_alike(config: dict, prompt: dict):
    from rtk.retrieval.training.models import load_model

    asked = {**ASKED, **prompt}
    output = train(load_config({**config, "prompt": asked}))
    training = load_model(load_config({**config, "prompt": asked, "model": str(output)}))
    with torch.no_grad():
        trained = training(dict(training.preprocess(PAIRS)))["scores"].flatten().tolist()
    settings = {"device": "cpu", "yes": "Y", "no": "N", **prompt}
    assert scores(load_reranker("yes-no", str(output), **settings)) == pytest.approx(trained, abs=1e-5)
    assert scores(load_reranker("cross-encoder", str(output), device="cpu")) == pytest.approx(trained, abs=1e-5)
    from sentence_transformers import CrossEncoder

    stock = CrossEncoder(str(output), device="cpu")
    assert type(stock).__module__.startswith("sentence_transformers")
    found = stock.predict(PAIRS, activation_fn=torch.nn.Identity())
    assert found.tolist() == pytest.approx(trained, abs=1e-5)
    before = load_reranker("yes-no", config["model"], **settings)
    assert scores(before) != pytest.approx(trained, abs=1e-2)


@pytest.mark.parametrize("prompt", [{}, {"instruction": "Is it so?", "words": 4}])
def test_proranks_second_stage_scores_as_its_reranker_does(config: dict, prompt: dict):
    from rtk.retrieval.training.models import load_model

    asked = {"words": None, **prompt}
    given = {**config, "prompt": {"reranker": "prorank", **asked}}
    output = train(load_config(given))
    training = load_model(load_config({**given, "model": str(output)}))
    with torch.no_grad():
        trained = training(dict(training.preprocess(PAIRS)))["scores"].flatten().tolist()
    assert scores(load_reranker("prorank", str(output), device="cpu", **asked)) == pytest.approx(trained, abs=1e-5)
    assert scores(load_reranker("cross-encoder", str(output), device="cpu")) == pytest.approx(trained, abs=1e-5)
    before = scores(load_reranker("prorank", config["model"], device="cpu", **asked))
    assert before != pytest.approx(trained, abs=1e-2)


def test_a_marker_in_a_document_stays_text_while_training(config: dict):
    from rtk.retrieval.training.models import load_model

    model = load_model(load_config(config))
    end = model.tokenizer.eos_token_id
    plain = model.preprocess([("x", "a text")])["input_ids"][0].tolist().count(end)
    assert model.preprocess([("<|end|>", "a <|end|> text <|head|>")])["input_ids"][0].tolist().count(end) == plain


@pytest.mark.parametrize("loss", ["yes-no", "binary-cross-entropy", "listwise-softmax"])
def test_it_learns(config: dict, loss: str):
    evaluation = {"collection": config["data"]["collection"], "split": "train", "measure": "RR@10", "every": 40}
    config["trainer"] |= {"max_steps": 40, "per_device_train_batch_size": 6, "learning_rate": 1e-2}
    evaluation["run"] = config["data"]["runs"]["negatives"]
    output = train(load_config({**config, "loss": [{"name": loss}], "evaluation": evaluation}))
    values = [entry["RR@10"] for entry in json.loads((output / "rtk-run.json").read_text())["evaluations"]]
    assert values[-1] > values[0] + 0.2


def test_adapters_are_merged_and_two_processes_train_as_one(config: dict, train_on_ranks: Callable[..., list[Path]]):
    pytest.importorskip("peft")
    from safetensors.torch import load_file

    given = {**config, "lora": {"rank": 4, "target_modules": "all-linear"}, "sampling": {"negatives": 1}}
    one, two = train_on_ranks(given, 4, max_steps=2, learning_rate=0.5)
    ones, twos = (load_file(folder / "model.safetensors") for folder in (one, two))
    before = load_file(Path(config["model"]) / "model.safetensors")
    assert any(not torch.equal(value, before[name]) for name, value in ones.items())
    for name, value in ones.items():
        torch.testing.assert_close(twos[name], value, atol=1e-5, rtol=1e-4)


def test_what_does_not_go_together_is_told(config: dict, tiny_models: Path):
    with pytest.raises(ConfigError, match="lengths"):
        load_config({**config, "lengths": {"query": 8, "document": 8}})
    with pytest.raises(ConfigError, match="answers are 1 and 0"):
        load_config({**config, "prompt": {"reranker": "prorank", "positive_answer": "Y"}})
    with pytest.raises(ConfigError, match=r"prompt\.file: yes-no has no place"):
        load_config({**config, "prompt": {"file": "x"}})
    with pytest.raises(ConfigError, match=r"prompt\.end: yes-no has no place"):
        load_config({**config, "prompt": {"end": False}})
    with pytest.raises(ConfigError, match="one token"):
        train(load_config({**config, "prompt": {"positive_answer": "certainly"}}))
    given = {**config, "method": "cross-encoder", "model": str(tiny_models / "cross_encoder"), "prompt": None}
    with pytest.raises(ConfigError, match="answers yes or no"):
        train(load_config({**given, "loss": [{"name": "yes-no"}]}), overwrite=True)
