"""How sparse the queries of a search were, counted while they are encoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..indexes.sparsity import Activity, activity, flops_metric, read_activity
from .encoders.base import Encoder, Vectors
from .search import Retriever

__all__ = ["QueryWatch", "watch_queries"]


class QueryWatch:
    """An encoder that encodes as another one does and counts the active terms of its sparse queries.

    Args:
        encoder: the queries' own.
        documents: the index's activity.
    """

    def __init__(self, encoder: Encoder, documents: Activity) -> None:
        self.encoder, self.documents = encoder, documents
        self.identity: Any = getattr(encoder, "identity", None)
        self.queries: Activity | None = None

    def encode_query(self, texts: Sequence[str], /) -> Vectors:
        vectors: Any = self.encoder.encode_query(texts)
        found = activity(vectors)
        self.queries = found if self.queries is None else self.queries + found
        return vectors

    def encode_document(self, texts: Sequence[str], /) -> Vectors:
        return self.encoder.encode_document(texts)

    def report(self) -> dict[str, float]:
        """Mean active dimensions of queries and documents, and the FLOPS metric; zeros before any query."""
        queries = self.queries or Activity(self.documents.frequency * 0, 0)
        return {
            "query_active_dimensions": queries.mean,
            "document_active_dimensions": self.documents.mean,
            "flops": flops_metric(queries, self.documents),
        }


def watch_queries(retriever: Retriever) -> tuple[Retriever, QueryWatch | None]:
    """A retriever that counts, and what it counts with; for an index that is not sparse, the same one and None."""
    manifest, folder = retriever.manifest, getattr(retriever.index, "folder", None)
    if manifest is None or manifest.kind != "sparse" or folder is None or retriever.encoder is None:
        return retriever, None
    watch = QueryWatch(retriever.encoder, read_activity(Path(folder), manifest.count))
    return replace(retriever, encoder=watch), watch
