"""Collections: documents, queries and relevance judgments by split, and the door that opens them."""

from __future__ import annotations

import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from ..errors import ConfigError, DataError, MissingExtra, nearest
from ..extras import EXTRAS, available
from ..ids import Ids
from .documents import Document, Documents
from .judgments import Judgments
from .split_part import parse_split

__all__ = [
    "Collection",
    "CollectionBase",
    "CollectionReport",
    "Conventions",
    "Count",
    "Document",
    "Documents",
    "Judgments",
    "Queries",
    "check_collection",
    "open_collection",
]

_LOG = logging.getLogger(__name__)
_EXAMPLES = 5


class Queries:
    """Query ids and their texts, in the order of the source.

    Args:
        ids: the ids; duplicates are refused.
        texts: as many texts. An empty one is kept.
    """

    def __init__(self, ids: Iterable[str] | Ids, texts: Iterable[str]) -> None:
        self.ids = ids if isinstance(ids, Ids) else Ids(ids)
        self.texts = list(texts)
        if len(self.ids) != len(self.texts):
            raise DataError(f"{len(self.ids)} query ids but {len(self.texts)} texts")
        self.ids.refuse_duplicates("query")

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return zip(self.ids, self.texts, strict=True)

    def __repr__(self) -> str:
        return f"Queries({len(self)})"

    def __contains__(self, qid: object) -> bool:
        return isinstance(qid, str) and bool(self.ids.rows([qid])[0] >= 0)

    def get(self, qid: str) -> str:
        """The text of one query; `KeyError` when there is none."""
        row = int(self.ids.rows([qid])[0])
        if row < 0:
            raise KeyError(qid)
        return self.texts[row]

    def select(self, qids: Sequence[str] | Ids) -> Queries:
        """These queries, in this order; `KeyError` naming the first that there is not."""
        rows = self.ids.rows(qids)
        if (rows < 0).any():
            raise KeyError(qids[int(np.flatnonzero(rows < 0)[0])])
        return self._at(rows)

    def known(self, qids: Sequence[str] | Ids) -> Queries:
        """The queries that are among `qids`, in our own order."""
        rows = self.ids.rows(qids)
        return self._at(np.sort(rows[rows >= 0]))

    def _at(self, rows: np.ndarray) -> Queries:
        return Queries(self.ids.take(rows), (self.texts[row] for row in rows.tolist()))


@dataclass(frozen=True)
class Conventions:
    """What a collection's own evaluation does that others do not.

    Attributes:
        drop_identical_ids: a result whose document id equals the query id is removed before scoring. BEIR's ArguAna
            and Quora take their queries from the corpus and need it; elsewhere equal ids are an accident.
        excluded: for a query, documents removed before scoring (BRIGHT).
        preset: the evaluation preset that fits, by name.
    """

    drop_identical_ids: bool = False
    excluded: Mapping[str, Sequence[str]] = field(default_factory=dict[str, Sequence[str]])
    preset: str | None = None


@runtime_checkable
class Collection(Protocol):
    """Documents, queries and judgments. Anything with these members is a collection."""

    @property
    def name(self) -> str: ...

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of the splits that have judgments."""
        ...

    @property
    def conventions(self) -> Conventions: ...

    @property
    def documents(self) -> Documents: ...

    def queries(self, split: str | None = None) -> Queries:
        """The queries that `split` has judgments for, in the collection's order; all of them without a split."""
        ...

    def judgments(self, split: str) -> Judgments:
        """Those of a split; `CollectionBase` also gives parts of one, `train[:90%]`."""
        ...


