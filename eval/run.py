"""The run: for each query, documents in order with scores. What passes between stages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..errors import DataError
from ..ids import Ids

__all__ = ["Order", "Run", "RunEntry"]

Order = Literal["score", "rank"]


@dataclass(frozen=True)
class RunEntry:
    """The ranking of one query: `documents` in order, `scores` (k,) float32."""

    qid: str
    documents: list[str]
    scores: np.ndarray


@dataclass(frozen=True, eq=False)
class Run:
    """For each query a strictly ordered list of (document id, score), held in arrays: 8 bytes an entry.

    A run never mutates. Build it with `from_lists`, `from_columns` or by reading a file; those establish the order:

    - `order="score"`: score in float32 descending, then document id descending by bytes, which is what trec_eval does;
    - `order="rank"`: the order as given (a file's rank column), for runs whose printed scores tie.

    Attributes:
        qids: query ids, in the order of the source.
        offsets: (queries + 1,) int64; entries of query i are offsets[i]:offsets[i + 1].
        vocabulary: the distinct document ids.
        codes: (entries,) int32 into `vocabulary`.
        scores: (entries,) float32.
        columns: further values per entry by name ((entries,) arrays), which Parquet keeps and TREC does not.
        order: which of the two orders the lists are in.
        tag: the run's name, TREC's sixth column.
    """

    qids: Ids
    offsets: np.ndarray
    vocabulary: Ids
    codes: np.ndarray
    scores: np.ndarray
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)
    order: Order = "score"
    tag: str = "rtk"

    def __len__(self) -> int:
        """The number of queries."""
        return len(self.qids)

    def __repr__(self) -> str:
        return f"Run({self.tag!r}, {len(self)} queries, {len(self.codes)} entries)"

    def __eq__(self, other: object) -> bool:
        """Same queries in the same order, same documents, scores and columns; the tag does not count."""
        if not isinstance(other, Run) or self.qids != other.qids or not np.array_equal(self.offsets, other.offsets):
            return False
        return (
            self.documents.equals(other.documents)
            and np.array_equal(self.scores, other.scores)
            and self.columns.keys() == other.columns.keys()
            and all(np.array_equal(values, other.columns[name], equal_nan=values.dtype.kind == "f")
                    for name, values in self.columns.items())
        )

    __hash__ = None  # type: ignore[assignment]

    @property
    def documents(self) -> pa.LargeStringArray:
        """The document id of every entry, as an Arrow array (made on each call)."""
        return self.vocabulary.array.take(pa.array(self.codes))

    @property
    def query_rows(self) -> np.ndarray:
        """The query's number for every entry. (entries,) int64."""
        return np.repeat(np.arange(len(self), dtype=np.int64), np.diff(self.offsets))

    @property
    def ranks(self) -> np.ndarray:
        """The rank of every entry, from 1. (entries,) int64."""
        return np.arange(len(self.codes), dtype=np.int64) - np.repeat(self.offsets[:-1], np.diff(self.offsets)) + 1

    def __getitem__(self, qid: str) -> RunEntry:
        """The ranking of one query; `KeyError` when the run lacks it."""
        row = int(self.qids.rows([qid])[0])
        if row < 0:
            raise KeyError(qid)
        return self.entry(row)

    def __contains__(self, qid: object) -> bool:
        return isinstance(qid, str) and self.qids.rows([qid])[0] >= 0

    def entry(self, row: int) -> RunEntry:
        """The ranking of the row-th query."""
        part = slice(int(self.offsets[row]), int(self.offsets[row + 1]))
        return RunEntry(self.qids[row], self.vocabulary.take(self.codes[part]), self.scores[part])

    def __iter__(self) -> Iterator[RunEntry]:
        return (self.entry(row) for row in range(len(self)))

    @classmethod
    def from_lists(
        cls,
        lists: Iterable[tuple[str, Sequence[str], Sequence[float] | np.ndarray]],
        *,
        order: Order = "score",
        tag: str = "rtk",
    ) -> Run:
        """Build from (query id, document ids, scores) triples, one for each query."""
        qids: list[str] = []
        lengths: list[int] = []
        documents: list[str] = []
        scores: list[np.ndarray] = []
        for qid, docs, values in lists:
            if len(docs) != len(values):
                raise DataError(f"query {qid!r} has {len(docs)} documents but {len(values)} scores")
            qids.append(qid)
            lengths.append(len(docs))
            documents.extend(docs)
            scores.append(np.asarray(values, dtype=np.float32))
        return cls.from_columns(
            Ids(qids), np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64),
            pa.array(documents, type=pa.large_string()),
            np.concatenate(scores) if scores else np.zeros(0, np.float32), order=order, tag=tag,
        )

    @classmethod
    def from_columns(
        cls,
        qids: Ids,
        offsets: np.ndarray,
        documents: pa.Array | pa.ChunkedArray,
        scores: np.ndarray,
        *,
        columns: Mapping[str, np.ndarray] | None = None,
        order: Order = "score",
        tag: str = "rtk",
    ) -> Run:
        """Build from flat columns grouped by query, bringing each list into its order.

        Args:
            qids: the queries; duplicates are refused.
            offsets: (queries + 1,) bounds of each query's entries.
            documents: (entries,) document ids; a document twice for one query is refused.
            scores: (entries,); NaN is refused, values are kept in float32.
            columns: further (entries,) arrays, reordered along.

        Raises:
            DataError: a duplicate query, a duplicate document within a query, a NaN score.
        """
        qids.refuse_duplicates("query")
        encoded = pc.dictionary_encode(documents.cast(pa.large_string()))
        if isinstance(encoded, pa.ChunkedArray):
            encoded = encoded.combine_chunks()
        vocabulary, codes = Ids(encoded.dictionary), np.asarray(encoded.indices, dtype=np.int32)
        return cls.from_codes(qids, offsets, vocabulary, codes, scores, columns=columns, order=order, tag=tag)

    @classmethod
    def from_codes(
        cls,
        qids: Ids,
        offsets: np.ndarray,
        vocabulary: Ids,
        codes: np.ndarray,
        scores: np.ndarray,
        *,
        columns: Mapping[str, np.ndarray] | None = None,
        order: Order = "score",
        tag: str = "rtk",
    ) -> Run:
        """As `from_columns`, with documents given as codes into a vocabulary of distinct ids (an index's `ids`)."""
        run = cls(qids, np.asarray(offsets, np.int64), vocabulary, np.asarray(codes, np.int32),
                  np.asarray(scores, np.float32), dict(columns or {}), order, tag)
        run._refuse_bad()
        return run if order == "rank" else run._sorted()

    def _refuse_bad(self) -> None:
        if np.isnan(self.scores).any():
            at = int(np.flatnonzero(np.isnan(self.scores))[0])
            qid = self.qids[int(np.searchsorted(self.offsets, at, side="right")) - 1]
            raise DataError(f"score of document {self.vocabulary[int(self.codes[at])]!r} for query {qid!r} is NaN")
        if "list_id" in self.columns:  # several lists of one query: a document may stand in each of them
            return
        pairs = self.query_rows * max(len(self.vocabulary), 1) + self.codes
        pairs.sort()
        twice = np.flatnonzero(pairs[1:] == pairs[:-1])
        if len(twice):
            query, code = divmod(int(pairs[twice[0]]), len(self.vocabulary))
            raise DataError(f"document {self.vocabulary[code]!r} occurs twice for query {self.qids[query]!r}")

    def _sorted(self) -> Run:
        """Order by query, (list,) score descending, document id descending."""
        if not len(self.codes):
            return self
        by_id = np.asarray(pc.array_sort_indices(self.vocabulary.array))
        position = np.empty(len(by_id), dtype=np.int32)
        position[by_id] = np.arange(len(by_id), dtype=np.int32)
        keys = [-position[self.codes], -self.scores]
        if "list_id" in self.columns:
            keys.append(self.columns["list_id"])
        permutation = np.lexsort([*keys, self.query_rows])
        return self._take(permutation)

    def _take(self, entries: np.ndarray) -> Run:
        """The same lists with their entries permuted within each query."""
        columns = {name: values[entries] for name, values in self.columns.items()}
        return Run(self.qids, self.offsets, self.vocabulary, self.codes[entries], self.scores[entries], columns,
                   self.order, self.tag)

    def filter(self, keep: np.ndarray, *, tag: str | None = None) -> Run:
        """The run with the entries where `keep` (entries,) bool holds; queries stay, with empty lists if need be."""
        kept = np.concatenate([[0], np.cumsum(keep, dtype=np.int64)])
        columns = {name: values[keep] for name, values in self.columns.items()}
        return Run(self.qids, kept[self.offsets], self.vocabulary, self.codes[keep], self.scores[keep], columns,
                   self.order, tag or self.tag)

    def top(self, k: int) -> Run:
        """The first k documents of every list."""
        return self.filter(self.ranks <= k)

    def select(self, qids: Sequence[str] | Ids) -> Run:
        """The run of these queries, in this order; ones that the run lacks are left out."""
        rows = self.qids.rows(qids)
        rows = rows[rows >= 0]
        lengths = np.diff(self.offsets)[rows]
        offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        entries = np.repeat(self.offsets[rows] - offsets[:-1], lengths) + np.arange(offsets[-1])
        columns = {name: values[entries] for name, values in self.columns.items()}
        return Run(Ids(self.qids.take(rows)), offsets, self.vocabulary, self.codes[entries], self.scores[entries],
                   columns, self.order, self.tag)

    def replace(
        self, *, scores: np.ndarray | None = None, columns: Mapping[str, np.ndarray] | None = None,
        tag: str | None = None,
    ) -> Run:
        """The same entries with other scores (brought into order again), columns or tag."""
        return Run.from_codes(
            self.qids, self.offsets, self.vocabulary, self.codes, self.scores if scores is None else scores,
            columns=self.columns if columns is None else columns,
            order=self.order if scores is None else "score", tag=tag or self.tag,
        )
