"""Collections, runs, measures, significance and reports.

The names load their modules only when asked for, so that importing this package is cheap.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .beir import BeirCollection, read_corpus, read_queries
    from .collection import (
        Collection,
        CollectionBase,
        CollectionReport,
        Conventions,
        Queries,
        check_collection,
        open_collection,
    )
    from .documents import Document, Documents
    from .judgments import Judgments, read_beir_qrels
    from .run import Run, RunEntry

_HOMES = {
    "BeirCollection": "beir",
    "Collection": "collection",
    "CollectionBase": "collection",
    "CollectionReport": "collection",
    "Conventions": "collection",
    "Document": "documents",
    "Documents": "documents",
    "Judgments": "judgments",
    "Queries": "collection",
    "Run": "run",
    "RunEntry": "run",
    "check_collection": "collection",
    "open_collection": "collection",
    "read_beir_qrels": "judgments",
    "read_corpus": "beir",
    "read_queries": "beir",
}

__all__ = [
    "BeirCollection",
    "Collection",
    "CollectionBase",
    "CollectionReport",
    "Conventions",
    "Document",
    "Documents",
    "Judgments",
    "Queries",
    "Run",
    "RunEntry",
    "check_collection",
    "open_collection",
    "read_beir_qrels",
    "read_corpus",
    "read_queries",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
