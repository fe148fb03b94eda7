"""Collections by ir_datasets id (extra `ir-datasets`): its parsers, our memory-mapped corpus.

The documents belong to the shortest id that shares them ("msmarco-passage" for
"msmarco-passage/trec-dl-2019/judged"), so they are stored once however many subsets are opened. What is left of an id
after that is its split ("trec-dl-2019/judged", "test"); an id that has judgments of its own without one (most NanoBEIR
and small sets) has the split "test". Opening the shorter id gives all subsets with judgments as splits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ..errors import BackendError, ConfigError, DataError
from ..extras import require
from ..ids import Ids
from .collection import CollectionBase, Conventions, Queries
from .conventions import IDENTICAL_IDS
from .documents import Document, Documents, cached_documents
from .judgments import Judgments, JudgmentsBuilder
from .split_part import parse_split

__all__ = ["IrDatasetsCollection", "is_known", "known_ids"]

_EXCLUDED = "Excluded from evaluation"  # the words with which BRIGHT's judgments mark such a grade
_ONLY_SPLIT = "test"
_PRESETS = {  # by the start of an id
    "beir/": "beir",
    "nano-beir/": "beir",
    "bright/": "bright",
    "msmarco-passage/dev": "msmarco-dev",
    "msmarco-passage/trec-dl-2019": "trec-dl-2019",
    "msmarco-passage/trec-dl-2020": "trec-dl-2020",
    "msmarco-passage-v2/trec-dl-2021": "trec-dl-2021",
}


def _package() -> Any:
    return require("ir_datasets", "ir-datasets", "a collection by ir_datasets id")


def known_ids() -> tuple[str, ...]:
    """Every id that ir_datasets lists."""
    return tuple(_package().registry)


def is_known(dataset_id: str) -> bool:
    """Whether ir_datasets has this id (some are patterns that it does not list)."""
    try:
        _package().registry[dataset_id]
    except KeyError:
        return False
    return True


class IrDatasetsCollection(CollectionBase):
    """A collection that ir_datasets knows. Its files are downloaded by ir_datasets when they are asked for.

    Args:
        dataset_id: for example `beir/scifact/test`.

    Raises:
        ConfigError: the id stands for a group of collections, without documents of its own.
        MissingExtra: ir_datasets is not installed.
    """

    def __init__(self, dataset_id: str) -> None:
        super().__init__()
        self.name: str = dataset_id
        self._dataset = _package().load(dataset_id)
        if not self._dataset.has_docs():
            inside = [name for name in known_ids() if name.startswith(f"{dataset_id}/")]
            raise ConfigError(f"ir_datasets id {dataset_id!r} has no documents of its own; it holds", inside[:20])
        self.corpus_id: str = _package().docs_parent_id(dataset_id)
        self._subsets = self._find_subsets()
        self.splits: tuple[str, ...] = tuple(self._subsets)

    def _find_subsets(self) -> dict[str, str]:
        """The ids with judgments over these documents, by split."""
        found: dict[str, str] = {}
        below = [name for name in known_ids() if name.startswith(f"{self.name}/")]
        for name in (self.name, *below):
            if _package().load(name).has_qrels() and _package().docs_parent_id(name) == self.corpus_id:
                found[name.removeprefix(self.corpus_id).strip("/") or _ONLY_SPLIT] = name
        return found

    def _documents(self) -> Documents:
        handler = self._dataset.docs_handler()
        folder = cached_documents(
            ("ir_datasets", self.corpus_id, _package().__version__, *_state(handler)),
            lambda: _guard(map(_document, self._dataset.docs_iter()), self.corpus_id),
            source=self.corpus_id,
            check=lambda documents: documents.ids.refuse_duplicates("document", path=self.corpus_id),
        )
        return Documents(folder, path=self.corpus_id)

    def _queries(self) -> Queries:
        """The id's own queries; for one that has none, those of its splits together."""
        if self._dataset.has_queries():
            return _read_queries(self._dataset, self.name)
        texts: dict[str, str] = {}
        for name in self._subsets.values():
            dataset = _package().load(name)
            if not dataset.has_queries():
                continue
            for qid, text in _read_queries(dataset, name):
                if texts.setdefault(qid, text) != text:
                    raise DataError(f"query {qid!r} of {name} has another text in a split before it; open one split")
        return Queries(texts.keys(), texts.values())

    def queries(self, split: str | None = None) -> Queries:
        """The queries that `split` has judgments for; all of them without a split. See `CollectionBase.queries`."""
        name = None if split is None else self._subsets.get(parse_split(split)[0])
        dataset = None if name is None else _package().load(name)
        if split is None or name is None or dataset is None or not dataset.has_queries():
            return super().queries(split)
        return self._split_queries(split, _read_queries(dataset, name))

    def _judgments(self, split: str) -> Judgments:
        name = self._subsets[split]
        dataset = _package().load(name)
        leave_out = _excluded_grades(dataset)
        builder = JudgmentsBuilder(path=name)
        for judgment in _guard(dataset.qrels_iter(), name):
            if judgment.relevance not in leave_out:
                builder.add(judgment.query_id, judgment.doc_id, int(judgment.relevance))
        return builder.finish()

    def _conventions(self) -> Conventions:
        excluded: dict[str, list[str]] = {}
        for name in self._subsets.values():
            dataset = _package().load(name)
            marked = _excluded_grades(dataset)
            for judgment in _guard(dataset.qrels_iter(), name) if marked else ():
                if judgment.relevance in marked:
                    excluded.setdefault(judgment.query_id, []).append(judgment.doc_id)
        return Conventions(
            drop_identical_ids=self.corpus_id in {f"beir/{name}" for name in IDENTICAL_IDS},
            excluded={qid: tuple(dict.fromkeys(documents)) for qid, documents in excluded.items()},
            preset=next((preset for start, preset in _PRESETS.items() if self.name.startswith(start)), None),
        )


