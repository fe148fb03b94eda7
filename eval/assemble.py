"""From columns of file batches to a run: queries gathered together, ranks obeyed, few bytes an entry on the way."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from ..errors import DataError
from ..ids import Ids
from .run import Order, Run
from .vocabulary import VocabularyBuilder, join_parts

__all__ = ["RunAssembler"]


class RunAssembler:
    """Collects (query ids, document ids, scores, ranks, further columns) batch by batch and makes a `Run` of them.

    Lines of one query need not stand together; queries keep the order of their first appearance.

    Args:
        order: "rank" needs ranks with every batch and orders each list by them.
    """

    def __init__(self, order: Order) -> None:
        self.order: Order = order
        self._documents = VocabularyBuilder()
        self._queries: dict[str, int] = {}
        self._query_runs: list[tuple[np.ndarray, np.ndarray]] = []  # (query numbers, lengths) of stretches of lines
        self._scores: list[np.ndarray] = []
        self._ranks: list[np.ndarray] = []
        self._columns: dict[str, list[np.ndarray]] = {}

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
        self._scores.append(np.asarray(scores, dtype=np.float32))
        if self.order == "rank":
            assert ranks is not None
            self._ranks.append(np.asarray(ranks, dtype=np.int64))
        for name, values in (columns or {}).items():
            self._columns.setdefault(name, []).append(values)

    def finish(self, tag: str) -> Run:
        """Return the run. The assembler is spent.

        Raises:
            DataError: a document twice for one query, a rank twice in one list, a NaN score.
        """
        numbers = np.concatenate([numbers for numbers, _ in self._query_runs] or [np.zeros(0, np.int64)])
        lengths = np.concatenate([lengths for _, lengths in self._query_runs] or [np.zeros(0, np.int64)])
        vocabulary, codes = self._documents.finish()
        scores = join_parts(self._scores, np.dtype(np.float32))
        columns = {
            name: join_parts(parts, np.result_type(*(part.dtype for part in parts)))
            for name, parts in self._columns.items()
        }
        counts = np.bincount(numbers, weights=lengths, minlength=len(self._queries)).astype(np.int64)
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        qids = Ids(list(self._queries))
        entries = self._entry_order(qids, numbers, lengths, columns.get("list_id"))
        if entries is not None:
            codes, scores = codes[entries], scores[entries]
            columns = {name: values[entries] for name, values in columns.items()}
        return Run.from_codes(qids, offsets, vocabulary, codes, scores, columns=columns, order=self.order, tag=tag)

    def _entry_order(
        self, qids: Ids, numbers: np.ndarray, lengths: np.ndarray, lists: np.ndarray | None
    ) -> np.ndarray | None:
        """The permutation that brings queries together and obeys the ranks; None when the lines stand so already."""
        if self.order == "score" and (np.diff(numbers) > 0).all():
            return None
        queries = np.repeat(numbers, lengths)
        if self.order == "score":
            return np.argsort(queries, kind="stable")
        ranks = join_parts(self._ranks, np.dtype(np.int64))
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
