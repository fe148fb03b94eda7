"""Where the texts of queries and candidates come from: a collection, or a file that brings them along."""

from __future__ import annotations

import gzip
import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol, cast

import numpy as np
import pyarrow as pa

from ...errors import DataError
from ...eval.lines import field_text, read_jsonl
from ...eval.run import Run
from ...files import atomic_path, sha256_file
from ...ids import Ids
from .base import Request

if TYPE_CHECKING:
    from ...eval.collection import Documents, Queries

__all__ = ["CandidateFile", "CollectionTexts", "TextSource", "read_candidates", "write_candidates"]


class TextSource(Protocol):
    """Gives the texts that a reranker reads."""

    def fingerprint(self) -> dict[str, Any]:
        """What these texts are, in a few JSON values; a resumed job compares them."""
        ...

    def query(self, qid: str) -> str:
        """The text of a query; `DataError` when it is not there."""
        ...

    def texts(self, qid: str, documents: Sequence[str]) -> list[str]:
        """The texts of a query's candidates; `DataError` naming query and document when one is not there."""
        ...


@dataclass(frozen=True, eq=False)
class CollectionTexts:
    """Texts from documents and queries of a collection.

    Attributes:
        documents: the corpus.
        queries: the queries of a split.
        name: the collection's name, for messages.
    """

    documents: Documents
    queries: Queries
    name: str = "the collection"

    def fingerprint(self) -> dict[str, Any]:
        texts = hashlib.sha256("\0".join(self.queries.texts).encode("utf-8", "surrogatepass"))
        return {"documents": self.documents.fingerprint, "queries": texts.hexdigest()}

    def query(self, qid: str) -> str:
        if int(self.queries.ids.rows([qid])[0]) < 0:
            raise DataError(
                f"the run has query {qid!r}, which is not among the {len(self.queries)} queries of {self.name}; "
                "check the split"
            )
        return self.queries.get(qid)

    def texts(self, qid: str, documents: Sequence[str]) -> list[str]:
        rows = self.documents.rows(documents)
        lost = np.flatnonzero(rows < 0)
        if len(lost):
            raise DataError(
                f"candidate document {documents[int(lost[0])]!r} of query {qid!r} is not in {self.name} "
                f"({len(self.documents)} documents); the run belongs to another collection or another version of it"
            )
        return self.documents.texts(rows)


@dataclass(frozen=True, eq=False)
class CandidateFile:
    """Queries with candidates and their texts, read from one file: a run and the texts in place of a collection.

    Attributes:
        path: the file.
        run: the candidates in the file's order.
        queries: (queries,) the query texts, along `run.qids`.
        passages: (entries,) the candidates' texts, along the run's entries.
    """

    path: Path
    run: Run
    queries: pa.LargeStringArray
    passages: pa.LargeStringArray

    def fingerprint(self) -> dict[str, Any]:
        return {"candidates": sha256_file(self.path)}

    def query(self, qid: str) -> str:
        return self.queries[self._row(qid)].as_py()

    def texts(self, qid: str, documents: Sequence[str]) -> list[str]:
        row = self._row(qid)
        start, stop = int(self.run.offsets[row]), int(self.run.offsets[row + 1])
        place = {name: start + at for at, name in enumerate(self.run.entry(row).documents)}
        lost = [name for name in documents if name not in place]
        if lost:
            raise DataError(f"query {qid!r} has no candidate {lost[0]!r} (it has {stop - start})", path=self.path)
        return self.passages.take(pa.array([place[name] for name in documents], type=pa.int64())).to_pylist()

    def _row(self, qid: str) -> int:
        row = int(self.run.qids.rows([qid])[0])
        if row < 0:
            raise DataError(f"the file has no query {qid!r}", path=self.path)
        return row


def read_candidates(path: str | Path) -> CandidateFile:
    """Read JSON lines, plain or gzip: {"qid", "query", "candidates": [{"docid", "score", "text"}, …]}.

    Candidates keep the file's order, whatever their scores; a missing `score` is 1/rank.

    Raises:
        DataError: with the line: broken JSON, a missing or wrong field, a query or (within it) a document twice.
    """
    path = Path(path)
    qids: list[str] = []
    queries: list[str] = []
    lengths, documents, texts, scores = [0], list[str](), list[str](), list[float]()
    places = dict[str, int]()
    for number, record in read_jsonl(path):
        line = _Line(path, number, record)
        qids.append(line.text("qid"))
        queries.append(line.text("query"))
        if places.setdefault(qids[-1], number) != number:
            raise line.fail(f"query {qids[-1]!r} stands on line {places[qids[-1]]} already; one line for each query")
        seen = set[str]()
        for rank, candidate in enumerate(line.candidates(), start=1):
            documents.append(candidate.text("docid"))
            if documents[-1] in seen:
                raise line.fail(f"query {qids[-1]!r} has candidate {documents[-1]!r} twice; name each document once")
            seen.add(documents[-1])
            texts.append(candidate.text("text"))
            scores.append(candidate.score(rank))
        lengths.append(len(documents))
    names = pa.array(documents, type=pa.large_string())
    run = Run.from_columns(
        Ids(qids), np.asarray(lengths, dtype=np.int64), names, np.asarray(scores, np.float32), order="rank",
        tag=path.name.split(".")[0],
    )  # fmt: skip
    strings = pa.large_string()
    return CandidateFile(path, run, pa.array(queries, type=strings), pa.array(texts, type=strings))


def write_candidates(requests: Iterable[Request], path: str | Path) -> None:
    """Write requests as the file that `read_candidates` reads; `.gz` packs it."""
    with atomic_path(path) as temporary, _open(temporary) as handle:
        for request in requests:
            candidates = [{"docid": each.id, "score": each.score, "text": each.text} for each in request.candidates]
            record = {"qid": request.qid, "query": request.query, "candidates": candidates}
            handle.write(json.dumps(record, ensure_ascii=False) + "\n")


def _open(path: Path) -> IO[str]:
    if path.suffix == ".gz":
        return cast("IO[str]", gzip.open(path, "wt", encoding="utf-8"))
    return open(path, "w", encoding="utf-8")


@dataclass(frozen=True)
class _Line:
    """A JSON object of the file, with its place."""

    path: Path
    number: int
    record: dict[str, Any]

    def fail(self, message: str) -> DataError:
        return DataError(message, path=self.path, line=self.number)

    def text(self, name: str) -> str:
        return field_text(self.record, name, path=self.path, line=self.number)

    def candidates(self) -> list[_Line]:
        found = self.record.get("candidates")
        if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
            raise self.fail(f"field 'candidates' must be a list of objects, not {str(found)[:60]!r}")
        return [_Line(self.path, self.number, each) for each in found]

    def score(self, rank: int) -> float:
        value = self.record.get("score", 1.0 / rank)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self.fail(f"field 'score' must be a finite number, not {value!r}")
        return float(value)
