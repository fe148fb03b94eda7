"""Shuffled examples with random negatives, kept from meeting their own copies in a batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from ...errors import ConfigError, DataError
from .base import Draw

if TYPE_CHECKING:
    from ..training.examples import TrainingTable

__all__ = ["ShuffledSampler", "Shuffling", "grouped", "separate"]

_ROUNDS = 20
_WINDOW = 64
_ORDER, _NEGATIVES = 1, 2  # streams of random numbers, so that one setting does not move another


@dataclass(frozen=True)
class Shuffling:
    """Settings of `ShuffledSampler`.

    Attributes:
        batch_size: over all processes.
        seed: of everything drawn.
        negatives: for each example.
        unit: what an epoch goes through: every query with one of its positives, or every (query, positive).
        missing_negatives: a query with too few gets random documents, or is left out.
        deduplicate: see `separate`.
        group_by_length: see `grouped`; lengths are bytes of the query and of its positive.
    """

    batch_size: int
    seed: int
    negatives: int = 0
    unit: Literal["query", "pair"] = "query"
    missing_negatives: Literal["random", "drop"] = "random"
    deduplicate: bool = True
    group_by_length: bool = False


class ShuffledSampler:
    """Epochs of a fresh permutation each, cut into full batches; the tail that fills no batch differs by epoch.

    Args:
        table: the examples.
        settings: see `Shuffling`.
        part: the table's number in a mixture.

    Raises:
        ConfigError: fewer examples than a batch holds.
    """

    def __init__(self, table: TrainingTable, settings: Shuffling, *, part: int = 0) -> None:
        self.table, self.settings, self.part = table, settings, part
        rows = np.arange(len(table))
        lacking = np.zeros(len(table), np.int64)
        if settings.negatives:  # lists of language models have none to count
            lacking = np.maximum(settings.negatives - table.negatives(), 0)
        self._short, self._lacking = int((lacking > 0).sum()), int(lacking.sum())
        if settings.missing_negatives == "drop" and settings.negatives:
            rows = rows[lacking == 0]
        self._rows = rows
        self._ends = np.cumsum(table.positives[rows].astype(np.int64)) if settings.unit == "pair" else None
        self._size = len(rows) if self._ends is None else int(self._ends[-1]) if len(rows) else 0
        if self._size < settings.batch_size:
            raise ConfigError(
                f"{table.name} gives {self._size} examples, a batch (all processes together) needs "
                f"{settings.batch_size}; lower trainer.per_device_train_batch_size or give more data"
            )
        self._epoch: tuple[int, np.ndarray, np.ndarray] | None = None
        self._sizes: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def batch_size(self) -> int:
        return self.settings.batch_size

    @property
    def batches_per_epoch(self) -> int:
        return self._size // self.batch_size

    def lines(self) -> list[str]:
        """What is done for queries with fewer negatives than `negatives`; nothing where all have enough."""
        if not self._short:
            return []
        many = f"{self._short} of {len(self.table)} queries have fewer than {self.settings.negatives} negatives"
        if self.settings.missing_negatives == "drop":
            return [f"{many}: left out"]
        return [f"{many}: filled up with random documents, {self._lacking} if each comes up once"]

    def draw(self, number: int, /) -> Draw:
        epoch, place = divmod(number, self.batches_per_epoch)
        rows, entries = self._examples(epoch)
        slots = slice(place * self.batch_size, (place + 1) * self.batch_size)
        rows, positive = rows[slots], entries[slots]
        generator = np.random.default_rng([self.settings.seed, _NEGATIVES, self.part, number])
        negatives, documents = self._negatives(rows, generator)
        return Draw(
            self.part,
            rows,
            np.concatenate([self.table.entries[positive][:, None], documents], axis=1).astype(np.int64),
            np.concatenate([positive[:, None], negatives], axis=1),
        )

    def _examples(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """(table rows, entries of their positives) of an epoch, in batch order. The last epoch asked for is kept."""
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = (epoch, *self._shuffle(epoch))
        return self._epoch[1], self._epoch[2]

    def _shuffle(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        generator = np.random.default_rng([self.settings.seed, _ORDER, self.part, epoch])
        order = generator.permutation(self._size)[: self.batches_per_epoch * self.batch_size]
        table = self.table
        if self._ends is None:
            rows = self._rows[order]
            place = (generator.random(len(rows)) * table.positives[rows]).astype(np.int64)
        else:
            of = np.searchsorted(self._ends, order, side="right")
            rows = self._rows[of]
            place = order - (self._ends[of] - table.positives[rows])
        entries = table.offsets[rows] + place
        if self.settings.group_by_length:
            moved = grouped(self._lengths(rows, entries), self.batch_size, generator)
            rows, entries = rows[moved], entries[moved]
        if self.settings.deduplicate:
            keys = (table.query_keys(rows), table.document_keys(table.entries[entries]))
            moved = separate(keys, self.batch_size, generator)
            rows, entries = rows[moved], entries[moved]
        return rows, entries

    def _lengths(self, rows: np.ndarray, entries: np.ndarray) -> np.ndarray:
        if self._sizes is None:
            texts = self.table.query_texts
            queries = np.fromiter((len(text.encode()) for text in texts), np.int64, len(texts))
            self._sizes = queries, self.table.documents.sizes()
        queries, documents = self._sizes
        return queries[self.table.queries[rows]] + documents[self.table.entries[entries]]

    def _negatives(self, rows: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Entries (B, k), -1 for random documents, and document rows (B, k)."""
        wanted, table = self.settings.negatives, self.table
        entries = np.full((len(rows), wanted), -1, dtype=np.int64)
        documents = np.zeros((len(rows), wanted), dtype=np.int64)
        if not wanted:
            return entries, documents
        starts = table.offsets[rows] + table.positives[rows]
        counts = table.offsets[rows + 1] - starts
        keys = generator.random((len(rows), max(int(counts.max()), wanted)))
        keys[np.arange(keys.shape[1])[None, :] >= counts[:, None]] = 2.0
        chosen = np.argsort(keys, axis=1, kind="stable")[:, :wanted]
        there = np.take_along_axis(keys, chosen, axis=1) < 2.0
        entries[there] = (starts[:, None] + chosen)[there]
        documents[there] = table.entries[entries[there]]
        if not there.all():
            documents[~there] = self._random_documents(rows[np.nonzero(~there)[0]], generator)
        return entries, documents

    def _random_documents(self, rows: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """A document that is not judged relevant for its row, for each of `rows`."""
        total = len(self.table.documents)
        documents = generator.integers(0, total, len(rows))
        relevant, owners = self.table.relevant_of(rows)
        known = owners * np.int64(total) + relevant
        bad = np.arange(len(rows))
        for attempt in range(_ROUNDS + 1):
            bad = bad[np.isin(bad * np.int64(total) + documents[bad], known)]
            if not len(bad) or attempt == _ROUNDS:
                break
            documents[bad] = generator.integers(0, total, len(bad))
        for at in bad.tolist():  # nearly all documents are relevant
            documents[at] = generator.choice(self._free_documents(rows[at], relevant[owners == at]))
        return documents

    def _free_documents(self, row: int, relevant: np.ndarray) -> np.ndarray:
        free = np.setdiff1d(np.arange(len(self.table.documents)), relevant)
        if not len(free):
            raise DataError(
                f"{self.table.name}: every document is relevant for query {self.table.qids(np.array([row]))[0]!r}, so "
                "that it has no random negative; set sampling.missing_negatives: drop, or negatives: 0"
            )
        return free


def grouped(lengths: np.ndarray, batch_size: int, generator: np.random.Generator) -> np.ndarray:
    """Bring examples of like length into a batch, so that little is padding; the batches' order stays random.

    Examples are sorted within windows of `_WINDOW` batches of the shuffled epoch only: which of them meet still differs
    from epoch to epoch. In-batch negatives are then of like length too.

    Args:
        lengths: (m · batch_size,) in the epoch's order.

    Returns:
        (m · batch_size,) int64, the example for every slot: a permutation.
    """
    order = np.arange(len(lengths))
    for start in range(0, len(order), _WINDOW * batch_size):
        window = slice(start, start + _WINDOW * batch_size)
        batches = order[window][np.argsort(lengths[window], kind="stable")].reshape(-1, batch_size)
        order[window] = batches[generator.permutation(len(batches))].ravel()
    return order


def separate(keys: tuple[np.ndarray, ...], batch_size: int, generator: np.random.Generator) -> np.ndarray:
    """Exchange examples between batches until no key stands twice in one, where that can be had.

    Args:
        keys: arrays (m · batch_size,), one a kind of text; two examples of a batch may not share a value of any.
        batch_size: examples in a batch.
        generator: decides the partners.

    Returns:
        (m · batch_size,) int64, the example for every slot: a permutation.
    """
    order = np.arange(len(keys[0]))
    best, fewest, idle = order.copy(), len(order) + 1, 0
    while idle < _ROUNDS:
        clashing = np.flatnonzero(
            np.any([_repeats(key[order].reshape(-1, batch_size)).ravel() for key in keys], axis=0)
        )
        idle += 1
        if len(clashing) < fewest:
            best, fewest, idle = order.copy(), len(clashing), 0
        if not len(clashing) or len(order) == batch_size:
            break
        partners = generator.choice(len(order), size=len(clashing), replace=False)
        usable = ~np.isin(partners, clashing)
        for key in keys:
            usable &= _fits(key[order], clashing, partners, batch_size) & _fits(
                key[order], partners, clashing, batch_size
            )
        here, there = clashing[usable], partners[usable]
        order[here], order[there] = order[there], order[here]
    return best


def _fits(keys: np.ndarray, movers: np.ndarray, places: np.ndarray, batch_size: int) -> np.ndarray:
    """Whether the key at each of `movers` would be alone in the batch of `places`, taking that place. (c,) bool."""
    starts = places // batch_size * batch_size
    batch = keys[starts[:, None] + np.arange(batch_size)[None, :]] == keys[movers][:, None]
    batch[np.arange(len(places)), places - starts] = False
    return ~batch.any(axis=1)


def _repeats(keys: np.ndarray) -> np.ndarray:
    """True at every slot whose key stands at an earlier slot of its row too. (m, B) bool."""
    order = np.argsort(keys, axis=1, kind="stable")
    ordered = np.take_along_axis(keys, order, axis=1)
    repeats = np.zeros(keys.shape, dtype=bool)
    np.put_along_axis(repeats, order[:, 1:], ordered[:, 1:] == ordered[:, :-1], axis=1)
    return repeats
