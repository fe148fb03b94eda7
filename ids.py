"""Identifiers: many strings in few bytes, with a way back from string to row.

A corpus of nine million documents as a Python list of str costs over half a gigabyte; here the ids are one Arrow array
(bytes and offsets), written as an Arrow file and memory-mapped when read.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import ipc

from .errors import DataError
from .files import atomic_path

__all__ = ["Ids", "ids_file"]

_PRIME = np.uint64(0x100000001B3)
_SEED = np.uint64(0xCBF29CE484222325)
_BLOCK = 1 << 20  # strings hashed at once, so that temporaries stay small beside the result


class Ids(Sequence[str]):
    """An immutable sequence of strings over an Arrow array.

    Args:
        values: strings, or an Arrow string array (not copied when it is one `large_string` chunk already, so that a
            memory-mapped one stays mapped).

    Raises:
        TypeError: a value that is no string (a missing one included).
    """

    def __init__(self, values: Iterable[str] | pa.Array | pa.ChunkedArray) -> None:
        self.array: pa.LargeStringArray = _string_array(values)
        self._table: tuple[np.ndarray, np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.array)

    @overload
    def __getitem__(self, index: int, /) -> str: ...
    @overload
    def __getitem__(self, index: slice, /) -> Ids: ...
    def __getitem__(self, index: int | slice, /) -> str | Ids:
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step == 1:
                return Ids(self.array.slice(start, max(stop - start, 0)))
            return Ids(self.array.take(pa.array(np.arange(start, stop, step, dtype=np.int64))))
        return self.array[index].as_py()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ids) and self.array.equals(other.array)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        shown = ", ".join(repr(self[row]) for row in range(min(3, len(self))))
        return f"Ids({len(self)}: {shown}{', …' if len(self) > 3 else ''})"

    def take(self, rows: np.ndarray) -> list[str]:
        """Return the ids at `rows` (int, every value in [0, len)); -1 is refused rather than read as the last."""
        rows = np.asarray(rows, dtype=np.int64).ravel()
        if len(rows) and rows.min() < 0:
            raise ValueError("row -1 pads short result lists; drop it before asking for its id")
        return self.array.take(pa.array(rows)).to_pylist()

    def rows(self, ids: Iterable[str] | pa.Array | Ids) -> np.ndarray:
        """Return the row of each id, -1 where there is none. Shape (len(ids),), int64. The first call builds a table
        of 16 bytes an id."""
        wanted = ids if isinstance(ids, Ids) else Ids(ids)
        result = np.full(len(wanted), -1, dtype=np.int64)
        if not len(self) or not len(wanted):
            return result
        hashes, order = self._lookup_table()
        query_hashes = hash_strings(wanted.array)
        left = np.searchsorted(hashes, query_hashes, side="left")
        pending = np.flatnonzero((left < len(hashes)) & (hashes[np.minimum(left, len(hashes) - 1)] == query_hashes))
        while len(pending):  # one pass, and another for each 64-bit collision
            rows = order[left[pending]]
            same = np.asarray(pc.equal(self.array.take(pa.array(rows)), wanted.array.take(pa.array(pending))))
            result[pending[same]] = rows[same]
            pending = pending[~same]
            left[pending] += 1
            inside = left[pending] < len(hashes)
            pending = pending[inside]
            pending = pending[hashes[left[pending]] == query_hashes[pending]]
        return result

    def first_duplicate(self) -> tuple[int, int] | None:
        """Return the rows (earlier, later) of some id that occurs twice, or None."""
        if len(self) < 2:
            return None
        hashes, order = self._lookup_table()
        suspects = np.flatnonzero(hashes[1:] == hashes[:-1])
        seen: dict[str, int] = {}
        for row in np.sort(np.unique(np.concatenate([order[suspects], order[suspects + 1]]))).tolist():
            name = self[row]
            if name in seen:
                return seen[name], row
            seen[name] = row
        return None

    def refuse_duplicates(self, what: str, *, path: str | Path | None = None, first_line: int | None = None) -> None:
        """Raise `DataError` naming the first id that occurs twice.

        Args:
            what: the noun for the message ("document").
            path: the file the ids come from.
            first_line: the line of the first id, where the file has one id a line; the error then has its line.
        """
        found = self.first_duplicate()
        if found is None:
            return
        earlier, later = found
        unit, first = ("entry", 1) if first_line is None else ("line", first_line)
        raise DataError(
            f"duplicate {what} id {self[later]!r}, first seen at {unit} {earlier + first}"
            f"{f', again at entry {later + first}' if first_line is None else ''}; ids must be unique: remove or "
            "rename one of the two",
            path=path,
            line=None if first_line is None else later + first,
        )

    def _lookup_table(self) -> tuple[np.ndarray, np.ndarray]:
        if self._table is None:
            hashes = hash_strings(self.array)
            order = np.argsort(hashes, kind="stable")
            hashes.sort()
            self._table = hashes, order
        return self._table

    def save(self, path: str | Path) -> None:
        """Write an Arrow IPC file with one column `id`, atomically."""
        table = pa.table({"id": self.array})
        with atomic_path(path) as temporary, ipc.new_file(str(temporary), table.schema) as writer:
            writer.write_table(table)

    @classmethod
    def load(cls, path: str | Path) -> Ids:
        """Memory-map what `save` wrote."""
        with pa.memory_map(str(path)) as source:
            return cls(ipc.open_file(source).read_all().column("id"))


def _string_array(values: Any) -> pa.LargeStringArray:
    """One `large_string` array of `values`, in place where they are one already."""
    if isinstance(values, pa.ChunkedArray):  # combine_chunks copies even a single chunk
        values = values.chunk(0) if values.num_chunks == 1 else values.combine_chunks()
    if not isinstance(values, pa.Array):
        values = pa.array(values, type=pa.large_string())
    if values.null_count or not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
        raise TypeError(f"ids must be strings, all of them, not {values.type} with {values.null_count} missing")
    return values.cast(pa.large_string())


def ids_file(folder: str | Path) -> Path:
    """Where an index folder keeps row → id."""
    return Path(folder) / "ids.arrow"


def hash_strings(array: pa.LargeStringArray) -> np.ndarray:
    """64-bit FNV-1a of every string's UTF-8 bytes. Shape (n,), uint64. Vectorised over strings, byte by byte."""
    result = np.empty(len(array), dtype=np.uint64)
    for start in range(0, len(array), _BLOCK):
        result[start : start + _BLOCK] = _hash_block(array.slice(start, _BLOCK))
    return result


def _hash_block(array: pa.LargeStringArray) -> np.ndarray:
    offsets = np.frombuffer(array.buffers()[1], dtype=np.int64)[array.offset : array.offset + len(array) + 1]
    data = np.frombuffer(array.buffers()[2] or b"", dtype=np.uint8)
    result = np.full(len(array), _SEED, dtype=np.uint64)
    lengths = np.diff(offsets)
    starts, alive = offsets[:-1], np.flatnonzero(lengths > 0)
    position = 0
    while len(alive):
        result[alive] = (result[alive] ^ data[starts[alive] + position]) * _PRIME
        position += 1
        alive = alive[lengths[alive] > position]
    return result
