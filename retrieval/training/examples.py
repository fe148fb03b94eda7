"""The training table: a collection's split joined with runs by role, once, into memory-mapped integers.

An Arrow dataset, one row a query:

    query        int32           row in the split's queries
    positives    int32           how many of `documents` are positives; they come first
    documents    list<int32>     rows in the collection's documents: positives, then negatives in run order
    grade        list<float>     judged grade of each document, 0 where it has none
    NAME         list<float>     one column a teacher (by file stem), `first_stage` with `first_rank`, and `labels`:
                                 NaN where unscored
    relevant     list<int32>     where there are some: documents judged relevant that are no positives, for masks

Nothing is a Python object per pair, and positives × negatives are never multiplied out: forty million scored pairs are
40e6 × (4 + 4 + 4 a teacher) bytes on disk.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.ipc  # pyright: ignore[reportUnusedImport] - makes pa.ipc

from ... import progress
from ...errors import DataError
from ...eval.run import Run
from ...files import read_json

if TYPE_CHECKING:
    from datasets import Dataset

    from ...eval.collection import Collection, Documents

__all__ = [
    "RELEVANT",
    "Columns",
    "Pairs",
    "RoleRuns",
    "TableReport",
    "TrainingTable",
    "build_columns",
    "by_query",
    "find_twins",
    "judged_pairs",
    "look_up",
    "run_pairs",
]

RELEVANT = "relevant"
_BLOCK = 8192


@dataclass(frozen=True)
class RoleRuns:
    """Runs by role, read already. Teachers go by the name that losses call them by."""

    negatives: Sequence[Run] = ()
    teachers: Mapping[str, Run] = field(default_factory=dict)
    first_stage: Run | None = None
    labels: Run | None = None
    pool: Run | None = None

    def scores(self) -> dict[str, Run]:
        """The runs that give a float column, by column name. `first_rank` holds the first stage's ranks, from 1."""
        extra = {"first_stage": self.first_stage, "labels": self.labels}
        if self.first_stage is not None:
            extra["first_rank"] = self.first_stage.replace(columns={"raw": self.first_stage.ranks.astype(np.float32)})
        return {**self.teachers, **{name: run for name, run in extra.items() if run is not None}}


@dataclass(frozen=True)
class TableReport:
    """What was joined, and what was left out of it."""

    queries: int
    positives: int
    negatives: int
    without_positives: int
    without_negatives: int
    negatives_judged_relevant: int
    unknown_judged_documents: int
    run_queries_outside_split: int
    missing_scores: Mapping[str, int] = field(default_factory=dict)
    unknown_pairs: int = 0
    differing_scores: int = 0
    joined_lists: int = 0
    outside_pool: int = 0
    negatives_copied: int = 0

    def lines(self) -> list[str]:
        """One line for each count that a user should see."""
        shown = [f"{self.queries} queries, {self.positives} positives, {self.negatives} negatives"]
        told = {
            "queries without a positive: left out": self.without_positives,
            "documents judged relevant outside of the pool: no positives": self.outside_pool,
            "queries without a negative": self.without_negatives,
            "negatives that are judged relevant: removed": self.negatives_judged_relevant,
            "negatives with the text of a document judged relevant: removed": self.negatives_copied,
            "judgments of documents that the collection lacks: ignored": self.unknown_judged_documents,
            "queries of the runs outside the split: ignored": self.run_queries_outside_split,
            "queries of the negatives with several lists: joined into one": self.joined_lists,
            "lines of the pair file with unknown ids: left out": self.unknown_pairs,
            "documents that the pair file scores differently in different lines: averaged": self.differing_scores,
        }
        told |= {f"documents without a score in {name!r}": count for name, count in self.missing_scores.items()}
        return shown + [f"{count} {what}" for what, count in told.items() if count]


@dataclass(frozen=True)
class Pairs:
    """(query row, document row, value) entries in arrays of one length."""

    query: np.ndarray
    document: np.ndarray
    value: np.ndarray

    def where(self, keep: np.ndarray) -> Pairs:
        return Pairs(self.query[keep], self.document[keep], self.value[keep])

    def keys(self, documents: int) -> np.ndarray:
        return self.query * np.int64(documents) + self.document


class Columns(NamedTuple):
    """A training table before it is written; `document_twins` as `find_twins` gives them, None where nobody looked."""

    table: pa.Table
    report: TableReport
    document_twins: np.ndarray | None = None


