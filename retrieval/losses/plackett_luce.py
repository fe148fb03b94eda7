"""Plackett-Luce distillation (PLD): the teacher's order, with the gold document put first."""

from __future__ import annotations

import torch
from torch import Tensor

from .masking import masked_mean, scored, wide

__all__ = ["plackett_luce_distillation", "plackett_luce_order"]


def plackett_luce_distillation(
    student: Tensor,
    teacher: Tensor,
    targets: Tensor | None = None,
    valid: Tensor | None = None,
    *,
    temperature: float = 1.0,
) -> Tensor:
    """L = mean over queries of Σ_k α_k [ log Σ_{l ≥ k} e^{s_{π_l}} − s_{π_k} ].

    π is gold first, then by descending teacher score (equal ones by position); α_k = softmax(t / T)_{π_k} weights the
    positions. The student is not tempered. α = (1, 0, …) is cross-entropy, uniform α is ListMLE. No figures for
    retrieval are published.

    Args:
        student: (B, K) logits.
        teacher: (B, K) logits; NaN where unscored: such a document leaves its list.
        targets: (B,) int64, the gold column; None is column 0.
        valid: (B, K) bool, False at padding; None: no padding.
        temperature: T, of the teacher's weights.

    Returns:
        A scalar. A list whose gold document is not scored, or with fewer than two scored ones, leaves the mean.
    """
    student = wide(student)
    values, known = scored(teacher)
    known = known if valid is None else known & valid
    gold = torch.zeros_like(student[:, 0], dtype=torch.int64) if targets is None else targets
    counted = known.gather(1, gold[:, None]).squeeze(1) & (known.sum(dim=1) > 1)
    known = known | ~known.any(dim=1, keepdim=True)  # a list without a score is left out below; no NaN on the way
    weights = (values / temperature).masked_fill(~known, -torch.inf).softmax(dim=1)
    order = plackett_luce_order(values, gold, known)
    ranked, inside = student.gather(1, order), known.gather(1, order)
    # The lowest float instead of minus infinity, whose differences would be no numbers.
    floor = torch.finfo(ranked.dtype).min
    remaining = ranked.masked_fill(~inside, floor).flip(1).logcumsumexp(dim=1).flip(1)
    costs = torch.where(inside, weights.gather(1, order) * (remaining - ranked), ranked.new_zeros(()))
    return masked_mean(costs.sum(dim=1), counted)


def plackett_luce_order(teacher: Tensor, targets: Tensor, valid: Tensor | None = None) -> Tensor:
    """π: (B, K) columns, the target first, the others by descending teacher score, padding last."""
    keys = teacher if valid is None else teacher.masked_fill(~valid, -torch.inf)
    return keys.scatter(1, targets[:, None], torch.inf).argsort(dim=1, descending=True, stable=True)
