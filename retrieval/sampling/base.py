"""What a sampler is, and how its batches reach a data loader.

A sampler answers one question: which rows are in batch number n? It keeps no position, so resuming is asking for the
next number, and two processes ask the same question and take different slots of the same answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

__all__ = ["BatchKey", "BatchSampler", "Draw", "Sampler"]


@dataclass(frozen=True)
class Draw:
    """A batch of B examples in integers.

    Attributes:
        part: number of the training table that they come from.
        rows: (B,) int64, rows of that table.
        documents: (B, 1 + k) int64, rows of the collection's documents: a positive, then k negatives.
        entries: (B, 1 + k) int64, the same as entries of the table (where scores are kept); -1 is a document that is
            no entry: a random one.
    """

    part: int
    rows: np.ndarray
    documents: np.ndarray
    entries: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)


class Sampler(Protocol):
    """Gives the examples of every batch."""

    @property
    def batch_size(self) -> int:
        """Examples in a batch, over all processes."""
        ...

    @property
    def batches_per_epoch(self) -> int: ...

    def draw(self, number: int, /) -> Draw:
        """Batch `number` (from 0, going on over epochs): exactly `batch_size` examples, the same at every call."""
        ...


@dataclass(frozen=True)
class BatchKey:
    """A promise of a batch: number `number`, slots start:stop. Skipping a million of them costs nothing."""

    number: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


class BatchSampler:
    """A sampler's batch numbers for one process, as a torch data loader takes them.

    The trainer tells the epoch through `set_epoch`; it resumes by skipping keys, before anything is drawn from them.

    Args:
        sampler: gives batches over all processes.
        rank: this process.
        ranks: number of processes; the sampler's batch size must be a multiple of it.
    """

    drop_last = True

    def __init__(self, sampler: Sampler, rank: int = 0, ranks: int = 1) -> None:
        if sampler.batch_size % ranks:
            raise ValueError(f"a batch of {sampler.batch_size} does not divide over {ranks} processes")
        self.batch_size = sampler.batch_size // ranks
        self._per_epoch = sampler.batches_per_epoch
        self._start = rank * self.batch_size
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __len__(self) -> int:
        return self._per_epoch

    def __iter__(self) -> Iterator[BatchKey]:
        first = self._epoch * self._per_epoch
        for number in range(first, first + self._per_epoch):
            yield BatchKey(number, self._start, self._start + self.batch_size)
