"""How sparse an index and its queries are: active dimensions, and the FLOPS metric of their product."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.sparse import csr_matrix

from ..errors import ConfigError
from .sparse import SparseShards
from .vectors import map_array, save_array

__all__ = ["Activity", "activity", "flops_metric", "read_activity", "write_activity"]

_FILE = "frequencies.npy"


@dataclass(frozen=True)
class Activity:
    """Which terms are active in some vectors.

    Attributes:
        frequency: (vocabulary,) int64, vectors in which each term has a weight.
        count: vectors.
    """

    frequency: np.ndarray
    count: int

    @property
    def mean(self) -> float:
        """Active dimensions of a vector, on average."""
        return float(self.frequency.sum()) / max(self.count, 1)

    def __add__(self, other: Activity) -> Activity:
        return Activity(self.frequency + other.frequency, self.count + other.count)


def activity(vectors: csr_matrix) -> Activity:
    """Count the active terms of CSR vectors (n, vocabulary); stored zeros do not count."""
    shape: tuple[int, int] = vectors.shape  # pyright: ignore[reportAssignmentType]
    active = vectors.indices[vectors.data > 0]
    return Activity(np.bincount(active, minlength=shape[1]).astype(np.int64), shape[0])


def flops_metric(queries: Activity, documents: Activity) -> float:
    """Products that one query and one document meet in, on average: the sum over terms of p_query · p_document, where p
    is the share of vectors with the term (Formal et al., SIGIR 2021). Weights do not matter.

    Raises:
        ConfigError: the vocabularies differ.
    """
    if len(queries.frequency) != len(documents.frequency):
        raise ConfigError(
            f"queries have {len(queries.frequency)} terms and documents {len(documents.frequency)}; they come from "
            "different encoders"
        )
    product = queries.frequency.astype(np.float64) @ documents.frequency.astype(np.float64)
    return float(product) / max(queries.count, 1) / max(documents.count, 1)


def write_activity(folder: Path, shards: SparseShards) -> None:
    """Write the documents' frequencies beside any sparse engine's files."""
    total = Activity(np.zeros(shards.dimension, dtype=np.int64), 0)
    for _, part in shards.blocks():
        total += activity(part)
    save_array(folder / _FILE, total.frequency)


def read_activity(folder: str | Path, count: int) -> Activity:
    """What `write_activity` wrote, for an index of `count` documents."""
    return Activity(map_array(Path(folder) / _FILE), count)
