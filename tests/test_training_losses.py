"""Each new loss learns a toy through the trainer; what is recorded, and what is refused."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rtk.errors import ConfigError
from rtk.eval.files import write_run
from rtk.eval.run import Run

QUERIES = ["file", "cell", "wing", "heat", "vitamin", "cancer"]
DOCUMENTS = ["json", "date", "path", "flow", "gene", "list"]
SIZE = len(QUERIES)


@pytest.fixture
def config(tmp_path: Path, tiny_models: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Six queries of a word, the document of each an unlike word, and a teacher who knows."""
    monkeypatch.setenv("RTK_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "toy"
    (folder / "qrels").mkdir(parents=True)
    documents = [{"_id": f"d{n}", "title": "", "text": DOCUMENTS[n]} for n in range(SIZE)]
    queries = [{"_id": f"q{n}", "text": QUERIES[n]} for n in range(SIZE)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(line) + "\n" for line in documents))
    (folder / "queries.jsonl").write_text("".join(json.dumps(line) + "\n" for line in queries))
    rows = "".join(f"q{n}\td{n}\t1\n" for n in range(SIZE))
    (folder / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\n" + rows)
    write_scores(tmp_path / "teacher.run", lambda scores: scores)
    return {
        "method": "contrastive",
        "model": str(tiny_models / "dense"),
        "data": {
            "collection": str(folder),
            "runs": {"negatives": str(tmp_path / "teacher.run"), "teachers": [str(tmp_path / "teacher.run")]},
        },
        "sampling": {"negatives": 3},
        "trainer": {
            "per_device_train_batch_size": 6,
            "learning_rate": 3e-3,
            "lr_scheduler_type": "constant",
            "max_steps": 60,
            "use_cpu": True,
        },
        "output": str(tmp_path / "model"),
    }


def write_scores(path: Path, change: Any) -> None:
    """Scores of all documents for each query: 8 for its own, 0 to −4 for the others."""
    own = np.array([8.0, 0, -1, -2, -3, -4], np.float32)
    lists = [(f"q{n}", [f"d{(n + step) % SIZE}" for step in range(SIZE)], change(own)) for n in range(SIZE)]
    write_run(Run.from_lists(lists), path)


def train(config: dict[str, Any], **trainer: Any) -> Path:
    from rtk.retrieval.training.config import load_config
    from rtk.retrieval.training.trainer import train as run

    return run(load_config({**config, "trainer": {**config["trainer"], **trainer}}))


def reciprocal_ranks(path: Path | str, *, pairs: bool = False) -> float:
    """Mean reciprocal rank of each query's document."""
    from sentence_transformers import CrossEncoder, SentenceTransformer

    if pairs:
        scores = CrossEncoder(str(path), device="cpu").predict([(q, d) for q in QUERIES for d in DOCUMENTS])
        scores = torch.tensor(scores).view(SIZE, SIZE)
    else:
        model = SentenceTransformer(str(path), device="cpu")
        scores = model.similarity(model.encode_query(QUERIES), model.encode_document(DOCUMENTS))
    ranks = (scores >= scores.diagonal()[:, None]).sum(dim=1)
    return (1 / ranks.float()).mean().item()


DENSE = [
    {"name": "margin-mse"},
    {"name": "kl", "teacher": "teacher"},
    {"name": "pld"},
    {"name": "dcd", "hardest": 2},
    {"name": "dcd", "variant": "wsl"},
    {"name": "star"},
    {"name": "listwise-softmax"},
    {"name": "ranknet"},
    {"name": "lambda", "scheme": "lambdarank"},
    {"name": "infonce", "gamma": 0.5, "mixing": ["pairs", "lists"]},
    {"name": "infonce", "directions": "joint", "hardness": 5, "hardness_negatives": "all"},
]


@pytest.mark.slow
@pytest.mark.parametrize("loss", DENSE, ids=lambda loss: "-".join(map(str, loss.values())))
def test_a_bi_encoder_learns(config: dict[str, Any], loss: dict[str, Any]):
    before = reciprocal_ranks(config["model"])
    assert reciprocal_ranks(train({**config, "loss": [loss]})) > max(before + 0.2, 0.7)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["margin-mse", "kl", "pld", "dcd"])
def test_a_cross_encoder_learns(config: dict[str, Any], tiny_models: Path, name: str):
    config |= {"method": "cross-encoder", "model": str(tiny_models / "cross_encoder"), "loss": [{"name": name}]}
    before = reciprocal_ranks(config["model"], pairs=True)
    assert reciprocal_ranks(train(config, learning_rate=1e-2, max_steps=80), pairs=True) > before + 0.2


