"""Batches of one topic with a pair for each query (TAS-Balanced, Hofstätter et al. 2021, section 3.1)."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import ConfigError
from .base import Draw
from .clusters import Clusters, write_clusters
from .margin_balanced import PairSampler
from .streams import NumberedStream
from .topic_draws import TopicAware, TopicDraws

if TYPE_CHECKING:
    from ..training.examples import TrainingTable

__all__ = ["TopicAwareSampler", "TopicReport"]

_LOG = logging.getLogger(__name__)
_TOPICS = 4  # stream of random numbers


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
        self._queries = TopicDraws(self._rows, self._offsets, settings, table.query_keys)
        self._check(self._queries.distinct if settings.deduplicate else len(self._rows))

    @property
    def batch_size(self) -> int:
        return self.settings.batch_size

    @property
    def batches_per_epoch(self) -> int:
        return max(1, len(self._rows) // self.batch_size)

    def draw(self, number: int, /) -> Draw:
        generator = self._stream.at(number)
        rows = self._queries.draw(generator)
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
