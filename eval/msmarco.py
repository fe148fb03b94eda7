"""MS MARCO's files: collections, queries, and training triples by id.

    collection.tsv      document id, text
    queries.tsv         query id, text
    qrels.tsv           query id, 0, document id, grade: `read_qrels`
    triples by id       query id, positive id, negative id
    scored triples      positive score, negative score, query id, positive id, negative id (MarginMSE)
    hard negatives      JSON lines: module `hard_negatives`

No file is read with csv quoting: quotes in the text are data. Ids are strings, "007" stays. Files may be gzip. What is
read becomes judgments and runs by role: positives are judgments, negatives are a run, teacher scores are a run.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TextIO

import numpy as np
import pyarrow as pa

from ..errors import DataError
from ..files import atomic_path
from ..ids import Ids
from .blocks import write_bytes
from .collection import Queries
from .documents import Document
from .judgments import Judgments
from .lines import read_tsv
from .run import Run
from .tsv import first_cells, read_columns
from .vocabulary import VocabularyBuilder, join_parts

__all__ = [
    "Triples",
    "read_collection_tsv",
    "read_queries_tsv",
    "read_triples",
    "write_collection_tsv",
    "write_queries_tsv",
    "write_triples",
]

_LOG = logging.getLogger(__name__)
_TRIPLE = ("query id", "positive id", "negative id")
_SCORES = ("positive score", "negative score")


def read_collection_tsv(path: str | Path) -> Iterator[Document]:
    """Yield the documents of a collection.tsv (document id, text), without titles.

    Raises:
        DataError: a line without exactly two columns, an empty id, or anything `read_lines` refuses. Duplicate ids
            are the caller's to refuse, who sees all of them.
    """
    for line, (name, text) in read_tsv(path, 2, expected="document id, text"):
        if not name:
            raise DataError("the document id is empty", path=path, line=line)
        yield Document(name, "", text)


def read_queries_tsv(path: str | Path) -> Queries:
    """Read a queries.tsv (query id, text). An empty text is kept; an id that is there twice is refused."""
    rows = [cells for _, cells in read_tsv(path, 2, expected="query id, text")]
    ids = Ids([qid for qid, _ in rows])
    ids.refuse_duplicates("query", path=path, first_line=1)
    return Queries(ids, [text for _, text in rows])


def write_collection_tsv(documents: Iterable[Document], path: str | Path, *, squash: bool = False) -> None:
    """Write a collection.tsv (document id, full text).

    Args:
        squash: write tabs and line breaks in a text as spaces; without it such a text is refused, for the format
            cannot hold it.
    """
    _write_pairs(((document.id, document.full_text) for document in documents), path, squash=squash)


def write_queries_tsv(queries: Queries | Iterable[tuple[str, str]], path: str | Path, *, squash: bool = False) -> None:
    """Write a queries.tsv (query id, text). For `squash` see `write_collection_tsv`."""
    _write_pairs(queries, path, squash=squash)


def _write_pairs(pairs: Iterable[tuple[str, str]], path: str | Path, *, squash: bool) -> None:
    with _text_file(path) as handle:
        for name, text in pairs:
            text = text.translate(_BLANKS) if squash else text
            handle.write(f"{_cell(name, name)}\t{_cell(text, name)}\n")


_BLANKS = str.maketrans("\t\r\n", "   ")


def _cell(value: str, name: str) -> str:
    if any(mark in value for mark in "\t\r\n"):
        raise DataError(
            f"the entry of {name!r} holds a tab or line break, which a tab-separated file cannot; in texts squash=True "
            "writes spaces instead"
        )
    return value


@contextmanager
def _text_file(path: str | Path) -> Generator[TextIO]:
    with atomic_path(path) as temporary, write_bytes(temporary) as raw:
        handle = io.TextIOWrapper(raw, encoding="utf-8", newline="\n")
        yield handle
        handle.flush()
        handle.detach()


@dataclass(frozen=True, eq=False)
class Triples:
    """Training triples (query, positive, negative) in arrays: 12 bytes a triple, 20 with scores.

    Attributes:
        qids, documents: distinct ids that the codes point to.
        queries, positives, negatives: (triples,) int32 codes.
        scores: (triples, 2) float32, a teacher's raw scores of the positive and the negative; None without teacher.
    """

    qids: Ids
    documents: Ids
    queries: np.ndarray
    positives: np.ndarray
    negatives: np.ndarray
    scores: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.queries)

    def __iter__(self) -> Iterator[tuple[str, str, str]]:
        """Yield (query id, positive id, negative id)."""
        for query, positive, negative in zip(self.queries, self.positives, self.negatives, strict=True):
            yield self.qids[int(query)], self.documents[int(positive)], self.documents[int(negative)]

    def judgments(self, grade: int = 1) -> Judgments:
        """The positives as judgments."""
        first = self._first(self.queries, self.positives)
        return Judgments.from_columns(
            self.qids.array.take(pa.array(self.queries[first])),
            self.documents.array.take(pa.array(self.positives[first])),
            np.full(len(first), grade),
        )

    def negatives_run(self, tag: str = "negatives") -> Run:
        """The negatives as a run: each once for a query, in the file's order, scored 1 / rank since they have none."""
        first = self._first(self.queries, self.negatives)
        return self._run(self.queries[first], self.negatives[first], None, tag)

    def teacher_run(self, tag: str = "teacher") -> Run:
        """The teacher's scores of positives and negatives as a run.

        A document that stands in several triples of a query counts with its first score; where later ones differ,
        the log says how many do and by how much at most.

        Raises:
            DataError: the triples have no scores.
        """
        if self.scores is None:
            raise DataError("these triples have no scores; a scored file has five columns")
        queries = np.concatenate([self.queries, self.queries])
        codes = np.concatenate([self.positives, self.negatives])
        scores = self.scores.T.ravel()
        pairs = queries.astype(np.int64) * max(len(self.documents), 1) + codes
        _, first, inverse = np.unique(pairs, return_index=True, return_inverse=True)
        apart = np.abs(scores - scores[first[inverse]])
        if apart.any():
            _LOG.warning("%d triples score a document otherwise than an earlier one of the same query (by %g at most); "
                         "the first score counts", int((apart > 0).sum()), float(apart.max()))  # fmt: skip
        first.sort()
        return self._run(queries[first], codes[first], scores[first], tag)

    def _first(self, queries: np.ndarray, codes: np.ndarray) -> np.ndarray:
        """Where each distinct (query, document) is first, in the file's order."""
        pairs = queries.astype(np.int64) * max(len(self.documents), 1) + codes
        return np.sort(np.unique(pairs, return_index=True)[1])

    def _run(self, queries: np.ndarray, codes: np.ndarray, scores: np.ndarray | None, tag: str) -> Run:
        together = np.argsort(queries, kind="stable")
        lengths = np.bincount(queries, minlength=len(self.qids))
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        if scores is None:
            ranks = np.arange(len(codes)) - np.repeat(offsets[:-1], lengths) + 1
            values, order = (1.0 / ranks).astype(np.float32), "rank"
        else:
            values, order = scores[together], "score"
        return Run.from_codes(self.qids, offsets, self.documents, codes[together], values, order=order, tag=tag)


