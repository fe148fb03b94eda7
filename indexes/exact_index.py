"""Exact search of sparse vectors, over memory-mapped arrays (`exact_layout`) and compiled kernels (`exact_search`)."""

from __future__ import annotations

import importlib.metadata
import os
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix

from ..errors import ConfigError, DataError
from ..ids import Ids, ids_file
from .base import Hits, Options
from .dense import Exclude, check_exclude, exclusion_pairs
from .exact_layout import BLOCK, LAYOUT, Layout, open_layout, write_layout
from .exact_search import Batch, Space, make_space, search_batch
from .manifest import Manifest
from .ordering import similar_first
from .plan import BuildPlan
from .registry import check_names, check_threads
from .sparse import SparseShards, canonical

__all__ = ["ExactIndex", "Work"]

_QUERIES = 8  # a thread's share at a time
_ORDERS = ("similar", "given")


@dataclass(frozen=True)
class Work:
    """What a search read, each (n,) int64: one number a query.

    Attributes:
        entries: (term, block) pairs whose maximum went into the bounds of blocks.
        postings: weights that went into the bounds of documents, zeros of dense terms among them.
        blocks: blocks whose postings were read.
        documents: documents that were scored exactly.
    """

    entries: np.ndarray
    postings: np.ndarray
    blocks: np.ndarray
    documents: np.ndarray


