"""Rerankers: query + candidates → order. Names load what they need when asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...lazy import lazy_names

if TYPE_CHECKING:
    from .base import Candidate, Request, Reranker, Result, Usage, check_result, ranked_result, rerank_checked
    from .candidates import CandidateFile, read_candidates, write_candidates
    from .chat import ChatRenderer, Message, Prompt
    from .cross_encoder import CrossEncoderReranker
    from .icr import IcrReranker
    from .language_model import Generation, LanguageModel, Sampling, load_language_model
    from .maxsim import MaxSimReranker
    from .predict import PredictReranker
    from .registry import RERANKERS, load_reranker
    from .rerank import RerankReport, RerankSettings, rerank_run, rerank_with_report

_HOMES = {
    "RERANKERS": "registry",
    "Candidate": "base",
    "CandidateFile": "candidates",
    "ChatRenderer": "chat",
    "CrossEncoderReranker": "cross_encoder",
    "Generation": "language_model",
    "IcrReranker": "icr",
    "LanguageModel": "language_model",
    "MaxSimReranker": "maxsim",
    "Message": "chat",
    "PredictReranker": "predict",
    "Prompt": "chat",
    "Request": "base",
    "RerankReport": "rerank",
    "RerankSettings": "rerank",
    "Reranker": "base",
    "Result": "base",
    "Sampling": "language_model",
    "Usage": "base",
    "check_result": "base",
    "load_language_model": "language_model",
    "load_reranker": "registry",
    "ranked_result": "base",
    "read_candidates": "candidates",
    "rerank_checked": "base",
    "rerank_run": "rerank",
    "rerank_with_report": "rerank",
    "write_candidates": "candidates",
}

__all__ = [
    "RERANKERS",
    "Candidate",
    "CandidateFile",
    "ChatRenderer",
    "CrossEncoderReranker",
    "Generation",
    "IcrReranker",
    "LanguageModel",
    "MaxSimReranker",
    "Message",
    "PredictReranker",
    "Prompt",
    "Request",
    "RerankReport",
    "RerankSettings",
    "Reranker",
    "Result",
    "Sampling",
    "Usage",
    "check_result",
    "load_language_model",
    "load_reranker",
    "ranked_result",
    "read_candidates",
    "rerank_checked",
    "rerank_run",
    "rerank_with_report",
    "write_candidates",
]

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
