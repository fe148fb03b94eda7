"""Contrastive losses over in-batch documents and hard negatives."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

__all__ = ["in_batch_scores", "info_nce"]


def in_batch_scores(
    queries: Tensor, documents: Tensor, *, similarity: Literal["cosine", "dot"] = "dot", scale: float = 1.0
) -> Tensor:
    """scale · sim(q_i, d_j), in float32 whatever the vectors' dtype.

    Args:
        queries: (B, dim).
        documents: (D, dim).

    Returns:
        (B, D) float32 (float64 for float64 vectors).
    """
    dtype = torch.promote_types(torch.float32, queries.dtype)
    queries, documents = queries.to(dtype), documents.to(dtype)
    if similarity == "cosine":
        queries = torch.nn.functional.normalize(queries, dim=-1)
        documents = torch.nn.functional.normalize(documents, dim=-1)
    return scale * (queries @ documents.T)


def info_nce(scores: Tensor, targets: Tensor, allowed: Tensor | None = None) -> Tensor:
    """InfoNCE: L = −mean_i log( e^{s_it} / Σ_{j allowed} e^{s_ij} ), t = target of i (van den Oord et al. 2018, eq. 4).

    The scores already carry the scale 1/τ. Masked documents (labelled positives of the query, copies of its positive)
    leave the denominator and get no gradient; the target always stays.

    Args:
        scores: (B, D) float.
        targets: (B,) int64, the column of each query's positive.
        allowed: (B, D) bool, False for false negatives; None allows all.

    Returns:
        A scalar ≥ 0.
    """
    positive = scores.gather(1, targets[:, None])
    if allowed is not None:
        keep = allowed.scatter(1, targets[:, None], True)
        scores = scores.masked_fill(~keep, -torch.inf)
    return (torch.logsumexp(scores, dim=1) - positive.squeeze(1)).mean()
