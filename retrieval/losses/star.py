"""STAR: static hard negatives, and the random ones that the batch gives (Zhan et al. 2021)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .masking import wide

__all__ = ["star_loss", "star_sums"]


def star_loss(scores: Tensor, targets: Tensor, allowed: Tensor | None = None) -> Tensor:
    """L = Σ_{(i, d) counted} log(1 + e^{s_id − s_i⁺}) / number of counted pairs.

    Counted are all documents of the batch that are not labelled relevant to query i: the other queries' positives and
    the hard negatives of every query, all alike (the released code; the paper weights the two groups). It is a mean
    over pairs, not a softmax over candidates.

    Args:
        scores: (B, D) dot products: every positive, then every hard negative in any order.
        targets: (B,) int64, the column of each query's positive, which is never counted.
        allowed: (B, D) bool, False for documents that are relevant to the query; None allows all.

    Returns:
        A scalar; 0 where no pair counts.
    """
    totals, counts = star_sums(scores, targets, allowed)
    return totals.sum() / counts.sum().clamp(min=1)


def star_sums(scores: Tensor, targets: Tensor, allowed: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The two sums of `star_loss` by query, (B,) each, so that several processes can add theirs before dividing."""
    scores = wide(scores)
    counted = torch.ones_like(scores, dtype=torch.bool) if allowed is None else allowed.bool()
    counted = counted.scatter(1, targets[:, None], False)
    costs = F.softplus(scores - scores.gather(1, targets[:, None]))
    totals = torch.where(counted, costs, costs.new_zeros(())).sum(dim=1)
    return totals, counted.sum(dim=1).to(totals.dtype)
