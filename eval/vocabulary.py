"""Distinct document ids and integer codes, gathered from a stream of batches."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..ids import Ids

__all__ = ["Column", "VocabularyBuilder", "join_parts"]

_UNIFY_AT = 1 << 21  # distinct ids that may wait before they are merged


class VocabularyBuilder:
    """Gives every added id a code (its place among the distinct ids, by first appearance) and keeps 4 bytes an entry.

    Each batch is dictionary-encoded by Arrow; the batches' dictionaries are merged whenever they outgrow the merged
    one, so the work stays proportional to the input and the ids are held about twice at most.

    Args:
        size: how many entries there will be, when that is known.
    """

    def __init__(self, size: int | None = None) -> None:
        self._known: pa.Array = pa.array([], type=pa.large_string())
        self._codes = Column(np.dtype(np.int32), size)
        self._waiting: list[pa.DictionaryArray] = []
        self._waiting_ids = 0

    def add(self, ids: pa.Array) -> None:
        """Take in the ids of further entries, in order. Dictionary-encoded arrays are welcome."""
        if not isinstance(ids, pa.DictionaryArray):
            ids = pc.dictionary_encode(ids)
        if ids.dictionary.type != pa.large_string() or ids.indices.type != pa.int32():
            ids = pa.DictionaryArray.from_arrays(ids.indices.cast(pa.int32()), ids.dictionary.cast(pa.large_string()))
        self._waiting.append(ids)
        self._waiting_ids += len(ids.dictionary)
        if self._waiting_ids > max(_UNIFY_AT, len(self._known)):
            self._unify()

    def _unify(self) -> None:
        if not self._waiting:
            return
        known = pa.DictionaryArray.from_arrays(pa.array([], type=pa.int32()), self._known)
        merged = pa.chunked_array([known, *self._waiting]).unify_dictionaries()
        self._known = merged.chunk(0).dictionary
        for chunk in merged.chunks[1:]:
            self._codes.add(np.asarray(chunk.indices))
        self._waiting, self._waiting_ids = [], 0

    def finish(self) -> tuple[Ids, np.ndarray]:
        """Return the distinct ids and the (entries,) int32 codes. The builder is spent."""
        self._unify()
        return Ids(self._known), self._codes.finish()


class Column:
    """Values gathered batch by batch: straight into place when their number is known, else copied once at the end.

    Args:
        dtype: of the values; None takes the first batch's.
        size: how many there will be, when that is known.
    """

    def __init__(self, dtype: np.dtype | None = None, size: int | None = None) -> None:
        self._dtype, self._size = dtype, size
        self._parts: list[np.ndarray] = []
        self._whole: np.ndarray | None = None
        self._filled = 0

    def add(self, values: np.ndarray) -> None:
        """Take in the next values."""
        dtype = self._dtype or values.dtype
        if self._size is None:
            self._parts.append(np.array(values, dtype=dtype))  # a copy: views would keep the reader's buffers alive
            return
        if self._whole is None:
            self._whole = np.empty(self._size, dtype=dtype)
        self._whole[self._filled : self._filled + len(values)] = values
        self._filled += len(values)

    def finish(self) -> np.ndarray:
        """Return all values; parts are freed as soon as they are copied. The column is spent."""
        if self._whole is not None:
            return self._whole[: self._filled]
        return join_parts(self._parts, self._dtype or (self._parts[0].dtype if self._parts else np.dtype(np.float32)))


def join_parts(parts: list[np.ndarray], dtype: np.dtype) -> np.ndarray:
    """Concatenate and empty `parts`, freeing each as soon as it is copied: the peak is one array, not two."""
    result = np.empty(sum(len(part) for part in parts), dtype=dtype)
    stop = len(result)
    while parts:
        part = parts.pop()
        result[stop - len(part) : stop] = part
        stop -= len(part)
    return result
