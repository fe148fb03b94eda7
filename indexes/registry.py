"""Which back-ends there are, and opening an index with the right one."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, DataError, nearest
from .base import Index
from .bounds import COUNT, check_numbers
from .manifest import Kind, Manifest, check_files, read_manifest
from .plan import BackendSpec

if TYPE_CHECKING:
    from .shards import VectorKind

__all__ = [
    "BACKENDS",
    "Backend",
    "check_names",
    "check_threads",
    "find_backend",
    "fitting",
    "open_index",
    "parse_backend",
]

_OPENING_TRIES = 5


@dataclass(frozen=True)
class Backend:
    """An engine: its registry name, the kinds of index it makes, and for each the module that does.

    The module has `build_dense(folder, vectors, ids, plan)`, `build_sparse(folder, vectors, ids, plan)` or
    `build_lexical(folder, ids, texts, plan)`, which write the engine's files and return `settings`, `versions` and
    `keep_vectors` for the manifest, and `open_folder(folder, manifest, settings)`, which returns the index. One that
    takes vectors has `read_settings(given)` too: the build settings, checked before anything is encoded.
    """

    name: str
    modules: Mapping[Kind, str]
    summary: str
    factory: str | None = None

    @property
    def vectors(self) -> VectorKind | None:
        """The kind of its vectors; no engine takes two kinds of them."""
        return "dense" if "dense" in self.modules else "sparse" if "sparse" in self.modules else None

    def load(self, kind: Kind) -> ModuleType:
        """Import the module; a missing extra raises `MissingExtra`."""
        return importlib.import_module(self.modules[kind], __package__)


BACKENDS: Mapping[str, Backend] = {
    backend.name: backend
    for backend in (
        Backend("torch", {"dense": ".torch_index"}, "exact search in blocks on CPU or GPU over memory-mapped vectors"),
        Backend("faiss", {"dense": ".faiss_index"}, "any FAISS factory string; faiss:FACTORY", factory="Flat"),
        Backend("bm25s", {"bm25": ".bm25s_index"}, "BM25 in numpy, English analysis, no Java"),
        Backend(
            "lucene",
            {"bm25": ".lucene_index", "sparse": ".lucene_impact"},
            "BM25, or integer impacts of sparse vectors, by Lucene through Pyserini",
        ),
        Backend(
            "exact",
            {"sparse": ".exact_index", "bm25": ".exact_bm25"},
            "exact search of sparse vectors and of BM25 weights, with block-max pruning",
        ),
        Backend("seismic", {"sparse": ".seismic_index"}, "approximate search of sparse vectors"),
    )
}


def fitting(kind: Kind) -> str:
    """The back-ends that make this kind of index, for messages."""
    return ", ".join(name for name, known in BACKENDS.items() if kind in known.modules)


def parse_backend(text: str) -> BackendSpec:
    """Read the name of a back-end, for example "torch" or "exact"; "faiss:FACTORY" gives FAISS's factory string.

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
    if kind not in backend.modules:
        raise ConfigError(
            f"back-end {backend.name!r} makes {' and '.join(backend.modules)} indexes; for a {kind} one take "
            f"{fitting(kind)}"
        )
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
            module = _backend_of(manifest, folder).load(manifest.kind)
            index: Index = module.open_folder(folder, manifest, settings)
        except DataError:
            if left and read_manifest(folder) != manifest:  # it was replaced while we opened it
                continue
            raise
        if not left or read_manifest(folder) == manifest:
            return index
    raise DataError("the index is being replaced over and over while it is opened", path=folder)


def _backend_of(manifest: Manifest, folder: Path) -> Backend:
    backend = BACKENDS.get(manifest.backend)
    if backend is None or manifest.kind not in backend.modules:
        raise DataError(
            f"the manifest names the back-end {manifest.backend!r} for a {manifest.kind} index, which this version "
            "does not have",
            path=folder,
        )
    return backend


def check_threads(settings: Mapping[str, Any]) -> int:
    """The setting `threads`, 1 where it is not given."""
    return check_numbers({"threads": settings.get("threads", 1)}, {"threads": COUNT}, "settings")["threads"]


def check_names(given: Mapping[str, Any], known: Sequence[str], what: str) -> None:
    """Refuse names that are not `known`, all at once, each with the nearest one."""
    problems = [f"{name!r}{nearest(name, known)}" for name in given if name not in known]
    if problems:
        raise ConfigError(f"unknown {what}; known: {', '.join(known) or 'none'}", problems)
