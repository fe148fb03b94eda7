"""Searching the exact index: bounds of blocks, bounds of documents, and exact scores of what is left.

For one query:

1. An upper bound for each block: the sum over the query's terms of weight × the entry's maximum. Weights of the query
   are turned into whole numbers, rounded up, so that sums are exact and never too low.
2. The blocks with the greatest bounds are read, and their best documents give a first k-th score.
3. All blocks whose bound reaches that score are read. Each document gets a bound of its own in the same way, and those
   whose bound reaches the k-th score are scored, greatest bounds first, until no bound reaches it.

A score is the float32 nearest to the float64 sum of the products in order of terms. A document whose bound equals the
k-th score is still looked at, so ties are broken by row and by nothing else.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .exact_layout import BLOCK, Layout
from .jit import jit

__all__ = ["Batch", "search_batch"]

_UNITS = 1 << 29  # the greatest possible sum of a query, in whole units
_BUCKETS = 1 << 10
_FIRST = 32  # blocks that give the first k-th score; more for long lists


class Batch(NamedTuple):
    """Queries, and where their results go.

    Attributes:
        bounds: (n + 1,) int64: query i has terms[bounds[i]:bounds[i + 1]].
        terms: int64, ascending in each query.
        weights: float64, positive.
        excluded_bounds: (n + 1,) int64, and excluded: int64 positions that must not be returned.
        rows: (n, k) int64, scores: (n, k) float32, filled with -1 and -inf.
        work: (n, 4) int64: entries read, postings read, blocks read, documents scored.
    """

    bounds: np.ndarray
    terms: np.ndarray
    weights: np.ndarray
    excluded_bounds: np.ndarray
    excluded: np.ndarray
    rows: np.ndarray
    scores: np.ndarray
    work: np.ndarray


@jit
def search_batch(index: Layout, batch: Batch, first: int, last: int) -> None:
    """Search queries first:last and write their hits, in order."""
    documents = len(index.order)
    blocks = -(-documents // BLOCK)
    dense = np.zeros(len(index.scale), np.float64)
    bound = np.zeros(blocks, np.int32)
    slot = np.empty(blocks, np.int32)
    blocked = np.zeros(documents, np.bool_)
    k = min(batch.rows.shape[1], documents)
    for number in range(first, last):
        begin, end = batch.bounds[number], batch.bounds[number + 1]
        if begin == end or k == 0:
            continue
        terms, weights = batch.terms[begin:end], batch.weights[begin:end]
        left_out = batch.excluded[batch.excluded_bounds[number] : batch.excluded_bounds[number + 1]]
        for position in left_out:
            blocked[position] = True
        for at in range(len(terms)):
            dense[terms[at]] = weights[at]
        found = _search(index, terms, weights, dense, bound, slot, blocked,
                        batch.rows[number, :k], batch.scores[number, :k], batch.work[number])  # fmt: skip
        _sort(batch.rows[number, :found], batch.scores[number, :found])
        dense[terms] = 0.0
        for position in left_out:
            blocked[position] = False


@jit
def _search(
    index: Layout, terms: np.ndarray, weights: np.ndarray, dense: np.ndarray, bound: np.ndarray, slot: np.ndarray,
    blocked: np.ndarray, rows: np.ndarray, scores: np.ndarray, work: np.ndarray,
) -> int:  # fmt: skip
    """Fill a heap of the best documents of one query; how many there are."""
    total = 0.0
    for at in range(len(terms)):
        total += weights[at] * index.scale[terms[at]] * 255.0
    unit = total / _UNITS
    factors = np.empty(len(terms), np.int32)
    for at in range(len(terms)):
        factors[at] = np.int32(weights[at] * index.scale[terms[at]] / unit) + 2  # rounded up, and one for rounding
    _bound_blocks(index, terms, factors, bound)
    for term in terms:
        work[0] += index.entry_bounds[term + 1] - index.entry_bounds[term]
    cut = _cut(bound, _FIRST + len(rows) // 4)
    found = _read_blocks(index, terms, factors, unit, dense, bound, slot, blocked, cut, 1 << 31, rows, scores, 0, work)
    least = _least(found, rows, scores, unit)
    if least < cut:
        found = _read_blocks(index, terms, factors, unit, dense, bound, slot, blocked, least, cut, rows, scores, found,
                             work)  # fmt: skip
    return found


@jit
def _bound_blocks(index: Layout, terms: np.ndarray, factors: np.ndarray, bound: np.ndarray) -> None:
    """Add up the upper bounds of all blocks."""
    bound[:] = 0
    for at in range(len(terms)):
        factor = factors[at]
        for entry in range(index.entry_bounds[terms[at]], index.entry_bounds[terms[at] + 1]):
            bound[index.entry_block[entry]] += factor * np.int32(index.entry_maximum[entry])


@jit
def _cut(bound: np.ndarray, wanted: int) -> int:
    """A bound that about `wanted` blocks reach; at least 1, so that blocks without a term of the query are left out."""
    highest = 0
    for value in bound:
        highest = max(highest, value)
    counts = np.zeros(_BUCKETS + 1, np.int32)
    width = highest // _BUCKETS + 1
    for value in bound:
        counts[value // width] += 1
    reached = 0
    for bucket in range(_BUCKETS, 0, -1):
        reached += counts[bucket]
        if reached >= wanted:
            return max(1, bucket * width)
    return 1


@jit
def _least(found: int, rows: np.ndarray, scores: np.ndarray, unit: float) -> int:
    """The least bound, in units, of a document that could still be among the best.

    A score may exceed the sum that it is rounded from by half a unit in the last place of float32, or by half the
    least denormal number; both are taken off twice over.
    """
    if found < len(rows):
        return 1
    score = np.float64(scores[0])
    return max(1, int((score * (1 - 2.0**-22) - 2.0**-148) / unit) - 1)


@jit
def _read_blocks(
    index: Layout, terms: np.ndarray, factors: np.ndarray, unit: float, dense: np.ndarray, bound: np.ndarray,
    slot: np.ndarray, blocked: np.ndarray, least: int, below: int, rows: np.ndarray, scores: np.ndarray, found: int,
    work: np.ndarray,
) -> int:  # fmt: skip
    """Look for better documents in the blocks whose bound is at least `least` and under `below`."""
    alive = 0
    for block in range(len(bound)):
        slot[block] = -1
        if least <= bound[block] < below:
            slot[block] = alive
            alive += 1
    sums = np.zeros(alive * BLOCK, np.int32)
    work[2] += alive
    work[1] += _add_up(index, terms, factors, slot, sums)
    least = _least(found, rows, scores, unit)
    count = 0
    for value in sums:
        if value >= least:
            count += 1
    bounds = np.empty(count, np.int64)
    count = 0
    for block in range(len(bound)):
        if slot[block] >= 0:
            for place in range(BLOCK):
                value = sums[slot[block] * BLOCK + place]
                if value >= least:
                    bounds[count] = (np.int64(value) << 32) | (block * BLOCK + place)
                    count += 1
    bounds.sort()
    for at in range(count - 1, -1, -1):
        if (bounds[at] >> 32) < least:
            break
        position = bounds[at] & 0xFFFFFFFF
        if not blocked[position]:
            work[3] += 1
            found = _offer(index.order[position], _score(index, position, dense), rows, scores, found)
            least = _least(found, rows, scores, unit)
    return found


@jit
def _add_up(index: Layout, terms: np.ndarray, factors: np.ndarray, slot: np.ndarray, sums: np.ndarray) -> int:
    """Add the bounds of all documents in the blocks that have a slot; how many postings that took."""
    read = 0
    for at in range(len(terms)):
        factor = factors[at]
        posting = index.posting_bounds[terms[at]]
        for entry in range(index.entry_bounds[terms[at]], index.entry_bounds[terms[at] + 1]):
            after = posting + index.entry_count[entry]
            place = slot[index.entry_block[entry]]
            if place >= 0:
                read += after - posting
                for here in range(posting, after):
                    sums[place * BLOCK + index.posting_place[here]] += factor * np.int32(index.posting_weight[here])
            posting = after
    return read


@jit
def _score(index: Layout, position: int, dense: np.ndarray) -> np.float32:
    """The exact score of one document."""
    total = 0.0
    for at in range(index.bounds[position], index.bounds[position + 1]):
        total += dense[index.terms[at]] * np.float64(index.weights[at])
    return np.float32(total)


@jit
def _worse(row: Any, score: Any, than_row: Any, than_score: Any) -> Any:
    return score < than_score or (score == than_score and row > than_row)


@jit
def _offer(row: Any, score: Any, rows: np.ndarray, scores: np.ndarray, found: int) -> int:
    """Put a document into the heap, whose first entry is the worst; the new number of entries."""
    if found < len(rows):
        at = found
        while at > 0 and _worse(row, score, rows[(at - 1) // 2], scores[(at - 1) // 2]):
            rows[at], scores[at] = rows[(at - 1) // 2], scores[(at - 1) // 2]
            at = (at - 1) // 2
        rows[at], scores[at] = row, score
        return found + 1
    if _worse(rows[0], scores[0], row, score):
        _sink(row, score, rows, scores)
    return found


@jit
def _sink(row: Any, score: Any, rows: np.ndarray, scores: np.ndarray) -> None:
    """Replace the heap's first entry."""
    at = 0
    while 2 * at + 1 < len(rows):
        child = 2 * at + 1
        if child + 1 < len(rows) and _worse(rows[child + 1], scores[child + 1], rows[child], scores[child]):
            child += 1
        if not _worse(rows[child], scores[child], row, score):
            break
        rows[at], scores[at] = rows[child], scores[child]
        at = child
    rows[at], scores[at] = row, score


@jit
def _sort(rows: np.ndarray, scores: np.ndarray) -> None:
    """Turn a heap into a list, best first."""
    for last in range(len(rows) - 1, 0, -1):
        row, score = rows[last], scores[last]
        rows[last], scores[last] = rows[0], scores[0]
        _sink(row, score, rows[:last], scores[:last])
