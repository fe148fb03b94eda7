"""The exact index's arrays: an inverted index in blocks of documents, and the same vectors by document.

Documents have positions, in an order that puts similar ones into the same block of `BLOCK`; `order` leads back to rows.
For each term the inverted index has one entry for each block with the term: the block, how many of its documents have
it, and the largest of their weights; and for each posting the place in the block and the weight. A full term, which is
in many blocks, has an entry for every block, whether the block has it or not, so that its entries are found by the
block's number. A dense term, which is in many documents, has a weight for every document, mostly zero, in place of
postings: at most four times the space, and added many at a time. Weights there are eight bits, rounded up to a multiple
of the term's `scale`, so that what is computed from them is never too low: bounds find candidates, and the float32
weights by document give the scores. Block-max pruning follows BMP (Mallia, Suel and Tonellotto, SIGIR 2024), with
postings by term where BMP keeps them by block.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..files import atomic_path
from .jit import jit
from .sparse import SparseShards
from .vectors import map_array

__all__ = ["BLOCK", "LAYOUT", "Layout", "open_layout", "write_layout"]

BLOCK = 64
LAYOUT = 2  # the number of this arrangement of files
_LEVELS = 255
_FULL = 3  # a term in a third of all blocks is full
_DENSE = 8  # a term with that many postings a block is dense
_FILES = ("order", "bounds", "terms", "weights", "entry_bounds", "block_bounds", "posting_bounds", "entry_block",
          "entry_maximum", "entry_end", "level_bounds", "level", "posting", "scale")  # fmt: skip


class Layout(NamedTuple):
    """The arrays of an exact index; `p` positions, `v` terms, `w` weights, `e` entries, `f` of them of terms that are
    not full, `n` postings of terms that are not dense, `d` dense terms, which are full too.

    Attributes:
        order: (p,) int32, position → row.
        bounds: (p + 1,) int64: position i has terms[bounds[i]:bounds[i + 1]].
        terms: (w,) uint16, or uint32 where the vocabulary is larger; ascending in each document.
        weights: (w,) float32.
        entry_bounds: (v + 1,) int64: term t has the entries entry_bounds[t]:entry_bounds[t + 1]; where they are as many
            as there are blocks, they are in the order of blocks.
        block_bounds: (v + 1,) int64, as entry_bounds, for the blocks of entries; a full term has none.
        posting_bounds: (v + 1,) int64, the same for postings; a dense term has none.
        entry_block: (f,) uint32, ascending in each term.
        entry_maximum: (e,) uint8, the largest weight of the entry in units of the term's scale, rounded up; 0 where the
            block does not have the term.
        entry_end: (e,) uint32, where its postings end, counted from the term's first; 0 for a dense term.
        level_bounds: (v + 1,) int64, the same for levels, of which a dense term has BLOCK for every block.
        level: (d · blocks · BLOCK,) uint8, by position, the weight's level or 0.
        posting: (n,) uint16: the document's place in its block, and above it, times 256, the weight's level: the weight
            in units of the term's scale, rounded up, at least 1. Together, since a block's few are read at a time.
        scale: (v,) float64: no weight of term t is above its level · scale[t].
    """

    order: np.ndarray
    bounds: np.ndarray
    terms: np.ndarray
    weights: np.ndarray
    entry_bounds: np.ndarray
    block_bounds: np.ndarray
    posting_bounds: np.ndarray
    entry_block: np.ndarray
    entry_maximum: np.ndarray
    entry_end: np.ndarray
    level_bounds: np.ndarray
    level: np.ndarray
    posting: np.ndarray
    scale: np.ndarray


class _Starts(NamedTuple):
    """The bounds of each term's part of the inverted arrays, see `Layout`. What a term is follows from them: a full one
    has no blocks of its own, a dense one levels in place of postings."""

    entry_bounds: np.ndarray
    block_bounds: np.ndarray
    level_bounds: np.ndarray
    posting_bounds: np.ndarray


class _Inverted(NamedTuple):
    """The inverted arrays while they are filled, see `Layout`; all zero at first."""

    entry_block: np.ndarray
    entry_maximum: np.ndarray
    entry_end: np.ndarray
    level: np.ndarray
    posting: np.ndarray


def open_layout(folder: Path) -> Layout:
    """Memory-map the arrays that `write_layout` wrote."""
    return Layout(*(map_array(folder / f"{name}.npy") for name in _FILES))


def write_layout(folder: Path, shards: SparseShards, order: np.ndarray) -> None:
    """Write the arrays for documents in this order; memory holds the tables of terms, the rest is mapped files.

    Args:
        folder: INDEX/exact.
        shards: the vectors.
        order: (documents,) int32, position → row.
    """
    folder.mkdir(parents=True, exist_ok=True)
    bounds = _bounds(shards, order)
    _write(folder, "order", order.astype(np.int32))
    _write(folder, "bounds", bounds)
    postings = int(bounds[-1])
    kind = np.dtype(np.uint16 if shards.dimension <= 1 << 16 else np.uint32)
    with _array(folder, "terms", kind, postings) as terms, _array(folder, "weights", np.float32, postings) as weights:
        position = np.empty(len(order), dtype=np.int64)
        position[order] = np.arange(len(order))
        for first, part in shards.blocks():
            _forward(part.indptr, part.indices, part.data, position[first : first + len(part.indptr) - 1],
                     bounds, terms, weights)  # fmt: skip
        _write_inverted(folder, bounds, terms, weights, shards.dimension)


def _write_inverted(folder: Path, bounds: np.ndarray, terms: np.ndarray, weights: np.ndarray, vocabulary: int) -> None:
    counts, entries, largest = _statistics(bounds, terms, weights, vocabulary)
    scale = np.maximum(largest.astype(np.float64) / _LEVELS * (1 + 1e-12), np.finfo(np.float64).tiny)
    blocks = -(-(len(bounds) - 1) // BLOCK)
    dense = counts >= max(1, blocks * _DENSE)
    full = dense | (entries * _FULL >= max(1, blocks))
    sizes = {
        "entry_bounds": np.where(full, blocks, entries),
        "block_bounds": entries * ~full,
        "level_bounds": dense * blocks * BLOCK,
        "posting_bounds": counts * ~dense,
    }
    starts = _Starts(**{name: np.concatenate([[0], np.cumsum(of_terms)]) for name, of_terms in sizes.items()})
    for name, array in {**starts._asdict(), "scale": scale}.items():
        _write(folder, name, array)
    with (
        _array(folder, "entry_block", np.uint32, int(starts.block_bounds[-1])) as block,
        _array(folder, "entry_maximum", np.uint8, int(starts.entry_bounds[-1])) as maximum,
        _array(folder, "entry_end", np.uint32, int(starts.entry_bounds[-1])) as end,
        _array(folder, "level", np.uint8, int(starts.level_bounds[-1])) as level,
        _array(folder, "posting", np.uint16, int(starts.posting_bounds[-1])) as posting,
    ):
        inverted = _Inverted(block, maximum, end, level, posting)
        _invert(bounds, terms, weights, scale, starts, inverted)
        _fill(starts, inverted)


@contextmanager
def _array(folder: Path, name: str, dtype: np.dtype | type, size: int) -> Iterator[np.ndarray]:
    """A new .npy file of one dimension, mapped while it is filled, in place under its name when it is whole.

    The space is taken first: a full disk is then an OSError, not a signal in the middle of a kernel.
    """
    with atomic_path(folder / f"{name}.npy") as path:
        if not size:
            np.save(path, np.zeros(0, dtype))
            yield np.zeros(0, dtype)
            return
        mapped = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=(size,))
        with open(path, "r+b") as handle:
            os.posix_fallocate(handle.fileno(), 0, path.stat().st_size)
        yield mapped.view(np.ndarray)
        mapped.flush()


def _write(folder: Path, name: str, array: np.ndarray) -> None:
    with _array(folder, name, array.dtype, len(array)) as file:
        file[:] = array


def _bounds(shards: SparseShards, order: np.ndarray) -> np.ndarray:
    lengths = np.concatenate([np.diff(part.indptr) for _, part in shards.blocks()]).astype(np.int64)
    return np.concatenate([[0], np.cumsum(lengths[order])]).astype(np.int64)


@jit
def _forward(
    indptr: np.ndarray, indices: np.ndarray, data: np.ndarray, position: np.ndarray,
    bounds: np.ndarray, terms: np.ndarray, weights: np.ndarray,
) -> None:  # fmt: skip
    """Copy a shard's documents to their positions."""
    for row in range(len(position)):
        to = bounds[position[row]]
        for at in range(indptr[row], indptr[row + 1]):
            terms[to] = indices[at]
            weights[to] = data[at]
            to += 1


