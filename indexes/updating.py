"""Appending and deleting where the engine can.

The change is made in a folder beside the index that shares its unchanged files by hard links, and takes the index's
place in one step: readers see the old index or the new one, and a killed update leaves the old one.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ..errors import BackendError, ConfigError, DataError
from ..files import write_json
from ..ids import Ids, ids_file
from . import folder as folders
from .base import Index
from .building import staging
from .dense import check_queries
from .manifest import BUILDING, FORMAT, LOCK, FileRecord, Manifest, read_manifest, record_files
from .registry import BACKENDS, open_index
from .vectors import Shard, ShardWriter, VectorShards, normalised, save_array

__all__ = ["append", "delete"]


def append(
    path: str | Path, ids: Ids, documents: np.ndarray | Sequence[str], *, collection: Mapping[str, Any] | None = None
) -> Index:
    """Add documents after the last row.

    Args:
        path: the index.
        ids: of the new documents; none may be in the index.
        documents: vectors (n, dim) for a dense index, texts for a lexical one.
        collection: what the index holds now, for the manifest; its former entry no longer fits and is dropped.

    Raises:
        BackendError: the engine cannot append.
        DataError: an id that is there already, or twice.
    """
    if len(ids) != len(documents):
        raise ConfigError(f"{len(documents)} documents for {len(ids)} ids")
    ids.refuse_duplicates("document")
    with _change(Path(path), "append", collection) as change:
        there = np.flatnonzero(change.ids.rows(ids) >= 0)
        if len(there):
            raise DataError(f"document {ids[int(there[0])]!r} is in the index already; delete it first", path=path)
        whole = Ids(pa.concat_arrays([change.ids.array, ids.array]))
        _APPEND[change.manifest.backend](change, whole, documents)
        change.ids = whole
    return open_index(path)


def delete(path: str | Path, ids: Sequence[str], *, collection: Mapping[str, Any] | None = None) -> Index:
    """Remove documents; later rows move up.

    Raises:
        BackendError: the engine cannot delete.
        DataError: an id that is not in the index.
    """
    with _change(Path(path), "delete", collection) as change:
        rows = change.ids.rows(ids)
        if (rows < 0).any():
            raise DataError(f"document {list(ids)[int(np.argmin(rows))]!r} is not in the index", path=path)
        keep = np.ones(len(change.ids), dtype=bool)
        keep[rows] = False
        left = Ids(change.ids.array.filter(pa.array(keep)))
        _DELETE[change.manifest.backend](change, left, keep)
        change.ids = left
    return open_index(path)


@dataclass
class _Change:
    """An update in progress: the copy being changed, what it was, and its ids (set to the new ones by the caller)."""

    folder: Path
    manifest: Manifest
    ids: Ids

    @property
    def writer(self) -> ShardWriter:
        return ShardWriter(
            self.folder / "vectors", self.manifest.dtype or "float32", self.manifest.similarity == "cosine"
        )

    @property
    def shards(self) -> VectorShards:
        return VectorShards.open(self.folder / "vectors", self.manifest.dtype or "float32")


@contextmanager
def _change(out: Path, what: str, collection: Mapping[str, Any] | None) -> Iterator[_Change]:
    out = out.absolute()
    manifest = read_manifest(out)
    table = _APPEND if what == "append" else _DELETE
    able = ", ".join(name for name in BACKENDS if name in table)
    if manifest.kind == "sparse":
        raise BackendError(
            f"a sparse index ({manifest.backend}) cannot {what}: its postings are laid out for all documents at once. "
            "Build it again with --overwrite"
        )
    if manifest.backend not in table:
        raise BackendError(
            f"a {manifest.backend} index cannot {what}: its scores are computed from the statistics of the whole "
            f"collection when it is built. Build it again with --overwrite, or use {able}"
        )
    with folders.lock(out), folders.lock(staging(out)):
        manifest, stage = read_manifest(out), staging(out)
        folders.clear(stage)
        write_json(stage / BUILDING, {"format": FORMAT, "update": what})
        try:
            for name in manifest.files:
                _link(out / name, stage / name)
            change = _Change(stage, manifest, Ids.load(ids_file(stage)))
            yield change
            _finish(out, change, collection)
        finally:
            folders.remove(stage)


def _finish(out: Path, change: _Change, collection: Mapping[str, Any] | None) -> None:
    """Write the manifest of the changed copy and let it take the index's place; the old one is then at its path."""
    stage = change.folder
    change.ids.save(ids_file(stage))
    files = record_files(stage, known=_unchanged(out, stage, change.manifest))
    kept = None if collection is None else dict(collection)
    changed = change.manifest.model_copy(update={"count": len(change.ids), "collection": kept, "files": files})
    changed.write(stage)
    (stage / BUILDING).unlink()
    folders.exchange(stage, out)
    (out / LOCK).unlink(missing_ok=True)


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copy2(source, target)


