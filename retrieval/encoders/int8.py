"""Linear layers in 8 bits on the CPU: whole-number products, one scale for each weight row and each token.

    y = s_x (q_x · q_wᵀ) s_w + b,   q_x = round(x / s_x),  s_x = max|x| / 127 for each token,
                                    q_w = round(w / s_w),  s_w = max|w| / 127 for each output

Weights and inputs are quantised symmetrically. A token's result is a function of that token alone, so a text's vector
does not depend on its neighbours in a batch (with one scale a batch, as in ONNX Runtime's dynamic quantisation, it
would), and one token with large values does not coarsen the others.
"""

from __future__ import annotations

import torch
from torch import nn

from ...errors import ConfigError

__all__ = ["Int8Linear", "to_int8"]

_LEVELS = 127.0
_SMALLEST = 1e-12  # scale of a row of zeros


class Int8Linear(nn.Module):
    """Stands where an `nn.Linear` stood, for inference.

    Args:
        linear: the layer; its weight (outputs, inputs) is rounded once.
    """

    weight: torch.Tensor
    scale: torch.Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        scale = (weight.abs().amax(dim=1) / _LEVELS).clamp_min_(_SMALLEST)
        self.register_buffer("weight", torch.round(weight / scale[:, None]).to(torch.int8).t())
        self.register_buffer("scale", scale)
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach().float(), requires_grad=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """(…, inputs) float32 → (…, outputs) float32."""
        rows = inputs.reshape(-1, inputs.shape[-1])
        if not len(rows):
            return inputs.new_zeros(*inputs.shape[:-1], self.weight.shape[1])
        scale = (rows.abs().amax(dim=1, keepdim=True) / _LEVELS).clamp_min_(_SMALLEST)
        products = torch.ops.aten._int_mm((rows / scale).round_().to(torch.int8), self.weight)
        result = products.to(torch.float32).mul_(scale).mul_(self.scale)
        if self.bias is not None:
            result.add_(self.bias)
        return result.view(*inputs.shape[:-1], -1)


def to_int8(model: nn.Module) -> int:
    """Replace every `nn.Linear` inside `model`, in place; return how many there were.

    Raises:
        ConfigError: there are none.
    """
    count = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                setattr(parent, name, Int8Linear(child))
                count += 1
    if not count:
        raise ConfigError(f"quantise='int8' is for linear layers, and a {type(model).__name__} has none")
    return count