def read_triples(path: str | Path) -> Triples:
    """Read training triples by id, with a teacher's scores when the file has five columns instead of three.

    A scored file may have a header; its first two names then hold the word "score".

    Raises:
        DataError: another number of columns, a score that is no number, bad UTF-8 or gzip, an empty file.
    """
    path = Path(path)
    first = first_cells(path)
    columns = len(first)
    if columns not in (3, 5):
        raise DataError(
            f"{columns} tab-separated columns, expected 3 ({', '.join(_TRIPLE)}) or 5 ({', '.join(_SCORES + _TRIPLE)})",
            path=path,
            line=1,
        )
    floats = _SCORES if columns == 5 else ()
    queries, documents = VocabularyBuilder(), VocabularyBuilder()
    lengths: list[int] = []
    scores: list[np.ndarray] = []
    header = columns == 5 and all("score" in cell.lower() for cell in first[:2])
    for table in read_columns(path, (*floats, *_TRIPLE), floats=floats, header=header):
        queries.add(table.column("query id").combine_chunks())
        for name in ("positive id", "negative id"):
            documents.add(table.column(name).combine_chunks())
        lengths.append(table.num_rows)
        if floats:
            scores.append(np.stack([np.asarray(table.column(name), np.float32) for name in floats], axis=1))
    (qids, query_codes), (names, codes) = queries.finish(), documents.finish()
    positives, negatives = _unweave(codes, lengths)
    return Triples(qids, names, query_codes, positives, negatives, np.concatenate(scores) if floats else None)


def _unweave(codes: np.ndarray, lengths: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Separate codes that alternate between positives and negatives, batch by batch."""
    bounds = np.concatenate([[0], np.cumsum(np.repeat(lengths, 2))])
    parts = [codes[start:stop] for start, stop in pairwise(bounds.tolist())]
    return join_parts(parts[::2], np.dtype(np.int32)), join_parts(parts[1::2], np.dtype(np.int32))


def write_triples(
    positives: Judgments, negatives: Run, path: str | Path, *, teacher: Run | None = None, grade: int = 1
) -> int:
    """Write every (query, positive, negative) triple by id, with the teacher's scores when given. Returns how many.

    Args:
        positives: documents judged `grade` or better are positives.
        negatives: its queries' documents are their negatives.
        teacher: scores for all of them; five columns are written instead of three.

    Raises:
        DataError: the teacher lacks a score; an id with a tab or line break.
    """
    count = 0
    with _text_file(path) as handle:
        for entry in negatives:
            relevant = positives.relevant(entry.qid, grade)
            scores = _teacher_scores(teacher, entry.qid, (*relevant, *entry.documents)) if teacher is not None else {}
            for positive in relevant:
                for negative in entry.documents:
                    ids = "\t".join(_cell(name, name) for name in (entry.qid, positive, negative))
                    handle.write(f"{scores[positive]!r}\t{scores[negative]!r}\t{ids}\n" if scores else f"{ids}\n")
                    count += 1
    return count


def _teacher_scores(teacher: Run, qid: str, documents: Iterable[str]) -> dict[str, float]:
    """The scores of one query; float32 values as the shortest decimal that reads back the same."""
    scores: dict[str, float] = {}
    if qid in teacher:
        entry = teacher[qid]
        scores = {name: float(str(score)) for name, score in zip(entry.documents, entry.scores, strict=True)}
    missing = [document for document in documents if document not in scores]
    if missing:
        raise DataError(f"the teacher {teacher.tag!r} has no score of document {missing[0]!r} for query {qid!r}")
    return scores
