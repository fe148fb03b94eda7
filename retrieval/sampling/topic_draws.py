"""Which queries share a batch: step 1 of TAS-Balanced (Hofstätter et al. 2021, section 3.1).

A cluster is drawn uniformly among the clusters, whatever its size, and queries uniformly inside it without
replacement. A cluster that holds too few gives all it has and another one is drawn, until the batch is full.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

__all__ = ["TopicAware", "TopicDraws"]

_TRIES = 8
_SPARE = 8
_SMALL = 512  # up to here a permutation of all is quicker


@dataclass(frozen=True)
class TopicAware:
    """Settings of `TopicDraws`.

    Attributes:
        batch_size: over all processes.
        seed: of everything drawn.
        clusters_per_batch: n; each gives ⌈group / n⌉ queries.
        groups: equal parts of the batch that each have topics of their own: 1 is one topic over all processes, the
            number of processes is one topic for each.
        deduplicate: no query twice in a batch, also none of equal text, and no cluster twice while another is left.
            Without it (the authors' code) a cluster that comes again can give the same query again.
    """

    batch_size: int
    seed: int
    clusters_per_batch: int = 1
    groups: int = 1
    deduplicate: bool = True


class TopicDraws:
    """Draws the queries of a batch.

    Args:
        rows: (n,) int64 numbers of queries, cluster after cluster.
        offsets: (k + 1,) int64, cluster c holds rows[offsets[c]:offsets[c + 1]]; none is empty.
        settings: see `TopicAware`.
        keys: a number for each of some rows, equal for queries of equal text.

    Attributes:
        distinct: how many different texts the queries have.
    """

    def __init__(
        self,
        rows: np.ndarray,
        offsets: np.ndarray,
        settings: TopicAware,
        keys: Callable[[np.ndarray], np.ndarray],
    ) -> None:
        self._rows, self._offsets, self.settings, self._keys = rows, offsets, settings, keys
        self.distinct = len(np.unique(keys(rows)))
        self._twins = self.distinct < len(rows)

    def draw(self, generator: np.random.Generator) -> np.ndarray:
        """(batch_size,) int64 of `rows`."""
        settings = self.settings
        size = settings.batch_size // settings.groups
        quota = -(-size // settings.clusters_per_batch)
        topics = self._topics(generator)
        taken: list[np.ndarray] = []
        for _ in range(settings.groups):
            lacking = size
            while lacking:
                rows = self._from_cluster(next(topics), min(quota, lacking), taken, generator)
                taken.append(rows)
                lacking -= len(rows)
        return taken[0] if len(taken) == 1 else np.concatenate(taken)

    def _topics(self, generator: np.random.Generator) -> Iterator[int]:
        """Clusters in the order in which a batch takes them: uniformly, and all once before one comes again."""
        total = len(self._offsets) - 1
        while not self.settings.deduplicate:
            yield int(generator.integers(total))
        while True:
            seen: set[int] = set()
            for _ in range(_TRIES):  # cheaper than a permutation of them all
                number = int(generator.integers(total))
                if number not in seen:
                    seen.add(number)
                    yield number
            yield from (number for number in generator.permutation(total).tolist() if number not in seen)

    def _from_cluster(
        self, cluster: int, wanted: int, taken: list[np.ndarray], generator: np.random.Generator
    ) -> np.ndarray:
        """Up to `wanted` queries of a cluster."""
        start, stop = int(self._offsets[cluster]), int(self._offsets[cluster + 1])
        members = stop - start
        # a query is in one cluster, and all clusters come before one comes again: until then only texts can be twice
        apart = not self._twins and len(taken) < len(self._offsets) - 1
        if not self.settings.deduplicate or apart:
            return self._rows[start + _some(members, min(wanted, members), generator)]
        spare = wanted + _SPARE + sum(map(len, taken))
        order = start + _some(members, min(spare, members), generator)
        found = self._fresh(self._rows[order], taken)
        if len(found) < wanted and len(order) < members:  # many copies: look at all of them
            found = self._fresh(self._rows[start + generator.permutation(members)], taken)
        return found[:wanted]

    def _fresh(self, rows: np.ndarray, taken: list[np.ndarray]) -> np.ndarray:
        """Those of `rows` whose text has not come up yet, in order."""
        keys = self._keys(rows)
        _, first = np.unique(keys, return_index=True)
        rows, keys = rows[np.sort(first)], keys[np.sort(first)]
        if not taken:
            return rows
        return rows[~np.isin(keys, self._keys(np.concatenate(taken)))]


def _some(members: int, wanted: int, generator: np.random.Generator) -> np.ndarray:
    """`wanted` different numbers below `members` in random order."""
    if members <= _SMALL:
        return generator.permutation(members)[:wanted]
    return generator.choice(members, wanted, replace=False)
