"""Sparse vectors: checking them, and their CSR shards on disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
from scipy.sparse import csr_matrix, issparse, vstack

from ..errors import ConfigError, DataError
from .npz import map_csr, save_csr
from .vectors import Shard, Writer

__all__ = ["SparseShardWriter", "SparseShards", "canonical"]


def canonical(vectors: Any, vocabulary: int | None, what: str, *, first: int = 0) -> csr_matrix:
    """Sparse vectors as CSR float32 with sorted terms, no duplicates and no stored zeros; the argument is not
    changed, and is returned as it is where it fits.

    Args:
        vectors: a scipy sparse matrix or array (n, vocabulary).
        vocabulary: its expected width, None for any.
        what: for messages ("queries").
        first: the row of the first vector, for messages.

    Raises:
        ConfigError: not a sparse matrix, or of another width.
        DataError: a weight that is negative or not finite, or of a term outside the vocabulary.
    """
    if not issparse(vectors) or vectors.ndim != 2:
        shown = type(vectors).__name__
        raise ConfigError(f"{what} of a sparse index are scipy CSR matrices (n, vocabulary), not {shown}")
    if vocabulary is not None and vectors.shape[1] != vocabulary:
        raise ConfigError(
            f"{what} have {vectors.shape[1]} terms, but the index's vocabulary has {vocabulary}: they come from "
            "another encoder or tokenizer"
        )
    matrix = csr_matrix(vectors, dtype=np.float32)
    _refuse_bad(matrix, what, first)
    if matrix.has_canonical_format and matrix.data.all():
        return matrix
    matrix = matrix.copy()
    matrix.sum_duplicates()
    _refuse_bad(matrix, what, first)  # two weights that are finite may add up to one that is not
    matrix.eliminate_zeros()
    return matrix


def _refuse_bad(matrix: csr_matrix, what: str, first: int) -> None:
    """Refuse terms outside the vocabulary, and weights that are negative or not finite."""
    weights, terms, width = matrix.data, matrix.indices, int(cast(tuple[int, int], matrix.shape)[1])
    if not len(weights):
        return
    numbers = terms.view(f"u{terms.itemsize}")  # a negative number is a large one: one comparison finds both
    if numbers.max() >= width:
        row, at = _place(matrix, numbers >= width)
        raise DataError(
            f"vector {first + row} of the {what} has a weight for term {int(terms[at])}; terms must be numbers from 0 "
            f"to {width - 1}, as the vocabulary has {width}"
        )
    if not (weights.min() >= 0 and weights.max() < np.inf):  # the minimum is NaN where a weight is
        row, at = _place(matrix, ~((weights >= 0) & (weights < np.inf)))
        raise DataError(
            f"vector {first + row} of the {what} has the weight {weights[at]} for term {int(terms[at])}; weights must "
            "be finite and not negative, added up where a term stands twice"
        )


def _place(matrix: csr_matrix, bad: np.ndarray) -> tuple[int, int]:
    """The row of the first bad entry, and where it is stored."""
    at = int(np.argmax(bad))
    return int(np.searchsorted(matrix.indptr, at, side="right")) - 1, at


@dataclass(frozen=True)
class SparseShardWriter(Writer):
    """Writes CSR shards into a folder. Picklable: hand it to other processes."""

    suffix: ClassVar[str] = ".npz"

    def write(self, shard: Shard, vectors: Any) -> None:
        """Store the vectors of one shard: to a temporary name, fsync, rename.

        Args:
            shard: which rows.
            vectors: a scipy sparse matrix (rows, vocabulary) of any float dtype.

        Raises:
            DataError: another number of rows than the shard has; weights that are negative or not finite.
        """
        matrix = canonical(vectors, None, "documents", first=shard.start)
        if len(matrix.indptr) - 1 != len(shard):
            raise DataError(
                f"rows {shard.start} to {shard.stop} were encoded as a matrix of shape {matrix.shape}; expected "
                f"({len(shard)}, vocabulary), one vector for each document",
                path=self.path(shard),
            )
        save_csr(self.path(shard), matrix)


class SparseShards:
    """Rows of one vocabulary over a list of CSR matrices, memory-mapped or not.

    Args:
        parts: canonical CSR float32 matrices, in row order; at least one.

    Raises:
        DataError: they differ in width.
    """

    def __init__(self, parts: Sequence[csr_matrix]) -> None:
        widths = {int(cast(tuple[int, int], part.shape)[1]) for part in parts}
        if len(widths) != 1:
            raise DataError(f"shards differ in vocabulary: {sorted(widths)}; all must come from one encoder")
        self.parts = list(parts)
        self.dimension: int = widths.pop()
        self.starts = np.concatenate([[0], np.cumsum([len(part.indptr) - 1 for part in parts])]).astype(np.int64)

    @classmethod
    def open(cls, folder: str | Path) -> SparseShards:
        """Memory-map INDEX/vectors."""
        paths = sorted(Path(folder).glob("[0-9]*.npz"))
        if not paths:
            raise DataError("no sparse vector shards here", path=folder)
        try:
            return cls([map_csr(path) for path in paths])
        except DataError as error:
            raise DataError(str(error), path=folder) from error

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def postings(self) -> int:
        """How many weights are stored."""
        return sum(len(part.data) for part in self.parts)

    @property
    def empty(self) -> int:
        """How many vectors have no weight."""
        return sum(int((np.diff(part.indptr) == 0).sum()) for part in self.parts)

    def rows(self, rows: Sequence[int] | np.ndarray) -> csr_matrix:
        """The vectors at `rows` (each in [0, len)) as (len(rows), vocabulary), in that order."""
        wanted = np.asarray(rows, dtype=np.int64).ravel()
        if len(wanted) and (wanted.min() < 0 or wanted.max() >= len(self)):
            raise ValueError(f"rows must lie in [0, {len(self)}); -1 pads short lists, drop it first")
        owner = np.searchsorted(self.starts, wanted, side="right") - 1
        order = np.argsort(owner, kind="stable")
        numbers = np.unique(owner)
        found = [self.parts[number][wanted[owner == number] - self.starts[number]] for number in numbers]
        if not found:
            return csr_matrix((0, self.dimension), dtype=np.float32)
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        return csr_matrix(csr_matrix(vstack(found, dtype=np.float32))[back])

    def blocks(self) -> Iterator[tuple[int, csr_matrix]]:
        """(first row, CSR) of every shard, in order."""
        yield from zip(self.starts[:-1].tolist(), self.parts, strict=True)
