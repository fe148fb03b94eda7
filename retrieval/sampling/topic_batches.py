"""Batches of one topic for sentence-transformers' own trainer, through its `batch_sampler` argument."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from sentence_transformers.base.sampler import DefaultBatchSampler

from ...errors import ConfigError, DataError
from .streams import NumberedStream
from .topic_draws import TopicAware, TopicDraws

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["TopicBatches"]

_BATCHES = 5  # stream of random numbers


class TopicBatches:
    """Gives sentence-transformers' trainer batches of one topic (TAS, Hofstätter et al. 2021, section 3.1).

        topics = clusters.assignment(Ids(qids))                       # of each row's query
        arguments = SentenceTransformerTrainingArguments(…, batch_sampler=TopicBatches(topics))

    A query is drawn uniformly inside a topic, and one of its rows uniformly; no query comes twice in a batch. Batches
    are always full and a function of seed, epoch and number. Under torchrun each process has batches, and so topics, of
    its own. `rtk train` has method tas-balanced, which also balances margins and does not hold texts in memory.

    Args:
        topics: (n,) the topic of each row of the training dataset; a row of -1 is never drawn.
        column: the dataset's column of queries; None is its first.
        clusters_per_batch: topics that share a batch equally.

    Raises:
        DataError: when the trainer begins: another number of rows, a query in several topics.
        ConfigError: when it begins: fewer queries of different text than a batch holds.
    """

    def __init__(
        self, topics: Sequence[int] | np.ndarray, *, column: str | None = None, clusters_per_batch: int = 1
    ) -> None:
        self.topics = np.asarray(topics, dtype=np.int64)
        self.column, self.clusters_per_batch = column, clusters_per_batch

    def __call__(self, dataset: Dataset, batch_size: int, drop_last: bool = True, **given: Any) -> DefaultBatchSampler:
        """What sentence-transformers calls; incomplete batches do not come up, whatever `drop_last` is."""
        if len(dataset) != len(self.topics):
            raise DataError(f"{len(self.topics)} topics for a dataset of {len(dataset)} rows; give one for each row")
        column = self.column or dataset.column_names[0]
        texts = np.asarray(dataset[column][:], dtype=object)
        _, first, queries = np.unique(texts.astype(str), return_index=True, return_inverse=True)
        strange = np.flatnonzero(self.topics != self.topics[first][queries])
        if len(strange):
            raise DataError(f"column {column!r}: {texts[strange[0]]!r} has rows in several topics; give each query one")
        settings = TopicAware(batch_size, int(given.get("seed", 0)), self.clusters_per_batch)
        sampler = _Batches(dataset, batch_size, drop_last, **given)
        sampler.prepare(queries, self.topics[first], settings)
        return sampler


class _Batches(DefaultBatchSampler):
    """The batches of one training; `epoch` is set by the trainer."""

    def prepare(self, queries: np.ndarray, topics: np.ndarray, settings: TopicAware) -> None:
        """Args: `queries` (n,), the number of each row's query; `topics` of each query, -1 for none."""
        order = np.argsort(queries, kind="stable")
        self._rows, self._starts = order, np.searchsorted(queries[order], np.arange(len(topics) + 1))
        members = np.argsort(topics, kind="stable")
        members = members[topics[members] >= 0]
        _, counts = np.unique(topics[members], return_counts=True)
        if len(members) < settings.batch_size:
            raise ConfigError(
                f"{len(members)} different queries have a topic, a batch needs {settings.batch_size}; lower the batch "
                "size or give more data"
            )
        self._drawable = int(np.diff(self._starts)[members].sum())
        offsets = np.concatenate([[0], np.cumsum(counts)])
        self._draws = TopicDraws(members, offsets, settings, lambda rows: rows)
        self._stream = NumberedStream([settings.seed, _BATCHES])

    def __len__(self) -> int:
        """As many batches as the rows fill; every row comes up once an epoch on average."""
        return max(1, self._drawable // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        first = self.epoch * len(self)
        for number in range(first, first + len(self)):
            generator = self._stream.at(number)
            chosen = self._draws.draw(generator)
            sizes = self._starts[chosen + 1] - self._starts[chosen]
            yield self._rows[self._starts[chosen] + generator.integers(sizes)].tolist()
