"""Hard negatives made of hard negatives: KaLM-Embedding-V2's online mixing.

How many of them a query gets, and whether they are shared or carry gradient, is not published: one of each kind here,
for the own query only, with gradient into the negatives that it is made of.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .masking import wide

__all__ = ["MixDraw", "draw_mixes", "mix_list", "mix_pairs"]


@dataclass(frozen=True)
class MixDraw:
    """Which negatives of each query are mixed, and in what share.

    Attributes:
        first, second: (B,) int64, two different negatives by number.
        shares: (B,) float64 in [0, 1], the share of the first.
    """

    first: Tensor
    second: Tensor
    shares: Tensor


def draw_mixes(queries: int, negatives: int, *, seed: int, number: int, concentration: float = 2.0) -> MixDraw:
    """Draw for a batch: a function of (seed, batch number), so that every process can draw for all and take its part.

    λ ~ Beta(c, c), and two different negatives uniformly.

    Args:
        queries: in the batch, over all processes.
        negatives: of each query, at least 2.
        seed, number: of the training and of the batch.
        concentration: c.

    Raises:
        ValueError: fewer than two negatives.
    """
    if negatives < 2:
        raise ValueError(f"mixing needs two negatives of each query, there is {negatives}")
    generator = np.random.default_rng([seed, number])
    first = generator.integers(negatives, size=queries)
    second = (first + generator.integers(1, negatives, size=queries)) % negatives
    shares = generator.beta(concentration, concentration, size=queries)
    return MixDraw(*(torch.from_numpy(values) for values in (first, second, shares)))


def mix_pairs(negatives: Tensor, draw: MixDraw) -> Tensor:
    """h_i = normalise(λ_i n_{i,first} + (1 − λ_i) n_{i,second}).

    Args:
        negatives: (B, k, dim), normalised where the student's similarity is cosine.

    Returns:
        (B, dim) of norm 1.
    """
    negatives = wide(negatives)
    rows = torch.arange(len(negatives), device=negatives.device)
    shares = draw.shares.to(negatives)[:, None]
    first, second = (negatives[rows, at.to(negatives.device)] for at in (draw.first, draw.second))
    return F.normalize(shares * first + (1 - shares) * second, dim=-1)


def mix_list(queries: Tensor, negatives: Tensor, kept: Tensor | None = None, *, scale: float | Tensor = 1.0) -> Tensor:
    """h_i = normalise(Σ_m λ_m n_{i,m}), λ = softmax_m(scale · q_i · n_{i,m}) over the negatives that are kept.

    Args:
        queries: (B, dim).
        negatives: (B, k, dim).
        kept: (B, k) bool; a query that keeps none mixes them all. None keeps all.
        scale: 1 / temperature of the scores.

    Returns:
        (B, dim) of norm 1.
    """
    queries, negatives = wide(queries), wide(negatives)
    scores = scale * (queries[:, None, :] * negatives).sum(dim=-1)
    if kept is not None:
        scores = scores.masked_fill(~kept & kept.any(dim=1, keepdim=True), -torch.inf)
    shares = scores.softmax(dim=1)
    return F.normalize((shares[:, :, None] * negatives).sum(dim=1), dim=-1)
