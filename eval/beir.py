"""Collections in BEIR layout: a folder with corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv, plain or gzip.

    corpus.jsonl      {"_id": "7", "title": "…", "text": "…"}; the title may be missing
    queries.jsonl     {"_id": "q1", "text": "…"}; the queries of all splits
    qrels/test.tsv    header query-id, corpus-id, score; a split consists of the queries in its file
    rtk.yaml          optional, or collection.json: see `conventions.read_settings`
    excluded.tsv      optional, or excluded.jsonl: see `conventions.read_excluded`

Ids are strings: "007" stays, and a JSON number as `_id` is refused with its line, because 7 and "7" would be two
documents of one name.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..errors import DataError
from .collection import CollectionBase, Conventions, Queries
from .conventions import folder_conventions, read_settings
from .documents import Document, Documents, cached_documents
from .judgments import Judgments, read_beir_qrels
from .lines import field_text, find_file, read_jsonl

__all__ = ["BeirCollection", "read_corpus", "read_queries"]


class BeirCollection(CollectionBase):
    """A folder in BEIR layout. Files are read when they are asked for.

    Raises:
        DataError: the folder lacks the corpus. Queries and qrels are missed when they are asked for, so that a corpus
            alone can be indexed.
        ConfigError: its settings file has an unknown key or a value of the wrong type.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        self.folder = Path(folder)
        self.corpus_path = self._need("corpus.jsonl")
        self.qrels_paths = self._find_qrels()
        self.splits: tuple[str, ...] = tuple(self.qrels_paths)
        self._settings = read_settings(self.folder)
        self.name: str = self._settings.get("name", self.folder.resolve().name)

    def _conventions(self) -> Conventions:
        return folder_conventions(self.folder, self._settings)

    def _need(self, name: str) -> Path:
        path = find_file(self.folder, name)
        if path is None:
            there = ", ".join(sorted(entry.name for entry in self.folder.iterdir())[:8]) or "nothing"
            raise DataError(f"no {name} or {name}.gz, which the BEIR layout has; found {there}", path=self.folder)
        return path

    def _find_qrels(self) -> dict[str, Path]:
        folder = self.folder / "qrels"
        entries = sorted(folder.iterdir()) if folder.is_dir() else []
        names = {entry.name.removesuffix(".gz") for entry in entries if entry.name.endswith((".tsv", ".tsv.gz"))}
        found = {name.removesuffix(".tsv"): find_file(folder, name) for name in sorted(names)}
        return {split: path for split, path in found.items() if path is not None}

    def judgments(self, split: str) -> Judgments:
        """The judgments of a split.

        Raises:
            DataError: no qrels folder, no such split, or bad data in its file.
        """
        if not self.splits:
            raise DataError(f"no qrels/{split}.tsv or .gz: this folder has no judgments", path=self.folder)
        return super().judgments(split)

    def _documents(self) -> Documents:
        path = self.corpus_path.resolve()
        state = path.stat()
        folder = cached_documents(
            ("jsonl", str(path), state.st_size, state.st_mtime_ns),
            lambda: read_corpus(path),
            source=path,
            check=lambda documents: documents.ids.refuse_duplicates("document", path=path, first_line=1),
        )
        return Documents(folder, path=self.corpus_path)

    def _queries(self) -> Queries:
        return read_queries(self._need("queries.jsonl"))

    def _judgments(self, split: str) -> Judgments:
        return read_beir_qrels(self.qrels_paths[split])


def read_corpus(path: str | Path) -> Iterator[Document]:
    """Yield the documents of a corpus.jsonl. Duplicate ids are the caller's to refuse, who sees all of them.

    Raises:
        DataError: a line that is no document, with its number, or anything `read_lines` refuses.
    """
    for line, entry in read_jsonl(path):
        yield Document(
            field_text(entry, "_id", path=path, line=line),
            field_text(entry, "title", path=path, line=line, default=""),
            field_text(entry, "text", path=path, line=line),
        )


def read_queries(path: str | Path) -> Queries:
    """Read a queries.jsonl. A query without text is kept; a missing field or an id that is there twice is refused."""
    qids: list[str] = []
    texts: list[str] = []
    seen: dict[str, int] = {}
    for line, entry in read_jsonl(path):
        qid = field_text(entry, "_id", path=path, line=line)
        if qid in seen:
            raise DataError(
                f"duplicate query id {qid!r}, first seen at line {seen[qid]}; ids must be unique", path=path, line=line
            )
        seen[qid] = line
        qids.append(qid)
        texts.append(field_text(entry, "text", path=path, line=line))
    return Queries(qids, texts)
