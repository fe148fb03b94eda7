"""Pointwise, pairwise and listwise losses over a query's candidates.

Everywhere: `scores` (B, N) are logits, `labels` (B, N) are grades (larger is better), `valid` (B, N) is False at
padding (None: no padding). Inputs are never written to.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "Lambda",
    "binary_costs",
    "binary_cross_entropy",
    "lambda_loss",
    "lambda_sums",
    "list_net",
    "listwise_softmax",
    "pairwise_softmax",
    "rank_net",
]

PairWeight = Literal["none", "inverse-rank", "label-difference"]
Scheme = Literal[
    "ndcg-loss1",
    "ndcg-loss2",
    "lambdarank",
    "ndcg-loss2++",
    "ranknet",
    "ranknet-difference",
]


def binary_cross_entropy(
    scores: Tensor, labels: Tensor, valid: Tensor | None = None, *, positive_weight: float | None = None
) -> Tensor:
    """L = mean over all candidates of −[w·y log σ(s) + (1 − y) log(1 − σ(s))], y = 1 where the label is above 0.

    Args:
        positive_weight: w, the weight of a positive's cost; None is 1.
    """
    costs = binary_costs(scores, labels, positive_weight=positive_weight)
    return costs.mean() if valid is None else costs[valid].mean()


def binary_costs(scores: Tensor, labels: Tensor, *, positive_weight: float | None = None) -> Tensor:
    """The cost of every document in `binary_cross_entropy`. (B, N)."""
    weight = None if positive_weight is None else scores.new_tensor(positive_weight)
    targets = (labels > 0).to(scores.dtype)
    return F.binary_cross_entropy_with_logits(scores, targets, pos_weight=weight, reduction="none")


def pairwise_softmax(scores: Tensor) -> Tensor:
    """L = mean_b (1 − softmax(s)_0), the positive first: the probability that a negative is taken for it.

    Bounded, unlike the cross-entropy: a list that is quite wrong has hardly a gradient. The loss with which curricula
    were published (MacAvaney et al. 2020), with one negative.
    """
    return (1 - scores.softmax(dim=1)[:, 0]).mean()


def list_net(scores: Tensor, labels: Tensor, valid: Tensor | None = None, *, epsilon: float = 0.0) -> Tensor:
    """ListNet, top-one: L = −mean_b Σ_i softmax(y)_i log( softmax(s)_i + ε ) (Cao et al. 2007, eq. 5).

    The labels' distribution is a constant: no gradient flows into it. ε > 0 only reproduces code that has it (1e-6 in
    TAS-Balanced's): it stops the gradient of documents that the model has given up.
    """
    targets = _masked(labels.detach().to(scores.dtype), valid).softmax(dim=1)
    return _cross_entropy(scores, targets, valid, epsilon)


def listwise_softmax(scores: Tensor, labels: Tensor, valid: Tensor | None = None) -> Tensor:
    """Softmax cross-entropy: L = −mean_b Σ_i (y_i / Σ_j y_j) log softmax(s)_i, over lists with a label above 0.

    With one positive of label 1 this is the localised contrastive estimate of a reranker (Gao et al. 2021, eq. 5).
    Lists without a positive cost nothing.
    """
    gains = labels.detach().to(scores.dtype).clamp(min=0)
    gains = gains if valid is None else gains.masked_fill(~valid, 0)
    totals = gains.sum(dim=1, keepdim=True)
    return _cross_entropy(scores, gains / totals.clamp(min=torch.finfo(scores.dtype).tiny), valid)


def rank_net(
    scores: Tensor, labels: Tensor, valid: Tensor | None = None, *, pair_weight: PairWeight = "none"
) -> Tensor:
    """RankNet: L = mean_b of 1/|P| Σ_{(i,j) ∈ P} w_ij log(1 + e^{s_j − s_i}), P = {(i, j): y_i > y_j}.

    `inverse-rank` is FIRST's weight w_ij = 1 / (r_i + r_j), r the rank by label from 1, equal labels by position;
    `label-difference` is y_i − y_j. The mean is taken in each list, then over the lists that have a pair: the
    published weighted code numbers ranks on across a batch, which is right for single lists only.
    """
    pairs = _ordered_pairs(labels, valid)
    costs = F.softplus(scores[:, None, :] - scores[:, :, None])  # [b, i, j]: cost of i not being above j
    if pair_weight == "inverse-rank":
        ranks = _ranks(labels, valid).to(scores.dtype)
        costs = costs / (ranks[:, :, None] + ranks[:, None, :])
    elif pair_weight == "label-difference":
        costs = costs * (labels[:, :, None] - labels[:, None, :]).to(scores.dtype).abs()
    return _mean_by_list(costs, pairs)


@dataclass(frozen=True)
class Lambda:
    """Settings of the lambda framework: weights, cut-off rank, and the two scale factors."""

    scheme: Scheme = "ndcg-loss2++"
    k: int | None = None
    mu: float = 10.0
    sigma: float = 1.0
    reduction: Literal["mean", "sum"] = "mean"


def lambda_loss(
    scores: Tensor, labels: Tensor, valid: Tensor | None = None, *, settings: Lambda | None = None
) -> Tensor:
    """LambdaLoss (Wang et al. 2018): L = −Σ_{y_i > y_j} w_ij log2 σ(σ₀ (s_i − s_j)), by rank r under the scores.

    With G_i = (2^{y_i} − 1) / maxDCG@k and D_r = log2(1 + r), r the rank by score:

    - `ndcg-loss2`: w = |1/D_{|i−j|} − 1/D_{|i−j|+1}| · |G_i − G_j| (FIRST's code calls this one LambdaRank);
    - `lambdarank`: w = |1/D_i − 1/D_j| · |G_i − G_j|;
    - `ndcg-loss2++`: μ times the first plus the second;
    - `ndcg-loss1`: w = G_i / D_i over all pairs;
    - `ranknet`: w = 1; `ranknet-difference`: w = |y_i − y_j|.

    Both documents stand within rank k, as in allRank (sentence-transformers keeps pairs with either of them there).
    `mean` divides by the number of pairs in the batch.
    """
    settings = settings or Lambda()
    totals, counts = lambda_sums(scores, labels, valid, settings)
    return totals.sum() if settings.reduction == "sum" else totals.sum() / counts.sum().clamp(min=1)


def lambda_sums(scores: Tensor, labels: Tensor, valid: Tensor | None, settings: Lambda) -> tuple[Tensor, Tensor]:
    """The two sums of `lambda_loss` by list, (B,) each, so that several processes can add theirs before dividing."""
    order = _masked(scores.detach(), valid).argsort(dim=1, descending=True)
    ranked = scores.gather(1, order)
    grades = labels.gather(1, order)
    inside = None if valid is None else valid.gather(1, order)
    weights = _lambda_weights(grades.to(ranked.dtype), inside, settings)
    if settings.scheme == "ndcg-loss1":
        known = torch.ones_like(grades, dtype=torch.bool) if inside is None else inside
        pairs = known[:, :, None] & known[:, None, :]
    else:
        pairs = _ordered_pairs(grades, inside)
    if settings.k is not None:
        pairs = pairs.clone()
        pairs[:, settings.k :, :] = False
        pairs[:, :, settings.k :] = False
    differences = ranked[:, :, None] - ranked[:, None, :]
    costs = -weights * F.logsigmoid(settings.sigma * differences) / math.log(2)
    totals = torch.where(pairs, costs, costs.new_zeros(())).sum(dim=(1, 2))
    return totals, pairs.sum(dim=(1, 2)).to(totals.dtype)


def _lambda_weights(grades: Tensor, inside: Tensor | None, settings: Lambda) -> Tensor:
    """w_ij over ranked lists. `grades` (B, N) by rank; returns (B, N, N), constants."""
    grades = grades.clamp(min=0) if inside is None else grades.masked_fill(~inside, 0).clamp(min=0)
    size = grades.shape[1]
    if settings.scheme == "ranknet":
        return torch.ones_like(grades)[:, :, None]
    if settings.scheme == "ranknet-difference":
        return (grades[:, :, None] - grades[:, None, :]).abs()
    ranks = torch.arange(1, size + 2, device=grades.device, dtype=grades.dtype)
    discounts = torch.log2(1 + ranks)  # D_1 … D_{N+1}
    ideal = torch.pow(2.0, grades.sort(dim=1, descending=True).values) - 1
    best = (ideal / discounts[:size])[:, : settings.k].sum(dim=1, keepdim=True)
    gains = (torch.pow(2.0, grades) - 1) / best.clamp(min=torch.finfo(grades.dtype).tiny)
    if settings.scheme == "ndcg-loss1":
        return (gains / discounts[:size])[:, :, None].expand(-1, -1, size)
    gaps = (gains[:, :, None] - gains[:, None, :]).abs()
    inverse = 1 / discounts
    by_rank = (inverse[:size, None] - inverse[None, :size]).abs()
    if settings.scheme == "lambdarank":
        return by_rank * gaps
    places = torch.arange(size, device=grades.device)
    apart = (places[:, None] - places[None, :]).abs()
    by_distance = torch.where(
        apart > 0, (inverse[(apart - 1).clamp(min=0)] - inverse[apart]).abs(), inverse.new_zeros(())
    )
    if settings.scheme == "ndcg-loss2":
        return by_distance * gaps
    return (settings.mu * by_distance + by_rank) * gaps


def _masked(values: Tensor, valid: Tensor | None) -> Tensor:
    return values if valid is None else values.masked_fill(~valid, -torch.inf)


def _cross_entropy(scores: Tensor, targets: Tensor, valid: Tensor | None, epsilon: float = 0.0) -> Tensor:
    """−mean_b Σ_i targets_i log( softmax(scores)_i + ε ); padding has target 0 and probability 0."""
    log_probabilities = _masked(scores, valid).log_softmax(dim=1)
    if epsilon:
        log_probabilities = (log_probabilities.exp() + epsilon).log()
    costs = targets * log_probabilities if valid is None else torch.where(valid, targets * log_probabilities, 0.0)
    return -costs.sum(dim=1).mean()


def _ordered_pairs(labels: Tensor, valid: Tensor | None) -> Tensor:
    """[b, i, j] is True where y_i > y_j and both are there. (B, N, N) bool."""
    pairs = labels[:, :, None] > labels[:, None, :]
    return pairs if valid is None else pairs & valid[:, :, None] & valid[:, None, :]


def _ranks(labels: Tensor, valid: Tensor | None) -> Tensor:
    """Ranks by label from 1, equal labels by position. (B, N) int64."""
    order = _masked(labels.float(), valid).argsort(dim=1, descending=True, stable=True)
    return order.argsort(dim=1) + 1


def _mean_by_list(costs: Tensor, pairs: Tensor) -> Tensor:
    """Mean over the pairs of a list, then over the lists that have any; 0 when none has."""
    counts = pairs.sum(dim=(1, 2))
    sums = torch.where(pairs, costs, costs.new_zeros(())).sum(dim=(1, 2))
    return (sums / counts.clamp(min=1)).sum() / (counts > 0).sum().clamp(min=1)
