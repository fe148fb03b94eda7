"""Examples of queries alone, for methods whose loss finds the documents itself (ADORE)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...files import sha256_file
from ...indexes.manifest import MANIFEST
from ..mining.live import check_indexed_collection
from ..sampling import BatchKey, Sampler
from .batches import Row
from .config import TrainConfig
from .data import open_tables
from .examples import TrainingTable

__all__ = ["QueryExamples", "open_with_indexes"]


@dataclass(frozen=True)
class QueryExamples:
    """A map-style dataset whose keys are batches; one column, query, and beside it which row of which table it is.

    Attributes:
        tables: one a collection.
        sampler: says what is in a batch.
        texts: put the query texts beside the batch too.
    """

    tables: Sequence[TrainingTable]
    sampler: Sampler
    texts: bool = False

    def __len__(self) -> int:
        return self.sampler.batches_per_epoch * self.sampler.batch_size

    def __getitem__(self, key: BatchKey) -> list[Row]:
        return self.__getitems__(key)

    def __getitems__(self, key: BatchKey) -> list[Row]:
        """The rows of a batch's slots."""
        draw = self.sampler.draw(key.number)
        table = self.tables[draw.part]
        rows = draw.rows[key.start : key.stop]
        queries = [table.query_texts[row] for row in table.queries[rows].tolist()]
        side = {"number": np.full(len(key), key.number), "part": np.full(len(key), draw.part), "rows": rows}
        return [
            ({"query": query}, {name: values[at] for name, values in side.items()} | self._texts(query))
            for at, query in enumerate(queries)
        ]

    def _texts(self, query: str) -> dict[str, Any]:
        return {"query_texts": query} if self.texts else {}

    def qids(self, number: int) -> list[str]:
        """Query ids of a batch, for messages."""
        draw = self.sampler.draw(number)
        return self.tables[draw.part].qids(draw.rows)


def open_with_indexes(config: TrainConfig) -> list[TrainingTable]:
    """The training tables; their fingerprints cover the indexes too, since another index is other data.

    Raises:
        ConfigError, DataError, IndexMismatch: see `check_indexed_collection`.
    """
    tables = open_tables(config.data.parts())
    for part, table in zip(config.data.parts(), tables, strict=True):
        assert part.index is not None  # checked with the configuration
        check_indexed_collection(part.index, table)
        table.fingerprint = f"{table.fingerprint} {sha256_file(Path(part.index) / MANIFEST)[:32]}"
    return tables
