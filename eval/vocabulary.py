"""Distinct document ids and integer codes, gathered from a stream of batches."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..ids import Ids

__all__ = ["VocabularyBuilder", "join_parts"]

_UNIFY_AT = 1 << 21  # distinct ids that may wait before they are merged


class VocabularyBuilder:
    """Gives every added id a code (its place among the distinct ids, by first appearance) and keeps 4 bytes an entry.

    Each batch is dictionary-encoded by Arrow; the batches' dictionaries are merged whenever they outgrow the merged
    one, so the work stays proportional to the input and the ids are held about twice at most.
    """

    def __init__(self) -> None:
        self._known: pa.Array = pa.array([], type=pa.large_string())
        self._codes: list[np.ndarray] = []
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
        self._codes.extend(np.asarray(chunk.indices, dtype=np.int32) for chunk in merged.chunks[1:])
        self._waiting, self._waiting_ids = [], 0

    def finish(self) -> tuple[Ids, np.ndarray]:
        """Return the distinct ids and the (entries,) int32 codes. The builder is spent."""
        self._unify()
        return Ids(self._known), join_parts(self._codes, np.dtype(np.int32))


def join_parts(parts: list[np.ndarray], dtype: np.dtype) -> np.ndarray:
    """Concatenate and empty `parts`, freeing each as soon as it is copied: the peak is one array, not two."""
    result = np.empty(sum(len(part) for part in parts), dtype=dtype)
    stop = len(result)
    while parts:
        part = parts.pop()
        result[stop - len(part) : stop] = part
        stop -= len(part)
    return result
