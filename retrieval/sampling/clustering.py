"""Clustering queries by k-means over their vectors (step 0 of TAS-Balanced, Hofstätter et al. 2021, eq. 5)."""

from __future__ import annotations

import hashlib
import logging
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ... import extras, progress
from ...errors import ConfigError, DataError
from ...files import cache_dir
from ...ids import Ids
from .clusters import Clusters, read_clusters, write_clusters

__all__ = ["Clustering", "KMeans", "assign", "cluster_queries", "cluster_vectors", "k_means"]

_LOG = logging.getLogger(__name__)
_BLOCK = 8192
_FORMAT = 1


@dataclass(frozen=True)
class KMeans:
    """Settings of the k-means.

    Attributes:
        clusters: k.
        metric: "l2" minimises Σ_c Σ_{q∈c} ‖q − v_c‖² as the paper writes it; "inner-product" is spherical k-means
            (unit centroids, the nearest is the one of largest inner product), which the authors' code runs.
        iterations: of Lloyd's algorithm.
        seed: of the first centroids and of the sample.
        sample: k-means looks at no more than this many vectors a cluster, drawn at random; all are then assigned.
    """

    clusters: int
    metric: Literal["l2", "inner-product"] = "l2"
    iterations: int = 10
    seed: int = 42
    sample: int = 256


@dataclass(frozen=True, eq=False)
class Clustering:
    """What k-means found.

    Attributes:
        assignment: (n,) int32, the cluster of each vector.
        centroids: (k, dim) float32; of unit length for "inner-product".
        objective: by iteration: Σ squared distance for "l2", Σ inner product for "inner-product".
    """

    assignment: np.ndarray
    centroids: np.ndarray
    objective: tuple[float, ...]


def k_means(vectors: np.ndarray, settings: KMeans) -> Clustering:
    """Cluster vectors by FAISS k-means.

    Beside the vectors, which may be memory-mapped, it needs k × dim floats, a block of distances and, where there are
    more than `sample` vectors a cluster, that sample: 400,000 × 768 with k = 2000 are clustered in their own 1.2 GB.

    Args:
        vectors: (n, dim) float32, C-contiguous (else a copy is made). Not normalised here.

    Raises:
        ConfigError: fewer vectors than clusters.
        DataError: a vector that is not finite.
        MissingExtra: FAISS is not installed.
    """
    faiss: Any = extras.require("faiss", "cpu", "clustering queries")
    if vectors.ndim != 2 or len(vectors) < settings.clusters:
        raise ConfigError(
            f"{len(vectors)} queries cannot make {settings.clusters} clusters; lower sampling.clusters "
            "(the paper has 2000 for 400,000 queries)"
        )
    _refuse_not_finite(vectors)
    vectors = np.ascontiguousarray(vectors, dtype=np.float32)
    means = faiss.Kmeans(
        vectors.shape[1],
        settings.clusters,
        niter=settings.iterations,
        seed=settings.seed,
        spherical=settings.metric == "inner-product",
        max_points_per_centroid=settings.sample,
        min_points_per_centroid=1,  # sizes are reported; FAISS would print its advice
    )
    means.train(vectors)
    centroids = np.asarray(means.centroids, dtype=np.float32)
    return Clustering(assign(vectors, centroids, settings.metric), centroids, tuple(map(float, means.obj)))


def assign(vectors: np.ndarray, centroids: np.ndarray, metric: Literal["l2", "inner-product"]) -> np.ndarray:
    """The nearest centroid of each vector, in blocks.

    Args:
        vectors: (n, dim) float32.
        centroids: (k, dim) float32.

    Returns:
        (n,) int32.
    """
    faiss: Any = extras.require("faiss", "cpu", "clustering queries")
    index = (faiss.IndexFlatL2 if metric == "l2" else faiss.IndexFlatIP)(centroids.shape[1])
    index.add(np.ascontiguousarray(centroids))
    result = np.empty(len(vectors), dtype=np.int32)
    for start in range(0, len(vectors), _BLOCK):
        block = np.ascontiguousarray(vectors[start : start + _BLOCK], dtype=np.float32)
        result[start : start + len(block)] = index.search(block, 1)[1][:, 0]
    return result