class ExactIndex:
    """Exact top-k of sparse vectors by inner product.

    A score is the float32 nearest to the float64 sum of the products, added as four interleaved sums over the
    document's terms in order, whatever the search; ties go to the lower row. A document is a hit if it shares a term
    with the query, even where its score rounds to zero; others are never returned.

    Args:
        layout: the arrays.
        ids: row → document id.
        threads: queries searched at the same time; None takes the processors that this process may use.
        folder: where they came from.
    """

    def __init__(self, layout: Layout, ids: Ids, *, threads: int | None = None, folder: Path | None = None) -> None:
        self.layout, self.ids, self.folder = layout, ids, folder
        self._largest = layout.scale * 255
        self._rooms = threading.local()
        self.threads = check_threads({"threads": len(os.sched_getaffinity(0)) if threads is None else threads})

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def dimension(self) -> int:
        """Terms in the vocabulary."""
        return len(self.layout.scale)

    def vectors(self, rows: Sequence[int] | np.ndarray) -> csr_matrix:
        """The stored vectors of `rows` as CSR float32 (len(rows), vocabulary)."""
        wanted = np.asarray(rows, dtype=np.int64).ravel()
        if len(wanted) and (wanted.min() < 0 or wanted.max() >= len(self)):
            raise ValueError(f"rows must lie in [0, {len(self)}); -1 pads short lists, drop it first")
        begin, end = (self.layout.bounds[self._positions()[wanted] + after] for after in (0, 1))
        at = np.concatenate([np.zeros(0, np.int64), *(np.arange(a, b) for a, b in zip(begin, end, strict=True))])
        indptr = np.concatenate([[0], np.cumsum(end - begin)])
        columns = self.layout.terms[at].astype(np.int32)
        return csr_matrix((self.layout.weights[at], columns, indptr), shape=(len(wanted), self.dimension))

    def search(
        self, queries: csr_matrix, k: int, /, *, options: Options | None = None, exclude: Exclude | None = None
    ) -> Hits:
        """See `Index.search`. Queries are CSR (n, vocabulary); the only option is `threads`."""
        return self.search_counted(queries, k, options=options, exclude=exclude)[0]

    def search_counted(
        self, queries: csr_matrix, k: int, /, *, options: Options | None = None, exclude: Exclude | None = None
    ) -> tuple[Hits, Work]:
        """As `search`, with what each query cost.

        Raises:
            ConfigError: unknown options, another vocabulary.
            DataError: a weight that is negative or not finite; scores beyond what float32 holds.
        """
        check_names(options or {}, ("threads",), "search options of the exact back-end")
        threads = check_threads({"threads": self.threads, **(options or {})})
        if k < 0:
            raise ConfigError(f"k is {k}, expected at least 0")
        checked = canonical(queries, self.dimension, "queries")
        self._refuse_overflow(checked)
        batch = self._batch(checked, k, check_exclude(exclude, len(checked.indptr) - 1))
        self._run(batch, threads)
        return Hits(batch.rows, batch.scores), Work(*batch.work.T)

    def _positions(self) -> np.ndarray:
        """Row → position."""
        positions = np.empty(len(self), dtype=np.int64)
        positions[self.layout.order] = np.arange(len(self))
        return positions

    def _refuse_overflow(self, queries: csr_matrix) -> None:
        products = queries.data * self._largest[queries.indices]
        if products.sum() <= np.finfo(np.float32).max:  # of all queries together
            return
        over = np.bincount(_row_numbers(queries), weights=products) > np.finfo(np.float32).max
        if over.any():
            raise DataError(f"query {int(np.argmax(over))} has scores beyond {np.finfo(np.float32).max:.3g}, the "
                            "largest float32; scale its weights down")  # fmt: skip

    def _batch(self, queries: csr_matrix, k: int, exclude: Exclude | None) -> Batch:
        count = len(queries.indptr) - 1
        hits, pairs = Hits.empty(count, k), exclusion_pairs(exclude, len(self))
        left_out, positions = np.zeros(count + 1, dtype=np.int64), np.zeros(0, dtype=np.int64)
        if pairs is not None and len(pairs[0]):
            by_query = np.argsort(pairs[0], kind="stable")
            positions = self._positions()[pairs[1][by_query]]
            left_out[1:] = np.cumsum(np.bincount(pairs[0], minlength=count))
        return Batch(
            queries.indptr.astype(np.int64), queries.indices.astype(np.int64), queries.data.astype(np.float64),
            left_out, positions, hits.rows, hits.scores, np.zeros((count, 4), dtype=np.int64),
        )  # fmt: skip

    def _run(self, batch: Batch, threads: int) -> None:
        count = len(batch.rows)
        starts = range(0, count, max(1, min(_QUERIES, -(-count // threads))))
        if threads == 1 or len(starts) < 2:
            self._search_part(batch, 0, count)
            return
        with ThreadPoolExecutor(min(threads, len(starts))) as pool:
            for done in [pool.submit(self._search_part, batch, at, min(at + starts.step, count)) for at in starts]:
                done.result()

    def _search_part(self, batch: Batch, first: int, last: int) -> None:
        """Search in this thread's room, which it keeps, but for one that a failed search left in disorder."""
        space: Space | None = getattr(self._rooms, "space", None)
        self._rooms.space = None
        space = space or make_space(self.layout)
        search_batch(self.layout, batch, space, first, last)
        self._rooms.space = space


def _row_numbers(matrix: csr_matrix) -> np.ndarray:
    """The row of each stored value."""
    return np.repeat(np.arange(len(matrix.indptr) - 1), np.diff(matrix.indptr))


def read_settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """The only setting is `order`: "similar" (default) puts similar documents into one block, which makes searches
    faster and building slower; "given" leaves them as they come."""
    check_names(given, ("order",), "settings of the exact back-end")
    order = given.get("order", _ORDERS[0])
    if order not in _ORDERS:
        raise ConfigError(f"order is {order!r}, expected one of {', '.join(_ORDERS)}")
    return {"order": order}


def build_sparse(folder: Path, vectors: SparseShards, ids: Ids, plan: BuildPlan) -> dict[str, Any]:
    """Write INDEX/exact."""
    order = read_settings(plan.settings)["order"]
    given = np.arange(len(ids), dtype=np.int32)
    write_layout(folder / "exact", vectors, similar_first(vectors, BLOCK) if order == "similar" else given)
    versions = {name: importlib.metadata.version(name) for name in ("numba", "numpy", "scipy")}
    settings = {"order": order, "block": BLOCK, "layout": LAYOUT, "postings": vectors.postings}
    return {"settings": settings, "versions": versions, "keep_vectors": False}


def open_folder(folder: Path, manifest: Manifest, settings: Mapping[str, Any]) -> ExactIndex:
    """Memory-map an index. Settings: `threads`."""
    check_names(settings, ("threads",), "settings for opening an exact index")
    if manifest.settings.get("layout") != LAYOUT:
        raise DataError("an exact index of another version of rtk, which this one cannot read; build it again",
                        path=folder)  # fmt: skip
    layout = open_layout(folder / "exact")
    return ExactIndex(layout, Ids.load(ids_file(folder)), threads=settings.get("threads"), folder=folder)
