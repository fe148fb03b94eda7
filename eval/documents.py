"""Documents: a corpus as a memory-mapped Arrow file, never as Python objects.

A corpus is read once as a stream, checked, and written to a folder in the cache:

    documents.arrow   Arrow stream with columns id, title, text (`datasets.Dataset.from_file` reads it too)
    ids.arrow         the ids again, as one array that a search can map
    meta.json         counts, fingerprint, where it came from

The pages of those files belong to the system's cache; what a process itself holds does not grow with the texts.
"""

from __future__ import annotations

import bisect
import fcntl
import hashlib
import os
import shutil
import struct
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from pyarrow import ipc

from .. import progress
from ..files import cache_dir, fsync_dir, read_json, write_json
from ..ids import Ids

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["FORMAT_VERSION", "Document", "Documents", "DocumentsWriter", "cached_documents", "collections_dir"]

FORMAT_VERSION = 1
_SCHEMA = pa.schema([("id", pa.large_string()), ("title", pa.large_string()), ("text", pa.large_string())])
_BATCH_ROWS, _BATCH_CHARACTERS = 4096, 4 << 20
_EXAMPLES = 5


@dataclass(frozen=True)
class Document:
    """One document as the collection has it."""

    id: str
    title: str
    text: str

    @property
    def full_text(self) -> str:
        """What is indexed and encoded: title, a space, text, without white space at the ends, as BEIR joins them."""
        return join_title(self.title, self.text)


def join_title(title: str, text: str) -> str:
    """Join a title and a text as BEIR does."""
    return f"{title} {text}".strip()


class Documents:
    """A memory-mapped corpus: a sequence of documents with their ids and fingerprint.

    Args:
        folder: what `DocumentsWriter` left.
        path: where the documents came from, shown in messages.
    """

    def __init__(self, folder: str | Path, *, path: str | Path | None = None) -> None:
        self.folder = Path(folder)
        self.path = Path(folder) if path is None else path
        self.meta: dict[str, Any] = read_json(self.folder / "meta.json")
        self.fingerprint: str = self.meta["fingerprint"]
        self.ids = Ids.load(self.folder / "ids.arrow")
        with pa.memory_map(str(self.folder / "documents.arrow")) as source:
            self._batches: list[pa.RecordBatch] = list(ipc.open_stream(source))
        self._starts = [0]
        for batch in self._batches:
            self._starts.append(self._starts[-1] + batch.num_rows)

    def __len__(self) -> int:
        return self._starts[-1]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} from {self.path})"

    def __getitem__(self, row: int, /) -> Document:
        batch, place = self._locate(int(row))
        return Document(*(batch.column(number)[place].as_py() for number in range(3)))

    def _locate(self, row: int) -> tuple[pa.RecordBatch, int]:
        row = row + len(self) if row < 0 else row
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)} documents")
        number = bisect.bisect_right(self._starts, row) - 1
        return self._batches[number], row - self._starts[number]

    def __iter__(self) -> Iterator[Document]:
        for batch in self._batches:
            yield from map(Document, *(column.to_pylist() for column in batch.columns))

    def texts(self, rows: Sequence[int] | np.ndarray | slice) -> list[str]:
        """The full texts (title and text joined) of `rows`, in their order.

        Raises:
            IndexError: a row outside [0, len); -1 pads short result lists and is refused too.
        """
        if isinstance(rows, slice):
            start, stop, step = rows.indices(len(self))
            if step == 1:
                return list(self._span(start, stop))
            rows = range(start, stop, step)
        return [self._full_text(int(row)) for row in rows]

    def _span(self, start: int, stop: int) -> Iterator[str]:
        while start < stop:
            batch, place = self._locate(start)
            part = batch.slice(place, stop - start)
            yield from map(join_title, part.column(1).to_pylist(), part.column(2).to_pylist())
            start += part.num_rows

    def _full_text(self, row: int) -> str:
        if row < 0:
            raise IndexError(f"row {row} is no document; drop the padding of short lists first")
        batch, place = self._locate(row)
        return join_title(batch.column(1)[place].as_py(), batch.column(2)[place].as_py())

    def rows(self, ids: Iterable[str] | pa.Array | Ids) -> np.ndarray:
        """The row of each id, -1 where there is none. (len(ids),) int64."""
        return self.ids.rows(ids)

    def sizes(self) -> np.ndarray:
        """Bytes of title and text of every document, without reading them. (len,) int64."""
        parts = [
            sum(np.diff(np.frombuffer(column.buffers()[1], np.int64, len(column) + 1, 8 * column.offset))
                for column in (batch.column(1), batch.column(2)))
            for batch in self._batches
        ]  # fmt: skip
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    @property
    def empty(self) -> tuple[int, tuple[str, ...]]:
        """How many documents have neither title nor text, and the ids of the first few."""
        return int(self.meta["empty"]), tuple(self.meta["empty_examples"])

    def dataset(self) -> Dataset:
        """The same file as a `datasets.Dataset` with columns id, title and text, memory-mapped."""
        from datasets import Dataset

        return Dataset.from_file(str(self.folder / "documents.arrow"))


