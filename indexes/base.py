"""What an index is: the protocol, what a search returns, and how short lists are padded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

__all__ = ["Hits", "Index", "Options", "pad_hits"]

Options = Mapping[str, Any]
"""Search-time settings of an engine, by the engine's own names (`nprobe`, `efSearch`, …)."""


@dataclass(frozen=True)
class Hits:
    """The k best rows for each of n queries, best first.

    Attributes:
        rows: (n, k) int64, index rows; -1 pads short lists.
        scores: (n, k) float32, larger is better; -inf pads short lists.
    """

    rows: np.ndarray
    scores: np.ndarray

    def __post_init__(self) -> None:
        if self.rows.shape != self.scores.shape or self.rows.ndim != 2:
            raise ValueError(f"rows {self.rows.shape} and scores {self.scores.shape} must be the same (n, k)")

    def __len__(self) -> int:
        return len(self.rows)

    @classmethod
    def empty(cls, queries: int, k: int) -> Hits:
        return cls(np.full((queries, k), -1, dtype=np.int64), np.full((queries, k), -np.inf, dtype=np.float32))


@runtime_checkable
class Index(Protocol):
    """Vectors or terms in, hits out. Anything with these two members is an index."""

    @property
    def ids(self) -> Sequence[str]:
        """Row → document id."""
        ...

    def search(
        self,
        queries: Any,
        k: int,
        /,
        *,
        options: Options | None = None,
        exclude: Sequence[Sequence[int] | np.ndarray] | None = None,
    ) -> Hits:
        """Return the k best rows for each query.

        Args:
            queries: float32 (n, dim) for a dense index, texts for a lexical one, CSR (n, vocabulary) for a sparse one.
            k: list length; larger than the index pads.
            options: search-time settings by the engine's own names; unknown ones raise `ConfigError`.
            exclude: for each query the rows that must not be returned; the list is still k long where it can be.
        """
        ...


def pad_hits(rows: np.ndarray, scores: np.ndarray, k: int) -> Hits:
    """Return `Hits` of exactly k columns from (n, m) arrays, m of any size."""
    width = min(k, rows.shape[1])
    hits = Hits.empty(len(rows), k)
    hits.rows[:, :width] = rows[:, :width]
    hits.scores[:, :width] = scores[:, :width]
    return hits
