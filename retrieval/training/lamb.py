"""LAMB: layer-wise adaptive moments for batch training (You et al. 2020, algorithm 2)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

__all__ = ["Lamb"]


class Lamb(Optimizer):
    """AdamW's direction, scaled in each tensor by ‖x‖ / ‖update‖.

    m = β₁ m + (1 − β₁) g,  v = β₂ v + (1 − β₂) g²,  r = m̂ / (√v̂ + ε) with bias-corrected m̂, v̂,
    x ← x − η · φ(‖x‖) / ‖r + λ x‖ · (r + λ x),  φ(z) = min(z, `max_norm`).

    The trust ratio φ(‖x‖) / ‖r + λ x‖ is 1 where either norm is 0. Biases and norms have one too, as for STAR.

    Args:
        params: parameters or groups of them; groups may give any of the values below.
        lr: η.
        betas: β₁, β₂.
        eps: ε.
        weight_decay: λ.
        max_norm: bound of φ; None is the identity. (The LAMB that STAR's authors used has 10, and no bias correction.)
        bias_correction: False takes m and v as they are.

    Raises:
        ValueError: a value that is out of range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        *,
        max_norm: float | None = None,
        bias_correction: bool = True,
    ) -> None:
        if lr < 0 or eps <= 0 or weight_decay < 0 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(
                f"LAMB: lr {lr}, betas {betas}, eps {eps}, weight_decay {weight_decay}: want lr ≥ 0, betas in [0, 1), "
                "eps > 0, weight_decay ≥ 0"
            )
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {**defaults, "max_norm": max_norm, "bias_correction": bias_correction})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient.

        Returns:
            The closure's loss, if there is a closure.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    _update(parameter, parameter.grad, self.state[parameter], group)
        return loss


def _update(parameter: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
    if gradient.is_sparse:
        raise ValueError("LAMB takes dense gradients; make the embedding with sparse=False")
    direction = _adam_direction(gradient, state, group).add(parameter, alpha=group["weight_decay"])
    parameter.sub_(group["lr"] * _trust_ratio(parameter, direction, group["max_norm"]) * direction)


def _adam_direction(gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
    """r of the class's docstring; moves m, v and the step in `state`."""
    if not state:
        state |= {"step": 0, "m": torch.zeros_like(gradient), "v": torch.zeros_like(gradient)}
    state["step"] += 1
    first, second = group["betas"]
    state["m"].lerp_(gradient, 1 - first)
    state["v"].mul_(second).addcmul_(gradient, gradient, value=1 - second)
    if not group["bias_correction"]:
        return state["m"] / (state["v"].sqrt() + group["eps"])
    m = state["m"] / (1 - first ** state["step"])
    v = state["v"] / (1 - second ** state["step"])
    return m / (v.sqrt() + group["eps"])


def _trust_ratio(parameter: Tensor, direction: Tensor, max_norm: float | None) -> Tensor:
    size, length = parameter.norm(), direction.norm()
    bounded = size if max_norm is None else size.clamp(max=max_norm)
    return torch.where((size > 0) & (length > 0), bounded / length, torch.ones_like(size))
