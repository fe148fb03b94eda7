"""The terms over a bi-encoder's batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from torch import Tensor, nn

from .batch import CandidateBatch, DenseBatch, DenseTerm, Scorer
from .candidate_terms import MakeCandidateTerm
from .context import LossContext
from .contrastive import info_nce
from .options import InfoNCEOptions, LossOptions, ScoredOptions

__all__ = ["DENSE_TERMS", "MakeDenseTerm", "lifted"]

MakeDenseTerm = Callable[[LossOptions, LossContext], DenseTerm]


class _InfoNCE(nn.Module):
    def __init__(self, options: LossOptions, context: LossContext) -> None:
        super().__init__()
        chosen = cast(InfoNCEOptions, options)
        self.scorer = Scorer(chosen)
        self.mask = chosen.mask_false_negatives

    def forward(self, batch: DenseBatch) -> Tensor:
        allowed = batch.side.get("allowed") if self.mask else None
        return info_nce(self.scorer(batch.queries, batch.documents), batch.own[:, 0], allowed)


class _Lifted(nn.Module):
    def __init__(self, term: DenseTerm | Callable[[CandidateBatch], Tensor], options: ScoredOptions) -> None:
        super().__init__()
        self.scorer = Scorer(options)
        self.term = term

    def forward(self, batch: DenseBatch) -> Tensor:
        scores = batch.own_scores(self.scorer)
        return self.term(CandidateBatch(scores, batch.side["labels"].to(scores.device), batch.side))  # pyright: ignore


def lifted(make: MakeCandidateTerm) -> MakeDenseTerm:
    """A reranker's term over each query's own 1 + k documents; its options must be `ScoredOptions`."""
    return lambda options, context: _Lifted(make(options, context), cast(ScoredOptions, options))


DENSE_TERMS: dict[str, MakeDenseTerm] = {"infonce": _InfoNCE}
