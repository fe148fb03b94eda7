"""Examples of queries alone, for methods whose loss finds the documents itself (ADORE)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ...files import sha256_file
from ...indexes.manifest import MANIFEST
from ..mining.live import check_indexed_collection
from ..sampling import BatchKey
from .batches import BatchExamples, Row
from .config import TrainConfig
from .data import open_tables
from .examples import TrainingTable

__all__ = ["QueryExamples", "open_with_indexes"]


class QueryExamples(BatchExamples):
    """One column, query, and beside it which row of which table it is."""

    def __getitems__(self, key: BatchKey) -> list[Row]:
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
