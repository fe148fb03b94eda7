"""Relevance judgments: for each query the grades of its judged documents."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from ..errors import DataError
from ..ids import Ids
from .lines import read_lines
from .vocabulary import VocabularyBuilder

__all__ = ["Judgments", "JudgmentsBuilder", "parse_grade", "read_beir_qrels"]

_LOG = logging.getLogger(__name__)
_GRADE = re.compile(r"[+-]?[0-9]+", re.ASCII)
_HEADER_GRADES = frozenset({"score", "grade", "rel", "relevance", "label"})
_INT32 = np.iinfo(np.int32)


@dataclass(frozen=True, eq=False)
class Judgments:
    """Graded judgments in arrays: 8 bytes a judgment beside the distinct ids. Never mutates.

    Queries and, within a query, documents keep the order in which the source has them first. Build it with
    `from_dict`, `from_columns` or by reading a file.

    Attributes:
        qids: the judged queries.
        offsets: (queries + 1,) int64; judgments of query i are offsets[i]:offsets[i + 1].
        vocabulary: the distinct document ids.
        codes: (judgments,) int32 into `vocabulary`.
        grades: (judgments,) int32.
    """

    qids: Ids
    offsets: np.ndarray
    vocabulary: Ids
    codes: np.ndarray
    grades: np.ndarray

    def __len__(self) -> int:
        """The number of judged queries."""
        return len(self.qids)

    def __repr__(self) -> str:
        return f"Judgments({len(self)} queries, {len(self.codes)} judgments)"

    def __eq__(self, other: object) -> bool:
        """Same queries, documents and grades in the same order."""
        return (
            isinstance(other, Judgments)
            and self.qids == other.qids
            and np.array_equal(self.offsets, other.offsets)
            and np.array_equal(self.grades, other.grades)
            and self.documents.equals(other.documents)
        )

    __hash__ = None  # type: ignore[assignment]

    def __contains__(self, qid: object) -> bool:
        return isinstance(qid, str) and bool(self.qids.rows([qid])[0] >= 0)

    def __iter__(self) -> Iterator[str]:
        return iter(self.qids)

    def __getitem__(self, qid: str) -> dict[str, int]:
        """The grades of one query by document id; `KeyError` when it has no judgments."""
        row = int(self.qids.rows([qid])[0])
        if row < 0:
            raise KeyError(qid)
        return self._entry(row)

    def _entry(self, row: int) -> dict[str, int]:
        part = slice(int(self.offsets[row]), int(self.offsets[row + 1]))
        return dict(zip(self.vocabulary.take(self.codes[part]), self.grades[part].tolist(), strict=True))

    @property
    def query_rows(self) -> np.ndarray:
        """The query's number for every judgment. (judgments,) int64."""
        return np.repeat(np.arange(len(self), dtype=np.int64), np.diff(self.offsets))

    @property
    def documents(self) -> pa.LargeStringArray:
        """The document id of every judgment, as an Arrow array (made on each call)."""
        return self.vocabulary.array.take(pa.array(self.codes))

    def items(self) -> Iterator[tuple[str, dict[str, int]]]:
        """Yield (query id, grades by document id)."""
        return ((qid, self._entry(row)) for row, qid in enumerate(self.qids))

    def relevant(self, qid: str, grade: int = 1) -> list[str]:
        """The documents of `qid` judged `grade` or better; empty when the query has no judgments."""
        row = int(self.qids.rows([qid])[0])
        return [] if row < 0 else [document for document, value in self._entry(row).items() if value >= grade]

    def to_dict(self) -> dict[str, dict[str, int]]:
        """Plain dictionaries, as pytrec_eval and ir-measures take them."""
        return dict(self.items())

    def select(self, qids: Iterable[str]) -> Judgments:
        """The judgments of these queries, in this order; queries without judgments are left out."""
        rows = self.qids.rows(qids)
        rows = rows[rows >= 0]
        lengths = np.diff(self.offsets)[rows]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        entries = np.repeat(self.offsets[rows] - offsets[:-1], lengths) + np.arange(offsets[-1])
        return Judgments(Ids(self.qids.take(rows)), offsets, self.vocabulary, self.codes[entries], self.grades[entries])

    def filter(self, keep: np.ndarray) -> Judgments:
        """The judgments where `keep` (judgments,) bool holds; queries left without any are dropped."""
        kept = np.concatenate([[0], np.cumsum(keep, dtype=np.int64)])[self.offsets]
        some = np.flatnonzero(np.diff(kept))
        offsets = np.concatenate([[0], kept[some + 1]]).astype(np.int64)
        return Judgments(Ids(self.qids.take(some)), offsets, self.vocabulary, self.codes[keep], self.grades[keep])

    @classmethod
    def from_dict(cls, grades: Mapping[str, Mapping[str, int]]) -> Judgments:
        """Build from {query id: {document id: grade}}. Queries with an empty mapping are not judged and left out."""
        builder = JudgmentsBuilder()
        for qid, documents in grades.items():
            for document, grade in documents.items():
                builder.add(qid, document, grade)
        return builder.finish()

    @classmethod
    def from_columns(
        cls, qids: Iterable[str] | pa.Array, documents: Iterable[str] | pa.Array, grades: np.ndarray
    ) -> Judgments:
        """Build from three columns of (judgments,) values, in any order of queries.

        Raises:
            DataError: a document has two different grades for one query, or a grade is outside 32 bits.
        """
        builder = JudgmentsBuilder()
        builder.extend(Ids(qids), Ids(documents), np.asarray(grades, dtype=np.int64))
        return builder.finish()


