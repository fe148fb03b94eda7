"""Published pair and triple files as a training table: nothing of them is a Python object.

    teacher_pos  teacher_neg  qid  pos_id  neg_id        pairs with raw teacher scores (TAS-B, Margin-MSE)
    qid  pos_id  neg_id                                  triples

One a line, separated by a tab or by blanks, with or without a header over the scores; .gz is decompressed. The lines
are parsed in blocks into a scratch file of integers, sorted by query there, and joined a range of queries at a time: 40
million lines are 800 MB of scratch and about 1 GB of memory while they are converted, once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa

from ... import progress
from ...errors import DataError
from ...ids import Ids
from .examples import RELEVANT, Pairs, TableReport, by_query, judged_pairs, look_up
from .pair_lines import NAMES, SCORES, Layout, blocks, look, point_out

if TYPE_CHECKING:
    from ...eval.collection import Collection

__all__ = ["PairFile", "pair_table"]

_LINE = np.dtype([(name, "<i4") for name in NAMES] + [(name, "<f4") for name in SCORES])
_CHUNK = 1 << 21  # lines joined at once


@dataclass(frozen=True)
class PairFile:
    """A pair or triple file and the rules for what does not fit.

    Attributes:
        path: the file.
        teacher: name of the score column that its scores become.
        unknown: a line with an id that the split or the collection lacks is an error, or is left out and counted.
        differing: two scores of one (query, document) are an error, or are averaged and counted.
    """

    path: Path
    teacher: str
    unknown: Literal["error", "count"] = "error"
    differing: Literal["error", "mean"] = "error"


def pair_table(collection: Collection, split: str, pairs: PairFile, scratch: Path) -> tuple[pa.Table, TableReport]:
    """The columns of a training table (see `examples`) from a pair file.

    A query's entries are the distinct positives, then the distinct negatives of its lines, in order of appearance. A
    document that is judged relevant, or is a positive of the same query in another line, is never a negative.

    Args:
        split: its queries are those that may occur.
        scratch: a folder for temporary files; the returned table is mapped from there.

    Raises:
        DataError: a line that is not of the form above, ids that are unknown, scores that differ; with the line.
    """
    layout = look(pairs.path)
    unknown = _spool(collection, split, pairs, layout, scratch / "lines")
    if not (scratch / "lines").stat().st_size:
        raise DataError(f"no line of it is of {collection.name}, split {split}", path=pairs.path)
    lines = np.memmap(scratch / "lines", dtype=_LINE, mode="r")
    order = np.argsort(lines["query"], kind="stable")
    judged = judged_pairs(collection, split)[0]
    size = len(collection.documents)
    joined = _Joined(scratch, 2 * len(lines), scored=layout.scored)
    with progress.task("join pairs", len(lines)) as advance:
        for start, stop in _ranges(lines["query"], order):
            part = _join(lines[order[start:stop]], order[start:stop] + 1 + layout.header, size, pairs)
            grades = look_up(judged.keys(size), judged.value, part.keys, 0.0)
            joined.add(part, grades, size)
            advance(stop - start)
    return joined.table(pairs.teacher, judged, size), joined.report(len(collection.queries(split)), unknown)


def _spool(collection: Collection, split: str, pairs: PairFile, layout: Layout, path: Path) -> int:
    """Write the lines as rows; return how many lines had unknown ids."""
    queries, documents = collection.queries(split).ids, collection.documents
    unknown, first, where, line = 0, "", 0, 1 + layout.header
    with open(path, "wb") as sink, progress.task("read pairs", None) as advance:
        for batch in blocks(pairs.path, layout):
            found = np.empty(len(batch), dtype=_LINE)
            for name in SCORES:
                found[name] = np.asarray(batch.column(name), dtype=np.float32) if layout.scored else np.nan
            for name in NAMES:
                find = queries.rows if name == "query" else documents.rows
                found[name] = _rows(batch.column(name), find)
            if layout.scored and not all(np.isfinite(found[name]).all() for name in SCORES):
                point_out(pairs.path, layout, ValueError("a score is not finite"))
            bad = (found["query"] < 0) | (found["positive"] < 0) | (found["negative"] < 0)
            if bad.any() and not unknown:
                at = int(np.flatnonzero(bad)[0])
                where = line + at
                first = next(f"{name} {batch.column(name)[at].as_py()!r}" for name in NAMES if found[name][at] < 0)
            unknown += int(bad.sum())
            found[~bad].tofile(sink)
            line += len(batch)
            advance(len(batch))
    if unknown and pairs.unknown == "error":
        raise DataError(
            f"{first} is unknown ({unknown} of {line - 1 - layout.header} lines like it): queries must be of "
            f"{collection.name}, split {split}, and documents of its corpus; data.unknown_pairs: count drops lines",
            path=pairs.path,
            line=where,
        )
    return unknown


def _rows(names: Any, find: Any) -> np.ndarray:
    """The row of each id; each different one is looked up once."""
    encoded = names.dictionary_encode()
    rows = np.asarray(find(Ids(encoded.dictionary)))
    return rows[np.asarray(encoded.indices)]


# --- joining ---


@dataclass(frozen=True, eq=False)
class _Part:
    """The entries of a range of queries: positives of each query first.

    Attributes:
        keys: (e,) query · documents + document, int64.
        query, document: (e,) int32 rows.
        score: (e,) float32.
        positive: (e,) bool.
        differing: (query, document) with two scores.
        both: documents that are a positive and a negative of their query.
    """

    keys: np.ndarray
    query: np.ndarray
    document: np.ndarray
    score: np.ndarray
    positive: np.ndarray
    differing: int
    both: int


def _ranges(query: np.ndarray, order: np.ndarray) -> Iterator[tuple[int, int]]:
    """Ranges of about `_CHUNK` places in the order; a query is never cut."""
    start = 0
    while start < len(order):
        stop = min(start + _CHUNK, len(order))
        if stop < len(order):
            last = query[order[stop]]
            low = int(np.searchsorted(query[order[start:stop]], last, side="left")) + start
            stop = low if low > start else start + int(np.searchsorted(query[order[start:]], last, side="right"))
        yield start, stop
        start = stop


def _join(lines: np.ndarray, numbers: np.ndarray, size: int, pairs: PairFile) -> _Part:
    """Each (query, document) of some lines once."""
    keys = np.concatenate([lines["query"].astype(np.int64) * size + lines[name] for name in NAMES[1:]])
    scores = np.concatenate([lines[name] for name in SCORES])
    is_positive = np.arange(len(keys)) < len(lines)
    distinct, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    positive = np.bincount(inverse, is_positive) > 0
    both = positive & (np.bincount(inverse, ~is_positive) > 0)
    differs = _differing(inverse, scores, first)
    if len(differs) and pairs.differing == "error":
        at = int(differs[0])
        other = float(scores[first[inverse[at]]])
        raise DataError(
            f"a score of {float(scores[at]):g} for a (query, document) that has {other:g} in an earlier line; one "
            "teacher gives one score. data.differing_scores: mean averages them.",
            path=pairs.path,
            line=int(numbers[at % len(lines)]) if pairs.unknown == "error" else None,
        )
    mean = np.bincount(inverse, scores.astype(np.float64)) / np.bincount(inverse)
    query = distinct // size
    order = np.lexsort([first % len(lines), ~positive, query])
    return _Part(
        keys=distinct[order],
        query=query[order].astype(np.int32),
        document=(distinct % size)[order].astype(np.int32),
        score=mean[order].astype(np.float32),
        positive=positive[order],
        differing=len(np.unique(inverse[differs])),
        both=int(both.sum()),
    )


def _differing(inverse: np.ndarray, scores: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Places whose score is not that of the first place of their key; none where there are no scores."""
    reference = scores[first][inverse]
    return np.flatnonzero((scores != reference) & ~np.isnan(scores))


