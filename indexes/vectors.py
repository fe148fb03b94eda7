"""Vectors on disk: memory-mapped .npy shards, written atomically, read as float32.

bfloat16 has no numpy dtype: those shards hold the upper half of each float32 as uint16, and the manifest says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import numpy as np

from ..errors import DataError
from ..files import atomic_path

__all__ = [
    "DTYPES",
    "Dtype",
    "Shard",
    "ShardWriter",
    "VectorShards",
    "Writer",
    "fixed_shards",
    "normalised",
    "to_float32",
]

Dtype = Literal["float32", "float16", "bfloat16"]
DTYPES: dict[str, np.dtype] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(np.uint16),
}


@dataclass(frozen=True)
class Shard:
    """Rows start:stop of the index, kept in one file."""

    number: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def name(self) -> str:
        """The file's name without its suffix."""
        return f"{self.number:05d}"


def fixed_shards(count: int, size: int) -> list[Shard]:
    """Cut `count` rows into shards of `size`. No rows still make one (empty) shard, which records the dimension."""
    return [
        Shard(number, start, min(start + size, count)) for number, start in enumerate(range(0, max(count, 1), size))
    ]


@dataclass(frozen=True)
class Writer:
    """Where the shards of an index go, whatever their vectors are like. Picklable: hand it to other processes.

    Attributes:
        folder: INDEX/vectors.
    """

    suffix: ClassVar[str]
    folder: Path

    def path(self, shard: Shard) -> Path:
        return self.folder / f"{shard.name}{self.suffix}"

    def missing(self, shards: Sequence[Shard]) -> list[Shard]:
        return [shard for shard in shards if not self.path(shard).exists()]

    def write(self, shard: Shard, vectors: Any) -> None:
        """Store the vectors of one shard atomically."""
        raise NotImplementedError


@dataclass(frozen=True)
class ShardWriter(Writer):
    """Writes dense shards into a folder.

    Attributes:
        dtype: how values are stored.
        normalise: scale every row to unit length first (cosine similarity); zero rows stay zero.
    """

    suffix: ClassVar[str] = ".npy"
    dtype: Dtype = "float32"
    normalise: bool = False

    def write(self, shard: Shard, vectors: np.ndarray) -> None:
        """Store the vectors of one shard: to a temporary name, fsync, rename.

        Args:
            shard: which rows.
            vectors: (rows, dim), any float dtype.

        Raises:
            DataError: another number of rows than the shard has, or values that are not finite.
        """
        vectors = np.asarray(vectors, dtype=np.float32)
        if vectors.ndim != 2 or len(vectors) != len(shard):
            raise DataError(
                f"rows {shard.start} to {shard.stop} were encoded as an array of shape {vectors.shape}; expected "
                f"({len(shard)}, dimension), one vector for each document",
                path=self.path(shard),
            )
        finite = np.isfinite(vectors).all(axis=1)
        if not finite.all():
            raise DataError(
                f"the vector of row {shard.start + int(np.argmin(finite))} has values that are not finite; "
                "check the encoder (half precision overflows above 65504) and that document",
                path=self.path(shard),
            )
        save_array(self.path(shard), encode_dtype(normalised(vectors) if self.normalise else vectors, self.dtype))


def save_array(path: Path, array: np.ndarray) -> None:
    """Write a .npy file atomically. A full disk raises OSError with its errno, which numpy.save may lose."""
    array = np.ascontiguousarray(array)
    with atomic_path(path) as temporary, open(temporary, "wb") as handle:
        np.lib.format.write_array_header_1_0(handle, np.lib.format.header_data_from_array_1_0(array))
        handle.write(array.reshape(-1).view(np.uint8).data)


def normalised(vectors: np.ndarray) -> np.ndarray:
    """Rows scaled to unit length in float32; zero rows stay zero."""
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    return (vectors / np.where(lengths > 0, lengths, 1.0)).astype(np.float32)


