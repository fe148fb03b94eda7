"""Dense search by FAISS: any factory string, inner product throughout.

INDEX/index and INDEX/docid are the pair of files that Pyserini's FaissSearcher opens; faiss.read_index reads the
former. Cosine is the inner product of vectors that were normalised on both sides.

- Flat is exact: a few hits more than asked for are scored again in float64, so ties go to the lower row. Its file holds
  the same floats as the vector shards, which are therefore dropped after building unless `keep_vectors` says otherwise.
- Other factories return what they find, sorted by (-score, row). Their shards are kept, for `vectors` and appending.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConfigError, DataError
from ..extras import require
from ..files import atomic_path
from ..ids import Ids, ids_file
from ..progress import task
from .base import Hits, Options
from .bm25s_index import say_need
from .bounds import check_numbers
from .dense import Exclude, check_exclude, check_queries, ordered_hits
from .faiss_factory import KNOBS, TRAINING, default_knobs, engine_errors, is_flat, knobs, make, takes_parts, train
from .manifest import Manifest
from .plan import BuildPlan, Similarity
from .registry import check_names
from .vectors import VectorShards, normalised

__all__ = ["FaissIndex"]

faiss = require("faiss", "cpu", "the faiss back-end")

_MARGIN = 16
_UNIT = 2.0**-24
_ADD_ROWS = 1 << 16


class FaissIndex:
    """A FAISS index with document ids.

    Args:
        index: any inner-product index whose ids are the rows.
        ids: row → document id.
        similarity: "cosine" normalises queries.
        search: values of the search-time knobs (`nprobe`, `efSearch`, `k_factor`, …); missing ones get defaults.
        shards: the vectors, where they are kept.
        folder: where it came from.
    """

    def __init__(
        self,
        index: Any,
        ids: Ids,
        *,
        similarity: Similarity = "dot",
        search: Options | None = None,
        shards: VectorShards | None = None,
        folder: Path | None = None,
    ) -> None:
        if index.ntotal != len(ids):
            raise DataError(f"the FAISS index holds {index.ntotal} vectors for {len(ids)} document ids", path=folder)
        self.index, self.ids, self.similarity, self.shards, self.folder = index, ids, similarity, shards, folder
        self._knobs = knobs(index)
        self.options: dict[str, Any] = {**default_knobs(index), **(search or {})}
        self._flat = is_flat(index)
        self._lock = threading.Lock()
        self._largest_norm: float | None = None
        self._set(self.options)

    @classmethod
    def from_arrays(
        cls,
        vectors: np.ndarray,
        ids: Sequence[str],
        *,
        factory: str = "Flat",
        similarity: Similarity = "dot",
        settings: Mapping[str, Any] | None = None,
    ) -> FaissIndex:
        """An index in memory: `vectors` (n, dim), one id each; a duplicate id is refused."""
        table = ids if isinstance(ids, Ids) else Ids(ids)
        table.refuse_duplicates("document")
        vectors = check_queries(vectors, None, "document vectors")
        shards = VectorShards([normalised(vectors) if similarity == "cosine" else vectors])
        index, search, _ = fill(factory, shards, settings or {})
        return cls(index, table, similarity=similarity, search=search, shards=shards)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def dimension(self) -> int:
        return int(self.index.d)

    def vectors(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """The vectors of `rows` as float32 (len(rows), dim): as encoded where they are kept, else as FAISS decodes
        them."""
        wanted = np.asarray(rows, dtype=np.int64).ravel()
        if len(wanted) and (wanted.min() < 0 or wanted.max() >= len(self)):
            raise ValueError(f"rows must lie in [0, {len(self)}); -1 pads short lists, drop it first")
        if self.shards is not None:
            return self.shards.rows(wanted)
        if self._flat:
            return self._stored()[wanted]
        with engine_errors("reading vectors back"), self._lock:
            if hasattr(self.index, "make_direct_map"):
                self.index.make_direct_map()
            return np.asarray(self.index.reconstruct_batch(wanted), dtype=np.float32)

    @property
    def stored_vectors(self) -> VectorShards | None:
        """The vectors as they were encoded, memory-mapped; None where only compressed ones are kept."""
        if self.shards is None and self._flat and len(self):
            return VectorShards([self._stored()])
        return self.shards

    def search(
        self, queries: np.ndarray, k: int, /, *, options: Options | None = None, exclude: Exclude | None = None
    ) -> Hits:
        """See `Index.search`. Options are the knobs of the factory (`nprobe`, `efSearch`, `k_factor`, …)."""
        check_names(options or {}, tuple(self._knobs), "search options of this faiss index")
        checked = check_queries(queries, self.dimension)
        check_exclude(exclude, len(checked))
        if k < 0:
            raise ConfigError(f"k is {k}, expected at least 0")
        if not len(checked) or not len(self) or not k:
            return Hits.empty(len(checked), k)
        if self.similarity == "cosine":
            checked = normalised(checked)
        extra = 0 if exclude is None else max(map(len, exclude), default=0)
        with self._options(options):
            if self._flat:
                return self._search_flat(checked, k, extra, exclude)
            scores, rows = self._raw(checked, min(k + extra, len(self)))
            _drop_excluded(rows, exclude)
            return ordered_hits(rows, scores, k)

    def _raw(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        with engine_errors("searching"):
            scores, rows = self.index.search(queries, k)
        return scores, rows

    def _search_flat(self, queries: np.ndarray, k: int, extra: int, exclude: Exclude | None) -> Hits:
        """Fetch until the last score lies below the k-th by more than rounding can account for."""
        fetch = min(k + extra + _MARGIN, len(self))
        scores, rows = self._raw(queries, fetch)
        last = scores[:, -1].copy()
        _drop_excluded(rows, exclude)
        hits = ordered_hits(rows, self._exact(queries, rows), k)
        slack = 2 * (self.dimension + 8) * _UNIT * self._norm() * np.linalg.norm(queries.astype(np.float64), axis=1)
        unsure = np.flatnonzero(last >= hits.scores[:, -1] - slack)
        if len(unsure) and fetch < len(self):
            left_out = None if exclude is None else [exclude[row] for row in unsure.tolist()]
            again = self._search_flat(queries[unsure], k, 4 * fetch, left_out)
            hits.rows[unsure], hits.scores[unsure] = again.rows, again.scores
        return hits

    def _exact(self, queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Inner products in float64, rounded to float32; row -1 gets some finite value."""
        stored = self._stored()
        scores = np.empty(rows.shape, dtype=np.float32)
        for number, query in enumerate(queries.astype(np.float64)):
            scores[number] = stored[rows[number]].astype(np.float64) @ query
        return scores

    def _stored(self) -> np.ndarray:
        """The floats of a Flat index, not copied. (n, dim)"""
        return faiss.rev_swig_ptr(self.index.get_xb(), len(self) * self.dimension).reshape(len(self), self.dimension)

    def _norm(self) -> float:
        if self.similarity == "cosine":
            return 1.01
        if self._largest_norm is None:
            stored = self._stored()
            self._largest_norm = max(
                float(np.sqrt(np.einsum("ij,ij->i", part, part).max()))
                for part in (stored[at : at + _ADD_ROWS] for at in range(0, len(stored), _ADD_ROWS))
            )
        return self._largest_norm

    @contextmanager
    def _options(self, options: Options | None) -> Iterator[None]:
        """Set search options for one search; FAISS keeps them in the index, so such searches run one at a time."""
        if not options:
            yield
            return
        with self._lock:
            self._set(options)
            try:
                yield
            finally:
                self._set(self.options)

    def _set(self, options: Options) -> None:
        for name, value in check_numbers(options, KNOBS, "search options of a faiss index").items():
            owner, attribute = self._knobs[name]
            setattr(owner, attribute, value)


