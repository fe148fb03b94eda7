"""Which back-ends there are, and opening an index with the right one."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import ConfigError, DataError, nearest
from .base import Index
from .manifest import Kind, check_files, read_manifest
from .plan import BackendSpec

__all__ = ["BACKENDS", "Backend", "check_names", "open_index", "parse_backend"]

_OPENING_TRIES = 5


@dataclass(frozen=True)
class Backend:
    """An engine: its registry name, the kind of index it makes, and the module that has it.

    The module has `build_dense(folder, vectors, ids, plan)` or `build_lexical(folder, ids, texts, plan)`, which write
    the engine's files and return `settings`, `versions` and `keep_vectors` for the manifest, and
    `open_folder(folder, manifest, settings)`, which returns the index.
    """

    name: str
    kind: Kind
    module: str
    summary: str
    factory: str | None = None

    def load(self) -> ModuleType:
        """Import the module; a missing extra raises `MissingExtra`."""
        return importlib.import_module(self.module, __package__)


BACKENDS: Mapping[str, Backend] = {
    backend.name: backend
    for backend in (
        Backend("torch", "dense", ".torch_index", "exact search in blocks on CPU or GPU over memory-mapped vectors"),
        Backend("faiss", "dense", ".faiss_index", "any FAISS factory string; faiss:FACTORY", factory="Flat"),
        Backend("bm25s", "bm25", ".bm25s_index", "BM25 in numpy, English analysis, no Java"),
        Backend("lucene", "bm25", ".lucene_index", "BM25 by Lucene through Pyserini"),
    )
}


def parse_backend(text: str) -> BackendSpec:
    """Read "torch", "bm25s", "lucene", "faiss" or "faiss:FACTORY".

    Raises:
        ConfigError: an unknown name (the nearest known one is shown), or a factory where the back-end takes none.
    """
    name, colon, factory = text.partition(":")
    backend = BACKENDS.get(name)
    if backend is None:
        raise ConfigError(f"unknown back-end {name!r}{nearest(name, BACKENDS)}; there are {', '.join(BACKENDS)}")
    if colon and (backend.factory is None or not factory):
        raise ConfigError(f"back-end {text!r}: a factory is given as faiss:FACTORY, for example faiss:IVF256,Flat")
    return BackendSpec(name, factory or backend.factory)


def find_backend(spec: BackendSpec, kind: Kind) -> Backend:
    """The back-end of `spec`, which must make indexes of this kind."""
    backend = BACKENDS[parse_backend(str(spec)).name]
    if backend.kind != kind:
        fitting = ", ".join(name for name, known in BACKENDS.items() if known.kind == kind)
        raise ConfigError(f"back-end {backend.name!r} makes {backend.kind} indexes; for a {kind} one take {fitting}")
    return backend


def open_index(path: str | Path, *, verify: bool = False, **settings: Any) -> Index:
    """Open an index folder with the engine that its manifest names.

    Args:
        path: the folder.
        verify: compare every file's sha256 with the manifest, not only its size.
        settings: how to open it, by the engine (`device`, `mmap`, `threads`, …); unknown ones are refused.

    Raises:
        DataError: no index there, an unfinished one, a missing file.
        IndexMismatch: a file was altered.
        ConfigError: an unknown setting.
        MissingExtra: the engine is not installed.
    """
    folder = Path(path)
    for left in reversed(range(_OPENING_TRIES)):
        manifest = read_manifest(folder)
        try:
            check_files(folder, manifest, verify=verify)
            index: Index = _backend_of(manifest.backend, folder).load().open_folder(folder, manifest, settings)
        except DataError:
            if left and read_manifest(folder) != manifest:  # it was replaced while we opened it
                continue
            raise
        if not left or read_manifest(folder) == manifest:
            return index
    raise DataError("the index is being replaced over and over while it is opened", path=folder)


def _backend_of(name: str, folder: Path) -> Backend:
    if name not in BACKENDS:
        raise DataError(f"the manifest names the back-end {name!r}, which this version does not have", path=folder)
    return BACKENDS[name]


def check_names(given: Mapping[str, Any], known: Sequence[str], what: str) -> None:
    """Refuse names that are not `known`, all at once, each with the nearest one."""
    problems = [f"{name!r}{nearest(name, known)}" for name in given if name not in known]
    if problems:
        raise ConfigError(f"unknown {what}; known: {', '.join(known) or 'none'}", problems)
