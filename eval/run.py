"""The run: for each query, documents in order with scores. What passes between stages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pyarrow as pa

from ..errors import DataError
from ..ids import Ids
from .order import refuse_twice, sort_entries
from .vocabulary import Column, VocabularyBuilder

__all__ = ["Order", "Run", "RunEntry"]

Order = Literal["score", "rank"]

_BLOCK = 1 << 21  # entries handled at once where temporaries would otherwise outweigh the run


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
        columns: further values per entry by name ((entries,) arrays), which Parquet keeps and TREC does not. With a
            column `list_id` a query may have several lists, and a document may stand in each of them.
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
            np.array_equal(self.scores, other.scores)
            and self.columns.keys() == other.columns.keys()
            and all(_same(values, other.columns[name]) for name, values in self.columns.items())
            and all(
                self.documents_between(*span).equals(other.documents_between(*span)) for _, _, span in self.blocks()
            )
        )

    __hash__ = None  # type: ignore[assignment]

    @property
    def documents(self) -> pa.LargeStringArray:
        """The document id of every entry, as an Arrow array (made on each call; `documents_between` for a part)."""
        return self.vocabulary.array.take(pa.array(self.codes))

    def documents_between(self, start: int, stop: int) -> pa.LargeStringArray:
        """The document ids of the entries start:stop."""
        return self.vocabulary.array.take(pa.array(self.codes[start:stop]))

    @property
    def query_rows(self) -> np.ndarray:
        """The query's number for every entry. (entries,) int64."""
        return np.repeat(np.arange(len(self), dtype=np.int64), np.diff(self.offsets))

    @property
    def ranks(self) -> np.ndarray:
        """The rank of every entry, from 1. (entries,) int64."""
        return np.arange(len(self.codes), dtype=np.int64) - np.repeat(self.offsets[:-1], np.diff(self.offsets)) + 1

    def blocks(self, size: int = _BLOCK) -> Iterator[tuple[int, int, tuple[int, int]]]:
        """Yield (first query, query after the last, (first entry, entry after the last)) for groups of whole queries
        that hold at most `size` entries, or one query when it alone holds more."""
        first = 0
        while first < len(self):
            fits = int(np.searchsorted(self.offsets, self.offsets[first] + size, side="right")) - 1
            last = min(max(fits, first + 1), len(self))
            yield first, last, (int(self.offsets[first]), int(self.offsets[last]))
            first = last

    def __getitem__(self, qid: str) -> RunEntry:
        """The ranking of one query; `KeyError` when the run lacks it."""
        row = int(self.qids.rows([qid])[0])
        if row < 0:
            raise KeyError(qid)
        return self.entry(row)

    def __contains__(self, qid: object) -> bool:
        return isinstance(qid, str) and bool(self.qids.rows([qid])[0] >= 0)

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
        """Build from (query id, document ids, scores) triples, one for each query; `lists` may be a generator.

        Raises:
            DataError: as `from_columns`, and lists of unequal length.
        """
        qids: list[str] = []
        lengths: list[int] = []
        vocabulary = VocabularyBuilder()
        waiting: list[str] = []
        scores = Column(np.dtype(np.float32))
        for qid, docs, values in lists:
            if len(docs) != len(values):
                raise DataError(f"query {qid!r} has {len(docs)} documents but {len(values)} scores")
            qids.append(qid)
            lengths.append(len(docs))
            waiting.extend(docs)
            scores.add(np.asarray(values, dtype=np.float32))
            if len(waiting) > _BLOCK:
                vocabulary.add(pa.array(waiting, type=pa.large_string()))
                waiting.clear()
        vocabulary.add(pa.array(waiting, type=pa.large_string()))
        ids, codes = vocabulary.finish()
        return cls.from_codes(
            Ids(qids), _offsets(lengths), ids, codes, scores.finish(), order=order, tag=tag, owned=True
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
            order: "score" sorts every list; "rank" keeps the entries as given.
            tag: the run's name.

        Raises:
            DataError: a duplicate query, a duplicate document within a query, a NaN score, lengths that differ.
        """
        vocabulary = VocabularyBuilder()
        for chunk in documents.chunks if isinstance(documents, pa.ChunkedArray) else [documents]:
            vocabulary.add(chunk)
        ids, codes = vocabulary.finish()
        return cls.from_codes(qids, offsets, ids, codes, scores, columns=columns, order=order, tag=tag)

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
        owned: bool = False,
    ) -> Run:
        """As `from_columns`, with documents given as codes into a vocabulary of distinct ids (an index's `ids`).

        `owned` arrays are the run's from now on, and are sorted in place; others are copied when they need sorting.
        """
        run = cls(
            qids, np.asarray(offsets, np.int64), vocabulary, np.asarray(codes, np.int32),
            np.asarray(scores, np.float32), {name: np.asarray(values) for name, values in (columns or {}).items()},
            order, tag,
        )  # fmt: skip
        run._refuse_misshapen()
        qids.refuse_duplicates("query")
        run._refuse_bad()
        return run if order == "rank" else run._sorted(in_place=owned)

    def _refuse_misshapen(self) -> None:
        lengths = {"codes": len(self.codes), "scores": len(self.scores)}
        lengths |= {f"column {name!r}": len(values) for name, values in self.columns.items()}
        entries = int(self.offsets[-1]) if len(self.offsets) else 0
        wrong = [f"{name}: {length}" for name, length in lengths.items() if length != entries]
        if len(self.offsets) != len(self.qids) + 1 or self.offsets[0] != 0 or (np.diff(self.offsets) < 0).any():
            raise DataError(f"offsets must rise from 0, one more than the {len(self.qids)} queries")
        if wrong:
            raise DataError(f"offsets end at {entries} entries, but there are {', '.join(wrong)}")
        if entries and (self.codes.min() < 0 or self.codes.max() >= len(self.vocabulary)):
            raise DataError(f"a document code lies outside the vocabulary of {len(self.vocabulary)} ids")

    def _refuse_bad(self) -> None:
        for first, last, (start, stop) in self.blocks():
            nan = np.flatnonzero(np.isnan(self.scores[start:stop]))
            if len(nan):
                at = start + int(nan[0])
                qid = self.qids[int(np.searchsorted(self.offsets, at, side="right")) - 1]
                raise DataError(f"score of document {self.vocabulary[int(self.codes[at])]!r} for query {qid!r} is NaN")
            lists = self.columns["list_id"][start:stop] if "list_id" in self.columns else None
            twice = refuse_twice(self.offsets[first : last + 1] - start, self.codes[start:stop], lists)
            if twice is not None:
                query, code = twice
                where = f"query {self.qids[first + query]!r}" + ("" if lists is None else " in one list")
                raise DataError(f"document {self.vocabulary[code]!r} occurs twice for {where}")

    def _sorted(self, *, in_place: bool) -> Run:
        """Order by query, (list,) score descending, document id descending; the same object when it is so already."""
        codes, scores, columns = self.codes, self.scores, dict(self.columns)
        for first, last, (start, stop) in self.blocks():
            part = slice(start, stop)
            order = sort_entries(
                self.offsets[first : last + 1] - start, self.vocabulary, self.codes[part], self.scores[part],
                lists=self.columns["list_id"][part] if "list_id" in self.columns else None,
            )  # fmt: skip
            if order is None:
                continue
            if codes is self.codes and not in_place:  # the first block out of order: from here on, on copies
                codes, scores = self.codes.copy(), self.scores.copy()
                columns = {name: values.copy() for name, values in columns.items()}
            codes[part], scores[part] = self.codes[part][order], self.scores[part][order]
            for name, values in self.columns.items():
                columns[name][part] = values[part][order]
        if codes is self.codes:
            return self
        return Run(self.qids, self.offsets, self.vocabulary, codes, scores, columns, self.order, self.tag)

    def filter(self, keep: np.ndarray, *, tag: str | None = None) -> Run:
        """The run with the entries where `keep` (entries,) bool holds; queries stay, with empty lists if need be."""
        counts = [np.add.reduceat(np.r_[keep[a:b], False], self.offsets[i:j] - a, dtype=np.int64)
                  * (np.diff(self.offsets[i : j + 1]) > 0) for i, j, (a, b) in self.blocks()]  # fmt: skip
        columns = {name: values[keep] for name, values in self.columns.items()}
        offsets = _offsets(np.concatenate(counts)) if counts else self.offsets
        return Run(self.qids, offsets, self.vocabulary, self.codes[keep], self.scores[keep], columns, self.order,
                   tag or self.tag)  # fmt: skip

    def top(self, k: int) -> Run:
        """The first k documents of every list."""
        if "list_id" in self.columns:
            raise DataError("top(k) of a run with several lists a query is ambiguous; filter it by its own columns")
        keep = np.concatenate(
            [np.zeros(0, bool)]
            + [np.arange(a, b) - np.repeat(self.offsets[i:j], np.diff(self.offsets[i : j + 1])) < k
               for i, j, (a, b) in self.blocks()]
        )  # fmt: skip
        return self.filter(keep)

    def select(self, qids: Sequence[str] | Ids) -> Run:
        """The run of these queries, in this order; ones that the run lacks are left out."""
        rows = self.qids.rows(qids)
        rows = rows[rows >= 0]
        lengths = np.diff(self.offsets)[rows]
        offsets = _offsets(lengths)
        entries = np.repeat(self.offsets[rows] - offsets[:-1], lengths) + np.arange(offsets[-1])
        columns = {name: values[entries] for name, values in self.columns.items()}
        return Run(Ids(self.qids.take(rows)), offsets, self.vocabulary, self.codes[entries], self.scores[entries],
                   columns, self.order, self.tag)  # fmt: skip

    def replace(
        self, *, scores: np.ndarray | None = None, columns: Mapping[str, np.ndarray] | None = None,
        tag: str | None = None,
    ) -> Run:  # fmt: skip
        """The same entries with other scores (brought into order again), columns or tag."""
        return Run.from_codes(
            self.qids, self.offsets, self.vocabulary, self.codes, self.scores if scores is None else scores,
            columns=self.columns if columns is None else columns,
            order=self.order if scores is None else "score", tag=tag or self.tag,
        )  # fmt: skip


def _offsets(lengths: Sequence[int] | np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)


def _same(left: np.ndarray, right: np.ndarray) -> bool:
    return np.array_equal(left, right, equal_nan=left.dtype.kind == "f" and right.dtype.kind == "f")
