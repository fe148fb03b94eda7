"""Momentum contrast: negatives from a queue of earlier keys (He et al. 2020; for retrieval Izacard et al. 2022).

The four steps of an iteration, as pure functions of tensors.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

__all__ = ["momentum_update", "queue_loss", "queue_scores", "random_queue", "write_queue"]


def random_queue(size: int, dimension: int, generator: torch.Generator | None = None) -> Tensor:
    """A queue to start with: random unit vectors. (size, dimension) float32."""
    return torch.nn.functional.normalize(torch.randn(size, dimension, generator=generator), dim=1)


@torch.no_grad()
def momentum_update(keys: Iterable[Tensor], queries: Iterable[Tensor], momentum: float) -> None:
    """θ_k ← m θ_k + (1 − m) θ_q, in place, before the keys are encoded (He et al. 2020, eq. 2).

    Args:
        keys: the key encoder's parameters.
        queries: the query encoder's, in the same order.
        momentum: m, in [0, 1].
    """
    for key, query in zip(keys, queries, strict=True):
        key.mul_(momentum).add_(query.detach(), alpha=1 - momentum)


def queue_scores(queries: Tensor, keys: Tensor, queue: Tensor, *, temperature: float) -> Tensor:
    """[q_i·k_i, q_i·queue] / τ, in float32 at least, under autocast too: the batch's other keys are no negatives in
    this step.

    Args:
        queries: (B, dim).
        keys: (B, dim), the key of each query.
        queue: (K, dim).

    Returns:
        (B, 1 + K); the positive is column 0.
    """
    dtype = torch.promote_types(torch.float32, queries.dtype)
    queries, keys, queue = queries.to(dtype), keys.to(dtype), queue.to(dtype)
    with torch.autocast(queries.device.type, enabled=False):
        own = (queries * keys).sum(dim=1, keepdim=True)
        return torch.cat([own, queries @ queue.T], dim=1) / temperature


def queue_loss(scores: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy with the positive in column 0 of `scores` (B, 1 + K); a scalar (Izacard et al. 2022, eq. 1)."""
    targets = torch.zeros(len(scores), dtype=torch.int64, device=scores.device)
    return torch.nn.functional.cross_entropy(scores, targets, label_smoothing=label_smoothing)


@torch.no_grad()
def write_queue(queue: Tensor, keys: Tensor, pointer: int) -> int:
    """Put the batch's keys over the oldest ones, in place; first in, first out.

    Scores of this step need the queue as it was for their backward pass: give `queue_scores` a copy.

    Args:
        queue: (K, dim).
        keys: (B, dim) of all processes in the order of their ranks; B divides K.
        pointer: where the oldest key is.

    Returns:
        The next pointer: pointer + B, from the beginning again at K.

    Raises:
        ValueError: B does not divide K, or the pointer is not at a whole batch.
    """
    if len(queue) % len(keys) or pointer % len(keys):
        raise ValueError(f"a queue of {len(queue)} at {pointer} does not take whole batches of {len(keys)}")
    queue[pointer : pointer + len(keys)] = keys.to(queue.dtype)
    return (pointer + len(keys)) % len(queue)
