"""Losses against a teacher's scores: margins, distributions and orders.

Everywhere the teacher's scores are constants and raw (logits, never a sigmoid of them), and NaN is a document that the
teacher has not scored: it leaves the loss. Means go over what is left; a batch without anything left costs 0.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .masking import masked_mean, scored, wide

__all__ = [
    "in_batch_margin_mse",
    "kl_distillation",
    "margin_mse",
    "margin_mse_lists",
    "margin_mse_pairs",
    "rank_net_margins",
    "rank_net_pairs",
    "teacher_grades",
]


def margin_mse(
    student_positive: Tensor, student_negative: Tensor, teacher_positive: Tensor, teacher_negative: Tensor
) -> Tensor:
    """Margin-MSE: L = mean over (i, k) of [(s_i⁺ − s_ik⁻) − (t_i⁺ − t_ik⁻)]² (Hofstätter et al. 2020, eq. 8).

    The student's scores are dot products of vectors that are not normalised, or carry a learned scale: the teacher's
    margins are those of logits.

    Args:
        student_positive: (B,) or (B, 1).
        student_negative: (B,), or (B, k) for several negatives of each query.
        teacher_positive, teacher_negative: shaped as the student's; NaN where unscored.
    """
    student = _margins(wide(student_positive), wide(student_negative))
    teacher, known = scored(_margins(wide(teacher_positive), wide(teacher_negative)))
    return masked_mean((student - teacher).square(), known)


def margin_mse_lists(scores: Tensor, labels: Tensor) -> Tensor:
    """`margin_mse` over lists with the positive first.

    Args:
        scores: (B, 1 + k) of the student.
        labels: (B, 1 + k) raw scores of the teacher, or (B, k) its margins.

    Raises:
        ValueError: the labels have another width.
    """
    if labels.shape == scores.shape:
        return margin_mse(scores[:, :1], scores[:, 1:], labels[:, :1], labels[:, 1:])
    labels = labels[:, None] if labels.ndim == 1 else labels
    if labels.shape != (scores.shape[0], scores.shape[1] - 1):
        raise ValueError(
            f"labels of shape {tuple(labels.shape)} for scores of shape {tuple(scores.shape)}: give a score for each "
            "document, or a margin for each negative"
        )
    return margin_mse(scores[:, :1], scores[:, 1:], labels, torch.zeros_like(labels))


def margin_mse_pairs(scores: Tensor, labels: Tensor) -> Tensor:
    """Margin-MSE over all pairs of a list: L = mean over (b, i, j) of [(s_bi − s_bj) − (t_bi − t_bj)]².

    Ordered pairs, i = j among them, as naver's HF trainer has them (Lassance and Clinchant 2023); no document need be
    the positive.

    Args:
        scores: (B, N) of the student.
        labels: (B, N) raw scores of the teacher, NaN where unscored.
    """
    teacher, known = scored(labels)
    errors = wide(scores) - teacher
    costs = (errors[:, :, None] - errors[:, None, :]).square()
    return masked_mean(costs, known[:, :, None] & known[:, None, :])


def in_batch_margin_mse(student: Tensor, teacher: Tensor, own: Tensor) -> Tensor:
    """The in-batch part of the dual supervision of TAS-Balanced (Hofstätter et al. 2021, eq. 6).

    L = mean over i and over the documents d of all other queries of [(s_ii⁺ − s_id) − (t_ii⁺ − t_id)]². With one
    negative a query this is ½ (mean_{i≠j} over positives + mean_{i≠j} over negatives), the published code's scaling,
    to which its weight 0.75 belongs; the paper divides by 2|Q| and counts the query's own negative too.

    Args:
        student: (B, D) scores of all documents of the batch, those of other processes included.
        teacher: (B, D) the same by the teacher; NaN where unscored.
        own: (B, 1 + k) columns of each query's own documents, the positive first.
    """
    student, at = wide(student), own[:, :1]
    margins = student.gather(1, at) - student
    teacher = wide(teacher.detach())
    expected, known = scored(teacher.gather(1, at) - teacher)
    return masked_mean((margins - expected).square(), known.scatter(1, own, False))


def kl_distillation(
    student: Tensor, teacher: Tensor, *, temperature: float = 1.0, teacher_temperature: float | None = None
) -> Tensor:
    """L = T² · mean_i Σ_k P_ik log(P_ik / Q_ik), P = softmax(t / T'), Q = softmax(s / T) (Hinton et al. 2015).

    Both distributions are over the scored documents of a list; a list with fewer than two of them says nothing and
    leaves the mean. The student enters by log-probabilities (the published code of TAS-Balanced gave torch's KL
    probabilities, which is no divergence).

    Args:
        student: (B, N).
        teacher: (B, N), NaN where unscored.
        temperature: T.
        teacher_temperature: T', where the teacher's logits need another one; None is T.
    """
    values, known = scored(teacher)
    targets = _log_softmax(values / (teacher_temperature or temperature), known)
    found = _log_softmax(wide(student) / temperature, known)
    costs = (targets.exp() * (targets - found)).sum(dim=1)
    return temperature**2 * masked_mean(costs, known.sum(dim=1) > 1)


def rank_net_margins(
    student_positive: Tensor,
    student_negative: Tensor,
    teacher_positive: Tensor,
    teacher_negative: Tensor,
    *,
    published: bool = False,
) -> Tensor:
    """RankNet weighted by the teacher's margins: L = mean over (i, k) of |m| · log(1 + e^{−sign(m) (s⁺ − s⁻)}).

    m = t⁺ − t⁻ (Hofstätter et al. 2020, weighted RankNet). Where the teacher prefers the negative, so does the loss.

    Args:
        student_positive, student_negative, teacher_positive, teacher_negative: as in `margin_mse`.
        published: as the published code has it, m · log(1 + e^{−(s⁺ − s⁻)}): the same for positive margins, but
            without a lower bound where one is negative.
    """
    student = _margins(wide(student_positive), wide(student_negative))
    teacher, known = scored(_margins(wide(teacher_positive), wide(teacher_negative)))
    if published:
        return masked_mean(teacher * F.softplus(-student), known)
    return masked_mean(teacher.abs() * F.softplus(-teacher.sign() * student), known)


def rank_net_pairs(student_positive: Tensor, student_negative: Tensor, probabilities: Tensor | None = None) -> Tensor:
    """RankNet of given pairs: L = mean of −[P̄ log σ(x) + (1 − P̄) log(1 − σ(x))], x = s⁺ − s⁻ (Burges et al. 2005).

    Args:
        student_positive, student_negative: as in `margin_mse`.
        probabilities: P̄ of the positive being the better one, shaped as the negatives: 1 without a teacher, σ(t⁺ − t⁻)
            of one; NaN where unscored. None is 1 everywhere.
    """
    student = _margins(wide(student_positive), wide(student_negative))
    if probabilities is None:
        return F.softplus(-student).mean()
    targets, known = scored(probabilities.reshape(student.shape))
    return masked_mean(F.softplus(-student) + (1 - targets) * student, known)


def teacher_grades(teacher: Tensor) -> tuple[Tensor, Tensor]:
    """A teacher's scores as the grades of LambdaLoss, and which documents have one.

    y = softmax(t), plus 2 where that is above 0.001, as the published code of TAS-Balanced makes them: documents that
    the teacher finds possible stand clearly above the rest.

    Args:
        teacher: (B, N), NaN where unscored.

    Returns:
        (B, N) grades, and (B, N) bool for `lambda_loss(scores, grades, valid)`.
    """
    values, known = scored(teacher)
    grades = _log_softmax(values, known).exp()
    grades = torch.where(known, grades, grades.new_zeros(()))
    return grades + 2.0 * (grades > 0.001), known


def _margins(positive: Tensor, negative: Tensor) -> Tensor:
    """positive − negative, whichever of them has one or several columns."""
    if positive.ndim < negative.ndim:
        positive = positive[:, None]
    if negative.ndim < positive.ndim:
        negative = negative[:, None]
    return positive - negative


def _log_softmax(values: Tensor, known: Tensor) -> Tensor:
    """log softmax over the known columns, 0 in the others. A row without any is 0."""
    empty = ~known.any(dim=1, keepdim=True)
    logs = values.masked_fill(~known & ~empty, -torch.inf).log_softmax(dim=1)
    return torch.where(known, logs, logs.new_zeros(()))
