"""Searching the exact index: bounds of blocks, bounds of documents, and exact scores of what is left.

For one query:

1. An upper bound for each block: the sum over the query's terms of weight × the entry's maximum. Weights of the query
   are turned into whole numbers, rounded up, so that sums are exact and never too low.
2. Blocks are read in order of their bounds, a few first, then eight times as many, and so on, until the next bound is
   below the k-th score so far. Each document gets a bound of its own in the same way, and those whose bound reaches the
   k-th score are scored, greatest bounds first, until no bound reaches it.

A score is the float32 nearest to the float64 sum of the products. A document whose bound equals the
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
_CHECK = 16  # postings a block between two looks at which blocks are left
_SPARSE = 64  # entries a block from which on a block's entry is looked up
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


class Query(NamedTuple):
    """One query, terms that can add most first.

    Attributes:
        terms: int64.
        factors: int32; factor · level is at least what a posting of that level adds, in units.
        unit: the score of one unit.
    """

    terms: np.ndarray
    factors: np.ndarray
    unit: float


class Space(NamedTuple):
    """What the queries of one thread share.

    Attributes:
        dense: (v,) float64, the query's weights by term; zero between queries.
        bound: (blocks,) int32, what the terms that are not added yet can add.
        slot: (blocks,) int32 or -1, alive: the blocks that have a slot, in order.
        sums: (blocks · BLOCK,) int32, bounds of the documents in blocks that have a slot.
        blocked: (documents,) whether a position must not be returned; false between queries.
    """

    dense: np.ndarray
    bound: np.ndarray
    slot: np.ndarray
    alive: np.ndarray
    sums: np.ndarray
    blocked: np.ndarray


@jit
def search_batch(index: Layout, batch: Batch, first: int, last: int) -> None:
    """Search queries first:last and write their hits, in order."""
    documents = len(index.order)
    blocks = -(-documents // BLOCK)
    space = Space(
        np.zeros(len(index.scale), np.float64), np.empty(blocks, np.int32), np.empty(blocks, np.int32),
        np.empty(blocks, np.int32), np.empty(blocks * BLOCK, np.int32), np.zeros(documents, np.bool_),
    )  # fmt: skip
    k = min(batch.rows.shape[1], documents)
    for number in range(first, last):
        begin, end = batch.bounds[number], batch.bounds[number + 1]
        if begin == end or k == 0:
            continue
        terms, weights = batch.terms[begin:end], batch.weights[begin:end]
        left_out = batch.excluded[batch.excluded_bounds[number] : batch.excluded_bounds[number + 1]]
        for position in left_out:
            space.blocked[position] = True
        space.dense[terms] = weights
        found = _search(
            index, _prepare(index, terms, weights), space,
            batch.rows[number, :k], batch.scores[number, :k], batch.work[number],
        )  # fmt: skip
        _sort(batch.rows[number, :found], batch.scores[number, :found])
        space.dense[terms] = 0.0
        for position in left_out:
            space.blocked[position] = False


@jit
def _search(
    index: Layout, query: Query, space: Space, rows: np.ndarray, scores: np.ndarray, work: np.ndarray
) -> int:  # fmt: skip
    """Fill a heap of the best documents of one query; how many there are."""
    _bound_blocks(index, query, space.bound)
    for term in query.terms:
        work[0] += index.entry_bounds[term + 1] - index.entry_bounds[term]
    found, least, wanted, below = 0, 1, _FIRST + len(rows) // 4, 1 << 31
    while least < below:
        above = max(least, min(below - 1, _cut(space.bound, wanted)))
        found = _read_blocks(index, query, space, above, below, rows, scores, found, work)
        least = _least(found, rows, scores, query.unit)
        below, wanted = above, 8 * wanted
    return found


@jit
def _prepare(index: Layout, terms: np.ndarray, weights: np.ndarray) -> Query:
    """Terms in order of what they can add to a score, greatest first, with whole factors."""
    most = weights * index.scale[terms] * 255.0
    order = np.argsort(-most)
    unit = most.sum() / _UNITS
    factors = np.empty(len(terms), np.int32)
    for at in range(len(terms)):
        factors[at] = np.int32(most[order[at]] / 255.0 / unit) + 2  # rounded up, and one for rounding
    return Query(terms[order], factors, unit)


@jit
def _bound_blocks(index: Layout, query: Query, bound: np.ndarray) -> None:
    """Add up the upper bounds of all blocks."""
    bound[:] = 0
    for at in range(len(query.terms)):
        factor, term = query.factors[at], query.terms[at]
        for entry in range(np.uint64(index.entry_bounds[term]), np.uint64(index.entry_bounds[term + 1])):
            bound[np.uint64(index.entry_block[entry])] += np.int32(factor * np.int32(index.entry_maximum[entry]))


@jit
def _cut(bounds: np.ndarray, wanted: int) -> int:
    """A bound that about `wanted` of them reach; at least 1, so that what has no term of the query is left out."""
    highest = 0
    for value in bounds:
        highest = max(highest, value)
    counts = np.zeros(_BUCKETS + 1, np.int32)
    shift = 0
    while (highest >> shift) >= _BUCKETS:
        shift += 1
    for value in bounds:
        counts[value >> shift] += 1
    reached = 0
    for bucket in range(_BUCKETS, 0, -1):
        reached += counts[bucket]
        if reached >= wanted:
            return max(1, bucket << shift)
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
    index: Layout, query: Query, space: Space, above: int, below: int,
    rows: np.ndarray, scores: np.ndarray, found: int, work: np.ndarray,
) -> int:  # fmt: skip
    """Look for better documents in the blocks whose bound is at least `above` and under `below`."""
    alive = 0
    for block in range(len(space.bound)):
        space.slot[block] = -1
        if above <= space.bound[block] < below:
            space.slot[block] = alive
            space.alive[alive] = block
            alive += 1
    sums = space.sums[: alive * BLOCK]
    sums[:] = 0
    work[2] += alive
    least = _least(found, rows, scores, query.unit)
    _add_up(index, query, space, alive, least, work)
    keys = _candidates(sums, least)
    while len(keys):
        lower = _cut(keys >> 32, 2 * len(rows)) << 32
        some = np.sort(keys[keys >= lower])
        found = _score_some(index, some, query.unit, space, rows, scores, found, work)
        keys = keys[(keys < lower) & (keys >> 32 >= _least(found, rows, scores, query.unit))]
    return found


@jit
def _candidates(sums: np.ndarray, least: int) -> np.ndarray:
    """The documents whose sum is at least `least`, as sum · 2³² + place."""
    count = 0
    keys = np.empty(256, np.int64)
    for block in range(len(sums) // BLOCK):
        part = sums[block * BLOCK : (block + 1) * BLOCK]
        highest = np.int32(0)
        for value in part:
            highest = max(highest, value)
        if highest < least:
            continue
        if count + BLOCK > len(keys):
            wider = np.empty(2 * len(keys), np.int64)
            wider[:count] = keys[:count]
            keys = wider
        for place in range(BLOCK):
            if part[place] >= least:
                keys[count] = (np.int64(part[place]) << 32) | (block * BLOCK + place)
                count += 1
    return keys[:count]


@jit
def _score_some(
    index: Layout, some: np.ndarray, unit: float, space: Space,
    rows: np.ndarray, scores: np.ndarray, found: int, work: np.ndarray,
) -> int:  # fmt: skip
    """Score documents, the last of `some` first, until none of the others can be among the best."""
    least = _least(found, rows, scores, unit)
    for at in range(len(some) - 1, -1, -1):
        if (some[at] >> 32) < least:
            break
        place = some[at] & 0xFFFFFFFF
        position = space.alive[place // BLOCK] * BLOCK + place % BLOCK
        if not space.blocked[position]:
            work[3] += 1
            found = _offer(index.order[position], _score(index, position, space.dense), rows, scores, found)
            least = _least(found, rows, scores, unit)
    return found


@jit
def _add_up(index: Layout, query: Query, space: Space, alive: int, least: int, work: np.ndarray) -> None:
    """Add the bounds of all documents in the blocks that have a slot, term by term.

    In between, blocks go whose best document cannot reach `least` with all that the block's other terms could add: the
    bound of a block is the sum of maxima of different documents, and falls towards the truth as terms are added.
    """
    since, left = 0, alive
    for at in range(len(query.terms)):
        term = query.terms[at]
        if left * _SPARSE < index.entry_bounds[term + 1] - index.entry_bounds[term]:
            read = _add_term_here(index, term, query.factors[at], space, alive)
        else:
            read = _add_term(index, term, query.factors[at], space)
        work[1] += read
        since += read
        if least > 1 and since >= left * _CHECK and at + 1 < len(query.terms):
            since, left = 0, _drop_blocks(space, alive, least)


@jit
def _drop_blocks(space: Space, alive: int, least: int) -> int:
    """Take the slots of blocks that cannot reach `least`, and clear their sums; how many blocks are left."""
    left = 0
    for place in range(alive):
        block = space.alive[place]
        if space.slot[block] < 0:
            continue
        part = space.sums[place * BLOCK : (place + 1) * BLOCK]
        highest = np.int32(0)
        for value in part:
            highest = max(highest, value)
        if highest + space.bound[block] < least:
            space.slot[block] = -1
            part[:] = 0
        else:
            left += 1
    return left


@jit
def _add_term(index: Layout, term: int, factor: int, space: Space) -> int:
    """Add one term's bounds to documents by reading all its entries; how many postings that took."""
    read = 0
    base = np.uint64(index.posting_bounds[term])
    begin = base
    for entry in range(np.uint64(index.entry_bounds[term]), np.uint64(index.entry_bounds[term + 1])):
        end = base + np.uint64(index.entry_end[entry])
        if space.slot[np.uint64(index.entry_block[entry])] >= 0:
            read += _add_entry(index, entry, begin, end, factor, space)
        begin = end
    return read


