"""Coupled estimation: relevance and selection for judging, learnt together (CET; Cai et al., CIKM 2022).

A document is labelled when it is relevant and was selected for judging. A mined negative is only known not to be both.
With f the relevance model's logits and g the selection model's, each model's cost of a negative is multiplied by the
inverse of the probability, by the other model, that the negative is one for its own reason:

    w_rel(d⁻) = 1 / (1 − σ(g(q, d⁻) / T)) = 1 + e^{g(q, d⁻) / T},    w_sel(d⁻) = 1 + e^{f(q, d⁻) / T}.

So an unlabelled document that the pool would have contained is a trustworthy negative; one that it would have missed
counts 1. After the authors' code: the paper's body was not at hand. That code neither caps nor normalises the weights;
both can be asked for here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from .masking import wide

__all__ = ["CetCosts", "Debiasing", "cet_costs", "inverse_propensity_weights", "pair_costs", "quantiles", "spearman"]


@dataclass(frozen=True)
class Debiasing:
    """How logits become weights.

    Attributes:
        temperature: T, above 0; the larger, the nearer all weights are to 2.
        cap: no weight above this; None is as published. At T = 2 a logit of 30 weighs 3 million.
    """

    temperature: float = 10.0
    cap: float | None = None


@dataclass(frozen=True)
class CetCosts:
    """Weighted costs of both models, and the weights that are in them. Each (B, k)."""

    relevance: Tensor
    selection: Tensor
    relevance_weights: Tensor
    selection_weights: Tensor


def inverse_propensity_weights(logits: Tensor, debiasing: Debiasing | None = None) -> Tensor:
    """w = 1 / (1 − σ(x / T)) = 1 + e^{x / T}, at most the cap. Constants: no gradient flows into `logits`.

    The exponent ends where e^x would leave half of the number range of its kind (float32: weights up to 2e19), so that
    a weight times a cost stays finite.

    Args:
        logits: any shape, of the other model.

    Returns:
        The shape of `logits`, float32 or float64, at least 1.
    """
    debiasing = debiasing or Debiasing()
    scaled = wide(logits.detach()) / debiasing.temperature
    weights = 1 + scaled.clamp(max=math.log(torch.finfo(scaled.dtype).max) / 2).exp()
    return weights if debiasing.cap is None else weights.clamp(max=debiasing.cap)


def pair_costs(scores: Tensor) -> Tensor:
    """ℓ = −log softmax([s⁺, s⁻])₀ = softplus(s⁻ − s⁺) for each negative.

    Args:
        scores: (B, 1 + k), the positive first.

    Returns:
        (B, k).
    """
    scores = wide(scores)
    return F.softplus(scores[:, 1:] - scores[:, :1])


def cet_costs(
    scores: tuple[Tensor, Tensor], before: tuple[Tensor, Tensor], debiasing: Debiasing | None = None
) -> CetCosts:
    """w · ℓ for both models; a model's loss is the mean over the pairs.

    Only the negative of a pair enters its weight.

    Args:
        scores: logits of the relevance and the selection model, (B, 1 + k) each, the positive first; gradient flows.
        before: the same two in evaluation mode, before the step; constants.
    """
    relevance_weights = inverse_propensity_weights(before[1][:, 1:], debiasing)
    selection_weights = inverse_propensity_weights(before[0][:, 1:], debiasing)
    return CetCosts(
        relevance_weights * pair_costs(scores[0]),
        selection_weights * pair_costs(scores[1]),
        relevance_weights,
        selection_weights,
    )


def quantiles(values: Tensor, shares: Sequence[float]) -> list[float]:
    """The quantiles of all `values`, interpolated linearly; 1 is the largest."""
    flat = wide(values.detach()).flatten()
    return torch.quantile(flat, flat.new_tensor(list(shares))).tolist()


def spearman(left: Tensor, right: Tensor) -> float:
    """Spearman's rank correlation ρ of two tensors of one shape; equal values share their mean rank.

    NaN where either is constant: nothing is ordered then.
    """
    ranks = torch.stack([_mean_ranks(left), _mean_ranks(right)])
    centred = ranks - ranks.mean(dim=1, keepdim=True)
    norms = centred.norm(dim=1)
    if not bool((norms > 0).all()):
        return math.nan
    return float((centred[0] @ centred[1]) / norms.prod())


def _mean_ranks(values: Tensor) -> Tensor:
    """Ranks from 1 by value, ascending, ties at their mean. (n,) float64."""
    _, group, counts = torch.unique(values.detach().flatten(), sorted=True, return_inverse=True, return_counts=True)
    ends = counts.cumsum(0).double()
    return (ends - (counts.double() - 1) / 2)[group]
