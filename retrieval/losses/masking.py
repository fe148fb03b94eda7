"""What losses share about precision and about scores that are not there."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["masked_mean", "scored", "wide"]


def wide(values: Tensor) -> Tensor:
    """`values` in float32, or as they are in float64: losses are never computed in less."""
    return values.to(torch.promote_types(torch.float32, values.dtype))


def scored(teacher: Tensor) -> tuple[Tensor, Tensor]:
    """A teacher's scores as constants, 0 where it has none (NaN or infinite), and where it has one.

    Returns:
        Two tensors of the shape of `teacher`: float32 or float64, and bool.
    """
    teacher = wide(teacher.detach())
    known = teacher.isfinite()
    return torch.where(known, teacher, teacher.new_zeros(())), known


def masked_mean(costs: Tensor, mask: Tensor) -> Tensor:
    """The mean of `costs` where `mask` is True; 0, with a graph and no gradient, where it is nowhere."""
    kept = torch.where(mask, costs, costs.new_zeros(()))
    return kept.sum() / mask.sum().clamp(min=1)
