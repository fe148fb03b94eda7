"""What mining took and left, in all and for each query."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...files import atomic_path
from ...ids import Ids

__all__ = ["MiningReport", "MiningTrace", "write_trace"]


@dataclass(frozen=True, eq=False)
class MiningTrace:
    """The report by query.

    Attributes:
        qids: the queries.
        reference: (queries,) float32, the score that margins were held against; NaN where nobody scored a positive.
        removed: by rule, (queries,) how many entries it removed.
        kept: (queries,) negatives.
        padded: (queries,) random documents beside them.
    """

    qids: Ids
    reference: np.ndarray
    removed: Mapping[str, np.ndarray]
    kept: np.ndarray
    padded: np.ndarray


@dataclass(frozen=True)
class MiningReport:
    """What mining kept and what each rule took, in the order in which the rules were applied.

    Attributes:
        queries: queries of the run.
        queries_without_positives: of those, how many have no judged positive; they give no negatives.
        queries_without_reference: of the rest, those whose positives nobody scored; margins leave them nothing.
        queries_inconsistent: queries that the ranking-consistency rule dropped.
        queries_short: queries that give some negatives, but fewer than asked for.
        queries_empty: queries with positives that give none.
        candidates: entries of the run.
        removed: how many entries each rule removed.
        kept: entries of the negatives' run, padding not counted.
        padded: random documents that fill short lists, where that was asked for.
        trace: the same by query.
    """

    queries: int
    queries_without_positives: int
    queries_without_reference: int
    queries_short: int
    queries_empty: int
    candidates: int
    removed: dict[str, int] = field(default_factory=dict)
    kept: int = 0
    queries_inconsistent: int = 0
    padded: int = 0
    trace: MiningTrace | None = field(default=None, repr=False, compare=False)

    def counts(self) -> dict[str, Any]:
        """All but the trace, as plain values."""
        return {item.name: getattr(self, item.name) for item in dataclasses.fields(self) if item.name != "trace"}

    def lines(self) -> list[str]:
        """The report as lines of text, rules with what they removed."""
        rules = [f"removed by {name}: {count}" for name, count in self.removed.items()]
        inconsistent = f", dropped as inconsistent: {self.queries_inconsistent}" if self.queries_inconsistent else ""
        return [
            f"candidates: {self.candidates} in {self.queries} queries",
            *rules,
            f"negatives kept: {self.kept}",
            *([f"random documents that fill short lists: {self.padded}"] if self.padded else []),
            f"queries without a judged positive: {self.queries_without_positives}, without a scored one: "
            f"{self.queries_without_reference}, with too few negatives: {self.queries_short}, with none: "
            f"{self.queries_empty}{inconsistent}",
        ]


def write_trace(trace: MiningTrace, path: str | Path) -> None:
    """Write tab-separated values, one line a query: its id, the reference score, what each rule removed, what is kept.

    The header names the columns; rules stand in the order in which they were applied. An empty reference means that no
    positive was scored.
    """
    header = ["query-id", "reference", *trace.removed, "kept", "padded"]
    numbers = np.stack([*trace.removed.values(), trace.kept, trace.padded], axis=1)
    with atomic_path(Path(path)) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        file.write("\t".join(header) + "\n")
        for qid, score, row in zip(trace.qids, trace.reference.tolist(), numbers.tolist(), strict=True):
            shown = "" if np.isnan(score) else f"{score:.6g}"
            file.write("\t".join([qid, shown, *map(str, row)]) + "\n")
