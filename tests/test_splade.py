"""Training sparse encoders: they learn while they get sparse, resume, share batches, and load in plain libraries."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rtk.eval.files import write_run
from rtk.eval.run import Run

WORDS = [
    "file",
    "cell",
    "wing",
    "heat",
    "vitamin",
    "cancer",
    "json",
    "date",
    "path",
    "flow",
    "gene",
    "list",
    "text",
    "risk",
    "air",
    "time",
]
SIZE = len(WORDS) // 2


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RTK_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def config(tmp_path: Path, tiny_models: Path) -> dict[str, Any]:
    """Queries of a word; the document of each is another word, so that only training can match them."""
    folder = tmp_path / "toy"
    (folder / "qrels").mkdir(parents=True)
    documents = [{"_id": f"d{n}", "title": "", "text": f"{WORDS[SIZE + n]} the"} for n in range(SIZE)]
    queries = [{"_id": f"q{n}", "text": WORDS[n]} for n in range(SIZE)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(line) + "\n" for line in documents))
    (folder / "queries.jsonl").write_text("".join(json.dumps(line) + "\n" for line in queries))
    for split in ("train", "dev"):
        rows = "".join(f"q{n}\td{n}\t1\n" for n in range(SIZE))
        (folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + rows)
    lists = [
        (f"q{n}", [f"d{(n + step) % SIZE}" for step in range(SIZE)], -np.arange(SIZE, dtype=np.float32))
        for n in range(SIZE)
    ]
    write_run(Run.from_lists(lists), tmp_path / "all.run")
    trainer = {"per_device_train_batch_size": 8, "learning_rate": 1e-3, "max_steps": 6, "warmup_steps": 0}
    return {
        "method": "splade",
        "model": str(tiny_models / "bert-mlm"),
        "lengths": {"query": 16, "document": 16},
        "data": {"collection": str(folder), "runs": {"negatives": str(tmp_path / "all.run")}},
        "loss": [
            {"name": "infonce"},
            {"name": "flops", "side": "query", "weight": 1e-2, "steps": 20},
            {"name": "flops", "side": "document", "weight": 1e-2, "steps": 20, "grouping": "by-side"},
        ],
        "sparse": {"active": {"most": 1.0}},
        "trainer": {**trainer, "use_cpu": True, "lr_scheduler_type": "constant", "logging_steps": 10},
        "evaluation": {"collection": str(folder), "split": "dev", "every": 3, "measure": "RR@10"},
        "output": str(tmp_path / "model"),
    }


def train(config: dict[str, Any], *overrides: str, **options: Any) -> Path:
    from rtk.retrieval.training.config import load_config
    from rtk.retrieval.training.trainer import train as run

    return run(load_config(config, overrides), **options)


def record(output: Path) -> dict[str, Any]:
    return json.loads((output / "rtk-run.json").read_text())


def logged(output: Path) -> list[dict[str, Any]]:
    """The log of the last checkpoint."""
    states = sorted((output / "checkpoints").glob("*/trainer_state.json"), key=lambda path: int(path.parent.name[11:]))
    return json.loads(states[-1].read_text())["log_history"]


def active(output: Path, side: str) -> list[float]:
    return [entry[f"active-{side}"] for entry in logged(output) if f"active-{side}" in entry]


def test_training_learns_while_fewer_terms_stay_active(config: dict[str, Any]):
    output = train(config, "trainer.max_steps=200", "evaluation.every=100")
    values = [entry["RR@10"] for entry in record(output)["evaluations"]]
    assert values[0] < 0.6
    assert values[-1] == 1.0
    for side in ("query", "document"):
        assert active(output, side)[-1] < active(output, side)[0] * 0.7
    assert record(output)["score"] == {
        "similarity": "dot", "scale": 1.0, "learn_scale": False, "what": "scale times similarity, in the loss",
    }  # fmt: skip
    from sentence_transformers import SparseEncoder

    model = SparseEncoder(str(output), device="cpu")
    scores = model.similarity(
        model.encode_query(WORDS[:SIZE]), model.encode_document([f"{w} the" for w in WORDS[SIZE:]])
    )
    assert (scores.argmax(dim=1) == torch.arange(SIZE)).all()
