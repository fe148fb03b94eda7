"""What a loss term sees of a batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from .contrastive import in_batch_scores
from .masking import wide
from .options import ScoredOptions

__all__ = ["CandidateBatch", "CandidateTerm", "DenseBatch", "DenseTerm", "Scorer", "Side"]

Side = Mapping[str, Tensor]
"""What a batch carries beside its texts, by name. First dimension: this process's B examples, everywhere.

`labels` and one teacher a name (B, 1 + k) float32, NaN where unscored; `allowed` (B, D) bool, which documents of all
processes may count against a query; `rows` (B,) table rows, `part` (B,) number of the table, `number` (B,) of the
batch, `document_rows` (B, 1 + k) rows of the collection. Where a term has `wants_texts = True`, `query_texts` (list of
B strings) and `document_texts` (list of B lists of 1 + k strings) too.
"""


class Scorer(nn.Module):
    """scale · similarity, in float32; the scale is trained where the options say so (as its logarithm)."""

    def __init__(self, options: ScoredOptions) -> None:
        super().__init__()
        self.similarity: Literal["cosine", "dot"] = options.similarity
        self.fixed = options.resolved_scale
        self.log_scale = nn.Parameter(torch.tensor(math.log(self.fixed))) if options.learn_scale else None

    @property
    def scale(self) -> Tensor | float:
        return self.fixed if self.log_scale is None else self.log_scale.exp()

    def forward(self, queries: Tensor, documents: Tensor) -> Tensor:
        """(B, dim) and (D, dim) → (B, D)."""
        return self.scale * in_batch_scores(queries, documents, similarity=self.similarity)

    def own(self, queries: Tensor, documents: Tensor) -> Tensor:
        """(B, dim) and each query's own documents (B, n, dim) → (B, n)."""
        queries, documents = wide(queries), wide(documents)
        if self.similarity == "cosine":
            queries = nn.functional.normalize(queries, dim=-1)
            documents = nn.functional.normalize(documents, dim=-1)
        return self.scale * (queries[:, None, :] * documents).sum(dim=-1)


@dataclass(frozen=True)
class DenseBatch:
    """What a bi-encoder's loss term sees.

    Attributes:
        queries: (B, dim), this process's.
        documents: (D, dim) of all processes: every positive, then every first negative, and so on.
        own: (B, 1 + k) columns of each query's positive and negatives in `documents`.
        side: see `Side`.
    """

    queries: Tensor
    documents: Tensor
    own: Tensor
    side: Side = field(default_factory=dict[str, Tensor])

    def own_scores(self, scorer: Scorer) -> Tensor:
        """(B, 1 + k) scores of each query's positive and negatives."""
        return scorer.own(self.queries, self.documents[self.own])


@dataclass(frozen=True)
class CandidateBatch:
    """What a reranker's loss term sees: `scores` and `labels` (B, N), and `side`."""

    scores: Tensor
    labels: Tensor
    side: Side = field(default_factory=dict[str, Tensor])


DenseTerm = Callable[[DenseBatch], Tensor]
"""Gives a scalar, or (B,) costs of this process's queries, whose mean is the loss and which weights may multiply."""
CandidateTerm = Callable[[CandidateBatch], Tensor]
"""The same for a reranker."""