def build_columns(
    collection: Collection, split: str, runs: RoleRuns, *, positive_grade: int = 1, shuffle: int | None = None
) -> Columns:
    """Join judgments and runs into the columns above.

    A document judged relevant (grade 1 or better) is never a negative, nor is one of the same text, also where
    positives need a higher grade or must be in a pool; those that are no positives are in the column `relevant`. With
    `shuffle`, a seed, the judged documents are dealt out anew over all judgments: a control.

    Raises:
        DataError: a run has documents that the collection lacks, or no query has a positive.
    """
    size, queries = len(collection.documents), collection.queries(split)
    judged, unknown = judged_pairs(collection, split)
    if shuffle is not None:
        order = np.random.default_rng(shuffle).permutation(len(judged.query))
        judged = _first_of_each(replace(judged, document=judged.document[order]), size)
    positive, outside_pool, outside = judged.value >= positive_grade, 0, 0
    if runs.pool is not None:
        pool, outside = run_pairs(runs.pool, collection, split)
        pooled = np.isin(judged.keys(size), pool.keys(size))
        positive, outside_pool = positive & pooled, int((positive & ~pooled).sum())
    positives = judged.where(positive)
    kept = np.unique(positives.query)
    if not len(kept):
        where = " in the pool" if outside_pool else ""
        raise DataError(
            f"{collection.name}, split {split}: no query has a document of grade {positive_grade} or better{where}"
        )
    candidates = [Pairs(*(np.zeros(0, np.int64),) * 3)]
    for run in runs.negatives:
        pairs, beyond = run_pairs(run, collection, split)
        candidates.append(pairs)
        outside += beyond
    negatives = _first_of_each(_concatenate(candidates), size)
    negatives = negatives.where(np.isin(negatives.query, kept))
    relevant = np.isin(negatives.keys(size), judged.where(judged.value >= 1).keys(size))
    negatives = negatives.where(~relevant)
    settled = judged.where((judged.value >= 1) & np.isin(judged.query, kept))
    twins = _document_twins(collection, settled.document, negatives.document)
    same_text = replace(settled, document=_untwin(twins, settled.document)).keys(size)
    copied = np.isin(replace(negatives, document=_untwin(twins, negatives.document)).keys(size), same_text)
    negatives = negatives.where(~copied)
    table, keys = _assemble(kept, positives, negatives, judged, size)
    others = judged.where((judged.value >= 1) & ~positive & np.isin(judged.query, kept))
    if len(others.query):
        table = table.append_column(RELEVANT, by_query(kept, others))
    missing: dict[str, int] = {}
    for name, run in runs.scores().items():
        pairs, beyond = run_pairs(run, collection, split)
        column = look_up(pairs.keys(size), pairs.value, keys, np.nan)
        if name != "first_rank":  # of the same run as `first_stage`
            outside += beyond
            missing[name] = int(np.isnan(column).sum())
        table = table.append_column(name, _lists(table.column("documents").chunk(0), column))
    report = TableReport(
        queries=len(kept),
        positives=len(positives.query),
        negatives=len(negatives.query),
        without_positives=len(queries) - len(kept),
        without_negatives=len(kept) - len(np.unique(negatives.query)) if runs.negatives else 0,
        negatives_judged_relevant=int(relevant.sum()),
        unknown_judged_documents=unknown,
        run_queries_outside_split=outside,
        missing_scores=missing,
        joined_lists=sum(map(_several_lists, runs.negatives)),
        outside_pool=outside_pool,
        negatives_copied=int(copied.sum()),
    )
    return Columns(table, report, twins)


def _document_twins(collection: Collection, *rows: np.ndarray) -> np.ndarray:
    used = np.unique(np.concatenate(rows)).astype(np.int64)
    return find_twins(collection.documents.texts, used, "compare documents")


def _several_lists(run: Run) -> int:
    """How many queries of a run have more than one list."""
    if "list_id" not in run.columns:
        return 0
    lists = np.unique(np.stack([run.query_rows, run.columns["list_id"].astype(np.int64)]), axis=1)
    return int((np.bincount(lists[0].astype(np.int64)) > 1).sum())


def judged_pairs(collection: Collection, split: str) -> tuple[Pairs, int]:
    """The split's judgments in rows, and how many are of documents that the collection lacks."""
    judgments = collection.judgments(split)
    query = collection.queries(split).ids.rows(judgments.qids)[judgments.query_rows]
    document = collection.documents.rows(judgments.vocabulary)[judgments.codes]
    pairs = Pairs(query, document, judgments.grades.astype(np.float32))
    return pairs.where((query >= 0) & (document >= 0)), int((document < 0).sum())