def _drop_excluded(rows: np.ndarray, exclude: Exclude | None) -> None:
    """Set excluded rows to -1, in place."""
    for number, left_out in enumerate(exclude or ()):
        if len(left_out):
            rows[number, np.isin(rows[number], left_out)] = -1


def read_settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, checked: `train_size`, `seed`, `efConstruction`, and the search-time knobs of the factory."""
    what = "settings of the faiss back-end"
    check_names(given, (*TRAINING, *KNOBS), what)
    return check_numbers(given, {**TRAINING, **KNOBS}, what)


def fill(factory: str, vectors: VectorShards, given: Mapping[str, Any]) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """Make, train and fill an index; return it with its search knobs and with what training took."""
    settings = read_settings(given)
    index = make(factory, vectors.dimension, settings)
    chosen = knobs(index)
    check_names(
        {name: 0 for name in settings if name not in TRAINING},
        tuple(chosen),
        f"search settings of factory {factory!r}",
    )
    code = int(index.sa_code_size()) if hasattr(index, "sa_code_size") and is_flat(index) else 4 * vectors.dimension
    say_need(f"faiss:{factory}", code * len(vectors), f"{len(vectors):,} vectors, held while building")
    trained = train(index, vectors, settings)
    with task("index", len(vectors)) as advance, engine_errors("adding vectors"):
        if not takes_parts(index):
            index.add(vectors.rows(np.arange(len(vectors))))
            advance(len(vectors))
        for _, block in vectors.blocks(_ADD_ROWS) if takes_parts(index) else ():
            index.add(np.ascontiguousarray(block))
            advance(len(block))
    search = {**default_knobs(index), **{name: settings[name] for name in settings if name in chosen}}
    return index, search, trained


def build_dense(folder: Path, vectors: VectorShards, ids: Ids, plan: BuildPlan) -> dict[str, Any]:
    """Build INDEX/index and INDEX/docid from the shards."""
    factory = plan.backend.factory or "Flat"
    index, search, trained = fill(factory, vectors, plan.settings)
    write(folder, index, ids)
    lossless = is_flat(index) and vectors.dtype == "float32"
    settings = {"factory": factory, "search": search, **trained}
    return {
        "settings": settings,
        "versions": {"faiss": faiss.__version__, "numpy": np.__version__},
        "keep_vectors": not lossless,
    }


def write(folder: Path, index: Any, ids: Ids) -> None:
    """Write INDEX/index and INDEX/docid, each atomically."""
    with atomic_path(folder / "index") as temporary, engine_errors("writing the index"):
        faiss.write_index(index, str(temporary))
    with atomic_path(folder / "docid") as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as handle:
        for name in ids:
            if "\n" in name or "\r" in name:
                raise DataError(f"document id {name!r} holds a line break, which INDEX/docid cannot; rename it")
            handle.write(name + "\n")


def read(folder: Path, *, mmap: bool) -> Any:
    with engine_errors(f"reading {folder / 'index'}"):
        return faiss.read_index(str(folder / "index"), faiss.IO_FLAG_MMAP_IFC if mmap else 0)


def open_folder(folder: Path, manifest: Manifest, settings: Mapping[str, Any]) -> FaissIndex:
    """Open for searching. Settings: `mmap` (default true), `device` ("cpu"; "cuda[:N]" with a GPU build of FAISS)."""
    check_names(settings, ("mmap", "device"), "settings for opening a faiss index")
    index = read(folder, mmap=bool(settings.get("mmap", True)))
    index = on_device(index, str(settings.get("device", "cpu")))
    shards = VectorShards.open(folder / "vectors", manifest.dtype) if manifest.dtype else None
    return FaissIndex(
        index,
        Ids.load(ids_file(folder)),
        similarity=manifest.similarity or "dot",
        search=manifest.settings["search"],
        shards=shards,
        folder=folder,
    )


def on_device(index: Any, device: str) -> Any:
    """Copy an index to a GPU; "cpu" leaves it."""
    if device == "cpu":
        return index
    name, _, number = device.partition(":")
    if name != "cuda" or not (number or "0").isdigit():
        raise ConfigError(f"device is {device!r}, expected 'cpu' or 'cuda[:N]'")
    if not hasattr(faiss, "StandardGpuResources") or faiss.get_num_gpus() <= int(number or 0):
        raise ConfigError(f"device {device!r} asks for FAISS on a GPU, but this FAISS build sees no such device")
    with engine_errors("copying the index to the GPU"):
        return faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), int(number or 0), index)
