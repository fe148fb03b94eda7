"""Dynamic contrastive distillation (Rao et al. 2023): a teacher chooses the negatives and weighs the queries.

Lists have the positive in column 0. Where the authors' code is at odds with itself this is the intended loss: scores of
the chosen documents keep company with the right student scores, and the squared errors are weighted query by query.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from .masking import scored, wide

__all__ = ["DistillationParts", "dynamic_contrastive_loss", "dynamic_contrastive_parts", "hardest_negatives"]
__all__ += ["query_uncertainty", "weighted_soft_loss"]


@dataclass(frozen=True)
class DistillationParts:
    """Two scalars: the distillation loss and the loss against the labels."""

    distillation: Tensor
    hard: Tensor


def hardest_negatives(teacher: Tensor, count: int) -> Tensor:
    """Columns of the positive and of the `count` negatives with the highest teacher scores, in that order.

    Args:
        teacher: (B, 1 + k), the positive first; an unscored negative (NaN) comes after all scored ones.

    Returns:
        (B, 1 + min(count, k)) int64, to gather the scores of student and teacher alike.
    """
    values, known = scored(teacher)
    values = values[:, 1:].masked_fill(~known[:, 1:], -torch.inf)
    best = values.argsort(dim=1, descending=True, stable=True)[:, :count] + 1
    return torch.cat([torch.zeros_like(teacher[:, :1], dtype=torch.int64), best], dim=1)


def query_uncertainty(teacher: Tensor) -> Tensor:
    """u_i = H_i / Σ_b H_b, H the entropy of softmax(t_i): (B,), sums to 1. A batch without entropy gives 1 / B.

    Args:
        teacher: (B, K), NaN where unscored; a list without a score has no part in it.
    """
    values, known = scored(teacher)
    has = known.any(dim=1)
    logs = values.masked_fill(~known & has[:, None], -torch.inf).log_softmax(dim=1)
    entropies = -torch.where(known, logs.exp() * logs, logs.new_zeros(())).sum(dim=1)
    total = entropies.sum()
    even = has.to(values.dtype) / has.sum().clamp(min=1)
    return torch.where(total > 0, entropies / total.clamp(min=torch.finfo(values.dtype).tiny), even)


def dynamic_contrastive_parts(
    student: Tensor, teacher: Tensor, *, temperature: float = 1.0, published: bool = False
) -> DistillationParts:
    """L_hard = Σ_i u_i · mean_k BCE(s_ik, k = 0);  L_kd = T² Σ_i v_i · mean_k ((t_ik − s_ik) / T)².

    v = softmax_i((1 − u_i)²): certain queries teach more, uncertain ones count more against the labels.

    Args:
        student: (B, K) logits.
        teacher: (B, K) logits, NaN where unscored: such a document, and a list without any scored one, is left out.
        temperature: T.
        published: reproduce the published value, where the squared errors are averaged before they are weighted, so
            that v cancels.
    """
    student = wide(student)
    values, known = scored(teacher)
    has = known.any(dim=1)
    counts = known.sum(dim=1).clamp(min=1)
    uncertainty = query_uncertainty(teacher)
    labels = torch.zeros_like(student)
    labels[:, 0] = 1
    costs = F.binary_cross_entropy_with_logits(student, labels, reduction="none")
    hard = (uncertainty * _row_sums(costs, known) / counts).sum()
    errors = _row_sums(((values - student) / temperature).square(), known)
    if published:
        return DistillationParts(temperature**2 * errors.sum() / known.sum().clamp(min=1), hard)
    certainty = (1 - uncertainty).square().masked_fill(~has & has.any(), -torch.inf).softmax(dim=0)
    return DistillationParts(temperature**2 * (certainty * errors / counts).sum(), hard)


def dynamic_contrastive_loss(
    student: Tensor, teacher: Tensor, *, alpha: float = 0.2, temperature: float = 1.0, published: bool = False
) -> Tensor:
    """L = α L_kd + (1 − α) L_hard of `dynamic_contrastive_parts`."""
    parts = dynamic_contrastive_parts(student, teacher, temperature=temperature, published=published)
    return alpha * parts.distillation + (1 - alpha) * parts.hard


def weighted_soft_loss(
    student: Tensor, teacher: Tensor, *, temperature: float = 1.0, published: bool = False
) -> DistillationParts:
    """The same with weighted soft labels: L_kd = T² mean_i w_i · mean_k ((t_ik − s_ik) / T)², L_hard = mean_i CE_i(s).

    w_i = 1 − e^{−CE_i(s) / CE_i(t)}, a constant: a query that the student already does better than the teacher learns
    less from it. The whole is α L_kd + L_hard, α = 0.2. CE is softmax cross-entropy against column 0.

    Args:
        student, teacher, temperature: as in `dynamic_contrastive_parts`; a list whose positive is not scored is left
            out.
        published: average the squared errors before weighting.
    """
    student = wide(student)
    values, known = scored(teacher)
    has = known[:, 0]
    known = known & has[:, None]
    counts = known.sum(dim=1).clamp(min=1)
    lists = has.sum().clamp(min=1)
    of_student, of_teacher = (_cross_entropy(scores, known) for scores in (student, values))
    ratios = of_student.detach() / of_teacher.clamp(min=torch.finfo(values.dtype).tiny)
    weights = torch.where(has, -torch.expm1(-ratios), ratios.new_zeros(()))
    errors = _row_sums(((values - student) / temperature).square(), known)
    if published:
        errors = (errors.sum() / known.sum().clamp(min=1)).expand_as(weights)
        counts = torch.ones_like(counts)
    return DistillationParts(temperature**2 * (weights * errors / counts).sum() / lists, of_student.sum() / lists)


def _row_sums(costs: Tensor, known: Tensor) -> Tensor:
    return torch.where(known, costs, costs.new_zeros(())).sum(dim=1)


def _cross_entropy(scores: Tensor, known: Tensor) -> Tensor:
    """−log softmax(s)_0 over the known columns, (B,); 0 for a list without a positive."""
    has = known[:, :1]
    logs = scores.masked_fill(~known & has, -torch.inf).log_softmax(dim=1)
    return torch.where(has[:, 0], -logs[:, 0], logs.new_zeros(()))
