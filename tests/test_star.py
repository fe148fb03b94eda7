"""STAR: static hard negatives as published files and runs, and training on them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtk.errors import DataError
from rtk.eval.hard_negatives import read_hard_negatives
from rtk.eval.judgments import Judgments
from rtk.eval.run import Run
from rtk.retrieval.mining import Selection, mine

SIZE = 6


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RTK_CACHE", str(tmp_path / "cache"))


def test_mining_gives_the_first_documents_that_are_not_relevant():
    """The published way: in rank order, without the relevant ones, cut to so many; `hard.json` holds their ids."""
    generator = random.Random(0)
    ranked = {f"q{n}": generator.sample([f"d{i}" for i in range(60)], 40) for n in range(20)}
    relevant = {qid: set(generator.sample(sorted(documents), 4)) for qid, documents in ranked.items()}
    expected = {
        qid: [document for document in documents if document not in relevant[qid]][:25]
        for qid, documents in ranked.items()
    }
    run = Run.from_lists([(qid, documents, -np.arange(40.0)) for qid, documents in ranked.items()])
    judgments = Judgments.from_dict({qid: dict.fromkeys(documents, 1) for qid, documents in relevant.items()})
    mined, report = mine(run, judgments, selection=Selection(per_query=25))
    assert {qid: list(mined[qid].documents) for qid in mined.qids} == expected
    assert report.queries_short == 0


def test_a_file_of_static_negatives_is_a_negatives_run(tmp_path: Path):
    path = tmp_path / "hard.json"
    path.write_text(json.dumps({"0": [9, 12, 3], "7": [4]}))
    found = read_hard_negatives(path)
    assert found.positives is None
    assert found.negatives is not None
    assert {qid: found.negatives[qid].documents for qid in found.negatives.qids} == {"0": ["9", "12", "3"], "7": ["4"]}


@pytest.mark.parametrize("text", ['{"0": [9]}\n{"0": [8]}', '{"0": [9, null]}', '{"0": [{"score": 1}]}'])
def test_a_broken_file_is_refused_with_its_line(tmp_path: Path, text: str):
    (tmp_path / "hard.json").write_text(text)
    with pytest.raises(DataError, match=r"hard\.json:\d"):
        read_hard_negatives(tmp_path / "hard.json")


@pytest.fixture
def toy(beir_folder: Callable[..., Path]) -> Path:
    queries = ["file", "cell", "wing", "heat", "vitamin", "cancer"]
    documents = ["json", "date", "path", "flow", "gene", "list"]
    rows = [(f"{n}", f"{n}", 1) for n in range(SIZE)]
    return beir_folder(
        "toy",
        [{"_id": f"{n}", "title": "", "text": text} for n, text in enumerate(documents)],
        [{"_id": f"{n}", "text": text} for n, text in enumerate(queries)],
        {"train": rows, "dev": rows},
    )


@pytest.mark.parametrize("optimizer", [None, {"name": "lamb"}])
def test_training_on_static_negatives_learns(
    toy: Path, tiny_models: Path, tmp_path: Path, optimizer: dict[str, Any] | None
):
    from rtk.retrieval.training.config import load_config
    from rtk.retrieval.training.trainer import train

    hard = {str(n): [(n + step) % SIZE for step in range(1, 4)] for n in range(SIZE)}
    (tmp_path / "hard.json").write_text(json.dumps(hard))
    given: dict[str, Any] = {
        "method": "star",
        "model": str(tiny_models / "dense"),
        "data": {"collection": str(toy), "runs": {"negatives": str(tmp_path / "hard.json")}},
        "trainer": {
            "per_device_train_batch_size": 6, "max_steps": 60, "use_cpu": True, "lr_scheduler_type": "constant",
            "learning_rate": 3e-3 if optimizer is None else 1e-2,
        },
        "evaluation": {"collection": str(toy), "split": "dev", "every": 30, "measure": "RR@10"},
        "output": str(tmp_path / "model"),
    }  # fmt: skip
    output = train(load_config({**given, "optimizer": optimizer} if optimizer else given))
    found = json.loads((output / "rtk-run.json").read_text())
    values = [entry["RR@10"] for entry in found["evaluations"]]
    assert max(values[1:]) > values[0] + 0.2
    assert found["data"][0]["negatives"] == 3 * SIZE
