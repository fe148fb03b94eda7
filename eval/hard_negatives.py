"""Hard-negative files: for each query its positives and, by mining system, its negatives, with teacher scores.

Four forms of JSON line are read, and the first is written:

    {"qid": "1", "pos": [{"pid": "7", "ce-score": 9.5}], "neg": {"bm25": [{"pid": "9", "ce-score": -2.0}, …], …}}
    {"qid": 1, "pos": [7], "neg": {"bm25": [9, …], …}}          without scores
    {"1": {"7": 9.5, "9": -2.0}, …}                             scores alone
    {"1": [9, 12, …], …}                                        negatives alone (STAR's static ones, in one line)

Published files have whole numbers for ids; they are taken as their decimal digits, which is what MS MARCO's ids are.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ..errors import DataError
from ..files import atomic_path
from ..ids import Ids
from .blocks import write_bytes
from .judgments import Judgments, JudgmentsBuilder
from .lines import read_jsonl
from .run import Run

__all__ = ["HardNegatives", "read_hard_negatives", "write_hard_negatives"]

_SCORE_KEYS = ("ce-score", "score")


@dataclass(frozen=True)
class HardNegatives:
    """What a hard-negative file holds, by role.

    Attributes:
        positives: grade 1; None for a file of scores or of negatives alone.
        negatives: one list for each query and mining system (column `list_id`, a place in `systems`), in the file's
            order, scored 1 / rank; None for a file of scores alone.
        systems: names of the mining systems.
        teacher: raw scores of all documents that have one; None when none has.
    """

    positives: Judgments | None
    negatives: Run | None
    systems: tuple[str, ...]
    teacher: Run | None


def read_hard_negatives(path: str | Path) -> HardNegatives:
    """Read a hard-negative file of any of the four forms (one form a file), plain or gzip.

    Raises:
        DataError: with the line: another form, an id that is neither string nor whole number, a score that is no
            finite number, a query that is there twice, or anything `read_jsonl` refuses.
    """
    reader = _Reader(Path(path))
    for line, entry in read_jsonl(path):
        reader.add(entry, line)
    return reader.finish()


class _Reader:
    """Gathers the lines' parts."""

    def __init__(self, path: Path) -> None:
        self.path, self.line = path, 0
        self.positives, self.judged = JudgmentsBuilder(path=path), False
        self.systems: dict[str, int] = {}
        self.lists: dict[str, dict[int, list[str]]] = {}
        self.scores: dict[str, dict[str, float]] = {}

    def add(self, entry: Mapping[str, Any], line: int) -> None:
        self.line = line
        if "qid" not in entry:
            for qid, value in entry.items():
                if isinstance(value, list):
                    self._add_list(qid, value)
                else:
                    self._add_scores(qid, value)
            return
        qid = self._id(entry["qid"])
        negatives = entry.get("neg")
        if not isinstance(entry.get("pos"), list) or not isinstance(negatives, dict):
            raise self._error("expected the fields 'pos' (a list) and 'neg' (an object of lists by mining system)")
        if qid in self.lists:
            raise self._error(f"query {qid!r} is there twice")
        self.judged = True
        for document in self._documents(qid, entry["pos"]):
            self.positives.add(qid, document, 1)
        self.lists[qid] = {
            self.systems.setdefault(system, len(self.systems)): self._documents(qid, listed)
            for system, listed in negatives.items()
        }

    def _add_list(self, qid: str, listed: list[object]) -> None:
        if qid in self.lists:
            raise self._error(f"query {qid!r} is there twice")
        self.lists[qid] = {self.systems.setdefault("static", len(self.systems)): self._documents(qid, listed)}

    def _add_scores(self, qid: str, scores: object) -> None:
        if not isinstance(scores, dict):
            raise self._error(
                'expected {"qid", "pos", "neg"}, {query id: {document id: score}} or {query id: [document id]}'
            )
        if qid in self.scores:
            raise self._error(f"query {qid!r} is there twice")
        self.scores[qid] = {document: self._score(score) for document, score in scores.items()}

    def _documents(self, qid: str, listed: object) -> list[str]:
        """The ids of a list whose items are ids or objects with `pid` and a score, which is noted."""
        if not isinstance(listed, list):
            raise self._error(f"expected a list of documents, found {listed!r}")
        names: dict[str, None] = {}
        for item in listed:
            name = self._id(item["pid"] if isinstance(item, dict) and "pid" in item else item)
            names[name] = None
            for key in _SCORE_KEYS:
                if isinstance(item, dict) and key in item:
                    self.scores.setdefault(qid, {})[name] = self._score(item[key])
        return list(names)

    def _id(self, value: object) -> str:
        if isinstance(value, str) and value:
            return value
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        raise self._error(f"{value!r} is no id; expected a string or a whole number")

    def _score(self, value: object) -> float:
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
        raise self._error(f"score {value!r} is no finite number")

    def _error(self, message: str) -> DataError:
        return DataError(message, path=self.path, line=self.line)

    def finish(self) -> HardNegatives:
        teacher = None
        if self.scores:
            lists = ((qid, list(scores), list(scores.values())) for qid, scores in self.scores.items())
            teacher = Run.from_lists(lists, tag="teacher")
        if not self.lists:
            return HardNegatives(None, None, (), teacher)
        positives = self.positives.finish() if self.judged else None
        return HardNegatives(positives, self._negatives(), tuple(self.systems), teacher)

    def _negatives(self) -> Run:
        parts = [(number, names) for lists in self.lists.values() for number, names in sorted(lists.items())]
        per_query = [sum(map(len, lists.values())) for lists in self.lists.values()]
        return Run.from_columns(
            Ids(list(self.lists)),
            np.concatenate([[0], np.cumsum(per_query, dtype=np.int64)]),
            pa.array([name for _, names in parts for name in names], type=pa.large_string()),
            np.concatenate([np.zeros(0), *(1.0 / np.arange(1, len(names) + 1) for _, names in parts)]),
            columns={"list_id": np.repeat([number for number, _ in parts], [len(names) for _, names in parts])},
            order="rank",
            tag="negatives",
        )


def write_hard_negatives(
    positives: Judgments,
    negatives: Mapping[str, Run],
    path: str | Path,
    *,
    teacher: Run | None = None,
    grade: int = 1,
) -> None:
    """Write a hard-negative file of the first form, a line for each judged query.

    Args:
        positives: documents judged `grade` or better are positives.
        negatives: a run for each mining system, by its name.
        teacher: scores; a document that it lacks is written without one.
    """
    with atomic_path(path) as temporary, write_bytes(temporary) as handle:
        for entry in _lines(positives, negatives, teacher, grade):
            handle.write(json.dumps(entry, ensure_ascii=False).encode("utf-8") + b"\n")


def _lines(
    positives: Judgments, negatives: Mapping[str, Run], teacher: Run | None, grade: int
) -> Iterator[dict[str, Any]]:
    for qid in positives:
        scores: dict[str, float] = {}
        if teacher is not None and qid in teacher:
            ranking = teacher[qid]
            scores = {name: float(str(score)) for name, score in zip(ranking.documents, ranking.scores, strict=True)}

        def item(name: str, scores: dict[str, float] = scores) -> dict[str, str | float]:
            return {"pid": name, "ce-score": scores[name]} if name in scores else {"pid": name}

        yield {
            "qid": qid,
            "pos": [item(name) for name in positives.relevant(qid, grade)],
            "neg": {
                system: [item(name) for name in run[qid].documents] for system, run in negatives.items() if qid in run
            },
        }
