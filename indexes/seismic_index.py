"""Approximate search of sparse vectors by Seismic (extra `seismic`; Bruch et al., SIGIR 2024).

Documents and terms go in and out by number, as text: rows are mapped to ids here, and no token is long enough to be cut
or to collide. Vocabularies above 65,535 terms take Seismic's type for large ones. It keeps weights in half precision,
so scores are those of rounded weights.
"""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix

from ..errors import BackendError, ConfigError, DataError
from ..extras import require
from ..files import fsync_dir
from ..ids import Ids, ids_file
from .base import Hits, Options
from .bounds import ABOVE_ZERO, COUNT, SHARE, Bounds, check_numbers
from .dense import Exclude, check_exclude, ordered_hits
from .manifest import Manifest
from .plan import BuildPlan
from .registry import check_names, check_threads
from .sparse import SparseShards, canonical

__all__ = ["SeismicIndex"]

DEFAULTS: dict[str, Any] = {
    "n_postings": 3000, "centroid_fraction": 0.2, "min_cluster_size": 2, "summary_energy": 0.5, "max_fraction": 6.0,
}  # fmt: skip
OPTIONS: dict[str, Any] = {"query_cut": 10, "heap_factor": 0.8}
_BOUNDS = {
    "n_postings": COUNT, "centroid_fraction": SHARE, "min_cluster_size": COUNT, "summary_energy": SHARE,
    "max_fraction": ABOVE_ZERO, "query_cut": COUNT, "heap_factor": Bounds(0),
}  # fmt: skip
_NARROW = 65_535
_LARGEST = 65_504.0  # of half precision
_SUFFIX = ".index.seismic"


class SeismicIndex:
    """An index of Seismic's.

    Args:
        engine: Seismic's index, None without documents that have terms.
        ids: row → document id.
        dimension: terms in the vocabulary.
        options: `query_cut` (strongest terms of a query that are looked at) and `heap_factor`.
        threads: queries searched at the same time.
        folder: where it came from.
    """

    def __init__(
        self,
        engine: Any,
        ids: Ids,
        dimension: int,
        *,
        options: Mapping[str, Any] = OPTIONS,
        threads: int = 1,
        folder: Path | None = None,
    ) -> None:
        self.engine, self.ids, self.dimension, self.folder = engine, ids, dimension, folder
        self.options, self.threads = dict(options), threads
        self._text = require("seismic", "seismic", "the seismic back-end").get_seismic_string()

    def __len__(self) -> int:
        return len(self.ids)

    def search(
        self, queries: csr_matrix, k: int, /, *, options: Options | None = None, exclude: Exclude | None = None
    ) -> Hits:
        """See `Index.search`. Queries are CSR (n, vocabulary); options: `query_cut`, `heap_factor`."""
        what = "search options of the seismic back-end"
        check_names(options or {}, tuple(OPTIONS), what)
        chosen = check_numbers({**self.options, **(options or {})}, _BOUNDS, what)
        if k < 0:
            raise ConfigError(f"k is {k}, expected at least 0")
        checked = canonical(queries, self.dimension, "queries")
        count = len(checked.indptr) - 1
        check_exclude(exclude, count)
        fetch = min(k + (0 if exclude is None else max(map(len, exclude), default=0)), len(self))
        asked = np.flatnonzero(np.diff(checked.indptr)).tolist()
        hits = Hits.empty(count, fetch)
        if asked and fetch and self.engine is not None:
            self._fill(hits, checked, asked, chosen)
        for number, left_out in enumerate(exclude or ()):
            hits.rows[number, np.isin(hits.rows[number], left_out)] = -1
        return ordered_hits(hits.rows, hits.scores, k)

    def _fill(self, hits: Hits, queries: csr_matrix, asked: list[int], options: Mapping[str, Any]) -> None:
        """Search the queries that have terms; answers are told apart by the query's number in them, not by order."""
        parts = [slice(queries.indptr[number], queries.indptr[number + 1]) for number in asked]
        found = self.engine.batch_search(
            np.asarray(asked).astype(self._text),
            [queries.indices[part].astype(self._text) for part in parts],
            [queries.data[part] for part in parts],
            k=hits.rows.shape[1],
            **options,
            num_threads=self.threads,
        )
        for answers in found:
            for place, (query, score, row) in enumerate(answer for answer in answers if answer[1] > 0):
                hits.rows[int(query), place], hits.scores[int(query), place] = int(row), score


def read_settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults with `given` over them, checked: Seismic's `n_postings`, `centroid_fraction`, `min_cluster_size`,
    `summary_energy` and `max_fraction`."""
    what = "settings of the seismic back-end"
    check_names(given, tuple(DEFAULTS), what)
    return check_numbers({**DEFAULTS, **given}, _BOUNDS, what)


def build_sparse(folder: Path, vectors: SparseShards, ids: Ids, plan: BuildPlan) -> dict[str, Any]:
    """Write INDEX/seismic."""
    settings = read_settings(plan.settings)
    engine = require("seismic", "seismic", "the seismic back-end")
    target = folder / "seismic"
    target.mkdir(exist_ok=True)
    dataset = (engine.SeismicDataset if _narrow(vectors.dimension) else engine.SeismicDatasetLV)(dim=vectors.dimension)
    for first, part in vectors.blocks():
        if part.nnz and part.data.max() > _LARGEST:
            raise DataError(
                f"weights above {_LARGEST:.0f}, which Seismic's half precision cannot hold; scale them down"
            )
        names = [str(row) for row in range(first, first + len(part.indptr) - 1)]
        dataset.add_documents_by_id(names, part.indices.astype(np.int64), part.data, part.indptr.astype(np.int64))
    if vectors.postings:
        kind = engine.SeismicIndex if _narrow(vectors.dimension) else engine.SeismicIndexLV
        with _stdout_to_stderr(), _failures(f"building {target}"):
            kind.build_from_dataset(dataset, num_threads=1, **settings).save(str(target / "new"))
        os.replace(target / f"new{_SUFFIX}", target / f"whole{_SUFFIX}")
        fsync_dir(target)
    versions = {"pyseismic-lsr": importlib.metadata.version("pyseismic-lsr")}
    return {"settings": {**settings, **OPTIONS}, "versions": versions, "keep_vectors": False}


def _narrow(dimension: int) -> bool:
    return dimension <= _NARROW


def open_folder(folder: Path, manifest: Manifest, settings: Mapping[str, Any]) -> SeismicIndex:
    """Read an index into memory. Settings: `threads` (default 1)."""
    check_names(settings, ("threads",), "settings for opening a seismic index")
    threads = check_threads(settings)
    engine = require("seismic", "seismic", "the seismic back-end")
    dimension = manifest.dimension or 0
    file, loaded = folder / "seismic" / f"whole{_SUFFIX}", None
    if file.exists():
        kind = engine.SeismicIndex if _narrow(dimension) else engine.SeismicIndexLV
        with _stdout_to_stderr(), _failures(f"opening {file}"):
            loaded = kind.load(str(file))
    options = {name: manifest.settings[name] for name in OPTIONS}
    return SeismicIndex(loaded, Ids.load(ids_file(folder)), dimension, options=options, threads=threads, folder=folder)


@contextmanager
def _failures(doing: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        raise BackendError(f"Seismic failed {doing}: {error}") from error


@contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """Seismic writes its progress to file descriptor 1, which belongs to the command's own output."""
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