class CollectionBase(ABC):
    """What our collections share: a split's queries are those in its judgments, and everything is read once.

    A subclass sets `name` and `splits` and gives `_documents`, `_queries`, `_judgments` and `_conventions`.
    """

    name: str
    splits: tuple[str, ...]

    def __init__(self) -> None:
        self._read: dict[str, Judgments] = {}
        self._read_documents: Documents | None = None
        self._read_queries: Queries | None = None
        self._read_conventions: Conventions | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, splits {', '.join(self.splits) or 'none'})"

    @abstractmethod
    def _documents(self) -> Documents: ...

    @abstractmethod
    def _queries(self) -> Queries: ...

    @abstractmethod
    def _judgments(self, split: str) -> Judgments: ...

    def _conventions(self) -> Conventions:
        return Conventions()

    @property
    def documents(self) -> Documents:
        """The corpus, memory-mapped. The first use of a new corpus reads and checks all of it."""
        if self._read_documents is None:
            self._read_documents = self._documents()
        return self._read_documents

    @property
    def conventions(self) -> Conventions:
        """What the collection's own evaluation does that others do not."""
        if self._read_conventions is None:
            self._read_conventions = self._conventions()
        return self._read_conventions

    def queries(self, split: str | None = None) -> Queries:
        """The queries that `split` has judgments for, in the collection's order; all of them without a split.

        Raises:
            DataError: no such split, or bad data in a file.
        """
        if self._read_queries is None:
            self._read_queries = self._queries()
        if split is None:
            return self._read_queries
        return self._split_queries(split, self._read_queries)

    def _split_queries(self, split: str, queries: Queries) -> Queries:
        judged = self.judgments(split).qids
        found = queries.known(judged)
        if len(found) < len(judged):
            _LOG.warning(
                "%s, split %s: %d of %d judged queries have no text; they cannot be searched and count as 0",
                self.name,
                split,
                len(judged) - len(found),
                len(judged),
            )
        return found

    def judgments(self, split: str) -> Judgments:
        """The judgments of a split, or of a part of one: `train[:90%]` (see `SplitPart`).

        Raises:
            DataError: no such split, a part without any query, or bad data in its file.
        """
        name, part = (split, None) if split in self.splits else parse_split(split)
        if name not in self.splits:
            there = f"it has {', '.join(self.splits)}" if self.splits else "it has no judgments at all"
            raise DataError(f"no split {name!r} in {self.name}: {there}{nearest(name, self.splits)}")
        if name not in self._read:
            self._read[name] = self._judgments(name)
        if part is not None and split not in self._read:
            chosen = part.select(self._read[name])
            if not len(chosen):
                raise DataError(
                    f"{self.name}, split {split}: none of the {len(self._read[name])} queries is in this part"
                )
            self._read[split] = chosen
        return self._read[split]

    def check(self, split: str) -> CollectionReport:
        """Count what does not fit together in a split; see `check_collection`."""
        return check_collection(self, split)


@dataclass(frozen=True)
class Count:
    """How often something was found, with the first few examples."""

    count: int = 0
    examples: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return self.count > 0

    @classmethod
    def of(cls, names: Sequence[str]) -> Count:
        return cls(len(names), tuple(names[:_EXAMPLES]))

    def __str__(self) -> str:
        shown = ", ".join(map(repr, self.examples))
        return f"{self.count} ({shown}{', …' if self.count > len(self.examples) else ''})" if self.count else "0"


@dataclass(frozen=True)
class CollectionReport:
    """What does not fit together in one split. Nothing here stops work: all of it is kept, and said.

    Attributes:
        unknown_documents: judged documents that the corpus lacks (distinct ids).
        unknown_queries: judged queries that the queries file lacks.
        unjudged_relevant: queries whose judgments have no grade above 0.
        empty_documents: documents with neither title nor text.
        empty_queries: queries of the split without text.
        unknown_excluded: excluded documents that the corpus lacks.
    """

    name: str
    split: str
    documents: int
    queries: int
    judgments: int
    unknown_documents: Count
    unknown_queries: Count
    unjudged_relevant: Count
    empty_documents: Count
    empty_queries: Count
    unknown_excluded: Count

    @property
    def problems(self) -> tuple[str, ...]:
        """One sentence for each kind of finding."""
        found = (
            (self.unknown_documents, "judged documents are not in the corpus: no run can find them"),
            (self.unknown_queries, "judged queries have no text: they cannot be searched and count as 0"),
            (self.unjudged_relevant, "queries have no relevant document: they count as 0"),
            (self.empty_documents, "documents are empty"),
            (self.empty_queries, "queries are empty"),
            (self.unknown_excluded, "excluded documents are not in the corpus"),
        )
        return tuple(f"{text}: {count}" for count, text in found if count)


