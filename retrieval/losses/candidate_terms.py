"""The terms over a query's candidates: a reranker's logits, or a bi-encoder's scores of each query's own documents."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

from torch import Tensor

from .batch import CandidateTerm
from .context import LossContext
from .list_term import BinaryTerm, ListTerm
from .options import BinaryOptions, LambdaOptions, LossOptions, RankNetOptions
from .ranking import Lambda, lambda_loss, list_net, listwise_softmax, pairwise_softmax, rank_net
from .teacher_terms import make_dynamic_contrastive, make_ensemble, make_kl, make_margin_mse, make_plackett_luce

__all__ = ["CANDIDATE_TERMS", "MakeCandidateTerm"]

MakeCandidateTerm = Callable[[LossOptions, LossContext], CandidateTerm]


def _listwise(function: Callable[..., Tensor], **settings: Any) -> CandidateTerm:
    return ListTerm(partial(function, **settings))


def _binary(options: LossOptions, context: LossContext) -> CandidateTerm:
    return BinaryTerm(cast(BinaryOptions, options).positive_weight)


def _rank_net(options: LossOptions, context: LossContext) -> CandidateTerm:
    return _listwise(rank_net, pair_weight=cast(RankNetOptions, options).pair_weight)


def _lambda(options: LossOptions, context: LossContext) -> CandidateTerm:
    chosen = cast(LambdaOptions, options)
    settings = Lambda(chosen.scheme, chosen.k, chosen.mu, chosen.sigma)
    return _listwise(lambda_loss, settings=settings)


CANDIDATE_TERMS: dict[str, MakeCandidateTerm] = {
    "binary-cross-entropy": _binary,
    "listnet": lambda options, context: _listwise(list_net),
    "listwise-softmax": lambda options, context: _listwise(listwise_softmax),
    "pairwise-softmax": lambda options, context: ListTerm(lambda scores, labels: pairwise_softmax(scores)),
    "ranknet": _rank_net,
    "lambda": _lambda,
    "margin-mse": make_margin_mse,
    "kl": make_kl,
    "ensemble-kl": make_ensemble,
    "pld": make_plackett_luce,
    "dcd": make_dynamic_contrastive,
}