class DocumentsWriter:
    """Writes a corpus folder from a stream, holding one batch at a time.

    Use it as a context manager around an empty folder; `meta.json` comes last, when all went well.

    Args:
        folder: an empty folder.
        source: what the documents are, for `meta.json`.
    """

    def __init__(self, folder: Path, *, source: str) -> None:
        self.folder, self.source = folder, source
        self.count = self._characters = self._empty = 0
        self._columns: tuple[list[str], list[str], list[str]] = ([], [], [])
        self._examples: list[str] = []
        self._hash = hashlib.sha256()

    def __enter__(self) -> DocumentsWriter:
        self._writer = ipc.new_stream(str(self.folder / "documents.arrow"), _SCHEMA)
        self._id_bytes = open(self.folder / "ids.bytes", "wb")
        self._id_offsets = open(self.folder / "ids.offsets", "wb")
        self._id_offsets.write(struct.pack("<q", 0))
        return self

    def add(self, document: Document) -> None:
        """Take in the next document."""
        for column, value in zip(self._columns, (document.id, document.title, document.text), strict=True):
            column.append(value)
            self._characters += len(value)
        if not document.full_text:
            self._empty += 1
            if len(self._examples) < _EXAMPLES:
                self._examples.append(document.id)
        self.count += 1
        if len(self._columns[0]) >= _BATCH_ROWS or self._characters >= _BATCH_CHARACTERS:
            self._flush()

    def _flush(self) -> None:
        if not self._columns[0]:
            return
        for document in zip(*self._columns, strict=True):
            parts = [value.encode("utf-8") for value in document]
            self._hash.update(struct.pack("<3Q", *map(len, parts)) + b"".join(parts))
        batch = pa.record_batch([pa.array(column, pa.large_string()) for column in self._columns], schema=_SCHEMA)
        self._writer.write_batch(batch)
        ids = batch.column(0)
        offsets = np.frombuffer(ids.buffers()[1], np.int64)[: len(ids) + 1]
        start = self._id_bytes.tell()
        self._id_bytes.write(memoryview(ids.buffers()[2] or b"")[: int(offsets[-1])])
        self._id_offsets.write((offsets[1:] + start).tobytes())
        self._columns, self._characters = ([], [], []), 0

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._flush()
        finally:
            self._writer.close()
            self._id_bytes.close()
            self._id_offsets.close()
        if kind is None:
            self._finish()

    def _finish(self) -> None:
        self._gather_ids().save(self.folder / "ids.arrow")
        for name in ("ids.bytes", "ids.offsets"):
            (self.folder / name).unlink()
        with open(self.folder / "documents.arrow", "rb") as handle:
            os.fsync(handle.fileno())
        write_json(
            self.folder / "meta.json",
            {
                "format_version": FORMAT_VERSION,
                "source": self.source,
                "count": self.count,
                "empty": self._empty,
                "empty_examples": self._examples,
                "fingerprint": self._hash.hexdigest(),
            },
        )

    def _gather_ids(self) -> Ids:
        """The ids written so far as one array over the mapped temporary files: no copy in memory."""
        with pa.memory_map(str(self.folder / "ids.offsets")) as offsets:
            bounds = offsets.read_buffer()
        data: pa.Buffer = pa.py_buffer(b"")
        if (self.folder / "ids.bytes").stat().st_size:
            with pa.memory_map(str(self.folder / "ids.bytes")) as source:
                data = source.read_buffer()
        return Ids(pa.LargeStringArray.from_buffers(self.count, bounds, data))


def collections_dir() -> Path:
    """Where corpora lie in the cache."""
    return cache_dir() / "collections"


def cached_documents(
    key: Sequence[object],
    documents: Callable[[], Iterable[Document]],
    *,
    source: str | Path,
    check: Callable[[Documents], None] | None = None,
    finish: Callable[[Path], None] | None = None,
) -> Path:
    """Return the cache folder of a corpus, writing it first when it is not there.

    Several processes may ask at once: one writes, the others wait for it. A process that dies leaves nothing that
    counts: the folder gets its name when it is complete.

    Args:
        key: what the documents depend on (path, size, modification time, …); the format version is added.
        documents: opens the stream; called only when the cache lacks them.
        source: where they come from, for messages and `meta.json`.
        check: looks at the finished documents before they count, and raises.
        finish: writes further files into the folder before it counts.
    """
    name = hashlib.sha256(repr((FORMAT_VERSION, *key)).encode()).hexdigest()[:32]
    folder = collections_dir() / name
    if (folder / "meta.json").exists():
        return folder
    with _lock(folder.with_name(f"{name}.lock")):
        if (folder / "meta.json").exists():
            return folder
        temporary = folder.with_name(f".{name}.building")  # one at a time: the lock is held
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        try:
            with DocumentsWriter(temporary, source=str(source)) as writer:
                for document in progress.track(documents(), f"read {source}"):
                    writer.add(document)
            if check:
                check(Documents(temporary, path=source))
            if finish:
                finish(temporary)
            fsync_dir(temporary)
            os.rename(temporary, folder)
            fsync_dir(folder.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder


@contextmanager
def _lock(path: Path) -> Generator[None]:
    """Hold an exclusive lock; the system releases it when the process ends, however it ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