def history(config: dict[str, Any]) -> list[dict[str, Any]]:
    path = Path(config["output"]) / "checkpoints" / "checkpoint-4" / "trainer_state.json"
    return json.loads(path.read_text())["log_history"]


def test_what_a_step_tells_is_logged(config: dict[str, Any]):
    config["loss"] = [{"name": "infonce", "gamma": 0.5}, {"name": "star"}, {"name": "dcd"}, {"name": "margin-mse"}]
    train(config, max_steps=4, logging_steps=2, save_steps=4)
    first = history(config)[0]
    told = {f"{name}-{what}" for name in ("infonce", "star") for what in ("accuracy", "masked", "margin")}
    told |= {"dcd-hard", "dcd-distillation", "dcd-uncertainty-p90", "infonce-weight-median"}
    told |= {"margin-mse-unscored", "margin-mse-teacher-margin", "margin-mse-student-margin"}
    assert told <= first.keys()
    assert first["loss"] == pytest.approx(
        sum(first[name] for name in ("infonce", "star", "dcd", "margin-mse")), rel=1e-3
    )
    assert 0 <= first["infonce-weight-p10"] <= first["infonce-weight-max"] <= 1
    assert first["margin-mse-unscored"] == 0
    assert 0 <= first["infonce-accuracy"] <= 1


def test_unscored_documents_are_counted_and_leave_the_loss(config: dict[str, Any], tmp_path: Path):
    lists = [(f"q{n}", [f"d{n}", f"d{(n + 1) % SIZE}"], np.array([8.0, 0], np.float32)) for n in range(SIZE - 1)]
    write_run(Run.from_lists(lists), tmp_path / "sparse.run")
    config["data"]["runs"]["teachers"] = [str(tmp_path / "sparse.run")]
    config["data"]["max_missing_scores"] = 1.0
    config["loss"] = [{"name": name} for name in ("margin-mse", "kl", "pld", "dcd")]
    train(config, max_steps=4, logging_steps=2, save_steps=4)
    assert all(entry["kl-unscored"] > 0.4 and np.isfinite(entry["loss"]) for entry in history(config)[:2])


def test_squashed_scores_are_warned_of_once(config: dict[str, Any], caplog: pytest.LogCaptureFixture):
    write_scores(Path(config["data"]["runs"]["teachers"][0]), lambda scores: 1 / (1 + np.exp(-scores)))
    with caplog.at_level(logging.WARNING):
        train({**config, "loss": [{"name": "margin-mse"}, {"name": "kl"}]}, max_steps=2)
    found = [record.getMessage() for record in caplog.records if "squashed" in record.getMessage()]
    assert len(found) == 1
    assert "within 0 and 1" in found[0]


def test_a_learned_scale_is_trained_saved_and_resumed(config: dict[str, Any]):
    from safetensors.torch import load_file

    train({**config, "loss": [{"name": "margin-mse"}]}, max_steps=4, save_steps=2)
    saved = [
        load_file(str(Path(config["output"]) / "checkpoints" / f"checkpoint-{step}" / "loss.safetensors"))
        for step in (2, 4)
    ]
    (first,), (second,) = (state.values() for state in saved)
    assert first != second
    assert abs(second.exp().item() - 20) > 1e-3


def test_a_teacher_that_no_run_has_is_refused_before_training(config: dict[str, Any]):
    with pytest.raises(ConfigError, match="colbert"):
        train({**config, "loss": [{"name": "kl", "teacher": "colbert"}]})


def test_a_cross_encoder_has_no_similarity_or_scale(config: dict[str, Any], tiny_models: Path):
    config |= {"method": "cross-encoder", "model": str(tiny_models / "cross_encoder")}
    for given in ({"scale": 20}, {"similarity": "dot"}, {"learn_scale": True}):
        with pytest.raises(ConfigError) as caught:
            train({**config, "loss": [{"name": "kl", **given}]})
        assert f"loss.0.{next(iter(given))}" in caught.value.problems[0]


def weights(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(path / "model.safetensors")


def test_lamb_trains_and_resumes_bit_for_bit(config: dict[str, Any], interrupted: Callable[..., None]):
    given = {
        **config,
        "loss": [{"name": "star"}],
        "optimizer": {"name": "lamb", "max_norm": 10, "bias_correction": False},
    }
    settings = {"max_steps": 6, "save_steps": 2, "learning_rate": 1e-2}
    whole = train({**given, "output": config["output"] + "-whole"}, **settings)
    interrupted({**given, "trainer": {**given["trainer"], **settings}}, 4)
    halves, before = weights(train(given, **settings)), weights(Path(config["model"]))
    for name, value in weights(whole).items():
        assert torch.equal(value, halves[name])
    assert any(not torch.equal(value, before[name]) for name, value in halves.items())
