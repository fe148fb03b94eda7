"""Searching the exact index: bounds of blocks, bounds of documents, and exact scores of what is left.

For one query:

1. An upper bound for each block: the sum over the query's terms of weight × the entry's maximum. Weights of the query
   are turned into whole numbers, rounded up, so that sums are exact and never too low.
2. Blocks are read in order of their bounds, a few first, then eight times as many, and so on, until the next bound is
   below the k-th score so far. Each document gets a bound of its own in the same way, and those whose bound reaches the
   k-th score are scored, greatest bounds first, until no bound reaches it.

A score is the float32 nearest to the float64 sum of the products. A document whose bound equals the
k-th score is still looked at, so ties are broken by row and by nothing else.

All kernels are in this file, long as it is: numba keeps what it compiled until the file of the outermost kernel
changes, whatever becomes of kernels in other files that it calls.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .exact_layout import BLOCK, Layout
from .jit import jit, prefetch

__all__ = ["Batch", "Space", "make_space", "search_batch"]

_UNITS = 1 << 29  # the greatest possible sum of a query, in whole units
_BUCKETS = 1 << 10
_SPARSE = 32  # entries a block from which on a block's entry is looked up
_AHEAD = 16  # entries whose postings are on their way
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
    """What the queries of one thread share, left as it was found by every query.

    Attributes:
        dense: (v,) float64, the query's weights by term; zero between queries.
        bound: (blocks,) int32, what the terms that are not added yet can add; zero once a block has been read.
        slot: (blocks,) int32, the blocks that are being read; -1 for all others, for all between readings.
        block: (blocks,) int32, slot → block, in order of blocks.
        live: (blocks,) int32, the slots whose blocks can still have one of the best documents, in order.
        pending: (blocks,) int32, the blocks that are still to be read.
        highest: (blocks,) int32, by slot, the greatest of its sums.
        sums: (blocks · BLOCK,) int32, by slot, bounds of the documents from the terms that are added.
        blocked: (documents,) whether a position must not be returned, false between queries.
    """

    dense: np.ndarray
    bound: np.ndarray
    slot: np.ndarray
    block: np.ndarray
    live: np.ndarray
    pending: np.ndarray
    highest: np.ndarray
    sums: np.ndarray
    blocked: np.ndarray


def make_space(index: Layout) -> Space:
    """Room for one thread's searches: some five bytes a document and eight a term; pages are taken when needed."""
    blocks = -(-len(index.order) // BLOCK)
    bound, block, live, pending, highest = (np.empty(blocks, np.int32) for _ in range(5))
    return Space(
        dense=np.zeros(len(index.scale), np.float64), bound=bound, slot=np.full(blocks, -1, np.int32), block=block,
        live=live, pending=pending, highest=highest, sums=np.empty(blocks * BLOCK, np.int32),
        blocked=np.zeros(len(index.order), np.bool_),
    )  # fmt: skip


@jit
def search_batch(index: Layout, batch: Batch, space: Space, first: int, last: int) -> None:
    """Search queries first:last and write their hits, in order."""
    k = min(batch.rows.shape[1], len(index.order))
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
    found, wanted = 0, _FIRST + len(rows) // 4
    reading = _select(space.bound, _cut(space.bound, wanted), space.block)
    found = _read_blocks(index, query, space, reading, rows, scores, found, work)
    pending = _select(space.bound, _least(found, rows, scores, query.unit), space.pending)
    while pending:
        wanted *= 8
        reading, pending = _share(space, pending, _least(found, rows, scores, query.unit), wanted)
        found = _read_blocks(index, query, space, reading, rows, scores, found, work)
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
        maxima = index.entry_maximum[index.entry_bounds[term] : index.entry_bounds[term + 1]]
        if len(maxima) == len(bound):
            for block in range(len(bound)):
                bound[block] += np.int32(factor * np.int32(maxima[block]))
        else:
            blocks = index.entry_block[index.block_bounds[term] : index.block_bounds[term + 1]]
            for entry in range(len(blocks)):
                bound[np.uint64(blocks[entry])] += np.int32(factor * np.int32(maxima[entry]))


@jit
def _select(bounds: np.ndarray, least: int, chosen: np.ndarray) -> int:
    """Write the numbers of the bounds that reach `least`, in order; how many."""
    count = 0
    for number in range(len(bounds)):
        chosen[count] = number  # written whether it stays or not, which is faster than a branch
        count += bounds[number] >= least
    return count


@jit
def _share(space: Space, pending: int, least: int, wanted: int) -> tuple[int, int]:
    """Choose about `wanted` of the pending blocks for reading, those with the greatest bounds; how many there are, and
    how many of the others reach `least` and stay."""
    above = least if pending <= wanted else max(least, _cut(space.bound[space.pending[:pending]], wanted))
    reading = staying = 0
    for at in range(pending):
        block = space.pending[at]
        if space.bound[block] >= above:
            space.block[reading] = block
            reading += 1
        elif space.bound[block] >= least:
            space.pending[staying] = block
            staying += 1
    return reading, staying


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
    index: Layout, query: Query, space: Space, reading: int, rows: np.ndarray, scores: np.ndarray, found: int,
    work: np.ndarray,
) -> int:  # fmt: skip
    """Look for better documents in the blocks that were chosen for reading."""
    space.sums[: reading * BLOCK] = 0
    space.highest[:reading] = 0
    for slot in range(reading):
        space.slot[space.block[slot]] = slot
        space.live[slot] = slot
    least = _least(found, rows, scores, query.unit)
    left = _add_up(index, query, space, reading, least, work)
    work[2] += reading
    for slot in range(reading):
        space.slot[space.block[slot]] = -1
        space.bound[space.block[slot]] = 0
    keys = _candidates(space, left, least)
    while len(keys):
        lower = _cut(keys >> 32, 2 * len(rows)) << 32
        some = np.sort(keys[keys >= lower])
        found = _score_some(index, some, query.unit, space, rows, scores, found, work)
        keys = keys[(keys < lower) & (keys >> 32 >= _least(found, rows, scores, query.unit))]
    return found