class JudgmentsBuilder:
    """Gathers (query, document, grade) rows in a few bytes each, then groups them by query.

    The same row twice counts once, and the log says how many there were; two different grades are refused.

    Args:
        path: the file the rows come from, for messages.
        first_line: the line of the first row there, where each line is a row.
    """

    def __init__(self, *, path: str | Path | None = None, first_line: int | None = None) -> None:
        self.path, self.first_line = path, first_line
        self._queries, self._documents = VocabularyBuilder(), VocabularyBuilder()
        self._grades: list[np.ndarray] = []
        self._pending: tuple[list[str], list[str], list[int]] = ([], [], [])

    def add(self, qid: str, document: str, grade: int) -> None:
        """Take in one row."""
        for column, value in zip(self._pending, (qid, document, grade), strict=True):
            column.append(value)  # type: ignore[arg-type]
        if len(self._pending[0]) >= 1 << 16:
            self._flush()

    def _flush(self) -> None:
        qids, documents, grades = self._pending
        self._pending = ([], [], [])
        if qids:
            self.extend(Ids(qids), Ids(documents), np.asarray(grades, dtype=np.int64))

    def extend(self, qids: Ids, documents: Ids, grades: np.ndarray) -> None:
        """Take in rows by column, each (rows,)."""
        if not len(qids) == len(documents) == len(grades):
            raise ValueError(f"{len(qids)} queries, {len(documents)} documents and {len(grades)} grades")
        outside = np.flatnonzero((grades < _INT32.min) | (grades > _INT32.max))
        if len(outside):
            raise DataError(f"grade {int(grades[outside[0]])} does not fit 32 bits", path=self.path)
        self._queries.add(qids.array)
        self._documents.add(documents.array)
        self._grades.append(grades.astype(np.int32))

    def finish(self) -> Judgments:
        """Return the judgments. The builder is spent.

        Raises:
            DataError: a document has two different grades for one query.
        """
        self._flush()
        qids, queries = self._queries.finish()
        vocabulary, codes = self._documents.finish()
        grades = np.concatenate([np.zeros(0, np.int32), *self._grades])
        pairs = queries.astype(np.int64) * max(len(vocabulary), 1) + codes
        _, first, inverse = np.unique(pairs, return_index=True, return_inverse=True)
        differing = np.flatnonzero(grades != grades[first[inverse]])
        if len(differing):
            self._refuse(
                qids[int(queries[differing[0]])],
                vocabulary[int(codes[differing[0]])],
                int(first[inverse[differing[0]]]),
                int(differing[0]),
                grades,
            )
        if len(first) < len(pairs):
            _LOG.warning(
                "%s: %d judgments are there twice, with the same grade; each counts once",
                self.path or "judgments",
                len(pairs) - len(first),
            )
        kept = np.sort(first)
        kept = kept[np.argsort(queries[kept], kind="stable")]
        lengths = np.bincount(queries[kept], minlength=len(qids))
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        return Judgments(qids, offsets, vocabulary, codes[kept], grades[kept])

    def _refuse(self, qid: str, document: str, earlier: int, later: int, grades: np.ndarray) -> None:
        where = "" if self.first_line is None else f" (first at line {earlier + self.first_line})"
        raise DataError(
            f"document {document!r} has grade {int(grades[earlier])} and grade {int(grades[later])} for query "
            f"{qid!r}{where}; keep one of the two",
            path=self.path,
            line=None if self.first_line is None else later + self.first_line,
        )


def parse_grade(text: str, *, path: str | Path, line: int) -> int:
    """Return the integer in `text`, or raise `DataError` ("1.0" and "" are no grades)."""
    if not _GRADE.fullmatch(text.strip()):
        raise DataError(f"grade {text!r} is no integer", path=path, line=line)
    grade = int(text)
    if not _INT32.min <= grade <= _INT32.max:
        raise DataError(f"grade {text!r} does not fit 32 bits", path=path, line=line)
    return grade


def read_beir_qrels(path: str | Path) -> Judgments:
    """Read a BEIR qrels file: query-id, corpus-id, score, tab-separated, plain or gzip.

    The header line is optional: a first line whose third column is a word such as "score" is one.

    Raises:
        DataError: wrong number of columns, a grade that is no integer, an empty id, two grades for one pair, or
            anything `read_lines` refuses.
    """
    path = Path(path)
    builder: JudgmentsBuilder | None = None
    for number, line in read_lines(path):
        cells = line.split("\t")
        if len(cells) != 3:
            raise DataError(
                f"{len(cells)} tab-separated columns, expected 3: query-id, corpus-id, score", path=path, line=number
            )
        if number == 1 and cells[2].strip().lower() in _HEADER_GRADES:
            continue
        if not cells[0] or not cells[1]:
            raise DataError("an id is empty; expected query-id, corpus-id, score", path=path, line=number)
        builder = builder or JudgmentsBuilder(path=path, first_line=number)
        builder.add(cells[0], cells[1], parse_grade(cells[2], path=path, line=number))
    if builder is None:
        raise DataError("no judgments after the header", path=path)
    return builder.finish()
