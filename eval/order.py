"""The order of a run's lists, which is trec_eval's: float32 score descending, then document id descending by bytes."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..ids import Ids

__all__ = ["refuse_twice", "sort_entries"]


def sort_entries(
    offsets: np.ndarray, vocabulary: Ids, codes: np.ndarray, scores: np.ndarray, *, lists: np.ndarray | None = None
) -> np.ndarray | None:
    """Return the permutation that brings some queries' entries into order, or None when they are in order.

    Args:
        offsets: (queries + 1,) bounds of each query's entries, from 0.
        vocabulary: the ids that `codes` point to.
        codes: (entries,) int32.
        scores: (entries,) float32.
        lists: (entries,) list numbers, sorted within the query before scores.
    """
    queries = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    together = queries[1:] == queries[:-1]
    in_order = together.copy()
    if lists is not None:
        in_order &= lists[1:] == lists[:-1]
        rising = not (together & (lists[1:] < lists[:-1])).any()
    else:
        rising = True
    settled = rising and not (in_order & (scores[1:] > scores[:-1])).any()
    keys = [-scores, queries] if lists is None else [-scores, lists, queries]
    order = np.arange(len(scores)) if settled else np.lexsort(keys)
    tied = _tied(order, keys)
    if tied.any():  # tied entries stand together: each takes one of the places that its group holds
        entries = order[tied]
        places = _places(vocabulary, codes[entries])
        order[tied] = entries[np.lexsort([-places, *(key[entries] for key in keys)])]
    elif settled:
        return None
    return order if (order[1:] < order[:-1]).any() else None


def _tied(order: np.ndarray, keys: list[np.ndarray]) -> np.ndarray:
    """Which places of the sorted entries share all keys with a neighbour. (entries,) bool."""
    same = np.ones(max(len(order) - 1, 0), dtype=bool)
    for key in keys:
        values = key[order]
        same &= values[1:] == values[:-1]
    tied = np.zeros(len(order), dtype=bool)
    tied[1:] |= same
    tied[:-1] |= same
    return tied


def _places(vocabulary: Ids, codes: np.ndarray) -> np.ndarray:
    """Each code's document's place among theirs in byte order. (codes,) int64."""
    distinct, inverse = np.unique(codes, return_inverse=True)
    by_id = np.asarray(pc.array_sort_indices(vocabulary.array.take(pa.array(distinct))))
    places = np.empty(len(distinct), dtype=np.int64)
    places[by_id] = np.arange(len(distinct))
    return places[inverse]


def refuse_twice(offsets: np.ndarray, codes: np.ndarray, lists: np.ndarray | None) -> tuple[int, int] | None:
    """Return (query number, code) of some document that occurs twice in one list, or None."""
    queries = np.repeat(np.arange(len(offsets) - 1, dtype=np.int64), np.diff(offsets))
    if lists is not None:
        order = np.lexsort([codes, lists, queries])
        same = np.ones(max(len(order) - 1, 0), dtype=bool)
        for key in (codes, lists, queries):
            same &= key[order][1:] == key[order][:-1]
        found = order[np.flatnonzero(same)]
        return (int(queries[found[0]]), int(codes[found[0]])) if len(found) else None
    width = int(codes.max()) + 1 if len(codes) else 1
    pairs = queries * width + codes
    pairs.sort()
    found = np.flatnonzero(pairs[1:] == pairs[:-1])
    if not len(found):
        return None
    query, code = divmod(int(pairs[found[0]]), width)
    return query, code
