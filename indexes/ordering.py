"""An order of documents that puts similar ones side by side, so that the blocks of an index have low bounds.

Recursive bisection: a stretch of documents is split into two halves of equal size, and documents move to the half
whose term frequencies suit them better, some rounds over; then each half is split again, down to one block. It is the
idea of Dhulipala et al. (KDD 2016, "Compressing graphs and indexes with recursive graph bisection") with a plain
log-ratio of frequencies as gain and all documents moved at once. Deterministic.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .jit import jit
from .sparse import SparseShards

__all__ = ["similar_first"]

STRONGEST = 24
"""Terms of a document that are looked at: those with the greatest weight times idf."""
_ROUNDS = 8


class Space(NamedTuple):
    """Tables by term that a bisection fills and leaves at zero.

    Attributes:
        both, left: documents with the term, in the stretch and in its left half.
        gain: how much the term draws a document to the left.
        met: the terms that occur.
    """

    both: np.ndarray
    left: np.ndarray
    gain: np.ndarray
    met: np.ndarray


def similar_first(shards: SparseShards, block: int) -> np.ndarray:
    """(documents,) int32, position → row: blocks of `block` positions hold documents that share terms.

    Memory: 4 · `STRONGEST` bytes a document.
    """
    count = len(shards)
    order = np.arange(count, dtype=np.int32)
    if count <= block:
        return order
    frequency = np.zeros(shards.dimension, dtype=np.int64)
    for _, part in shards.blocks():
        frequency += np.bincount(part.indices, minlength=shards.dimension)
    idf = np.log1p(count / np.maximum(frequency, 1)).astype(np.float32)
    terms = np.full((count, STRONGEST), -1, dtype=np.int32)
    for first, part in shards.blocks():
        _strongest(part.indptr, part.indices, part.data, idf, terms[first : first + len(part.indptr) - 1])
    _split(order, terms, block, shards.dimension)
    return order


@jit
def _split(order: np.ndarray, terms: np.ndarray, block: int, vocabulary: int) -> None:
    """Bisect all documents, then the halves, down to blocks; the middle of a stretch is where a block ends."""
    space = Space(
        np.zeros(vocabulary, np.int32), np.zeros(vocabulary, np.int32),
        np.zeros(vocabulary, np.float32), np.zeros(vocabulary, np.int32),
    )  # fmt: skip
    stack = [(0, len(order))]
    while len(stack):
        start, stop = stack.pop()
        if stop - start > block:
            blocks = -(-(stop - start) // block)
            middle = start + (blocks + 1) // 2 * block
            _bisect(order[start:stop], terms, middle - start, space)
            stack.append((start, middle))
            stack.append((middle, stop))


@jit
def _strongest(indptr: np.ndarray, indices: np.ndarray, data: np.ndarray, idf: np.ndarray, terms: np.ndarray) -> None:
    """Fill each document's row of `terms` with its strongest terms, -1 where it has fewer."""
    for row in range(len(indptr) - 1):
        first, last = indptr[row], indptr[row + 1]
        if last - first <= terms.shape[1]:
            for at in range(first, last):
                terms[row, at - first] = indices[at]
            continue
        values = data[first:last] * idf[indices[first:last]]
        best = np.argsort(-values)[: terms.shape[1]]
        for place in range(len(best)):
            terms[row, place] = indices[first + best[place]]


@jit
def _bisect(order: np.ndarray, terms: np.ndarray, middle: int, space: Space) -> None:
    """Reorder a stretch so that its first `middle` documents and the others have little in common."""
    met = 0
    for at in range(len(order)):
        for term in terms[order[at]]:
            if term < 0:
                break
            if space.both[term] == 0:
                space.met[met] = term
                met += 1
            space.both[term] += 1
            if at < middle:
                space.left[term] += 1
    values = np.empty(len(order), np.float32)
    share = np.float32(middle) / np.float32(len(order) - middle)
    for _ in range(_ROUNDS):
        for term in space.met[:met]:
            right = space.both[term] - space.left[term]
            space.gain[term] = np.log((space.left[term] + 1) / ((right + 1) * share))
        for at in range(len(order)):
            total = np.float32(0)
            for term in terms[order[at]]:
                if term < 0:
                    break
                total += space.gain[term]
            values[at] = total
        if _exchange(order, terms, values, middle, space.left) * 200 < len(order):
            break
    for term in space.met[:met]:
        space.both[term] = 0
        space.left[term] = 0


@jit
def _exchange(order: np.ndarray, terms: np.ndarray, values: np.ndarray, middle: int, left: np.ndarray) -> int:
    """Bring the `middle` documents with the greatest values to the front, keeping `left` right; how many came."""
    out = np.argsort(values[:middle], kind="mergesort")  # least suited to the left first
    into = np.argsort(-values[middle:], kind="mergesort")
    moved = 0
    while moved < min(len(out), len(into)):
        first, second = out[moved], middle + into[moved]
        if values[second] <= values[first]:
            break
        for place in range(terms.shape[1]):
            if terms[order[first], place] >= 0:
                left[terms[order[first], place]] -= 1
            if terms[order[second], place] >= 0:
                left[terms[order[second], place]] += 1
        order[first], order[second] = order[second], order[first]
        moved += 1
    return moved
