"""The terms over a bi-encoder's batch, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from torch import Tensor, nn

from .batch import CandidateBatch, DenseBatch, DenseTerm, Scorer
from .candidate_terms import CANDIDATE_TERMS, MakeCandidateTerm
from .context import LossContext
from .contrastive_terms import InfoNCE, Star
from .idf_flops import make_idf_flops
from .in_batch_teacher import IN_BATCH_TEACHER_TERMS
from .list_term import ListTerm
from .options import LossOptions, ScoredOptions
from .sparse_terms import SPARSE_TERMS

__all__ = ["DENSE_TERMS", "MakeDenseTerm", "lifted"]

MakeDenseTerm = Callable[[LossOptions, LossContext], DenseTerm]


class _Lifted(nn.Module):
    def __init__(self, term: Callable[[CandidateBatch], Tensor], options: ScoredOptions) -> None:
        super().__init__()
        self.scorer = Scorer(options)
        self.term = term

    def forward(self, batch: DenseBatch) -> Tensor:
        return self.term(self._candidates(batch))

    def by_query(self, batch: DenseBatch) -> Tensor:
        """(B,) costs; for terms that have them."""
        return cast(ListTerm, self.term).by_query(self._candidates(batch))

    def _candidates(self, batch: DenseBatch) -> CandidateBatch:
        scores = batch.own_scores(self.scorer)
        return CandidateBatch(scores, batch.side["labels"].to(scores.device), batch.side)


def lifted(make: MakeCandidateTerm) -> MakeDenseTerm:
    """A reranker's term over each query's own 1 + k documents; its options must be `ScoredOptions`."""
    return lambda options, context: _Lifted(make(options, context), cast(ScoredOptions, options))


_LIFTED = (
    "margin-mse",
    "kl",
    "ensemble-kl",
    "pld",
    "dcd",
    "listnet",
    "listwise-softmax",
    "pairwise-softmax",
    "ranknet",
    "lambda",
)
DENSE_TERMS: dict[str, MakeDenseTerm] = {
    "infonce": InfoNCE,
    "star": Star,
    **IN_BATCH_TEACHER_TERMS,
    **SPARSE_TERMS,
    "idf-flops": make_idf_flops,
    **{name: lifted(CANDIDATE_TERMS[name]) for name in _LIFTED},
}
