"""What the dense engines share: checking queries and exclusions, and ordering hits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..errors import ConfigError, DataError
from .base import Hits, pad_hits

__all__ = ["Exclude", "check_exclude", "check_queries", "exclusion_pairs", "ordered_hits"]

Exclude = Sequence[Sequence[int] | np.ndarray]


def check_queries(queries: np.ndarray, dimension: int | None, what: str = "queries") -> np.ndarray:
    """Return vectors as C-contiguous float32 (n, dim).

    Raises:
        ConfigError: another shape.
        DataError: a vector that is not finite.
    """
    checked = np.ascontiguousarray(queries, dtype=np.float32)
    if checked.ndim != 2 or (dimension is not None and checked.shape[1] != dimension):
        raise ConfigError(f"{what} have shape {np.shape(queries)}, expected (n, {dimension or 'dimension'})")
    finite = np.isfinite(checked).all(axis=1)
    if not finite.all():
        raise DataError(f"vector {int(np.argmin(finite))} of the {what} has values that are not finite")
    return checked


def check_exclude(exclude: Exclude | None, queries: int) -> Exclude | None:
    """Return `exclude`, which must have one list for each query."""
    if exclude is not None and len(exclude) != queries:
        raise ConfigError(f"{len(exclude)} lists of excluded rows for {queries} queries; there must be one for each")
    return exclude


def exclusion_pairs(exclude: Exclude | None, count: int) -> tuple[np.ndarray, np.ndarray] | None:
    """The excluded (query, row) pairs, each (pairs,) int64, sorted by row; rows outside [0, count) are dropped."""
    if exclude is None:
        return None
    lengths = [len(rows) for rows in exclude]
    rows = np.concatenate([np.asarray(rows, dtype=np.int64) for rows in exclude]) if sum(lengths) else np.zeros(0, int)
    queries = np.repeat(np.arange(len(lengths), dtype=np.int64), lengths)
    inside = (rows >= 0) & (rows < count)
    queries, rows = queries[inside], rows[inside]
    order = np.argsort(rows, kind="stable")
    return queries[order], rows[order].astype(np.int64)


def ordered_hits(rows: np.ndarray, scores: np.ndarray, k: int) -> Hits:
    """Sort each list by (-score, row), entries of row -1 last, and return exactly k columns.

    Args:
        rows: (n, m) int64, -1 where the engine found nothing.
        scores: (n, m) float32.
        k: list length.
    """
    scores = np.where(rows < 0, np.float32(-np.inf), scores)
    order = np.lexsort((rows, -scores), axis=1)
    return pad_hits(np.take_along_axis(rows, order, 1), np.take_along_axis(scores, order, 1), k)
