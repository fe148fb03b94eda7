"""Contrastive losses over in-batch documents and hard negatives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from .masking import wide

__all__ = [
    "add_hardness",
    "direction_scores",
    "guide_mask",
    "in_batch_scores",
    "info_nce",
    "info_nce_costs",
    "info_nce_over",
    "same_type_scores",
]

Negatives = Literal["in-batch", "hard", "all"]


def in_batch_scores(
    queries: Tensor, documents: Tensor, *, similarity: Literal["cosine", "dot"] = "dot", scale: float | Tensor = 1.0
) -> Tensor:
    """scale · sim(q_i, d_j), in float32 whatever the vectors' dtype, under autocast too.

    Args:
        queries: (B, dim).
        documents: (D, dim).
        scale: 1 / temperature; a tensor where it is learned.

    Returns:
        (B, D) float32 (float64 for float64 vectors).
    """
    queries, documents = wide(queries), wide(documents)
    if similarity == "cosine":
        queries = torch.nn.functional.normalize(queries, dim=-1)
        documents = torch.nn.functional.normalize(documents, dim=-1)
    with torch.autocast(queries.device.type, enabled=False):
        return scale * (queries @ documents.T)


def info_nce(
    scores: Tensor,
    targets: Tensor,
    allowed: Tensor | None = None,
    *,
    gamma: float = 0.0,
    detach_weight: bool = True,
) -> Tensor:
    """InfoNCE: L = −mean_i log( e^{s_it} / Σ_{j allowed} e^{s_ij} ), t = target of i (van den Oord et al. 2018, eq. 4).

    The scores already carry the scale 1/τ. Masked documents (labelled positives of the query, copies of its positive)
    leave the denominator and get no gradient; the target always stays. With `gamma` a query costs
    (1 − p_i)^γ · (−log p_i), p_i the probability of its target: KaLM-Embedding-V2's focal reweighting.

    Args:
        scores: (B, D) float.
        targets: (B,) int64, the column of each query's positive.
        allowed: (B, D) bool, False for false negatives; None allows all.
        gamma: γ ≥ 0; 0 is plain InfoNCE.
        detach_weight: the focal weight is a constant (the paper does not say; Lin et al. 2017 let it carry gradient).

    Returns:
        A scalar ≥ 0.
    """
    scores = wide(scores)
    positive = scores.gather(1, targets[:, None])
    if allowed is not None:
        keep = allowed.scatter(1, targets[:, None], True)
        scores = scores.masked_fill(~keep, -torch.inf)
    return _focal(torch.logsumexp(scores, dim=1) - positive.squeeze(1), gamma, detach_weight).mean()


def info_nce_over(
    positive: Tensor,
    pools: Sequence[Tensor],
    *,
    joint: bool = True,
    gamma: float = 0.0,
    detach_weight: bool = True,
) -> Tensor:
    """InfoNCE over several pools of scores: query → documents, document → queries, and within a kind.

    `joint`: L = −mean_i log( e^{s_i⁺} / Σ_pools Σ_j e^{s_ij} ), one softmax over all (Li et al. 2023, eq. 2). Else one
    softmax for each pool, averaged: L = −mean_i mean_pools log( e^{s_i⁺} / Σ_j e^{s_ij} ), the symmetric loss when the
    pools are the two directions. Every pool of the second kind holds the positive. Of the first kind the two directions
    between queries and documents both do, so that it counts twice in the sum, as published.

    Args:
        positive: (B,) scores of the positive pairs.
        pools: (B, n) scores each, any n; −inf is masked.
        joint, gamma, detach_weight: see above and `info_nce`; the focal weight is by pool when there are several.

    Returns:
        A scalar ≥ 0.
    """
    return info_nce_costs(positive, pools, joint=joint, gamma=gamma, detach_weight=detach_weight).mean()


def info_nce_costs(
    positive: Tensor,
    pools: Sequence[Tensor],
    *,
    joint: bool = True,
    gamma: float = 0.0,
    detach_weight: bool = True,
) -> Tensor:
    """What each query costs in `info_nce_over`. (B,)."""
    positive = wide(positive)
    groups = [torch.cat(list(pools), dim=1)] if joint else list(pools)
    costs = [_focal(torch.logsumexp(wide(pool), dim=1) - positive, gamma, detach_weight) for pool in groups]
    return torch.stack(costs).mean(dim=0)


def direction_scores(
    score: Callable[[Tensor, Tensor], Tensor],
    queries: Tensor,
    everyone: Tensor,
    documents: Tensor,
    own: Tensor,
    directions: Sequence[str],
) -> list[Tensor]:
    """The pools of `info_nce_over` by direction, for this process's B queries and their positives.

    Args:
        score: (B, dim) and (n, dim) → (B, n).
        queries: (B, dim) of this process.
        everyone: (Q, dim) queries of all processes.
        documents: (D, dim) of all processes; the first Q are the queries' positives, in order.
        own: (B, 1 + k) columns of each query's documents; the first is also the query's row among everyone.
        directions: of "query-document" (B, D), "document-query" (B, Q), "query-query" (B, Q), "document-document"
            (B, D) and "positive-positive" (B, Q); the last three without what is the query's own.
    """
    positives = documents[own[:, 0]]
    pools: dict[str, Callable[[], Tensor]] = {
        "query-document": lambda: score(queries, documents),
        "document-query": lambda: score(positives, everyone),
        "query-query": lambda: same_type_scores(score(queries, everyone), own[:, :1]),
        "document-document": lambda: same_type_scores(score(positives, documents), own),
        "positive-positive": lambda: same_type_scores(score(positives, documents[: len(everyone)]), own[:, :1]),
    }
    return [pools[name]() for name in directions]


def same_type_scores(scores: Tensor, columns: Tensor) -> Tensor:
    """Scores of a query against queries, or a document against documents, without what is its own.

    Args:
        scores: (B, n).
        columns: (B, m) columns of the row's own text or its query's own documents.

    Returns:
        (B, n), −inf there.
    """
    return wide(scores).scatter(1, columns, -torch.inf)


def add_hardness(
    scores: Tensor, similarities: Tensor, own: Tensor, *, strength: float, negatives: Negatives = "in-batch"
) -> Tensor:
    """s_ij + α · sg(sim_ij) for the negatives meant: the harder one is, the more it counts, as in a larger batch.

    Args:
        scores: (B, D), the scale in them.
        similarities: (B, D), the scale not in them; a constant here.
        own: (B, 1 + k) columns of each query's own documents, the positive first.
        strength: α (9 for in-batch and 5 for the own hard negatives are usual).
        negatives: other queries' documents, the query's own hard negatives, or both.

    Returns:
        (B, D); the positive's score is never touched.
    """
    others = torch.ones_like(scores, dtype=torch.bool).scatter(1, own, False)
    chosen = others
    if negatives == "hard":
        chosen = torch.zeros_like(others).scatter(1, own[:, 1:], True)
    elif negatives == "all":
        chosen = others.scatter(1, own[:, 1:], True)
    chosen = chosen.scatter(1, own[:, :1], False)
    return scores + torch.where(chosen, strength * similarities.detach(), scores.new_zeros(()))


def guide_mask(
    guide: Tensor, positive: Tensor, *, margin: float = 0.0, strategy: Literal["absolute", "relative"] = "absolute"
) -> Tensor:
    """Which documents may be negatives by a guide: those with g_ij ≤ g_i⁺ − m (GISTEmbed, Solatorio 2024).

    `relative` is g_ij ≤ g_i⁺ − m · |g_i⁺|. What the guide has not scored (NaN) stays allowed. `info_nce` keeps the
    target whatever stands here.

    Args:
        guide: (B, n) the guide's scores, of any pool (query → document, query → query, …).
        positive: (B,) its scores of the positive pairs.
        margin: m.

    Returns:
        (B, n) bool.
    """
    bound = positive - (margin * positive.abs() if strategy == "relative" else margin)
    return ~(guide > bound[:, None])


def _focal(costs: Tensor, gamma: float, detach_weight: bool) -> Tensor:
    """(1 − e^{−c})^γ c of costs c = −log p."""
    if gamma == 0:
        return costs
    complement = -torch.expm1(-(costs.detach() if detach_weight else costs))
    # Rounding can leave a cost of −1e-17; and the slope of x^γ at 0 is infinite for γ < 1.
    return complement.clamp(min=torch.finfo(costs.dtype).tiny).pow(gamma) * costs
