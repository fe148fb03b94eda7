"""Searching an index over chunks for documents (MaxP)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..eval.chunking import parent_ids
from ..ids import Ids
from ..indexes.base import Hits, Index, Options

__all__ = ["PassageIndex"]

_AHEAD = 3  # chunks fetched for each document wanted, at first
_FURTHER = 4  # times as many for the lists that are still short


@dataclass(frozen=True, eq=False)
class PassageIndex:
    """An index over chunks with the way from chunks to documents.

    Attributes:
        index: over chunks.
        documents: the distinct documents; rows of hits are rows of these.
        parents: (chunks,) int32, the document's row for each chunk.
        by_parent: (chunks,) int64, chunk rows grouped by document.
        starts: (documents + 1,) int64, bounds of the groups in `by_parent`.
    """

    index: Index
    documents: Ids
    parents: np.ndarray
    by_parent: np.ndarray
    starts: np.ndarray

    @classmethod
    def over(cls, index: Index) -> PassageIndex:
        """Read the documents off the chunk ids."""
        ids = index.ids if isinstance(index.ids, Ids) else Ids(index.ids)
        encoded = parent_ids(ids).array.dictionary_encode()
        parents = np.asarray(encoded.indices, dtype=np.int32)
        starts = np.concatenate([[0], np.cumsum(np.bincount(parents, minlength=len(encoded.dictionary)))])
        return cls(index, Ids(encoded.dictionary), parents, np.argsort(parents, kind="stable"), starts.astype(np.int64))

    def search(
        self, queries: Any, k: int, *, options: Options, exclude: Sequence[Sequence[int] | np.ndarray] | None = None
    ) -> Hits:
        """The k best documents for each query, each with its best chunk's score.

        More chunks are fetched until every list has k documents or the index has no more: the result is that of a
        search over all chunks.
        """
        left_out = None if exclude is None else [self._chunks(rows) for rows in exclude]
        fetch = min(_AHEAD * k, len(self.parents))
        result, open_rows = self._best(self.index.search(queries, fetch, options=options or None, exclude=left_out), k)
        todo = np.flatnonzero(open_rows)
        while len(todo) and fetch < len(self.parents):
            fetch = min(_FURTHER * fetch, len(self.parents))
            part = None if left_out is None else [left_out[row] for row in todo.tolist()]
            found = self.index.search(_take(queries, todo), fetch, options=options or None, exclude=part)
            better, open_rows = self._best(found, k)
            result.rows[todo], result.scores[todo] = better.rows, better.scores
            todo = todo[open_rows]
        return result

    def _chunks(self, documents: Sequence[int] | np.ndarray) -> np.ndarray:
        """The chunk rows of documents."""
        rows = [self.by_parent[self.starts[row] : self.starts[row + 1]] for row in np.asarray(documents).tolist()]
        return np.concatenate(rows) if rows else np.zeros(0, dtype=np.int64)

    def _best(self, found: Hits, k: int) -> tuple[Hits, np.ndarray]:
        """The first k distinct documents of each chunk list, and which lists may hold more further down."""
        best = Hits.empty(len(found), k)
        open_rows = np.zeros(len(found), dtype=bool)
        for row in range(len(found)):
            valid = found.rows[row] >= 0
            parents = self.parents[found.rows[row][valid]]
            first = np.sort(np.unique(parents, return_index=True)[1])[:k]
            best.rows[row, : len(first)] = parents[first]
            best.scores[row, : len(first)] = found.scores[row][valid][first]
            open_rows[row] = len(first) < k and bool(valid.all())
        return best, open_rows


def _take(queries: Any, rows: np.ndarray) -> Any:
    return [queries[row] for row in rows.tolist()] if isinstance(queries, list) else queries[rows]
