"""Which pair of a query: balanced over teacher margins (step 2 of TAS-Balanced, Hofstätter et al. 2021, section 3.2).

The margins of a query's pairs, m = t⁺ − t⁻, are cut into h ranges of equal width between their least and their largest.
A range is drawn uniformly among those that hold a pair, then a pair uniformly inside it. A query with one pair, or with
equal margins everywhere, is one range (the authors' code drops the first and divides by zero on the second).

The pairs of a query are its scored positives times its scored negatives. They are never all there at once: with the
negatives sorted by falling score, the pairs of one positive in one range are a stretch of that order, so that its
h + 1 boundaries say everything. Order and boundaries are made once, in chunks, into memory-mapped files beside the
training table, and a draw is a few vector operations over the batch's queries.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from ...errors import ConfigError, DataError
from ...files import read_json
from .margin_ranges import MarginReport, build_margins, margin_bins

if TYPE_CHECKING:
    from ..training.examples import TrainingTable

__all__ = ["MarginReport", "MarginStrategy", "PairSampler", "ScoredPairs", "UniformPairs", "margin_bins", "pairs_of"]

_FORMAT = 1

MarginStrategy = Literal["bins", "random"]


class PairSampler(Protocol):
    """Draws one pair for each query."""

    @property
    def usable(self) -> np.ndarray:
        """(n,) bool, the table's rows that have a pair."""
        ...

    def draw(self, rows: np.ndarray, generator: np.random.Generator, /) -> tuple[np.ndarray, np.ndarray]:
        """Entries of the positive and of the negative for each of `rows` (all usable). (B,) int64 each."""
        ...

    def lines(self) -> list[str]:
        """What a user should know about the pairs."""
        ...


@dataclass(frozen=True, eq=False)
class UniformPairs:
    """A positive and a negative of the query, each uniformly: uniform over its pairs. For tables without teachers."""

    table: TrainingTable

    @property
    def usable(self) -> np.ndarray:
        return (self.table.positives > 0) & (self.table.negatives() > 0)

    def draw(self, rows: np.ndarray, generator: np.random.Generator, /) -> tuple[np.ndarray, np.ndarray]:
        starts, counts = self.table.offsets[rows], self.table.positives[rows].astype(np.int64)
        others = self.table.offsets[rows + 1] - starts - counts
        uniform = generator.random((2, len(rows)))
        return starts + (uniform[0] * counts).astype(np.int64), starts + counts + (uniform[1] * others).astype(np.int64)

    def lines(self) -> list[str]:
        lacking = int((~self.usable).sum())
        return [f"{lacking} queries without a negative: left out"] if lacking else []


class ScoredPairs:
    """Pairs of scored documents, balanced over ranges of margins; with one range, uniform over all pairs.

    Args:
        table: the examples; the files are kept in its folder.
        teachers: score columns; several are averaged. Documents that one of them lacks are never drawn.
        bins: number of ranges (h).

    Raises:
        ConfigError: a teacher that the table does not have.
        DataError: no query has a scored pair.
    """

    def __init__(self, table: TrainingTable, teachers: Sequence[str], bins: int = 10) -> None:
        _check_teachers(table, teachers)
        self.table, self.bins = table, bins
        name = hashlib.sha256(f"margins {_FORMAT} {list(teachers)} {bins}".encode()).hexdigest()[:16]
        folder = table.folder / f"margins-{name}"
        if not folder.exists():
            build_margins(folder, table, teachers, bins)
        # plain views of the maps: indexing a memmap costs more than what it finds
        self._order = np.asarray(np.load(folder / "order.npy", mmap_mode="r"))
        self._edges = np.asarray(np.load(folder / "edges.npy", mmap_mode="r"))
        self.usable = np.load(folder / "usable.npy")
        self.report = MarginReport(**read_json(folder / "report.json"))
        self._first_positive = np.concatenate([[0], np.cumsum(table.positives, dtype=np.int64)])
        if not self.usable.any():
            raise DataError(
                f"{table.name}: no query has a positive and a negative that {', '.join(teachers)} scored; "
                "give teacher scores of these very pairs"
            )

    def draw(self, rows: np.ndarray, generator: np.random.Generator, /) -> tuple[np.ndarray, np.ndarray]:
        first = self._first_positive[rows]
        counts = self._first_positive[rows + 1] - first
        ends = counts.cumsum()
        firsts, total, batch = ends - counts, int(ends[-1]), np.arange(len(rows))
        owners = batch.repeat(counts)
        here = np.arange(total)  # the batch's positives
        edges = self._edges[(first - firsts)[owners] + here]  # (total, h + 1)
        within = edges[:, 1:] - edges[:, :-1]
        pairs = np.add.reduceat(within, firsts, axis=0, dtype=np.int64)  # (B, h)
        uniform = generator.random((2, len(rows)))
        filled = (pairs > 0).cumsum(axis=1)
        chosen = (filled > (uniform[0] * filled[:, -1]).astype(np.int64)[:, None]).argmax(axis=1)
        stretch = within[here, chosen[owners]]  # the pairs of each positive in the range that its query drew
        passed = stretch.cumsum(dtype=np.int64)
        before = passed - stretch
        target = before[firsts] + (uniform[1] * pairs[batch, chosen]).astype(np.int64)
        at = passed.searchsorted(target, side="right")
        starts = self.table.offsets[rows]
        negatives = starts + counts
        return starts + at - firsts, negatives + self._order[negatives + edges[at, chosen] + target - before[at]]

    def lines(self) -> list[str]:
        return self.report.lines()


def pairs_of(
    table: TrainingTable, strategy: MarginStrategy, *, teachers: Sequence[str] | None = None, bins: int = 10
) -> PairSampler:
    """The sampler of pairs for a strategy.

    Args:
        strategy: "bins" balances over ranges of margins, "random" is uniform over a query's pairs.
        teachers: score columns; None takes all that the table has.
        bins: number of ranges.

    Raises:
        ConfigError: "bins" on a table without teachers.
    """
    found = teacher_names(table) if teachers is None else list(teachers)
    if strategy == "random":
        return ScoredPairs(table, found, 1) if found else UniformPairs(table)
    if not found:
        raise ConfigError(
            f"{table.name} has no teacher scores, and balanced pairs are drawn by their margins: give "
            "data.runs.teachers or data.pairs, or sampling.strategy: tas"
        )
    return ScoredPairs(table, found, bins)


def teacher_names(table: TrainingTable) -> list[str]:
    """The table's score columns that teachers wrote."""
    return [name for name in table.scores if name not in ("labels", "first_stage", "first_rank", "difficulty")]


def _check_teachers(table: TrainingTable, teachers: Sequence[str]) -> None:
    strange = [name for name in teachers if name not in table.scores]
    if strange or not teachers:
        raise ConfigError(
            f"{table.name} has no scores of {', '.join(map(repr, strange)) or 'any teacher'}; it has those of "
            f"{', '.join(map(repr, teacher_names(table))) or 'none'} (data.runs.teachers, by file stem)"
        )
