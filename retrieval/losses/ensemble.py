"""Distillation from an ensemble of unlike teachers (Geng et al., arXiv 2411.04403): dense and sparse scores as one.

Their scores have nothing in common but the order within a list, so each is brought to [0, 1] there first.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .distillation import kl_distillation
from .masking import scored

__all__ = ["ensemble_distillation", "ensemble_targets"]

_EPSILON = 1e-6


def ensemble_targets(teachers: Tensor, *, scale: float = 30.0, drop_constant: bool = True) -> tuple[Tensor, Tensor]:
    """S · mean over k of (s_k − min s_k) / (max s_k − min s_k + 1e-6), over each query's candidates.

    A teacher that gives all candidates of a query the same score says nothing there. The published code averages its
    zeros in, which takes half the spread away from two teachers; here it leaves the mean of that query, and is counted.
    One without any score in a query is not in its mean either; it is no constant one, and is not counted.

    Args:
        teachers: (K, B, N) raw scores, NaN where unscored.
        scale: S.
        drop_constant: as said; False is as published.

    Returns:
        (B, N) float32 in [0, S], NaN for a document that a teacher in the mean has not scored, and everywhere in a list
        without such a teacher; and which teachers were dropped for being constant, (K, B) bool.
    """
    values, known = scored(teachers)
    infinity = torch.full_like(values, torch.inf)
    least = torch.where(known, values, infinity).amin(dim=-1, keepdim=True)
    most = torch.where(known, values, -infinity).amax(dim=-1, keepdim=True)
    constant = ~(most > least)
    spread = torch.where(constant, torch.zeros_like(most), most - least)
    normalised = torch.where(known & ~constant, (values - least) / (spread + _EPSILON), torch.zeros_like(values))
    kept = ~constant if drop_constant else known.any(dim=-1, keepdim=True)
    count = kept.sum(dim=0)  # (B, 1)
    mean = torch.where(kept, normalised, torch.zeros_like(values)).sum(dim=0) / count.clamp(min=1)
    unknown = (kept & ~known).any(dim=0) | (count == 0)
    dropped = (constant & known.any(dim=-1, keepdim=True)).squeeze(-1) & drop_constant
    return torch.where(unknown, torch.nan, scale * mean), dropped


def ensemble_distillation(student: Tensor, teachers: Tensor, *, scale: float = 30.0) -> Tensor:
    """KL(softmax(targets) ‖ softmax(student)), mean over queries, temperature 1, as in the released loss. A scalar.

    With two candidates every teacher's normalised scores are 0 and 1: which is better remains of it, by how much does
    not.

    Args:
        student: (B, N).
        teachers: (K, B, N), see `ensemble_targets`.
        scale: S.
    """
    return kl_distillation(student, ensemble_targets(teachers, scale=scale)[0])