def encode_dtype(vectors: np.ndarray, dtype: Dtype) -> np.ndarray:
    """float32 → stored values. bfloat16 rounds to nearest, ties to even.

    Raises:
        DataError: a value does not fit float16.
    """
    if dtype == "bfloat16":
        bits = np.ascontiguousarray(vectors, dtype=np.float32).view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    with np.errstate(over="ignore"):
        stored = vectors.astype(DTYPES[dtype])
    if dtype == "float16" and not np.isfinite(stored).all():
        raise DataError("vectors hold values above 65504, which float16 cannot store; use bfloat16 or float32")
    return stored


def to_float32(stored: np.ndarray) -> np.ndarray:
    """Stored values → float32; uint16 is read as bfloat16. float32 is returned as it is, without a copy."""
    if stored.dtype == np.uint16:
        return (stored.astype(np.uint32) << 16).view(np.float32)
    return stored.astype(np.float32, copy=False)


class VectorShards:
    """Rows of one dimension over a list of arrays, memory-mapped or not.

    Args:
        arrays: (rows, dim) arrays of one dtype of `DTYPES`, in row order; at least one.
        dtype: the name of that dtype.

    Raises:
        DataError: the arrays differ in dimension or dtype.
    """

    def __init__(self, arrays: Sequence[np.ndarray], dtype: Dtype = "float32") -> None:
        dimensions = {array.shape[1] for array in arrays}
        if len(dimensions) != 1:
            raise DataError(f"vector shards differ in dimension: {sorted(dimensions)}; all must come from one encoder")
        wrong = [str(array.dtype) for array in arrays if array.dtype != DTYPES[dtype]]
        if wrong:
            raise DataError(f"vector shards are stored as {wrong[0]}, expected {dtype}")
        self.arrays = list(arrays)
        self.dtype: Dtype = dtype
        self.dimension: int = dimensions.pop()
        self.starts = np.concatenate([[0], np.cumsum([len(array) for array in arrays])]).astype(np.int64)

    @classmethod
    def open(cls, folder: str | Path, dtype: Dtype = "float32") -> VectorShards:
        """Memory-map INDEX/vectors. Pages are private copies-on-write, which no one writes, so torch takes them too."""
        paths = sorted(Path(folder).glob("[0-9]*.npy"))
        if not paths:
            raise DataError("no vector shards here", path=folder)
        try:
            return cls([map_array(path) for path in paths], dtype)
        except DataError as error:
            raise DataError(str(error), path=folder) from error

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays)

    def rows(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """The vectors at `rows` (each in [0, len)) as float32 (len(rows), dim), in that order."""
        wanted = np.asarray(rows, dtype=np.int64).ravel()
        if len(wanted) and (wanted.min() < 0 or wanted.max() >= len(self)):
            raise ValueError(f"rows must lie in [0, {len(self)}); -1 pads short lists, drop it first")
        result = np.empty((len(wanted), self.dimension), dtype=np.float32)
        owner = np.searchsorted(self.starts, wanted, side="right") - 1
        for number in np.unique(owner):
            mine = owner == number
            result[mine] = to_float32(self.arrays[number][wanted[mine] - self.starts[number]])
        return result

    def blocks(self, size: int) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (first row, float32 (≤ size, dim)) over all rows in order; a block never crosses a shard."""
        for start, stored in self.stored_blocks(size):
            yield start, to_float32(stored)

    def stored_blocks(self, size: int) -> Iterator[tuple[int, np.ndarray]]:
        """As `blocks`, in the stored dtype and without copies."""
        for first, array in zip(self.starts[:-1].tolist(), self.arrays, strict=True):
            for start in range(0, len(array), size):
                yield first + start, array[start : start + size]


def map_array(path: Path) -> np.ndarray:
    """Memory-map a .npy file copy-on-write (an empty one is read, since nothing can be mapped)."""
    try:
        return cast(np.ndarray, np.load(path, mmap_mode="c", allow_pickle=False))
    except ValueError as error:
        try:
            array = np.load(path, allow_pickle=False)
        except ValueError:
            raise DataError(f"not a readable .npy file: {error}", path=path) from error
        if array.size:
            raise DataError(f"cannot be memory-mapped: {error}", path=path) from error
        return array