@jit
def _add_term_here(index: Layout, term: int, factor: int, space: Space, alive: int) -> int:
    """The same by looking up the entries of the few blocks that have a slot, in steps that double, then halve."""
    read = 0
    base = np.uint64(index.posting_bounds[term])
    first, last = index.entry_bounds[term], index.entry_bounds[term + 1]
    low = first  # every entry before it is of an earlier block
    for place in range(alive):
        block = space.alive[place]
        if space.slot[block] < 0:
            continue
        step = 1
        while low + step < last and index.entry_block[low + step] <= block:
            low += step
            step *= 2
        high = min(low + step, last)
        while low < high:
            middle = (low + high) // 2
            if index.entry_block[middle] < block:
                low = middle + 1
            else:
                high = middle
        if low == last:
            break
        if index.entry_block[low] == block:
            begin = base if low == first else base + np.uint64(index.entry_end[low - 1])
            end = base + np.uint64(index.entry_end[low])
            read += _add_entry(index, np.uint64(low), begin, end, factor, space)
    return read


@jit
def _add_entry(index: Layout, entry: Any, begin: Any, end: Any, factor: int, space: Space) -> Any:
    """Add the postings of one entry, and take it off what its block can still add. Unsigned indices spare a test for
    negative ones at every posting."""
    block = np.uint64(index.entry_block[entry])
    space.bound[block] -= np.int32(factor * np.int32(index.entry_maximum[entry]))
    first = np.uint64(space.slot[block]) * np.uint64(BLOCK)
    for here in range(begin, end):
        posting = index.posting[here]
        space.sums[first + np.uint64(posting & 255)] += np.int32(factor * np.int32(posting >> 8))
    return np.int64(end - begin)


@jit
def _score(index: Layout, position: int, dense: np.ndarray) -> np.float32:
    """The exact score of one document, in four sums, so that additions need not wait for one another."""
    begin, end = np.uint64(index.bounds[position]), np.uint64(index.bounds[position + 1])
    one = np.uint64(1)
    even, odd, third, fourth = 0.0, 0.0, 0.0, 0.0
    whole = begin + (end - begin) // np.uint64(4) * np.uint64(4)
    for at in range(begin, whole, np.uint64(4)):
        even += dense[np.uint64(index.terms[at])] * np.float64(index.weights[at])
        odd += dense[np.uint64(index.terms[at + one])] * np.float64(index.weights[at + one])
        third += dense[np.uint64(index.terms[at + np.uint64(2)])] * np.float64(index.weights[at + np.uint64(2)])
        fourth += dense[np.uint64(index.terms[at + np.uint64(3)])] * np.float64(index.weights[at + np.uint64(3)])
    for at in range(whole, end):
        even += dense[np.uint64(index.terms[at])] * np.float64(index.weights[at])
    return np.float32((even + odd) + (third + fourth))


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
