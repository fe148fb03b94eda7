"""ADORE's loss over the lists that a search has just returned (Zhan et al., SIGIR 2021).

Every list is in retrieval order. Pairs of a relevant and a less relevant document cost softplus(s_j − s_i), each
weighted by what exchanging the two would change of a measure: reciprocal rank or nDCG. Where no relevant document was
retrieved, all of the query's are appended at the end, so that each query teaches something.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Metric", "RankedLists", "adore_loss", "append_unfound", "delta_ndcg", "delta_rr", "ideal_dcg"]

Metric = Literal["rr", "ndcg"]


@dataclass(frozen=True)
class RankedLists:
    """Documents in retrieval order.

    Attributes:
        rows: (B, N) int64, -1 is padding.
        grades: (B, N) float32, above 0 for relevant documents, 0 for all others.
    """

    rows: Tensor
    grades: Tensor


def append_unfound(found: Tensor, relevant: Tensor, grades: Tensor) -> RankedLists:
    """Label what was found; where a list has nothing relevant, append all relevant documents at its end.

    A list with one relevant document stays as it is: the others that it lacks are not added.

    Args:
        found: (B, k) int64 rows in retrieval order, -1 is padding.
        relevant: (B, P) int64 rows of every relevant document of the query, -1 is padding.
        grades: (B, P) their grades, above 0.

    Returns:
        Lists of k + P' columns, P' as many as the query with most appended documents has.
    """
    same = (found[:, :, None] == relevant[:, None, :]) & (relevant >= 0)[:, None, :]
    labels = (same * grades.float()[:, None, :]).sum(dim=2)
    missed = ~same.any(dim=2).any(dim=1)
    appended = torch.where(missed[:, None] & (relevant >= 0), relevant, relevant.new_full((), -1))
    width = int((appended >= 0).sum(dim=1).max()) if appended.numel() else 0
    front = (appended < 0).to(torch.uint8).argsort(dim=1, stable=True)[:, :width]  # padding may stand anywhere
    tail = appended.gather(1, front)
    tail_grades = torch.where(tail >= 0, grades.float().gather(1, front), 0.0)
    return RankedLists(torch.cat([found, tail], dim=1), torch.cat([labels, tail_grades], dim=1))


def delta_rr(rank_i: Tensor, rank_j: Tensor, metric_cut: int) -> Tensor:
    """|ΔRR@cut| = |a_i − a_j|, a_r = 1/r for r ≤ cut, else 0. Ranks count from 1 and broadcast."""
    return (_reciprocal(rank_i, metric_cut) - _reciprocal(rank_j, metric_cut)).abs()


def delta_ndcg(rank_i: Tensor, rank_j: Tensor, gain_i: Tensor, gain_j: Tensor, metric_cut: int) -> Tensor:
    """|ΔnDCG@cut| = |G_i − G_j| · |1/D_i − 1/D_j|, 1/D_r = 1/log2(1 + r) for r ≤ cut, else 0 (Burges 2010, §4).

    Gains are (2^y − 1) / ideal DCG. All arguments broadcast.
    """
    return (gain_i - gain_j).abs() * (_discount(rank_i, metric_cut) - _discount(rank_j, metric_cut)).abs()


def ideal_dcg(grades: Tensor, metric_cut: int) -> Tensor:
    """DCG@cut of the best order: Σ_r (2^y_r − 1) / log2(1 + r). `grades` (B, P), 0 at padding → (B,)."""
    best = grades.sort(dim=1, descending=True).values[:, :metric_cut]
    ranks = torch.arange(1, best.shape[1] + 1, device=best.device, dtype=best.dtype)
    return ((2**best - 1) / torch.log2(1 + ranks)).sum(dim=1)


def adore_loss(
    scores: Tensor,
    lists: RankedLists,
    *,
    metric_cut: int,
    metric: Metric = "rr",
    ideal: Tensor | None = None,
) -> Tensor:
    """L = mean_q mean_{(i, j): y_i > y_j} |Δ_ij| · log(1 + e^{s_j − s_i}), σ = 1 (Zhan et al. 2021).

    Δ is what exchanging the documents at ranks i and j changes of the measure. By reciprocal rank, as published, a
    document is relevant or not; nDCG uses the grades. A query without a pair costs nothing but counts in the mean. The
    published code leaves `metric_cut` at None, which makes every weight 0; here it has no default. Scores are taken in
    float32 at least.

    Args:
        scores: (B, N) the student's, in the lists' order; any value at padding.
        lists: the documents' rows and grades.
        metric_cut: ranks beyond it count nothing.
        metric: "rr" or "ndcg".
        ideal: (B,) the ideal DCG by all judgments of the query; None takes the list's own. For "ndcg" only.

    Returns:
        A scalar ≥ 0.
    """
    scores = scores.to(torch.promote_types(torch.float32, scores.dtype))
    valid = lists.rows >= 0
    labels = lists.grades.to(scores.dtype).masked_fill(~valid, 0)
    if metric == "rr":
        labels = (labels > 0).to(scores.dtype)
    chosen = _relevant_columns(labels)  # pairs begin with a relevant document: (B, R, N) of them, R mostly small
    pairs = (labels.gather(1, chosen)[:, :, None] > labels[:, None, :]) & valid[:, None, :]
    costs = F.softplus(scores[:, None, :] - scores.gather(1, chosen)[:, :, None])
    costs = torch.where(pairs, _weights(labels, valid, chosen, metric, metric_cut, ideal) * costs, 0.0)
    return (costs.sum(dim=(1, 2)) / pairs.sum(dim=(1, 2)).clamp(min=1)).mean()


def _weights(
    labels: Tensor, valid: Tensor, chosen: Tensor, metric: Metric, metric_cut: int, ideal: Tensor | None
) -> Tensor:
    """|Δ_ij| for i of the `chosen` (B, R) columns and j of all. (B, R, N)."""
    ranks = valid.cumsum(dim=1).to(labels.dtype)
    rank_i, rank_j = ranks.gather(1, chosen)[:, :, None], ranks[:, None, :]
    if metric == "rr":
        return delta_rr(rank_i, rank_j, metric_cut)
    best = ideal_dcg(labels, metric_cut) if ideal is None else ideal.to(labels.dtype)
    gains = (2**labels - 1) / best.clamp(min=torch.finfo(labels.dtype).eps)[:, None]
    return delta_ndcg(rank_i, rank_j, gains.gather(1, chosen)[:, :, None], gains[:, None, :], metric_cut)


def _relevant_columns(labels: Tensor) -> Tensor:
    """Columns of each list's relevant documents, first ones first; shorter rows are filled with other columns, which
    begin no pair. (B, R) int64."""
    relevant = labels > 0
    return (~relevant).to(torch.uint8).argsort(dim=1, stable=True)[:, : int(relevant.sum(dim=1).max())]


def _reciprocal(ranks: Tensor, cut: int) -> Tensor:
    return torch.where((ranks >= 1) & (ranks <= cut), 1 / ranks.clamp(min=1), 0.0)


def _discount(ranks: Tensor, cut: int) -> Tensor:
    return torch.where((ranks >= 1) & (ranks <= cut), 1 / torch.log2(1 + ranks.clamp(min=1)), 0.0)