def run_pairs(run: Run, collection: Collection, split: str) -> tuple[Pairs, int]:
    """A run's entries for the split's queries, and how many of its queries are not in the split."""
    rows = collection.queries(split).ids.rows(run.qids)
    query = rows[run.query_rows]
    document = collection.documents.rows(run.vocabulary)[run.codes]
    unknown = np.flatnonzero((query >= 0) & (document < 0))
    if len(unknown):
        at = int(unknown[0])
        raise DataError(
            f"run {run.tag!r}: document {run.vocabulary[int(run.codes[at])]!r} of query "
            f"{run.qids[int(run.query_rows[at])]!r} is not in {collection.name} ({len(unknown)} entries like it); "
            "give runs that were made on this collection"
        )
    scores = run.columns.get("raw", run.scores)  # a reranker's raw logits, where its order needed other scores
    return Pairs(query, document, np.asarray(scores, np.float32)).where(query >= 0), int((rows < 0).sum())


def _concatenate(parts: Sequence[Pairs]) -> Pairs:
    return Pairs(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("query", "document", "value")))


def _first_of_each(pairs: Pairs, size: int) -> Pairs:
    """Each (query, document) once, in the order of first appearance."""
    _, first = np.unique(pairs.keys(size), return_index=True)
    return pairs.where(np.sort(first))


def _assemble(
    kept: np.ndarray, positives: Pairs, negatives: Pairs, judged: Pairs, size: int
) -> tuple[pa.Table, np.ndarray]:
    """The table without score columns, and the (query, document) key of each of its entries."""
    both = _concatenate([positives, negatives])
    role = np.repeat(np.array([0, 1], np.int8), [len(positives.query), len(negatives.query)])
    order = np.lexsort([role, both.query])  # stable: judged order, then run order
    both = both.where(order)
    keys = both.keys(size)
    counts = np.bincount(np.searchsorted(kept, both.query), minlength=len(kept))
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    documents = pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(both.document.astype(np.int32)))
    grades = look_up(judged.keys(size), judged.value, keys, 0.0)
    columns = {
        "query": pa.array(kept.astype(np.int32)),
        "positives": pa.array(
            np.bincount(np.searchsorted(kept, positives.query), minlength=len(kept)).astype(np.int32)
        ),
        "documents": documents,
        "grade": _lists(documents, grades),
    }
    return pa.table(columns), keys


def by_query(kept: np.ndarray, pairs: Pairs) -> pa.LargeListArray:
    """The documents of each kept query."""
    counts = np.bincount(np.searchsorted(kept, pairs.query), minlength=len(kept))
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    documents = pairs.document[np.argsort(pairs.query, kind="stable")].astype(np.int32)
    return pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(documents))


def _lists(like: pa.LargeListArray, values: np.ndarray) -> pa.LargeListArray:
    return pa.LargeListArray.from_arrays(like.offsets, pa.array(values.astype(np.float32)))


def look_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray, missing: float) -> np.ndarray:
    """The value of each wanted key, float32."""
    if not len(keys):
        return np.full(len(wanted), missing, np.float32)
    order = np.argsort(keys, kind="stable")
    place = np.minimum(np.searchsorted(keys[order], wanted), len(keys) - 1)
    found = keys[order][place] == wanted
    return np.where(found, values[order][place], np.float32(missing)).astype(np.float32)


def find_twins(texts: Any, rows: np.ndarray, description: str) -> np.ndarray:
    """(m, 2) int64: rows whose text stands at an earlier row too, with that row; sorted by the first column.

    Args:
        texts: function from an array of rows to their texts.
        rows: (n,) the rows to compare, ascending.
    """
    digests = np.empty(len(rows), dtype=np.uint64)
    with progress.task(description, len(rows)) as advance:
        for start in range(0, len(rows), _BLOCK):
            block = rows[start : start + _BLOCK]
            hashed = b"".join(hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts(block))
            digests[start : start + len(block)] = np.frombuffer(hashed, dtype=np.uint64)
            advance(len(block))
    _, first, inverse = np.unique(digests, return_index=True, return_inverse=True)
    canonical = rows[first[inverse]]
    again = canonical != rows
    return np.stack([rows[again], canonical[again]], axis=1).astype(np.int64)


