"""The query vector that orders passages as a reranker did (FIRST, section on relevance feedback): pure tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .ranking import rank_net

__all__ = ["Distillation", "distil_queries"]

_BETAS = (0.9, 0.999)


@dataclass(frozen=True)
class Distillation:
    """One stage of moving queries towards a teacher's order.

    Attributes:
        loss: "ranknet" looks at the order only, each pair weighted by 1 / (r_i + r_j); "kl" is KL(softmax T ‖
            softmax u).
        steps: of Adam.
        rate: its step; no coordinate moves by more than about steps · rate, however large the vectors are.
        relative: whether `rate` is in units of the query's root mean square coordinate.
        ordinal: the teacher's scores say an order and no more: u keeps the range of the first stage's scores (σ = 1).
    """

    loss: Literal["ranknet", "kl"] = "ranknet"
    steps: int = 20
    rate: float = 0.001
    relative: bool = False
    ordinal: bool = False


def distil_queries(queries: Tensor, passages: Tensor, teacher: Tensor, valid: Tensor, *, stage: Distillation) -> Tensor:
    """Move each query so that its scores for its passages imitate its teacher's.

    u_i = (σ / 2) q·p_i with σ = (max T − min T) / (max q₀·p − min q₀·p), frozen; Adam on the sum of the queries'
    losses, which is each query by itself, because Adam works coordinate by coordinate. It is written out for its step,
    which may be another one for each query.

    Args:
        queries: (B, D) float32, where they begin.
        passages: (B, K, D) float32.
        teacher: (B, K) larger is better.
        valid: (B, K) bool, False at padding.
        stage: how.

    Returns:
        (B, D) float32. A query without two passages stays.
    """
    if stage.steps == 0 or not teacher.numel():
        return queries.clone()
    start = queries.detach().float()
    sigma = torch.ones(len(start), 1) if stage.ordinal else _sigma(start, passages, teacher, valid)
    step = torch.full((len(start), 1), stage.rate)
    if stage.relative:
        step = step * start.square().mean(dim=1, keepdim=True).sqrt()
    cost = _cost(stage, teacher.float(), valid)
    query, first, second = start, torch.zeros_like(start), torch.zeros_like(start)
    for number in range(1, stage.steps + 1):
        moving = query.clone().requires_grad_()
        scores = torch.einsum("bd,bkd->bk", moving, passages.float()) * sigma / 2
        (gradient,) = torch.autograd.grad(cost(scores), moving)
        first = _BETAS[0] * first + (1 - _BETAS[0]) * gradient
        second = _BETAS[1] * second + (1 - _BETAS[1]) * gradient.square()
        mean, square = first / (1 - _BETAS[0] ** number), second / (1 - _BETAS[1] ** number)
        query = query - step * mean / (square.sqrt() + 1e-8)
    return query.detach()


def _sigma(queries: Tensor, passages: Tensor, teacher: Tensor, valid: Tensor) -> Tensor:
    """(B, 1); 1 where the first stage tells no passages apart."""
    own = torch.einsum("bd,bkd->bk", queries, passages.float())
    mine, theirs = _spread(own, valid), _spread(teacher.float(), valid)
    return torch.where(mine > 0, theirs / mine.clamp(min=torch.finfo(mine.dtype).tiny), torch.ones_like(mine))


def _spread(values: Tensor, valid: Tensor) -> Tensor:
    highest = values.masked_fill(~valid, -torch.inf).amax(dim=1, keepdim=True)
    spread = highest - values.masked_fill(~valid, torch.inf).amin(dim=1, keepdim=True)
    return torch.where(valid.any(dim=1, keepdim=True), spread, torch.zeros_like(spread))


def _cost(stage: Distillation, teacher: Tensor, valid: Tensor) -> Callable[[Tensor], Tensor]:
    """The sum of the queries' losses as a function of their scores (B, K)."""
    if stage.loss == "ranknet":
        pairs = (teacher[:, :, None] > teacher[:, None, :]) & valid[:, :, None] & valid[:, None, :]
        lists = pairs.any(dim=2).any(dim=1).sum()  # rank_net is a mean over these
        return lambda scores: rank_net(scores, teacher, valid, pair_weight="inverse-rank") * lists
    some = valid.any(dim=1)
    target = teacher.masked_fill(~valid, -torch.inf)[some].log_softmax(dim=1)
    inside = valid[some]

    def divergence(scores: Tensor) -> Tensor:
        student = scores.masked_fill(~valid, -torch.inf)[some].log_softmax(dim=1)
        gaps = torch.where(inside, target - student, 0.0)
        return (target.exp() * gaps).sum()

    return divergence
