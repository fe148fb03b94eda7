"""FAISS factories: making and training an index, and finding the search-time knobs inside it."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from ..errors import BackendError, ConfigError
from ..extras import require
from .bounds import COUNT, Bounds
from .vectors import VectorShards

__all__ = [
    "KNOBS",
    "TRAINING",
    "default_knobs",
    "engine_errors",
    "is_flat",
    "knobs",
    "make",
    "remove_rows",
    "takes_parts",
    "train",
]

faiss = require("faiss", "cpu", "the faiss back-end")

TRAINING = {"train_size": COUNT, "seed": Bounds(0, whole=True), "efConstruction": COUNT}
KNOBS = {"nprobe": COUNT, "efSearch": COUNT, "quantizer_efSearch": COUNT, "k_factor": Bounds(1), "search_L": COUNT}
_POINTS_A_CENTROID = 64
_LEAST_TRAINING = 100_000


@contextmanager
def engine_errors(doing: str) -> Iterator[None]:
    """Turn what FAISS throws into `BackendError`; a full disk into the OSError that it is."""
    try:
        yield
    except RuntimeError as error:
        if "No space left" in str(error):
            raise OSError(errno.ENOSPC, f"No space left on device, {doing}") from error
        raise BackendError(f"FAISS failed {doing}: {_short(error)}") from error


def _short(error: Exception) -> str:
    """A FAISS message without the C++ signature in front of it."""
    text = str(error)
    return text.partition("Error: ")[2] or text


def make(factory: str, dimension: int, settings: Mapping[str, Any]) -> Any:
    """An empty inner-product index.

    Raises:
        ConfigError: FAISS does not know the factory, it does not fit the dimension, or it cannot do inner product.
    """
    try:
        index = faiss.index_factory(dimension, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise ConfigError(f"faiss:{factory} cannot be made for {dimension} dimensions: {_short(error)}") from error
    if index.metric_type != faiss.METRIC_INNER_PRODUCT:
        raise ConfigError(f"faiss:{factory} does not search by inner product, which every dense index here does")
    ef = settings.get("efConstruction")
    if ef is not None:
        inner = _inside(index)
        if not hasattr(inner, "hnsw"):
            raise ConfigError(f"efConstruction is a setting of HNSW graphs, and faiss:{factory} has none")
        inner.hnsw.efConstruction = ef
    return index


def _inside(index: Any) -> Any:
    """The index below transforms, id maps and refinement. It owns nothing: the caller keeps the outer one alive."""
    index = faiss.downcast_index(index)
    for attribute in ("base_index", "index"):
        if hasattr(index, attribute) and isinstance(getattr(index, attribute), faiss.Index):
            return _inside(getattr(index, attribute))
    return index


def knobs(index: Any) -> dict[str, tuple[Any, str]]:
    """Search-time settings that the index has: name → (object, attribute)."""
    index = faiss.downcast_index(index)
    found: dict[str, tuple[Any, str]] = {}
    if isinstance(index, faiss.IndexRefine):
        found["k_factor"] = (index, "k_factor")
    inner = _inside(index)
    if hasattr(inner, "nprobe"):
        found["nprobe"] = (inner, "nprobe")
        quantizer = faiss.downcast_index(inner.quantizer)
        if hasattr(quantizer, "hnsw"):
            found["quantizer_efSearch"] = (quantizer.hnsw, "efSearch")
    if hasattr(inner, "hnsw"):
        found["efSearch"] = (inner.hnsw, "efSearch")
    if hasattr(inner, "nsg"):
        found["search_L"] = (inner.nsg, "search_L")
    return found


def default_knobs(index: Any) -> dict[str, int]:
    """Values that trade speed for recall sensibly; FAISS's own nprobe of 1 finds a small part of the neighbours."""
    found = knobs(index)
    chosen = {"efSearch": 64, "quantizer_efSearch": 64, "search_L": 64, "k_factor": 4}
    result = {name: value for name, value in chosen.items() if name in found}
    if "nprobe" in found:
        lists = int(found["nprobe"][0].nlist)
        result["nprobe"] = min(lists, max(8, lists // 16))
    return dict(sorted(result.items()))


def is_flat(index: Any) -> bool:
    """Whether the index is plain float32 vectors compared one by one."""
    return type(faiss.downcast_index(index)) in (faiss.IndexFlat, faiss.IndexFlatIP)


def takes_parts(index: Any) -> bool:
    """Whether vectors can be added in several calls; an NSG graph is built once from all of them."""
    return not hasattr(_inside(index), "nsg")


def train(index: Any, vectors: VectorShards, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Train on a seeded sample of rows where the factory needs it; return the size and seed for the manifest."""
    if index.is_trained:
        return {}
    lists = getattr(_inside(index), "nlist", 0)
    size = min(len(vectors), settings.get("train_size") or max(_POINTS_A_CENTROID * lists, _LEAST_TRAINING))
    if size < max(lists, 1):
        raise ConfigError(f"{size} training vectors for {lists} lists: take fewer lists, or more documents")
    seed = settings.get("seed", 0)
    rows = np.sort(np.random.default_rng(seed).choice(len(vectors), size, replace=False))
    with engine_errors("training"):
        index.train(vectors.rows(rows))
    return {"train_size": size, "seed": seed}


def remove_rows(index: Any, keep: np.ndarray) -> None:
    """Remove the rows where `keep` is false; later rows move up.

    Raises:
        BackendError: the factory cannot (graphs such as HNSW, refinement, block layouts).
    """
    gone = np.flatnonzero(~keep).astype(np.int64)
    inner = faiss.downcast_index(index)
    lists = getattr(inner, "invlists", None)
    if lists is None and not isinstance(inner, faiss.IndexFlatCodes):
        raise BackendError(
            f"a FAISS index of type {type(inner).__name__} cannot delete; build it again with --overwrite"
        )
    if lists is not None and not isinstance(faiss.downcast_InvertedLists(lists), faiss.ArrayInvertedLists):
        raise BackendError(
            f"the inverted lists of {type(inner).__name__} cannot delete; build it again with --overwrite"
        )
    with engine_errors("removing vectors"):
        index.remove_ids(gone)
    if lists is not None:  # lists keep the old row numbers
        rows = np.cumsum(keep) - 1
        for number in range(inner.nlist):
            size = lists.list_size(number)
            if size:
                ids = faiss.rev_swig_ptr(lists.get_ids(number), size)
                ids[:] = rows[ids]