class _Joined:
    """Grows the columns in mapped files."""

    def __init__(self, scratch: Path, most: int, *, scored: bool) -> None:
        self._document, self._grade, self._score = (
            np.memmap(scratch / name, dtype=kind, mode="w+", shape=(most,))
            for name, kind in (("document", np.int32), ("grade", np.float32), ("score", np.float32))
        )
        self._scored = scored
        self._entries = self._relevant = self._differing = 0
        self._queries: list[np.ndarray] = []
        self._counts: list[np.ndarray] = []
        self._positives: list[np.ndarray] = []
        self._positive_keys: list[np.ndarray] = []

    def add(self, part: _Part, grades: np.ndarray, size: int) -> None:
        relevant = (grades >= 1) & ~part.positive
        kept = ~relevant
        stop = self._entries + int(kept.sum())
        self._document[self._entries : stop] = part.document[kept]
        self._grade[self._entries : stop] = np.where(part.positive & (grades == 0), np.float32(1), grades)[kept]
        self._score[self._entries : stop] = part.score[kept]
        queries, counts = np.unique(part.query[kept], return_counts=True)
        self._queries.append(queries)
        self._counts.append(counts)
        self._positives.append(np.bincount(np.searchsorted(queries, part.query[kept]), part.positive[kept]))
        self._positive_keys.append(part.keys[part.positive])
        self._entries = stop
        self._relevant += int(relevant.sum()) + part.both
        self._differing += part.differing

    def table(self, teacher: str, judged: Pairs, size: int) -> pa.Table:
        """One record batch over the mapped files; what is judged relevant and no positive here goes to the masks."""
        counts = np.concatenate(self._counts)
        offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))

        def lists(values: np.ndarray) -> pa.LargeListArray:
            return pa.LargeListArray.from_arrays(offsets, pa.array(values[: self._entries]))

        queries = np.concatenate(self._queries)
        columns = {
            "query": pa.array(queries.astype(np.int32)),
            "positives": pa.array(np.concatenate(self._positives).astype(np.int32)),
            "documents": lists(self._document),
            "grade": lists(self._grade),
        }
        relevant = judged.where((judged.value >= 1) & np.isin(judged.query, queries))
        others = relevant.where(~np.isin(relevant.keys(size), np.concatenate(self._positive_keys)))
        if len(others.query):
            columns[RELEVANT] = by_query(queries, others)
        return pa.table(columns | ({teacher: lists(self._score)} if self._scored else {}))

    def report(self, split_queries: int, unknown: int) -> TableReport:
        counts, positives = np.concatenate(self._counts), np.concatenate(self._positives).astype(np.int64)
        return TableReport(
            queries=len(counts),
            positives=int(positives.sum()),
            negatives=self._entries - int(positives.sum()),
            without_positives=split_queries - len(counts),
            without_negatives=int((counts == positives).sum()),
            negatives_judged_relevant=self._relevant,
            unknown_judged_documents=0,
            run_queries_outside_split=0,
            unknown_pairs=unknown,
            differing_scores=self._differing,
        )
