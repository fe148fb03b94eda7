"""Rerankers: query + candidates → order. Names load what they need when asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...lazy import lazy_names

if TYPE_CHECKING:
    from .base import Candidate, Request, Reranker, Result, Usage, check_result, ranked_result, rerank_checked
    from .candidates import CandidateFile, read_candidates, write_candidates
    from .chat import ChatRenderer, Message, Prompt
    from .cross_encoder import CrossEncoderReranker
    from .first import FirstReranker
    from .generative import FullRankReranker, RankGptReranker
    from .icr import IcrReranker
    from .language_model import Generation, LanguageModel, Sampling, load_language_model
    from .maxsim import MaxSimReranker
    from .pairwise import DuoT5Reranker, PrpReranker
    from .pointwise_tokens import GradedReranker, MonoT5Reranker, ProRankReranker, YesNoReranker
    from .pointwise_written import ERankReranker, RetroReranker
    from .predict import PredictReranker
    from .query_likelihood import QueryLikelihoodReranker
    from .registry import RERANKERS, load_reranker
    from .rerank import RerankReport, RerankSettings, rerank_run, rerank_with_report
    from .setwise import RankR1Reranker, SetwiseReranker

_HOMES = {
    "RERANKERS": "registry",
    "Candidate": "base",
    "CandidateFile": "candidates",
    "ChatRenderer": "chat",
    "CrossEncoderReranker": "cross_encoder",
    "DuoT5Reranker": "pairwise",
    "ERankReranker": "pointwise_written",
    "FirstReranker": "first",
    "FullRankReranker": "generative",
    "Generation": "language_model",
    "GradedReranker": "pointwise_tokens",
    "IcrReranker": "icr",
    "LanguageModel": "language_model",
    "MaxSimReranker": "maxsim",
    "Message": "chat",
    "MonoT5Reranker": "pointwise_tokens",
    "PredictReranker": "predict",
    "ProRankReranker": "pointwise_tokens",
    "Prompt": "chat",
    "PrpReranker": "pairwise",
    "QueryLikelihoodReranker": "query_likelihood",
    "RankGptReranker": "generative",
    "RankR1Reranker": "setwise",
    "Request": "base",
    "RerankReport": "rerank",
    "RerankSettings": "rerank",
    "Reranker": "base",
    "Result": "base",
    "RetroReranker": "pointwise_written",
    "Sampling": "language_model",
    "SetwiseReranker": "setwise",
    "Usage": "base",
    "YesNoReranker": "pointwise_tokens",
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
    "DuoT5Reranker",
    "ERankReranker",
    "FirstReranker",
    "FullRankReranker",
    "Generation",
    "GradedReranker",
    "IcrReranker",
    "LanguageModel",
    "MaxSimReranker",
    "Message",
    "MonoT5Reranker",
    "PredictReranker",
    "ProRankReranker",
    "Prompt",
    "PrpReranker",
    "QueryLikelihoodReranker",
    "RankGptReranker",
    "RankR1Reranker",
    "Request",
    "RerankReport",
    "RerankSettings",
    "Reranker",
    "Result",
    "RetroReranker",
    "Sampling",
    "SetwiseReranker",
    "Usage",
    "YesNoReranker",
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
