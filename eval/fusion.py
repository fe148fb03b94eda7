"""Fusing runs: reciprocal ranks, weighted scores, means of teachers."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..errors import ConfigError, DataError, nearest
from ..ids import Ids
from ..progress import task
from .run import Run
from .vocabulary import VocabularyBuilder

__all__ = ["METHODS", "Method", "Missing", "Normalise", "fuse"]

log = logging.getLogger(__name__)

Method = Literal["rrf", "interpolate", "mean", "combsum", "combmnz"]
Normalise = Literal["none", "min-max", "z"]
Missing = Literal["zero", "min", "ignore", "drop", "error"]


@dataclass(frozen=True)
class _Defaults:
    """What a method does when it is not told otherwise."""

    normalise: Normalise
    missing: Missing


METHODS: dict[str, _Defaults] = {
    "rrf": _Defaults("none", "zero"),
    "interpolate": _Defaults("min-max", "min"),
    "mean": _Defaults("none", "error"),
    "combsum": _Defaults("min-max", "zero"),
    "combmnz": _Defaults("min-max", "zero"),
}
_BLOCK = 1 << 20  # entries of all runs together that are fused at once


@dataclass(frozen=True)
class _Plan:
    method: str
    weights: np.ndarray
    normalise: str
    missing: str
    k: int


def fuse(
    runs: Sequence[Run],
    *,
    method: Method = "rrf",
    weights: Sequence[float] | None = None,
    normalise: Normalise | None = None,
    missing: Missing | None = None,
    k: int = 60,
    depth: int | None = None,
    tag: str | None = None,
) -> Run:
    """Fuse several runs into one over the union of their queries. The order of `runs` makes no difference.

    Methods, s_i(d) being run i's normalised score and w_i its weight (default 1):

    - rrf: sum of w_i / (k + rank_i(d)) (Cormack, Clarke and Büttcher 2009).
    - interpolate: sum of w_i s_i(d) / sum of w_i; min-max by default.
    - mean: the same over raw scores, for ensembles of teachers that scored the same pairs.
    - combsum, combmnz: sum of w_i s_i(d), for combmnz times the number of runs that have d (Fox and Shaw 1994).

    Scores are normalised per query over the whole list: "min-max" to [0, 1] (all 0 when the list is constant), "z" by
    mean and population deviation (all 0 when constant), "none".

    A document that one run lists for a query and another does not takes, from the latter, by `missing`:
    "zero": 0 (default of rrf, combsum, combmnz); "min": that list's lowest normalised score (default of interpolate);
    "ignore": nothing, weights are taken over the runs that have it; "drop": the document is left out; "error"
    (default of mean): refused. A run that lacks a query altogether has no lowest score: "min" and "zero" give 0
    there, and "ignore", "drop" and "error" look at the other runs only. The log counts such queries.

    Args:
        runs: two or more, each with one list a query.
        method: see above.
        weights: one for each run, 0 or more.
        normalise: see above; None takes the method's default.
        missing: see above; None takes the method's default.
        k: of rrf.
        depth: how many documents of each fused list are kept; None for all. (`run.top(n)` cuts an input.)
        tag: the fused run's name; by default the method and the runs' names.

    Raises:
        ConfigError: unknown method, normalisation or rule; weights that do not fit the runs.
        DataError: no query in common; a document missing under "error"; a run with several lists a query.
    """
    plan = _plan(runs, method, weights, normalise, missing, k)
    qids, rows = _union(runs)
    vocabulary, codes_of = _common_vocabulary(runs)
    counts: list[np.ndarray] = []
    codes: list[np.ndarray] = []
    scores: list[np.ndarray] = []
    with task(f"fuse {len(runs)} runs", len(qids)) as advance:
        for first, last in _query_blocks(runs, rows):
            part = _fuse_block(runs, rows[:, first:last], codes_of, plan, (vocabulary, qids[first:last]))
            lists = Run.from_codes(qids[first:last], part[0], vocabulary, part[1], part[2])
            lists = lists if depth is None else lists.top(depth)
            counts.append(np.diff(lists.offsets))
            codes.append(lists.codes)
            scores.append(lists.scores)
            advance(last - first)
    offsets = np.concatenate([[0], np.cumsum(np.concatenate(counts))]).astype(np.int64)
    name = tag or f"{method}({'+'.join(sorted(run.tag for run in runs))})"
    return Run(qids, offsets, vocabulary, np.concatenate(codes), np.concatenate(scores), tag=name)


def _plan(
    runs: Sequence[Run],
    method: str,
    weights: Sequence[float] | None,
    normalise: str | None,
    missing: str | None,
    k: int,
) -> _Plan:
    problems: list[str] = []
    for name, value, known in (
        ("method", method, get_args(Method)),
        ("normalise", normalise, get_args(Normalise)),
        ("missing", missing, get_args(Missing)),
    ):
        if value is not None and value not in known:
            problems.append(f"{name} {value!r}{nearest(value, known)}; one of {', '.join(known)}")
    given = np.asarray([1.0] * len(runs) if weights is None else weights, dtype=np.float64)
    if len(runs) < 2:
        problems.append(f"{len(runs)} runs; fusion takes two or more")
    if len(given) != len(runs):
        problems.append(f"{len(given)} weights for {len(runs)} runs")
    elif not np.isfinite(given).all() or (given < 0).any() or not given.any():
        problems.append(f"weights {given.tolist()} must be finite, 0 or more, and not all 0")
    if method == "rrf" and normalise not in (None, "none"):
        problems.append("rrf looks at ranks only; normalise does not apply")
    if k < 0:
        problems.append(f"k {k} is below 0")
    if problems:
        raise ConfigError("runs cannot be fused so:", problems)
    for run in runs:
        if "list_id" in run.columns:
            raise DataError(f"run {run.tag!r} has several lists a query (column list_id); aggregate it to one first")
    defaults = METHODS[method]
    return _Plan(method, given, normalise or defaults.normalise, missing or defaults.missing, k)


def _union(runs: Sequence[Run]) -> tuple[Ids, np.ndarray]:
    """All queries (in the runs' order where that is the same, else sorted), and their (runs, queries) row numbers, -1
    where a run lacks the query."""
    qids = runs[0].qids
    if any(run.qids != qids for run in runs):
        distinct = pc.unique(pa.chunked_array([run.qids.array for run in runs]))
        qids = Ids(distinct.take(pc.array_sort_indices(distinct)))
    rows = np.stack([run.qids.rows(qids) for run in runs])
    shared = int((rows >= 0).all(axis=0).sum())
    if len(qids) and not shared:
        raise DataError(
            f"the runs {', '.join(repr(run.tag) for run in runs)} have no query in common; are they of one query set?"
        )
    if shared < len(qids):
        for run, present in zip(runs, rows >= 0, strict=True):
            if not present.all():
                log.warning("run %r lacks %d of the %d queries that are fused", run.tag, (~present).sum(), len(qids))
    return qids, rows


def _common_vocabulary(runs: Sequence[Run]) -> tuple[Ids, list[np.ndarray]]:
    """The distinct ids of all runs, and for each run its codes' codes there."""
    builder = VocabularyBuilder()
    for run in runs:
        builder.add(run.vocabulary.array)
    vocabulary, codes = builder.finish()
    bounds = np.cumsum([0, *(len(run.vocabulary) for run in runs)])
    return vocabulary, [codes[start:stop] for start, stop in itertools.pairwise(bounds)]


def _query_blocks(runs: Sequence[Run], rows: np.ndarray) -> Iterator[tuple[int, int]]:
    """Spans of queries whose lists together hold about `_BLOCK` entries."""
    sizes = np.zeros(rows.shape[1], dtype=np.int64)
    for run, row in zip(runs, rows, strict=True):
        sizes += np.where(row >= 0, np.diff(run.offsets)[row], 0) if len(run) else 0
    bounds = np.concatenate([[0], np.cumsum(sizes)])
    first = 0
    while first < len(sizes) or first == 0:
        last = max(int(np.searchsorted(bounds, bounds[first] + _BLOCK, side="right")) - 1, first + 1)
        yield first, min(last, len(sizes))
        first = last


def _fuse_block(
    runs: Sequence[Run], rows: np.ndarray, codes_of: list[np.ndarray], plan: _Plan, names: tuple[Ids, Ids]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return offsets, codes and scores of the fused lists of some queries."""
    width = max(len(names[0]), 1)
    votes: list[_Votes] = []
    has = np.zeros(rows.shape, dtype=bool)
    for number, run in enumerate(runs):
        queries, entries = _entries(run, rows[number])
        keys = queries * width + codes_of[number][run.codes[entries]]
        scores, floors = _contribution(run, rows[number], queries, entries, plan)
        has[number] = np.bincount(queries, minlength=rows.shape[1]) > 0
        votes.append(_Votes(keys, scores, np.full(len(keys), plan.weights[number]), floors))
    documents, found = np.unique(np.concatenate([vote.keys for vote in votes]), return_counts=True)
    queries, codes = np.divmod(documents, width)
    kept = np.ones(len(documents), dtype=bool)
    if plan.missing in ("drop", "error"):
        kept = found == has.sum(axis=0)[queries]
        if plan.missing == "error" and not kept.all():
            at = int(np.flatnonzero(~kept)[0])
            raise DataError(
                f"document {names[0][int(codes[at])]!r} of query {names[1][int(queries[at])]!r} is missing from a run "
                f"(one of {int((~kept).sum())} here). Say what it counts: missing='min', 'zero', 'ignore' or 'drop'"
            )
    elif plan.missing == "min":
        votes = [vote.filled(documents, has[number], plan.weights[number], width) for number, vote in enumerate(votes)]
    totals = _total(votes, plan, has, documents, queries)
    if plan.method == "combmnz":
        totals = totals * found
    offsets = np.searchsorted(queries[kept], np.arange(rows.shape[1] + 1)).astype(np.int64)
    return offsets, codes[kept].astype(np.int32), totals[kept].astype(np.float32)


@dataclass(frozen=True)
class _Votes:
    """What one run says: (entries,) keys of (query, document), scores, weights; and each list's lowest score."""

    keys: np.ndarray
    scores: np.ndarray
    weights: np.ndarray
    floors: np.ndarray

    def filled(self, documents: np.ndarray, has: np.ndarray, weight: float, width: int) -> _Votes:
        """With the lowest score for every document of the other runs that this run's lists lack."""
        absent = np.setdiff1d(documents, self.keys, assume_unique=True)
        queries = absent // width
        absent, queries = absent[has[queries]], queries[has[queries]]
        return _Votes(
            np.concatenate([self.keys, absent]),
            np.concatenate([self.scores, self.floors[queries]]),
            np.concatenate([self.weights, np.full(len(absent), weight)]),
            self.floors,
        )


def _total(votes: list[_Votes], plan: _Plan, has: np.ndarray, documents: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """The weighted sum, or mean, of the votes for each of `documents` (sorted keys of (query, document))."""
    if not len(documents):
        return np.zeros(0)
    keys = np.concatenate([vote.keys for vote in votes])
    weights = np.concatenate([vote.weights for vote in votes])
    values = np.concatenate([vote.scores for vote in votes]) * weights
    order = np.lexsort([weights, values, keys])  # by value too: a sum must not depend on the order of the runs
    starts = np.searchsorted(keys[order], documents)
    totals = np.add.reduceat(values[order], starts)
    if plan.method not in ("interpolate", "mean"):
        return totals
    if plan.missing == "ignore":
        whole = np.add.reduceat(weights[order], starts)
    elif plan.missing in ("drop", "error"):
        whole = np.sort(has * plan.weights[:, None], axis=0).sum(axis=0)[queries]
    else:
        whole = np.full(len(documents), np.sort(plan.weights).sum())
    return totals / np.where(whole > 0, whole, 1)


def _entries(run: Run, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For the lists `rows` of a run: (entries,) place in `rows`, and (entries,) entry number."""
    present = np.flatnonzero(rows >= 0)
    lengths = np.diff(run.offsets)[rows[present]]
    before = np.cumsum(lengths) - lengths
    entries = np.arange(int(lengths.sum())) + np.repeat(run.offsets[rows[present]] - before, lengths)
    return np.repeat(present, lengths), entries


def _contribution(
    run: Run, rows: np.ndarray, queries: np.ndarray, entries: np.ndarray, plan: _Plan
) -> tuple[np.ndarray, np.ndarray]:
    """Each entry's normalised score (entries,) float64, before its weight, and each list's lowest (queries,)."""
    if plan.method == "rrf":
        ranks = entries - run.offsets[rows[queries]] + 1
        return 1.0 / (plan.k + ranks), np.zeros(len(rows))
    scores = run.scores[entries].astype(np.float64)
    if not np.isfinite(scores).all():
        raise DataError(f"run {run.tag!r} has an infinite score; only rrf can fuse it")
    floors = np.zeros(len(rows))
    if not len(scores):
        return scores, floors
    starts = np.flatnonzero(np.diff(queries, prepend=-1))
    lengths = np.diff(np.append(starts, len(scores)))
    low, high = np.minimum.reduceat(scores, starts), np.maximum.reduceat(scores, starts)
    flat = np.repeat(high == low, lengths)
    if plan.normalise == "min-max":
        span = np.repeat(np.where(high > low, high - low, 1), lengths)
        scores = np.where(flat, 0.0, (scores - np.repeat(low, lengths)) / span)
    elif plan.normalise == "z":
        centred = scores - np.repeat(np.add.reduceat(scores, starts) / lengths, lengths)
        deviation = np.sqrt(np.add.reduceat(centred**2, starts) / lengths)
        scores = np.where(flat, 0.0, centred / np.repeat(np.where(deviation > 0, deviation, 1), lengths))
    floors[queries[starts]] = np.minimum.reduceat(scores, starts)
    return scores, floors
