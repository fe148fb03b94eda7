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
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from ... import progress
from ...errors import ConfigError, DataError
from ...files import fsync_dir, read_json, write_json
from .spans import flat_spans, owners_of

if TYPE_CHECKING:
    from ..training.examples import TrainingTable

__all__ = ["MarginReport", "MarginStrategy", "PairSampler", "ScoredPairs", "UniformPairs", "margin_bins", "pairs_of"]

_LOG = logging.getLogger(__name__)
_FORMAT = 1
_CHUNK = 1 << 20  # pairs looked at together while the boundaries are made

MarginStrategy = Literal["bins", "random"]


def margin_bins(margins: np.ndarray, bins: int = 10) -> np.ndarray:
    """The range of each pair of one query: min(⌊(m − min) / width⌋, bins − 1), width = (max − min) / bins.

    Lower edges are inclusive, the largest margin belongs to the last range; equal margins are all in range 0.

    Args:
        margins: (p,) teacher margins; computed in float64.

    Returns:
        (p,) int64 in [0, bins).
    """
    margins = np.asarray(margins, dtype=np.float64)
    if not len(margins):
        return np.zeros(0, dtype=np.int64)
    return _bin_of(margins, margins.min(), margins.max(), bins)


def _bin_of(margins: np.ndarray, low: np.ndarray | float, high: np.ndarray | float, bins: int) -> np.ndarray:
    width = (np.asarray(high) - low) / bins
    steps = (margins - low) / np.where(width > 0, width, 1.0)
    return np.minimum(steps.astype(np.int64), bins - 1)


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


@dataclass(frozen=True)
class MarginReport:
    """How the queries' pairs fall.

    Attributes:
        queries: of the table.
        pairs: scored ones.
        without_pairs: queries with no scored pair: never drawn.
        single_pair: queries with one scored pair: one range.
        equal_margins: queries with several pairs of one margin: one range.
        filled: mean number of ranges that hold a pair, over the queries that have any.
        unscored: entries without a score: never drawn.
    """

    queries: int
    pairs: int
    without_pairs: int
    single_pair: int
    equal_margins: int
    filled: float
    unscored: int

    def lines(self) -> list[str]:
        """One line for each count that a user should see."""
        told = {
            "queries without a scored pair: left out": self.without_pairs,
            "queries with a single scored pair: one range": self.single_pair,
            "queries whose margins are all equal: one range": self.equal_margins,
            "documents without a teacher's score: never drawn": self.unscored,
        }
        first = f"{self.pairs} scored pairs, {self.filled:.2f} ranges filled a query"
        return [first, *(f"{count} {what}" for what, count in told.items() if count)]


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
            _build(folder, table, teachers, bins)
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


# --- made once ---


