"""Matryoshka representation learning: the loss over the first dimensions of the vectors too (Kusupati et al. 2022)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["matryoshka_loss", "truncate"]


def truncate(vectors: Tensor, dim: int) -> Tensor:
    """normalise(x[:dim]) along the last axis, as a truncated vector must be before it is compared by cosine."""
    return F.normalize(vectors[..., :dim], dim=-1)


def matryoshka_loss(
    loss: Callable[[Sequence[Tensor]], Tensor],
    columns: Sequence[Tensor],
    dims: Sequence[int],
    weights: Sequence[float] | None = None,
) -> Tensor:
    """L = Σ_d w_d · loss(normalise(x[:d])), all dims at every step; a weighted sum, not a mean.

    Args:
        loss: function of the truncated columns.
        columns: (B, dim) vectors each, not normalised before.
        dims: none above dim; the full one should be among them.
        weights: one for each of `dims`; None is 1 each.

    Raises:
        ValueError: a dim above that of the vectors, or another number of weights.
    """
    full = min(column.shape[-1] for column in columns)
    if not dims or max(dims) > full or min(dims) < 1:
        raise ValueError(f"dims {tuple(dims)} for vectors of {full} dimensions: give some from 1 to {full}")
    if weights is not None and len(weights) != len(dims):
        raise ValueError(f"{len(weights)} weights for {len(dims)} dims")
    shares = [1.0] * len(dims) if weights is None else weights
    parts = [
        share * loss([truncate(column, dim) for column in columns]) for dim, share in zip(dims, shares, strict=True)
    ]
    return torch.stack(parts).sum()