class TrainingTable:
    """A training table on disk, memory-mapped, with the texts it points to.

    Attributes:
        queries: (n,) int32 rows into `query_texts`.
        positives: (n,) int32, how many of each row's documents are positives.
        offsets: (n + 1,) int64; the entries of row i are offsets[i]:offsets[i + 1].
        entries: (e,) int32 document rows.
        grades: (e,) float32.
        scores: (e,) float32 by column name.
        report: the counts of the join.
        fingerprint: of everything that went into it.
    """

    def __init__(self, folder: Path, collection: Collection, split: str) -> None:
        self.folder, self.name = folder, collection.name
        self.documents: Documents = collection.documents
        split_queries = collection.queries(split)
        self.query_ids, self.query_texts = split_queries.ids, split_queries.texts
        with pa.memory_map(str(folder / "table.arrow")) as source:
            table = pa.ipc.open_stream(source).read_all().combine_chunks()
        lists = table.column("documents").chunk(0)
        self.queries = np.asarray(table.column("query").chunk(0))
        self.positives = np.asarray(table.column("positives").chunk(0))
        self.offsets = np.asarray(lists.offsets)
        self.entries = np.asarray(lists.values)
        self.grades = np.asarray(table.column("grade").chunk(0).values)
        self._relevant = table.column(RELEVANT).chunk(0) if RELEVANT in table.column_names else None
        plain = {"query", "positives", "documents", "grade", RELEVANT}
        self.scores = {
            name: np.asarray(table.column(name).chunk(0).values) for name in table.column_names if name not in plain
        }
        meta = read_json(folder / "meta.json")
        self.fingerprint: str = meta["fingerprint"]
        self.report = TableReport(**meta["report"])
        self._query_twins, self._document_twins = (
            np.load(folder / f"{kind}_twins.npy") for kind in ("query", "document")
        )

    def __len__(self) -> int:
        """The number of queries."""
        return len(self.queries)

    def __repr__(self) -> str:
        return f"TrainingTable({self.name!r}: {self.report.lines()[0]})"

    def dataset(self) -> Dataset:
        """The same file as a `datasets.Dataset`."""
        from datasets import Dataset

        return Dataset.from_file(str(self.folder / "table.arrow"))

    def negatives(self) -> np.ndarray:
        """How many negatives each row has. (n,) int64."""
        return np.diff(self.offsets) - self.positives

    def query_keys(self, rows: np.ndarray) -> np.ndarray:
        """A number for each table row's query, equal for queries of equal text. Shape as `rows`."""
        return _untwin(self._query_twins, self.queries[rows].astype(np.int64))

    def document_keys(self, documents: np.ndarray) -> np.ndarray:
        """A number for each document row, equal for documents of equal text. Shape as `documents`."""
        return _untwin(self._document_twins, documents.astype(np.int64))

    def relevant_of(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Document rows of all that is judged relevant for `rows` (positives, and what is below their grade), and for
        each the place in `rows` that it belongs to."""
        documents, owners = _slices(self.entries, self.offsets[rows], self.positives[rows].astype(np.int64))
        more, of = self.relevant_beside(rows)
        return np.concatenate([documents, more]), np.concatenate([owners, of])

    def relevant_beside(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The part of `relevant_of` that is no positive: of a lower grade, or outside of the pool."""
        if self._relevant is None:
            return np.empty(0, self.entries.dtype), np.empty(0, np.int64)
        offsets = np.asarray(self._relevant.offsets)
        return _slices(np.asarray(self._relevant.values), offsets[rows], np.diff(offsets)[rows])

    def qids(self, rows: np.ndarray) -> list[str]:
        """Query ids of table rows."""
        return self.query_ids.take(self.queries[rows])


def _slices(values: np.ndarray, starts: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """values[starts[i] : starts[i] + counts[i]] of every i, one after another, and the i of each."""
    owners = np.repeat(np.arange(len(counts)), counts)
    before = np.concatenate([[0], np.cumsum(counts)])[:-1]
    return values[np.repeat(starts - before, counts) + np.arange(counts.sum())], owners


def _untwin(twins: np.ndarray, rows: np.ndarray) -> np.ndarray:
    if not len(twins):
        return rows
    place = np.minimum(np.searchsorted(twins[:, 0], rows), len(twins) - 1)
    return np.where(twins[place, 0] == rows, twins[place, 1], rows)


def write_table(folder: Path, columns: Columns, collection: Collection, split: str, fingerprint: str) -> None:
    """Write the files of a training table into an empty folder."""
    import json

    table, report, document_twins = columns
    with pa.OSFile(str(folder / "table.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    texts = collection.queries(split).texts
    used = np.unique(np.asarray(table.column("query")))
    twins = find_twins(lambda rows: [texts[row] for row in rows.tolist()], used.astype(np.int64), "compare queries")
    np.save(folder / "query_twins.npy", twins)
    if document_twins is None:
        named = [np.asarray(table.column("documents").chunk(0).values)]
        if RELEVANT in table.column_names:
            named.append(np.asarray(table.column(RELEVANT).combine_chunks().values))
        document_twins = _document_twins(collection, *named)
    np.save(folder / "document_twins.npy", document_twins)
    meta = {"fingerprint": fingerprint, "report": asdict(report)}
    (folder / "meta.json").write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
