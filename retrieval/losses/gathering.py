"""Values of all processes, for losses that are no mean over queries.

A loss whose weights or counts belong to the whole batch is computed on the whole batch by every process. Its inputs are
gathered with gradient: the backward pass adds up what every process has for a slice, which is the number of processes
times the gradient of one process, and the mean over processes that data-parallel training takes makes it exact.
"""

from __future__ import annotations

import torch
from sentence_transformers.util.distributed import all_gather, all_gather_with_grad, get_world_size
from torch import Tensor

__all__ = ["gather_constant", "gather_with_gradient", "mean_over_all"]


def gather_with_gradient(values: Tensor) -> Tensor:
    """(B, …) of this process → (processes · B, …), in order of rank."""
    return all_gather_with_grad(values) if get_world_size() > 1 else values


def gather_constant(values: Tensor) -> Tensor:
    """The same without gradient; bool too."""
    if get_world_size() == 1:
        return values.detach()
    if values.dtype == torch.bool:
        return all_gather(values.detach().to(torch.uint8)).bool()
    return all_gather(values.detach().contiguous())


def mean_over_all(totals: Tensor, counts: Tensor) -> Tensor:
    """Σ totals / Σ counts over the queries of all processes, for costs of which each query has its own number.

    Args:
        totals: (B,) sums of costs by query of this process.
        counts: (B,) how many costs.

    Returns:
        A scalar; 0 where nothing counts.
    """
    return gather_with_gradient(totals).sum() / gather_constant(counts).sum().clamp(min=1)
