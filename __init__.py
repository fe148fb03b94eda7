"""rtk: train, index, search, rerank and evaluate retrievers and rerankers.

The few names a user starts with are here, and load what they need only when asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._version import __version__
from .lazy import lazy_names

if TYPE_CHECKING:
    from .eval import Run, evaluate, open_collection, read_run
    from .indexes import open_index
    from .retrieval import Retriever, as_encoder, build_index, load_encoder, load_reranker

_HOMES = {
    "Retriever": "retrieval",
    "Run": "eval",
    "as_encoder": "retrieval",
    "build_index": "retrieval",
    "evaluate": "eval",
    "load_encoder": "retrieval",
    "load_reranker": "retrieval",
    "open_collection": "eval",
    "open_index": "indexes",
    "read_run": "eval",
}

__all__ = [
    "Retriever",
    "Run",
    "__version__",
    "as_encoder",
    "build_index",
    "evaluate",
    "load_encoder",
    "load_reranker",
    "open_collection",
    "open_index",
    "read_run",
]

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
