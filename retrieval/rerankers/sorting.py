"""Sorting by a model that names the best of a few documents: heap sort, bubble sort, and all pairs.

As in `windows`, a sort is a generator, so that the comparisons of many queries share model calls: it yields a list of
sets (rows, in the heap's or the list's order) and is sent, for each, the place of its best document in the set. It
returns the best k rows, sorted, and then the others in their first order.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Literal

from ...errors import ConfigError

__all__ = ["SORTS", "Sort", "SortKind", "bubble_sort", "heap_sort", "sort_plan"]

Group = tuple[int, ...]
Sort = Generator[list[Group], Sequence[int], list[int]]
SortKind = Literal["heap", "bubble"]


def heap_sort(count: int, k: int, children: int) -> Sort:
    """Setwise heap sort (Zhuang et al. 2024): a heap whose nodes have `children` children; one set is a node and them.

    Building the heap and then k − 1 repairs; with an exact comparator the top k is right.
    """
    heap = list(range(count))
    for node in range(count // children, -1, -1):
        yield from _repair(heap, node, count, children)
    last = count - 1
    while last > max(0, count - k):
        heap[0], heap[last] = heap[last], heap[0]
        yield from _repair(heap, 0, last, children)
        last -= 1
    return _top_first([*heap[:last:-1], *heap[:1]], k, count)


def _repair(heap: list[int], node: int, size: int, children: int) -> Generator[list[Group], Sequence[int], None]:
    """Let the document at `node` sink until it is better than its children."""
    while True:
        places = [node, *range(children * node + 1, min(children * node + children + 1, size))]
        if len(places) == 1:
            return
        (best,) = yield [tuple(heap[place] for place in places)]
        if best == 0:
            return
        child = places[best]
        heap[node], heap[child] = heap[child], heap[node]
        node = child


def pair_heap_sort(count: int, k: int) -> Sort:
    """Heap sort by pairs (Qin et al. 2024, PRP-Sorting): each child of a binary heap against the best so far."""
    heap = list(range(count))
    for node in range(count // 2 - 1, -1, -1):
        yield from _repair_pairs(heap, node, count)
    last = count - 1
    while last > max(0, count - k):
        heap[0], heap[last] = heap[last], heap[0]
        yield from _repair_pairs(heap, 0, last)
        last -= 1
    return _top_first([*heap[:last:-1], *heap[:1]], k, count)


def _repair_pairs(heap: list[int], node: int, size: int) -> Generator[list[Group], Sequence[int], None]:
    while True:
        best = node
        for child in (2 * node + 1, 2 * node + 2):
            if child < size:
                (winner,) = yield [(heap[child], heap[best])]
                best = child if winner == 0 else best
        if best == node:
            return
        heap[node], heap[best] = heap[best], heap[node]
        node = best


def bubble_sort(count: int, k: int, children: int) -> Sort:
    """k passes from the back, each carrying the best document to the next place; sets overlap in the one carried.

    A set that was asked before is not asked again. The published setwise bubble sort leaves out more than that (it
    starts where the last pass first changed something) and gives wrong tops with an exact comparator: not so here.
    """
    order = list(range(count))
    known: dict[Group, int] = {}
    for first in range(min(k, count - 1)):
        stop = count
        while stop - first > 1:
            start = max(first, stop - children - 1)
            group = tuple(order[start:stop])
            if group not in known:
                (known[group],) = yield [group]
            best = start + known[group]
            order[start], order[best] = order[best], order[start]
            stop = start + 1
    return _top_first(order, k, count)


def pair_bubble_sort(count: int, k: int) -> Sort:
    """Bubble sort by pairs (Qin et al. 2024, PRP-Sliding-k): k passes, each carries the best of the rest to its place.

    A pass begins one below the last pass's first swap: the neighbours further down have been compared as they stand.
    """
    order = list(range(count))
    start = count - 1
    for first in range(min(k, count - 1)):
        swapped: int | None = None
        for place in range(start, first, -1):
            (winner,) = yield [(order[place], order[place - 1])]
            if winner == 0:
                order[place], order[place - 1] = order[place - 1], order[place]
                swapped = place if swapped is None else swapped
        if swapped is None:
            break
        start = min(swapped + 1, count - 1)
    return _top_first(order, k, count)


def _top_first(order: Sequence[int], k: int, count: int) -> list[int]:
    """The first k of `order`, then the other rows in their first order."""
    top = list(order[:k])
    taken = set(top)
    return top + [row for row in range(count) if row not in taken]


SORTS: dict[SortKind, Callable[[int, int, int], Sort]] = {"heap": heap_sort, "bubble": bubble_sort}
"""Name → sort (count, k, children of a set's first document)."""


def sort_plan(kind: SortKind, count: int, k: int, *, children: int = 1) -> Sort:
    """A sort by name. `children` 1 compares pairs.

    Raises:
        ConfigError: an unknown sort; k or children below 1.
    """
    if kind not in SORTS or k < 1 or children < 1:
        raise ConfigError(
            f"cannot sort by {kind!r} with k {k} and {children} children: "
            f"expected one of {', '.join(SORTS)}, and at least 1 for both"
        )
    if children == 1:
        return pair_heap_sort(count, k) if kind == "heap" else pair_bubble_sort(count, k)
    return SORTS[kind](count, k, children)
