"""Batches of one topic (step 1 of TAS-Balanced, Hofstätter et al. 2021, section 3.1).

A cluster is drawn uniformly among the clusters, whatever its size, and queries uniformly inside it without
replacement. A cluster that holds too few gives all it has and another one is drawn, until the batch is full.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import ConfigError
from .base import Draw
from .clusters import Clusters, write_clusters
from .margin_balanced import PairSampler
from .streams import NumberedStream

if TYPE_CHECKING:
    from ..training.examples import TrainingTable

__all__ = ["TopicAware", "TopicAwareSampler", "TopicReport"]

_LOG = logging.getLogger(__name__)
_TOPICS = 4  # stream of random numbers
_TRIES = 8
_SPARE = 8
_SMALL = 512  # up to here a permutation of all is quicker


@dataclass(frozen=True)
class TopicAware:
    """Settings of `TopicAwareSampler`.

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


@dataclass(frozen=True)
class TopicReport:
    """What of the clusters can be drawn.

    Attributes:
        clusters: with a query that can be drawn.
        queries: that can be drawn.
        without_cluster: usable queries that no cluster names: never drawn.
        without_pair: queries of the clusters that have no pair: never drawn.
        short: clusters that hold fewer queries than a batch takes from one: topped up from others.
    """

    clusters: int
    queries: int
    without_cluster: int
    without_pair: int
    short: int

    def lines(self) -> list[str]:
        """One line for each count that a user should see."""
        told = {
            "usable queries in no cluster: never drawn": self.without_cluster,
            "queries of the clusters without a pair: never drawn": self.without_pair,
            f"of {self.clusters} clusters hold less than a batch takes: topped up from another": self.short,
        }
        return [
            f"{self.queries} queries in {self.clusters} clusters",
            *(f"{count} {what}" for what, count in told.items() if count),
        ]


class TopicAwareSampler:
    """Batches whose queries share a topic, with one pair for each query.

    Batches are drawn with replacement over steps: an epoch is only a number of batches, after which every query has
    come up once on average.

    Args:
        table: the examples.
        clusters: of the table's queries; None puts all of them into one (random batches).
        pairs: draws each query's positive and negative.
        settings: see `TopicAware`.
        part: the table's number in a mixture.

    Raises:
        ConfigError: fewer queries (of different text) than a batch holds, or groups of unequal size.
    """

    def __init__(
        self,
        table: TrainingTable,
        clusters: Clusters | None,
        pairs: PairSampler,
        settings: TopicAware,
        *,
        part: int = 0,
    ) -> None:
        self.table, self.pairs, self.settings, self.part = table, pairs, settings, part
        if settings.batch_size % settings.groups:
            raise ConfigError(f"a batch of {settings.batch_size} does not divide into {settings.groups} groups")
        self._stream = NumberedStream([settings.seed, _TOPICS, part])
        self._clusters = clusters
        self._rows, self._offsets, self.report = self._members(clusters)
        distinct = len(np.unique(table.query_keys(self._rows)))
        self._twins = distinct < len(self._rows)
        self._check(distinct if settings.deduplicate else len(self._rows))

    @property
    def batch_size(self) -> int:
        return self.settings.batch_size

    @property
    def batches_per_epoch(self) -> int:
        return max(1, len(self._rows) // self.batch_size)

    def draw(self, number: int, /) -> Draw:
        generator = self._stream.at(number)
        rows = self._draw_rows(generator)
        positive, negative = self.pairs.draw(rows, generator)
        entries = np.empty((len(rows), 2), dtype=np.int64)
        entries[:, 0], entries[:, 1] = positive, negative
        return Draw(self.part, rows, self.table.entries[entries].astype(np.int64), entries)

    def lines(self) -> list[str]:
        """What a user should know about topics and pairs."""
        return [*self.report.lines(), *self.pairs.lines()]

    def record(self) -> dict[str, Any]:
        """Plain values for the record of a run; `fingerprint` is of who shares a topic with whom."""
        digest = hashlib.sha256(self._rows.astype("<i8").tobytes() + self._offsets.astype("<i8").tobytes())
        sizes = None if self._clusters is None else asdict(self._clusters.sizes())
        return {"fingerprint": digest.hexdigest(), "clusters": sizes, "report": self.lines()}

    def save(self, folder: Path) -> None:
        """Leave the clusters beside the model, in the published format: another run can name the file."""
        if self._clusters is not None:
            write_clusters(
                self._clusters, folder / (f"clusters-{self.part}.txt.gz" if self.part else "clusters.txt.gz")
            )

    # --- which queries ---

    def _draw_rows(self, generator: np.random.Generator) -> np.ndarray:
        """(batch_size,) int64 rows of the table."""
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
        keys = self.table.query_keys(rows)
        _, first = np.unique(keys, return_index=True)
        rows, keys = rows[np.sort(first)], keys[np.sort(first)]
        if not taken:
            return rows
        return rows[~np.isin(keys, self.table.query_keys(np.concatenate(taken)))]

    # --- made once ---

    def _members(self, clusters: Clusters | None) -> tuple[np.ndarray, np.ndarray, TopicReport]:
        """Usable rows by cluster, the offsets of the clusters that have any, and the report."""
        usable = self.pairs.usable
        if clusters is None:
            rows = np.flatnonzero(usable)
            offsets = np.array([0, len(rows)])
            return rows, offsets, TopicReport(int(len(rows) > 0), len(rows), 0, int((~usable).sum()), 0)
        queries = self.table.query_ids.rows(clusters.ids)
        place = np.minimum(np.searchsorted(self.table.queries, queries), len(self.table) - 1)
        inside = self.table.queries[place] == queries
        kept = inside & usable[place]
        counts = np.bincount(clusters.numbers()[kept], minlength=len(clusters))
        counts = counts[counts > 0]
        rows = place[kept]
        quota = -(-self.batch_size // self.settings.groups // self.settings.clusters_per_batch)
        report = TopicReport(
            clusters=len(counts),
            queries=len(rows),
            without_cluster=int(usable.sum()) - len(rows),
            without_pair=len(queries) - len(rows),
            short=int((counts < quota).sum()),
        )
        return rows, np.concatenate([[0], np.cumsum(counts)]), report

    def _check(self, distinct: int) -> None:
        """Refuse what cannot fill a batch, and say what is odd."""
        wanted = self.batch_size if self.settings.deduplicate else 1
        if distinct < wanted:
            raise ConfigError(
                f"{self.table.name} has {distinct} different queries with a pair in a cluster, a batch (all processes "
                f"together) needs {wanted}; lower trainer.per_device_train_batch_size or give more data"
            )
        for line in self.lines():
            _LOG.info("%s: %s", self.table.name, line)
        if self.report.short == self.report.clusters and self.report.clusters:
            _LOG.warning(
                "%s: every cluster holds less than a batch takes from one, so that no batch has one topic; "
                "lower sampling.clusters or the batch size",
                self.table.name,
            )


def _some(members: int, wanted: int, generator: np.random.Generator) -> np.ndarray:
    """`wanted` different numbers below `members` in random order."""
    if members <= _SMALL:
        return generator.permutation(members)[:wanted]
    return generator.choice(members, wanted, replace=False)