def _build(folder: Path, table: TrainingTable, teachers: Sequence[str], bins: int) -> None:
    """Write order.npy (e,), edges.npy (P, bins + 1), usable.npy (n,) and the report; rename when all are whole."""
    temporary = folder.with_name(f".{os.getpid()}.tmp.{folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        report = _write(temporary, table, teachers, bins)
        write_json(temporary / "report.json", asdict(report))
        if not folder.exists():
            os.rename(temporary, folder)
            fsync_dir(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for line in report.lines():
        _LOG.info("%s, margins of %s: %s", table.name, ", ".join(teachers), line)


def _write(folder: Path, table: TrainingTable, teachers: Sequence[str], bins: int) -> MarginReport:
    widest = int(np.diff(table.offsets).max(initial=0))
    small = np.min_scalar_type(widest)
    positives = int(table.positives.sum(dtype=np.int64))
    order = np.lib.format.open_memmap(folder / "order.npy", mode="w+", dtype=small, shape=(len(table.entries),))
    edges = np.lib.format.open_memmap(folder / "edges.npy", mode="w+", dtype=small, shape=(positives, bins + 1))
    usable = np.zeros(len(table), dtype=bool)
    totals = np.zeros(5, dtype=np.int64)  # pairs, single, equal, filled, unscored
    done = 0
    with progress.task("sort by teacher margin", len(table)) as advance:
        for start, stop in _chunks(table):
            entries = slice(int(table.offsets[start]), int(table.offsets[stop]))
            chunk = _Chunk.of(table, teachers, start, stop)
            order[entries] = chunk.order
            counts = chunk.counts(bins)
            edges[done : done + len(counts), 0] = 0
            edges[done : done + len(counts), 1:] = np.cumsum(counts, axis=1)
            usable[start:stop], found = chunk.tell(counts)
            totals += found
            done += len(counts)
            advance(stop - start)
    for array in (order, edges):
        array.flush()
    np.save(folder / "usable.npy", usable)
    pairs, single, equal, filled, unscored = (int(total) for total in totals)
    rows = int(usable.sum())
    return MarginReport(len(table), pairs, len(table) - rows, single, equal, filled / max(rows, 1), unscored)


def _chunks(table: TrainingTable) -> Iterator[tuple[int, int]]:
    """Ranges of rows that hold about `_CHUNK` pairs; a query is never cut."""
    work = np.cumsum(np.maximum(table.positives * table.negatives(), np.diff(table.offsets)), dtype=np.int64)
    start = 0
    while start < len(table):
        limit = (work[start - 1] if start else 0) + _CHUNK
        stop = max(start + 1, int(np.searchsorted(work, limit, side="right")))
        yield start, stop
        start = stop


@dataclass(frozen=True, eq=False)
class _Chunk:
    """Some queries' entries while the boundaries are made.

    Attributes:
        positives: (n,) of each query; the entries of query i are offsets[i]:offsets[i + 1], positives first.
        scores: (e,) float64, NaN where unscored.
        order: (e,) place of the negative, among its query's negatives, by falling score and unscored last; at the
            entries of the positives it has no meaning.
        scored: (n,) scored negatives of each query.
    """

    positives: np.ndarray
    offsets: np.ndarray
    scores: np.ndarray
    order: np.ndarray
    scored: np.ndarray

    @classmethod
    def of(cls, table: TrainingTable, teachers: Sequence[str], start: int, stop: int) -> _Chunk:
        offsets = table.offsets[start : stop + 1]
        entries = slice(int(offsets[0]), int(offsets[-1]))
        columns = [np.asarray(table.scores[name][entries], dtype=np.float64) for name in teachers]
        scores = np.mean(columns, axis=0)
        offsets = offsets - offsets[0]
        positives = table.positives[start:stop].astype(np.int64)
        owners = owners_of(np.diff(offsets))
        place = np.arange(len(scores)) - offsets[owners]
        negative = place >= positives[owners]
        by_score = np.lexsort([-scores, negative, owners])  # NaN goes last
        order = place[by_score] - positives[owners]
        scored = np.bincount(owners[negative & ~np.isnan(scores)], minlength=stop - start)
        return cls(positives, offsets, scores, np.where(negative, order, 0), scored)

    def counts(self, bins: int) -> np.ndarray:
        """(P, bins): the pairs of each positive in each range; its pairs by rising margin go through the ranges."""
        first = self.offsets[:-1]
        place = flat_spans(first, self.positives)
        own = self.scores[place]
        rows = owners_of(self.positives)
        partners = np.where(np.isnan(own), 0, self.scored[rows])
        pair_of = owners_of(partners)
        starts = (first + self.positives)[rows]
        sorted_place = flat_spans(starts, partners)
        negative = self.scores[starts[pair_of] + self.order[sorted_place]]
        margins = own[pair_of] - negative
        pair_rows = rows[pair_of]
        low = np.full(len(first), np.inf)
        high = np.full(len(first), -np.inf)
        np.minimum.at(low, pair_rows, margins)
        np.maximum.at(high, pair_rows, margins)
        bin_of = _bin_of(margins, low[pair_rows], high[pair_rows], bins)
        return np.bincount(pair_of * bins + bin_of, minlength=len(place) * bins).reshape(len(place), bins)

    def tell(self, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(n,) whether a query has a pair, and the chunk's part of the report."""
        rows = owners_of(self.positives)
        pairs = np.bincount(rows, counts.sum(axis=1), minlength=len(self.positives)).astype(np.int64)
        filled = np.zeros((len(self.positives), counts.shape[1]), dtype=bool)
        np.logical_or.at(filled, rows, counts > 0)
        single, several = pairs == 1, pairs > 1
        equal = several & self._one_margin()
        found = [pairs.sum(), single.sum(), equal.sum(), filled.sum(), np.isnan(self.scores).sum()]
        return pairs > 0, np.array(found, dtype=np.int64)

    def _one_margin(self) -> np.ndarray:
        """(n,) whether a query's scored positives have one score and its scored negatives too."""
        owners = owners_of(np.diff(self.offsets))
        negative = np.arange(len(self.scores)) - self.offsets[owners] >= self.positives[owners]
        group = 2 * owners + negative
        low, high = np.full(2 * len(self.positives), np.inf), np.full(2 * len(self.positives), -np.inf)
        there = ~np.isnan(self.scores)
        np.minimum.at(low, group[there], self.scores[there])
        np.maximum.at(high, group[there], self.scores[there])
        return np.asarray((low >= high).reshape(-1, 2).all(axis=1))