@jit
def _statistics(
    bounds: np.ndarray, terms: np.ndarray, weights: np.ndarray, vocabulary: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each term its postings, its entries and its largest weight."""
    counts = np.zeros(vocabulary, np.int64)
    entries = np.zeros(vocabulary, np.int64)
    largest = np.zeros(vocabulary, np.float32)
    last = np.full(vocabulary, -1, np.int64)
    for position in range(len(bounds) - 1):
        block = position // BLOCK
        for at in range(bounds[position], bounds[position + 1]):
            term = terms[at]
            counts[term] += 1
            if last[term] != block:
                last[term] = block
                entries[term] += 1
            largest[term] = max(largest[term], weights[at])
    return counts, entries, largest


@jit
def _invert(
    bounds: np.ndarray, terms: np.ndarray, weights: np.ndarray, scale: np.ndarray, starts: _Starts, to: _Inverted
) -> None:  # fmt: skip
    """Write entries and postings term by term, walking over the documents once; entries of blocks without the term stay
    zero."""
    last = np.full(len(scale), -1, np.int64)
    next_entry = starts.entry_bounds[:-1].copy()
    next_posting = starts.posting_bounds[:-1].copy()
    for position in range(len(bounds) - 1):
        here = position // BLOCK
        for at in range(bounds[position], bounds[position + 1]):
            term = terms[at]
            value = np.float64(weights[at])
            level = max(1, int(np.ceil(value / scale[term])))
            if level * scale[term] < value:  # the division rounded down
                level += 1
            if last[term] != here:
                last[term] = here
                if starts.block_bounds[term] == starts.block_bounds[term + 1]:
                    next_entry[term] = starts.entry_bounds[term] + here
                else:
                    to.entry_block[starts.block_bounds[term] + next_entry[term] - starts.entry_bounds[term]] = here
                next_entry[term] += 1
            entry = next_entry[term] - 1
            to.entry_maximum[entry] = max(to.entry_maximum[entry], level)
            if starts.level_bounds[term] < starts.level_bounds[term + 1]:
                to.level[starts.level_bounds[term] + position] = level
            else:
                to.posting[next_posting[term]] = position % BLOCK + level * 256
                next_posting[term] += 1
                to.entry_end[entry] = next_posting[term] - starts.posting_bounds[term]


@jit
def _fill(starts: _Starts, to: _Inverted) -> None:
    """Let entries of blocks without the term end where the block before them ends."""
    for term in range(len(starts.entry_bounds) - 1):
        end = np.uint32(0)
        for entry in range(starts.entry_bounds[term], starts.entry_bounds[term + 1]):
            end = max(end, to.entry_end[entry])
            to.entry_end[entry] = end
