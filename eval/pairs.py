"""Which entries of a run are listed for their query: judged documents, excluded documents."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..ids import Ids

__all__ = ["PairTable", "places_of"]


class PairTable:
    """A set of (query number, document id) pairs that a run's entries are looked up in, without a string per entry.

    Args:
        vocabulary: the run's distinct document ids.
        queries: (pairs,) int64 query numbers.
        documents: (pairs,) ids; no pair occurs twice.
    """

    def __init__(self, vocabulary: Ids, queries: np.ndarray, documents: pa.Array) -> None:
        encoded = pc.dictionary_encode(documents.cast(pa.large_string()))
        self._width = max(len(encoded.dictionary), 1)
        self._of_code = places_of(vocabulary, encoded.dictionary)
        keys = queries * self._width + np.asarray(encoded.indices, dtype=np.int64)
        self._order = np.argsort(keys, kind="stable")
        self._keys = keys[self._order]

    def find(self, queries: np.ndarray, codes: np.ndarray) -> np.ndarray:
        """The number of each entry's pair, -1 where it is in none. (entries,) int64.

        Args:
            queries: (entries,) query numbers.
            codes: (entries,) codes into the vocabulary.
        """
        found = np.full(len(codes), -1, dtype=np.int64)
        if not len(self._keys):
            return found
        places = self._of_code[codes]
        candidates = np.flatnonzero(places >= 0)
        keys = queries[candidates] * self._width + places[candidates]
        at = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        hit = self._keys[at] == keys
        found[candidates[hit]] = self._order[at[hit]]
        return found


def places_of(vocabulary: Ids, wanted: pa.Array) -> np.ndarray:
    """For every id of `vocabulary` its place among the distinct ids `wanted`, -1 where it is none. (n,) int64."""
    places = pc.index_in(vocabulary.array, value_set=wanted)
    return np.asarray(pc.fill_null(places, -1), dtype=np.int64)