def check_collection(collection: Collection, split: str) -> CollectionReport:
    """Count what does not fit together in a split, and log each finding as a warning."""
    judgments, documents, queries = collection.judgments(split), collection.documents, collection.queries()
    names, unknown = judgments.vocabulary, documents.rows(judgments.vocabulary) < 0
    asked = queries.ids.rows(judgments.qids)
    best = np.maximum.reduceat(judgments.grades, judgments.offsets[:-1]) if len(judgments) else np.zeros(0)
    excluded = sorted({name for listed in collection.conventions.excluded.values() for name in listed})
    report = CollectionReport(
        name=collection.name,
        split=split,
        documents=len(documents),
        queries=len(judgments),
        judgments=len(judgments.codes),
        unknown_documents=Count.of(names.take(np.flatnonzero(unknown))),
        unknown_queries=Count.of(judgments.qids.take(np.flatnonzero(asked < 0))),
        unjudged_relevant=Count.of(judgments.qids.take(np.flatnonzero(best <= 0))),
        empty_documents=Count(*documents.empty),
        empty_queries=Count.of([qid for qid, text in queries.known(judgments.qids) if not text.strip()]),
        unknown_excluded=Count.of([excluded[at] for at in np.flatnonzero(documents.rows(excluded) < 0)]),
    )
    for problem in report.problems:
        _LOG.warning("%s, split %s: %s", collection.name, split, problem)
    return report


_FORMS = (
    "a folder in BEIR layout (corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv; each may be .gz)",
    "an ir_datasets id (beir/scifact, msmarco-passage/trec-dl-2019/judged, …)",
    '"pydocs", the embedded collection, or "pydocs-train", its training pairs',
)


def open_collection(spec: str | Path) -> Collection:
    """Open a collection by name or path.

    Args:
        spec: `"pydocs"` or `"pydocs-train"`, else an existing folder in BEIR layout, else an ir_datasets id (extra
            `ir-datasets`). A folder that is named like one of the others is meant by `./NAME`.

    Raises:
        ConfigError: it is none of these; the message names the nearest.
        DataError: the folder lacks a file.
        MissingExtra: it can only be an ir_datasets id, and that package is not installed.
    """
    if spec in ("pydocs", "pydocs-train"):
        from .pydocs import open_pydocs

        return open_pydocs(str(spec))
    path = Path(spec).expanduser()
    if path.is_dir():
        from .beir import BeirCollection

        return BeirCollection(path)
    if path.is_file():
        raise ConfigError(f"{spec} is a file; a collection is one of these", _FORMS)
    return _open_by_id(str(spec), path)


def _open_by_id(spec: str, path: Path) -> Collection:
    like_an_id = re.fullmatch(r"[a-z0-9][\w.-]*(/[\w.-]+)*", spec, re.ASCII) is not None
    if available("ir_datasets"):
        from .irds import IrDatasetsCollection, is_known, known_ids

        if like_an_id and is_known(spec):
            return IrDatasetsCollection(spec)
        names = known_ids()
    elif like_an_id and "/" in spec and not path.parent.is_dir():
        raise MissingExtra(
            f"{spec!r} is no folder here; if it is an ir_datasets id, install that package: "
            f"{EXTRAS['ir-datasets'].install}"
        )
    else:
        names = ()
    beside = [str(path.parent / other.name) for other in path.parent.glob("*/")] if path.parent.is_dir() else []
    raise ConfigError(f"no collection {spec!r}{nearest(spec, ['pydocs', *beside, *names])}. It may be", _FORMS)
