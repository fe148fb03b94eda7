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
    from .files import read_run, write_run
    from .judgments import Judgments, read_beir_qrels
    from .measures import Evaluation, evaluate
    from .qrels import read_qrels, write_qrels
    from .run import Run, RunEntry

_HOMES = {
    "BeirCollection": "beir",
    "Collection": "collection",
    "CollectionBase": "collection",
    "CollectionReport": "collection",
    "Conventions": "collection",
    "Document": "documents",
    "Documents": "documents",
    "Evaluation": "measures",
    "Judgments": "judgments",
    "Queries": "collection",
    "Run": "run",
    "RunEntry": "run",
    "check_collection": "collection",
    "evaluate": "measures",
    "open_collection": "collection",
    "read_beir_qrels": "judgments",
    "read_corpus": "beir",
    "read_qrels": "qrels",
    "read_queries": "beir",
    "read_run": "files",
    "write_qrels": "qrels",
    "write_run": "files",
}

__all__ = [
    "BeirCollection",
    "Collection",
    "CollectionBase",
    "CollectionReport",
    "Conventions",
    "Document",
    "Documents",
    "Evaluation",
    "Judgments",
    "Queries",
    "Run",
    "RunEntry",
    "check_collection",
    "evaluate",
    "open_collection",
    "read_beir_qrels",
    "read_corpus",
    "read_qrels",
    "read_queries",
    "read_run",
    "write_qrels",
    "write_run",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
