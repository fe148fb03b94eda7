"""The classification head of a cross-encoder: what stands between a pair's vector and its logit."""

from __future__ import annotations

from typing import Any

from sentence_transformers.base.modules import Transformer
from torch import nn

from ...errors import ConfigError

__all__ = ["set_head_dropout"]


def set_head_dropout(model: nn.Module, probability: float) -> None:
    """Set the dropout of the head, in place; the transformer under it keeps its own.

    Raises:
        ConfigError: the head has none.
    """
    networks: list[Any] = [module.model for module in model.modules() if isinstance(module, Transformer)]
    found = [dropout for network in networks for dropout in _head_dropouts(network)]
    if not found:
        raise ConfigError("head_dropout: the model's head has no dropout that could be set; give head_dropout: null")
    for dropout in found:
        dropout.p = probability


def _head_dropouts(network: Any) -> list[nn.Dropout]:
    """Those outside of the base model."""
    under = {id(module) for module in network.base_model.modules()} if network.base_model is not network else set()
    return [module for module in network.modules() if isinstance(module, nn.Dropout) and id(module) not in under]
