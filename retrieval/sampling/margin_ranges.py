"""The ranges of teacher margins, and the files that say where each query's pairs fall.

A pair of one positive lies in a range by the score of its negative: with a query's negatives sorted by falling score,
the h + 1 boundaries of each positive in that order are all that has to be kept.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ... import progress
from ...files import atomic_folder, write_json
from .spans import flat_spans, owners_of

if TYPE_CHECKING:
    from ..training.examples import TrainingTable

__all__ = ["MarginReport", "build_margins", "margin_bins"]

_LOG = logging.getLogger(__name__)
_CHUNK = 1 << 20  # pairs looked at together


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


def build_margins(folder: Path, table: TrainingTable, teachers: Sequence[str], bins: int) -> None:
    """Write order.npy (e,), edges.npy (P, bins + 1), usable.npy (n,) and the report; rename when all are whole."""
    with atomic_folder(folder, or_discard=True) as temporary:
        report = _write(temporary, table, teachers, bins)
        write_json(temporary / "report.json", asdict(report))
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