@jit
def _candidates(space: Space, left: int, least: int) -> np.ndarray:
    """The documents whose sum is at least `least`, as sum · 2³² + slot · BLOCK + place."""
    count = 0
    keys = np.empty(256, np.int64)
    for slot in space.live[:left]:
        if space.highest[slot] < least:
            continue
        if count + BLOCK > len(keys):
            wider = np.empty(2 * len(keys), np.int64)
            wider[:count] = keys[:count]
            keys = wider
        for at in range(slot * BLOCK, (slot + 1) * BLOCK):
            if space.sums[at] >= least:
                keys[count] = (np.int64(space.sums[at]) << 32) | at
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
        position = space.block[place // BLOCK] * BLOCK + place % BLOCK
        if not space.blocked[position]:
            work[3] += 1
            found = _offer(index.order[position], _score(index, position, space.dense), rows, scores, found)
            least = _least(found, rows, scores, unit)
    return found


@jit
def _add_up(index: Layout, query: Query, space: Space, reading: int, least: int, work: np.ndarray) -> int:
    """Add the bounds of the documents in the blocks that are being read, term by term; how many blocks are left.

    Before a term whose cost depends on them, blocks go whose best document cannot reach `least` with all that the
    block's other terms could add: the bound of a block is the sum of maxima of different documents, and falls towards
    the truth as terms are added.
    """
    left = reading
    for at in range(len(query.terms)):
        term, factor = query.terms[at], query.factors[at]
        entries = index.entry_bounds[term + 1] - index.entry_bounds[term]
        if entries < len(space.bound) and entries <= left * _SPARSE:
            work[1] += _add_term(index, term, factor, space)
            continue
        left = _drop_blocks(space, left, least)
        if not left:
            break
        if index.level_bounds[term] < index.level_bounds[term + 1]:
            work[1] += _add_dense_term(index, term, factor, space, left)
        elif entries == len(space.bound):
            work[1] += _add_full_term(index, term, factor, space, left)
        else:
            work[1] += _add_term_here(index, term, factor, space, left)
    return _drop_blocks(space, left, least)


@jit
def _drop_blocks(space: Space, left: int, least: int) -> int:
    """Let go of blocks that cannot reach `least`; how many are left."""
    staying = 0
    for at in range(left):
        slot = space.live[at]
        block = space.block[slot]
        if space.highest[slot] + space.bound[block] < least:
            space.slot[block] = -1
        else:
            space.live[staying] = slot
            staying += 1
    return staying


@jit
def _add_dense_term(index: Layout, term: int, factor: int, space: Space, left: int) -> int:
    """Add the bounds of a dense term to the blocks that are left; how many weights that took."""
    entries, levels = np.uint64(index.entry_bounds[term]), np.uint64(index.level_bounds[term])
    size = np.uint64(BLOCK)
    for at in range(left):
        if at + _AHEAD < left:
            ahead = np.uint64(space.block[space.live[at + _AHEAD]])
            prefetch(index.level, levels + ahead * size)
            prefetch(index.entry_maximum, entries + ahead)
        slot = space.live[at]
        block = np.uint64(space.block[slot])
        space.bound[block] -= np.int32(factor * np.int32(index.entry_maximum[entries + block]))
        first, start = np.uint64(slot) * size, levels + block * size
        highest = np.int32(0)
        for place in range(size):
            value = np.int32(space.sums[first + place] + np.int32(factor * np.int32(index.level[start + place])))
            space.sums[first + place] = value
            highest = max(highest, value)
        space.highest[slot] = highest
    return left * BLOCK


@jit
def _add_full_term(index: Layout, term: int, factor: int, space: Space, left: int) -> int:
    """The same for another full term."""
    read = 0
    base = np.uint64(index.posting_bounds[term])
    entries = np.uint64(index.entry_bounds[term])
    for at in range(left):
        if at + _AHEAD < left:
            prefetch(index.entry_end, entries + np.uint64(space.block[space.live[at + _AHEAD]]))
        if at + _AHEAD // 2 < left:
            ahead = entries + np.uint64(space.block[space.live[at + _AHEAD // 2]])
            prefetch(index.entry_maximum, ahead)
            prefetch(index.posting, base + np.uint64(index.entry_end[ahead - np.uint64(ahead > 0)]))
        slot = space.live[at]
        block = np.uint64(space.block[slot])
        entry = entries + block
        begin = base + np.uint64(index.entry_end[entry - np.uint64(1)]) if block else base
        read += _add_entry(index, entry, block, begin, base + np.uint64(index.entry_end[entry]), factor, space)
    return read


@jit
def _add_term(index: Layout, term: int, factor: int, space: Space) -> int:
    """The same for a term that is not full, by going through all its entries."""
    read = 0
    base = np.uint64(index.posting_bounds[term])
    begin = base
    entry = np.uint64(index.entry_bounds[term])
    for at in range(np.uint64(index.block_bounds[term]), np.uint64(index.block_bounds[term + 1])):
        end = base + np.uint64(index.entry_end[entry])
        block = np.uint64(index.entry_block[at])
        if space.slot[block] >= 0:
            read += _add_entry(index, entry, block, begin, end, factor, space)
        begin = end
        entry += np.uint64(1)
    return read


@jit
def _add_term_here(index: Layout, term: int, factor: int, space: Space, left: int) -> int:
    """The same by looking up the entries of the few blocks that are left, in steps that double, then halve."""
    read = 0
    base = np.uint64(index.posting_bounds[term])
    blocks = index.entry_block[index.block_bounds[term] : index.block_bounds[term + 1]]
    first = index.entry_bounds[term]
    low = 0  # every entry before it is of an earlier block
    for slot in space.live[:left]:
        block = space.block[slot]
        step = 1
        while low + step < len(blocks) and blocks[low + step] <= block:
            low += step
            step *= 2
        high = min(low + step, len(blocks))
        while low < high:
            middle = (low + high) // 2
            if blocks[middle] < block:
                low = middle + 1
            else:
                high = middle
        if low == len(blocks):
            break
        if blocks[low] == block:
            entry = np.uint64(first + low)
            begin = base + np.uint64(index.entry_end[entry - np.uint64(1)]) if low else base
            end = base + np.uint64(index.entry_end[entry])
            read += _add_entry(index, entry, np.uint64(block), begin, end, factor, space)
    return read


@jit
def _add_entry(index: Layout, entry: Any, block: Any, begin: Any, end: Any, factor: int, space: Space) -> Any:
    """Add the postings of one entry, and take it off what its block can still add. Unsigned indices spare a test for
    negative ones at every posting."""
    slot = np.uint64(space.slot[block])
    space.bound[block] -= np.int32(factor * np.int32(index.entry_maximum[entry]))
    first = slot * np.uint64(BLOCK)
    highest = space.highest[slot]
    for here in range(begin, end):
        posting = index.posting[here]
        place = first + np.uint64(posting & 255)
        value = np.int32(space.sums[place] + np.int32(factor * np.int32(posting >> 8)))
        space.sums[place] = value
        highest = max(highest, value)
    space.highest[slot] = highest
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
