"""Encode, index, search, rerank and train. Names load what they need when asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from .encoders.adapters import as_encoder
    from .encoders.base import Encoder, EncoderIdentity, MultiVectors, identity
    from .encoders.load import load_encoder, load_minilm_path
    from .found import Found, FoundDocument, search_documents
    from .indexing import build_index, encode_part
    from .mining import MiningReport, mine
    from .pipelines import Hybrid, Pipeline, Rerank
    from .rerankers.base import Candidate, Request, Reranker, Result, Usage
    from .rerankers.candidates import read_candidates, write_candidates
    from .rerankers.registry import load_reranker
    from .rerankers.rerank import RerankReport, RerankSettings, rerank_run, rerank_with_report
    from .search import Retriever, excluded_documents, hits_to_run

_HOMES = {
    "encoders.adapters": ("as_encoder",),
    "encoders.base": ("Encoder", "EncoderIdentity", "MultiVectors", "identity"),
    "encoders.load": ("load_encoder", "load_minilm_path"),
    "found": ("Found", "FoundDocument", "search_documents"),
    "indexing": ("build_index", "encode_part"),
    "mining": ("MiningReport", "mine"),
    "pipelines": ("Hybrid", "Pipeline", "Rerank"),
    "rerankers.base": ("Candidate", "Request", "Reranker", "Result", "Usage"),
    "rerankers.candidates": ("read_candidates", "write_candidates"),
    "rerankers.registry": ("load_reranker",),
    "rerankers.rerank": ("RerankReport", "RerankSettings", "rerank_run", "rerank_with_report"),
    "search": ("Retriever", "excluded_documents", "hits_to_run"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "Candidate",
    "Encoder",
    "EncoderIdentity",
    "Found",
    "FoundDocument",
    "Hybrid",
    "MiningReport",
    "MultiVectors",
    "Pipeline",
    "Request",
    "Rerank",
    "RerankReport",
    "RerankSettings",
    "Reranker",
    "Result",
    "Retriever",
    "Usage",
    "as_encoder",
    "build_index",
    "encode_part",
    "excluded_documents",
    "hits_to_run",
    "identity",
    "load_encoder",
    "load_minilm_path",
    "load_reranker",
    "mine",
    "read_candidates",
    "rerank_run",
    "rerank_with_report",
    "search_documents",
    "write_candidates",
]

__getattr__, __dir__ = lazy_names(__name__, _HOME_OF)