def _excluded_grades(dataset: Any) -> frozenset[int]:
    """The grades that say "leave this document out" rather than how relevant it is."""
    return frozenset(grade for grade, meaning in dataset.qrels_defs().items() if meaning == _EXCLUDED)


def _state(handler: Any) -> tuple[object, ...]:
    """Size and time of the documents' file where it is the user's own. What ir_datasets downloads it verifies by
    checksum, so there its id and version say enough, before the download as after it."""
    try:
        path = handler.docs_path(force=False)
    except (AttributeError, NotImplementedError, TypeError):  # not every kind of collection is one file
        return ()
    if not path or not Path(path).is_file() or Path(path).is_relative_to(_package().util.home_path()):
        return ()
    state = Path(path).stat()
    return str(path), state.st_size, state.st_mtime_ns


def _document(entry: Any) -> Document:
    """One of ir_datasets' many kinds of document: title and text where it has them, else its own default text."""
    text = getattr(entry, "text", None)
    if isinstance(text, str):
        return Document(_id(entry.doc_id), getattr(entry, "title", None) or "", text)
    return Document(_id(entry.doc_id), "", entry.default_text())


def _id(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise DataError(f"id {value!r} is no string; ids are strings")
    return value


def _read_queries(dataset: Any, name: str) -> Queries:
    qids: list[str] = []
    texts: list[str] = []
    for query in _guard(dataset.queries_iter(), name):
        text = getattr(query, "text", None)
        qids.append(_id(query.query_id))
        texts.append(text if isinstance(text, str) else query.default_text())
    ids = Ids(qids)
    ids.refuse_duplicates("query", path=name)
    return Queries(ids, texts)


def _guard(entries: Iterable[Any], name: str) -> Iterator[Any]:
    """Pass entries on; what goes wrong inside ir_datasets (mostly downloads) is named as its."""
    try:
        yield from entries
    except (OSError, RuntimeError, EOFError) as error:
        raise BackendError(f"ir_datasets could not read {name!r}: {error}") from error
