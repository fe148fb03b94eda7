"""The published figures of 46 real runs of the TREC Deep Learning track."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from rtk.eval.files import read_run
from rtk.eval.measures import evaluate
from rtk.eval.qrels import read_qrels


@pytest.fixture(scope="module")
def rows(shared_data: Path) -> list[dict[str, str]]:
    with open(shared_data / "trec-dl" / "expected_scores.tsv", newline="") as handle:
        return list(csv.DictReader(handle, delimiter="\t"))


def test_all_published_and_measured_values(shared_data: Path, rows: list[dict[str, str]]) -> None:
    folder = shared_data / "trec-dl"
    judgments = {
        name: read_qrels(folder / name / "qrels" / "test.trec") for name in {row["collection"] for row in rows}
    }
    published = 0
    for name in sorted({row["run"] for row in rows}):
        own = [row for row in rows if row["run"] == name]
        asked = [row["measure"] for row in own]
        found = {order: evaluate(read_run(folder / "runs" / name, order=order), judgments[own[0]["collection"]], asked)
                 for order in ("rank", "score")}  # fmt: skip
        for row in own:
            means = {order: found[order].mean(row["measure"]) for order in found}
            for order, mean in means.items():
                assert mean == pytest.approx(float(row[f"measured_by_{order}"]), abs=5.1e-5), (
                    name,
                    row["measure"],
                    order,
                )
            if row["published"]:
                published += 1
                assert min(abs(mean - float(row["published"])) for mean in means.values()) < 1.01e-4, (
                    name,
                    row["measure"],
                )
    assert published == 117


def test_both_forms_of_the_judgments_agree(shared_data: Path) -> None:
    for name in ("dl19", "dl20", "dl21", "msmarco-dev-small"):
        folder = shared_data / "trec-dl" / name / "qrels"
        forms = sorted(folder.glob("*.t*"))
        first, *others = [read_qrels(path).to_dict() for path in forms]
        assert all(other == first for other in others), forms