def _refuse_not_finite(vectors: np.ndarray) -> None:
    for start in range(0, len(vectors), _BLOCK):
        bad = np.flatnonzero(~np.isfinite(vectors[start : start + _BLOCK]).all(axis=1))
        if len(bad):
            raise DataError(f"vector {start + int(bad[0])} has values that are not finite; look at its encoder")


def cluster_vectors(ids: Sequence[str] | Ids, vectors: np.ndarray, settings: KMeans) -> Clusters:
    """Cluster queries whose vectors are there already.

    Args:
        ids: (n,) query ids.
        vectors: (n, dim) float32.
    """
    names = ids if isinstance(ids, Ids) else Ids(ids)
    if len(names) != len(vectors):
        raise ConfigError(f"{len(names)} query ids and {len(vectors)} vectors do not belong together")
    found = Clusters.from_assignment(names, k_means(vectors, settings).assignment, settings.clusters)
    _LOG.info("k-means (%s): %s", settings.metric, found.sizes())
    return found


def cluster_queries(ids: Sequence[str] | Ids, texts: Sequence[str], encoder: Any, settings: KMeans) -> Clusters:
    """Encode queries and cluster them; equal input is clustered once and then read from the cache.

    What goes in is the encoder's query side (weights, prompt, length), the ids, the texts and the settings. An encoder
    that is no model of sentence-transformers cannot be told from another, so its clusters are not kept.

    Args:
        ids: (n,) query ids.
        texts: (n,) their texts.
        encoder: what `rtk.retrieval.encoders.as_encoder` takes; dense.
    """
    from ..encoders.adapters import as_encoder

    encoder = as_encoder(encoder)
    names = ids if isinstance(ids, Ids) else Ids(ids)
    key = _key(names, texts, encoder, settings)
    path = None if key is None else cache_dir() / "clusters" / f"{key}.txt.gz"
    if path is not None and path.is_file():
        _LOG.info("clusters of these queries by this encoder are there already: %s", path)
        return read_clusters(path, names)
    folder = Path(tempfile.mkdtemp(prefix="rtk-clusters-"))
    try:
        found = cluster_vectors(names, _encode(encoder, texts, folder / "vectors.npy"), settings)
    finally:
        shutil.rmtree(folder)
    if path is not None:
        write_clusters(found, path)
    return found


def _encode(encoder: Any, texts: Sequence[str], path: Path) -> np.ndarray:
    """(n, dim) float32 in a memory-mapped file: k-means and encoder need not fit into memory together."""
    result: np.ndarray | None = None
    with progress.task("encode queries", len(texts)) as advance:
        for start in range(0, len(texts), _BLOCK):
            block = np.asarray(encoder.encode_query(list(texts[start : start + _BLOCK])), dtype=np.float32)
            if block.ndim != 2:
                raise ConfigError("queries are clustered by one dense vector each; give a dense cluster encoder")
            if result is None:
                shape = (len(texts), block.shape[1])
                result = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
            result[start : start + len(block)] = block
            advance(len(block))
    if result is None:
        raise ConfigError("there are no queries to cluster")
    return result


def _key(ids: Ids, texts: Sequence[str], encoder: Any, settings: KMeans) -> str | None:
    """A digest of everything that decides the clusters; None for an encoder that cannot be known again."""
    from ..encoders.adapters import DenseAdapter
    from ..encoders.fingerprint import fingerprint
    from ..encoders.sides import side_modules

    if not isinstance(encoder, DenseAdapter):
        return None
    weights = fingerprint(side_modules(encoder.model, "query"))
    head = (
        f"clusters {_FORMAT}\n{settings}\n{weights}\n{encoder.query}\n{encoder.normalise} {encoder.model.truncate_dim}"
    )
    digest = hashlib.sha256(head.encode())
    for text in (text for pair in zip(ids, texts, strict=True) for text in pair):
        data = text.encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()[:32]
