"""The largest logit of each vocabulary entry over a text's positions, without the (texts, positions, V) logits.

A language model's head is the memory peak of a sparse encoder: 32 texts of 256 positions over 32,000 entries are 1 GB
in float32, and as much again for its gradient. Here the head runs over a few positions at a time under a running
maximum, and what is kept for the way back is (texts, V) positions: through a maximum the gradient reaches one alone.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["largest_logits"]

_BLOCK = 1 << 22
"""Numbers of the head's rows that are gathered at once on the way back."""


def largest_logits(states: Tensor, valid: Tensor, weight: Tensor, bias: Tensor | None = None, *, chunk: int) -> Tensor:
    """max over t with valid_it of states_it · weight_jᵀ + bias_j, in float32.

    Value and gradient are those of `(states @ weight.T + bias).masked_fill(~valid, -inf).max(dim=1)`; of equal logits
    the first position has the gradient, and NaN stays NaN.

    Args:
        states: (B, P, H) hidden states at the positions that are pooled.
        valid: (B, P) bool; padding is False. A text without any has -inf everywhere.
        weight: (V, H) of the head.
        bias: (V,) of the head.
        chunk: positions at a time.

    Returns:
        (B, V) float32.
    """
    return cast(Tensor, _LargestLogits.apply(states, valid, weight, bias, chunk))


class _LargestLogits(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, valid: Tensor, weight: Tensor, bias: Tensor | None, chunk: int) -> Tensor:
        largest = states.new_full((len(states), len(weight)), -torch.inf, dtype=torch.float32)
        places = torch.zeros(largest.shape, dtype=torch.int32, device=states.device)
        for start in range(0, states.shape[1], chunk):
            part = slice(start, start + chunk)
            logits = F.linear(states[:, part], weight, bias).float()
            found, at = logits.masked_fill_(~valid[:, part, None], -torch.inf).max(dim=1)
            better = (found > largest) | found.isnan()
            largest = torch.where(better, found, largest)
            places = torch.where(better, at.int() + start, places)
        ctx.save_for_backward(states, weight, places)
        ctx.with_bias = bias is not None
        return largest

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, Tensor | None, Tensor | None, None]:
        gradient = gradients[0]
        states, weight, places = ctx.saved_tensors
        wants_states, _, wants_weight, wants_bias, _ = ctx.needs_input_grad
        to_states = torch.zeros_like(states, dtype=torch.float32) if wants_states else None
        to_weight = torch.zeros_like(weight, dtype=torch.float32) if wants_weight else None
        pairs = gradient.nonzero().split(max(1, _BLOCK // states.shape[2]))
        for rows, entries in (block.unbind(1) for block in pairs):
            values, at = gradient[rows, entries, None], places[rows, entries].long()
            if to_states is not None:
                to_states.index_put_((rows, at), values * weight[entries], accumulate=True)
            if to_weight is not None:
                to_weight.index_add_(0, entries, values * states[rows, at])
        return (
            None if to_states is None else to_states.to(states.dtype),
            None,
            None if to_weight is None else to_weight.to(weight.dtype),
            gradient.sum(dim=0).to(weight.dtype) if ctx.with_bias and wants_bias else None,
            None,
        )
