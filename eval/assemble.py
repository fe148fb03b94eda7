"""From columns of file batches to a run: queries gathered together, ranks obeyed, few bytes an entry on the way."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from ..errors import DataError
from ..ids import Ids
from .run import Order, Run
from .vocabulary import Column, VocabularyBuilder

__all__ = ["RunAssembler"]


class RunAssembler:
    """Collects (query ids, document ids, scores, ranks, further columns) batch by batch and makes a `Run` of them.

    Lines of one query need not stand together; queries keep the order of their first appearance.

    Args:
        order: "rank" needs ranks with every batch and orders each list by them.
        size: how many entries there will be, when that is known.
    """

    def __init__(self, order: Order, size: int | None = None) -> None:
        self.order: Order = order
        self._size = size
        self._documents = VocabularyBuilder(size)
        self._queries: dict[str, int] = {}
        self._query_runs: list[tuple[np.ndarray, np.ndarray]] = []  # (query numbers, lengths) of stretches of lines
        self._scores = Column(np.dtype(np.float32), size)
        self._ranks = Column(np.dtype(np.int64), size)
        self._columns: dict[str, Column] = {}

    def add(
        self,
        qids: pa.Array,
        documents: pa.Array,
        scores: np.ndarray,
        *,
        ranks: np.ndarray | None = None,
        columns: dict[str, np.ndarray] | None = None,
    ) -> None:
        """Take in a batch; all arrays are (lines,)."""
        ends = pa.compute.run_end_encode(qids.cast(pa.large_string()))
        stops = np.asarray(ends.run_ends, dtype=np.int64)
        numbers = [self._queries.setdefault(qid, len(self._queries)) for qid in ends.values.to_pylist()]
        self._query_runs.append((np.asarray(numbers, dtype=np.int64), np.diff(stops, prepend=0)))
        self._documents.add(documents)
        self._scores.add(scores)
        if self.order == "rank":
            if ranks is None:
                raise ValueError("order by rank needs the ranks")
            self._ranks.add(ranks)
        for name, values in (columns or {}).items():
            self._columns.setdefault(name, Column(values.dtype, self._size)).add(values)

    def finish(self, tag: str) -> Run:
        """Return the run. The assembler is spent.

        Raises:
            DataError: a document twice for one query, a rank twice in one list, a NaN score.
        """
        numbers = np.concatenate([numbers for numbers, _ in self._query_runs] or [np.zeros(0, np.int64)])
        lengths = np.concatenate([lengths for _, lengths in self._query_runs] or [np.zeros(0, np.int64)])
        vocabulary, codes = self._documents.finish()
        scores = self._scores.finish()
        columns = {name: column.finish() for name, column in self._columns.items()}
        counts = np.bincount(numbers, weights=lengths, minlength=len(self._queries)).astype(np.int64)
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        qids = Ids(list(self._queries))
        entries = self._entry_order(qids, numbers, lengths, columns.get("list_id"))
        if entries is not None:
            codes, scores = codes[entries], scores[entries]
            columns = {name: values[entries] for name, values in columns.items()}
        pa.default_memory_pool().release_unused()
        return Run.from_codes(
            qids, offsets, vocabulary, codes, scores, columns=columns, order=self.order, tag=tag, owned=True
        )

    def _entry_order(
        self, qids: Ids, numbers: np.ndarray, lengths: np.ndarray, lists: np.ndarray | None
    ) -> np.ndarray | None:
        """The permutation that brings queries together and obeys the ranks; None when the lines stand so already."""
        if self.order == "score" and (np.diff(numbers) > 0).all():
            return None
        queries = np.repeat(numbers, lengths)
        if self.order == "score":
            return np.argsort(queries, kind="stable")
        ranks = self._ranks.finish()
        keys = [ranks, queries] if lists is None else [ranks, lists, queries]
        entries = np.lexsort(keys)
        same = np.ones(max(len(entries) - 1, 0), dtype=bool)
        for key in keys:
            same &= key[entries][1:] == key[entries][:-1]
        if same.any():
            at = int(entries[np.flatnonzero(same)[0]])
            raise DataError(
                f"rank {ranks[at]} occurs twice for query {qids[int(queries[at])]!r}, so the ranks give no order. "
                "Read the run by score (order='score')"
            )
        return entries