def _unchanged(out: Path, stage: Path, manifest: Manifest) -> dict[str, FileRecord]:
    return {
        name: record
        for name, record in manifest.files.items()
        if (stage / name).exists() and (stage / name).samefile(out / name)
    }


def _append_shard(change: _Change, documents: np.ndarray | Sequence[str]) -> np.ndarray:
    """Write the new vectors as one more shard; return them as stored, in float32."""
    shards = change.shards
    vectors = check_queries(np.asarray(documents), shards.dimension, "document vectors")
    shard = Shard(len(shards.arrays), len(shards), len(shards) + len(vectors))
    change.writer.write(shard, vectors)
    return change.shards.rows(np.arange(shard.start, shard.stop))


def _keep_rows(change: _Change, keep: np.ndarray) -> None:
    """Write the shards that lose rows again, in their stored dtype."""
    shards = change.shards
    for number, array in enumerate(shards.arrays):
        mine = keep[shards.starts[number] : shards.starts[number + 1]]
        if not mine.all():
            save_array(change.writer.path(Shard(number, 0, 0)), np.asarray(array)[mine])


def _append_torch(change: _Change, ids: Ids, documents: np.ndarray | Sequence[str]) -> None:
    _append_shard(change, documents)


def _delete_torch(change: _Change, ids: Ids, keep: np.ndarray) -> None:
    _keep_rows(change, keep)


def _append_faiss(change: _Change, ids: Ids, documents: np.ndarray | Sequence[str]) -> None:
    from . import faiss_factory, faiss_index

    index = faiss_index.read(change.folder, mmap=False)
    if change.manifest.dtype:
        vectors = _append_shard(change, documents)
    else:
        vectors = check_queries(np.asarray(documents), index.d, "document vectors")
        vectors = normalised(vectors) if change.manifest.similarity == "cosine" else vectors
    with faiss_factory.engine_errors("adding vectors"):
        index.add(vectors)
    faiss_index.write(change.folder, index, ids)


def _delete_faiss(change: _Change, ids: Ids, keep: np.ndarray) -> None:
    from . import faiss_factory, faiss_index

    index = faiss_index.read(change.folder, mmap=False)
    faiss_factory.remove_rows(index, keep)
    faiss_index.write(change.folder, index, ids)
    if change.manifest.dtype:
        _keep_rows(change, keep)


def _append_lucene(change: _Change, ids: Ids, documents: np.ndarray | Sequence[str]) -> None:
    from .lucene_index import add_documents

    added = ids[len(change.ids) : len(ids)]
    add_documents(change.folder / "lucene", added, lambda start, stop: list(documents[start:stop]), append=True)


def _delete_lucene(change: _Change, ids: Ids, keep: np.ndarray) -> None:
    from .lucene_index import remove_documents

    remove_documents(change.folder / "lucene", change.ids.take(np.flatnonzero(~keep)))


_APPEND = {"torch": _append_torch, "faiss": _append_faiss, "lucene": _append_lucene}
_DELETE = {"torch": _delete_torch, "faiss": _delete_faiss, "lucene": _delete_lucene}
