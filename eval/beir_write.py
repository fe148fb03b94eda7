"""Writing collections in BEIR layout."""

from __future__ import annotations

import io
import json
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

import yaml

from ..errors import DataError
from ..files import atomic_folder, check_output
from .blocks import write_bytes
from .collection import Collection, Conventions
from .conventions import IDENTICAL_IDS
from .documents import Document
from .judgments import Judgments

__all__ = ["CollectionParts", "write_beir"]


@dataclass(frozen=True)
class CollectionParts:
    """What a collection consists of, for those who make one: streams are enough, and are read once.

    Attributes:
        documents: the corpus.
        queries: (query id, text) pairs of all splits.
        judgments: by split.
        conventions: what its evaluation does that others do not.
        name: when it is not the folder's.
    """

    documents: Iterable[Document]
    queries: Iterable[tuple[str, str]] = ()
    judgments: Mapping[str, Judgments] = field(default_factory=dict[str, Judgments])
    conventions: Conventions = field(default_factory=Conventions)
    name: str | None = None

    @classmethod
    def of(cls, collection: Collection, splits: Sequence[str] | None = None) -> CollectionParts:
        """The parts of a collection; with `splits`, only their queries and judgments."""
        judgments = {split: collection.judgments(split) for split in (collection.splits if splits is None else splits)}
        queries: Iterable[tuple[str, str]] = collection.queries()
        if splits is not None:
            wanted = {qid for judged in judgments.values() for qid in judged.qids}
            queries = (pair for pair in queries if pair[0] in wanted)
        return cls(collection.documents, queries, judgments, collection.conventions, collection.name)


def write_beir(
    source: Collection | CollectionParts,
    folder: str | Path,
    *,
    splits: Sequence[str] | None = None,
    compress: bool = False,
    overwrite: bool = False,
) -> Path:
    """Write a collection as a folder in BEIR layout, which appears when it is complete.

    Args:
        source: a collection, or its parts.
        folder: the folder to make.
        splits: of a collection, only these.
        compress: write .gz files.
        overwrite: replace `folder` if it is there.

    Raises:
        OutputExists: the folder is there and `overwrite` was not given.
        DataError: an id that the layout cannot hold (a tab or line break in it), no documents.
    """
    folder = Path(folder)
    if folder.exists() and not overwrite:
        check_output(folder, overwrite=False)
    parts = source if isinstance(source, CollectionParts) else CollectionParts.of(source, splits)
    with atomic_folder(folder) as temporary:
        _write_parts(parts, temporary, folder.resolve().name, ".gz" if compress else "")
        names = (name for name in ("corpus.jsonl", "corpus.jsonl.gz") if (folder / name).exists())
        check_output(folder, overwrite=overwrite, folder_with=next(names, None))
    return folder


def _write_parts(parts: CollectionParts, folder: Path, name: str, suffix: str) -> None:
    count = 0
    with _text_file(folder / f"corpus.jsonl{suffix}") as handle:
        for document in parts.documents:
            _write_object(handle, {"_id": document.id, "title": document.title, "text": document.text})
            count += 1
    if not count:
        raise DataError("a collection without documents cannot be written", path=folder)
    pairs = iter(parts.queries)
    first = next(pairs, None)
    if first is not None:
        with _text_file(folder / f"queries.jsonl{suffix}") as handle:
            _write_object(handle, {"_id": first[0], "text": first[1]})
            for qid, text in pairs:
                _write_object(handle, {"_id": qid, "text": text})
    for split, judgments in parts.judgments.items():
        path = folder / "qrels" / f"{split.replace('/', '-')}.tsv{suffix}"  # ir_datasets has slashes in split names
        path.parent.mkdir(exist_ok=True)
        if path.exists():
            raise DataError(f"two splits would be written to {path.name}; write one of them elsewhere")
        with _text_file(path) as handle:
            handle.write("query-id\tcorpus-id\tscore\n")
            for qid, grades in judgments.items():
                handle.writelines(f"{_cell(qid)}\t{_cell(document)}\t{grade}\n" for document, grade in grades.items())
    _write_conventions(parts, folder, name)


def _write_conventions(parts: CollectionParts, folder: Path, name: str) -> None:
    conventions = parts.conventions
    settings: dict[str, str | bool] = {}
    if parts.name not in (None, name):
        settings["name"] = str(parts.name)
    if conventions.drop_identical_ids or name.lower() in IDENTICAL_IDS:
        settings["drop_identical_ids"] = conventions.drop_identical_ids
    if conventions.preset is not None:
        settings["preset"] = conventions.preset
    if settings:
        (folder / "rtk.yaml").write_text(yaml.safe_dump(settings, allow_unicode=True), encoding="utf-8")
    if conventions.excluded:
        with _text_file(folder / "excluded.tsv") as handle:
            handle.write("query-id\tcorpus-id\n")
            for qid, documents in conventions.excluded.items():
                handle.writelines(f"{_cell(qid)}\t{_cell(document)}\n" for document in documents)


@contextmanager
def _text_file(path: Path) -> Generator[TextIO]:
    with write_bytes(path) as raw:
        handle = io.TextIOWrapper(raw, encoding="utf-8", newline="\n")
        yield handle
        handle.flush()
        handle.detach()


def _write_object(handle: TextIO, value: dict[str, str]) -> None:
    handle.write(json.dumps(value, ensure_ascii=False) + "\n")


def _cell(value: str) -> str:
    if not value or any(mark in value for mark in "\t\n\r"):
        raise DataError(f"id {value!r} cannot stand in a tab-separated file: it is empty or has a tab or line break")
    return value
