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
_SCORING = 200  # postings that can be added while one document is scored
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
        bound: (blocks,) int32, slot: (blocks,) int32 or -1, alive: the blocks that have a slot, in order.
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
    cut = _cut(space.bound, _FIRST + len(rows) // 4)
    found = _read_blocks(index, query, space, cut, 1 << 31, rows, scores, 0, work)
    least = _least(found, rows, scores, query.unit)
    if least < cut:
        found = _read_blocks(index, query, space, least, cut, rows, scores, found, work)
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
    rest = _add_up(index, query, space.slot, sums, least, work)
    keys = _candidates(sums, max(1, least - rest))
    while len(keys):
        lower = _cut(keys >> 32, 2 * len(rows)) << 32
        some = np.sort(keys[keys >= lower])
        found = _score_some(index, some, rest, query.unit, space, rows, scores, found, work)
        keys = keys[(keys < lower) & (keys >> 32 >= _least(found, rows, scores, query.unit) - rest)]
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
    index: Layout, some: np.ndarray, rest: int, unit: float, space: Space,
    rows: np.ndarray, scores: np.ndarray, found: int, work: np.ndarray,
) -> int:  # fmt: skip
    """Score documents, the last of `some` first, until none of the others can be among the best."""
    least = _least(found, rows, scores, unit)
    for at in range(len(some) - 1, -1, -1):
        if (some[at] >> 32) + rest < least:
            break
        place = some[at] & 0xFFFFFFFF
        position = space.alive[place // BLOCK] * BLOCK + place % BLOCK
        if not space.blocked[position]:
            work[3] += 1
            found = _offer(index.order[position], _score(index, position, space.dense), rows, scores, found)
            least = _least(found, rows, scores, unit)
    return found


@jit
def _add_up(index: Layout, query: Query, slot: np.ndarray, sums: np.ndarray, least: int, work: np.ndarray) -> int:
    """Add the bounds of all documents in the blocks that have a slot, term by term.

    It ends early when so few documents can still reach `least` that it is cheaper to score them.

    Returns:
        What the terms left out could add to any sum.
    """
    rest, postings = 0, 0
    for at in range(len(query.terms)):
        rest += query.factors[at] * 255
        postings += index.posting_bounds[query.terms[at] + 1] - index.posting_bounds[query.terms[at]]
    share = len(sums) / (len(slot) * BLOCK)  # of the postings lie in these blocks, about
    checked = postings
    for at in range(len(query.terms)):
        term = query.terms[at]
        work[1] += _add_term(index, term, query.factors[at], slot, sums)
        rest -= query.factors[at] * 255
        postings -= index.posting_bounds[term + 1] - index.posting_bounds[term]
        if rest < least and postings < 0.9 * checked and postings * share > 0.25 * len(sums):
            checked = postings
            count = 0
            for value in sums:
                count += value >= least - rest
            if count * _SCORING < postings * share:
                return rest
    return 0


@jit
def _add_term(index: Layout, term: int, factor: int, slot: np.ndarray, sums: np.ndarray) -> int:
    """Add one term's bounds; how many postings that took. Unsigned indices spare a test for negative ones each."""
    read = 0
    posting = np.uint64(index.posting_bounds[term])
    for entry in range(np.uint64(index.entry_bounds[term]), np.uint64(index.entry_bounds[term + 1])):
        after = posting + np.uint64(index.entry_count[entry])
        place = slot[np.uint64(index.entry_block[entry])]
        if place >= 0:
            read += index.entry_count[entry]
            first = np.uint64(place) * np.uint64(BLOCK)
            for here in range(posting, after):
                sums[first + np.uint64(index.posting_place[here])] += np.int32(
                    factor * np.int32(index.posting_weight[here])
                )
        posting = after
    return read


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
