"""Max pooling under the head of a masked language model: no (texts, tokens, V) logits, in training or out of it.

log(1 + relu(z)) grows with z, so the largest weight over a text's tokens is that of the largest logit. What the head's
last layer would give for every token is made for a few tokens at a time (`pooled_head`), and the largest goes on alone.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sparse_encoder.modules import SpladePooling
from torch import Tensor, nn

from ...errors import ConfigError
from .pooled_head import largest_logits

__all__ = ["pool_under_head"]


def pool_under_head(reader: Transformer, pooling: SpladePooling, *, chunk: int) -> None:
    """Let `reader` give the largest logits only, and `pooling` take them, in place; both save as what they were.

    Args:
        reader: a masked language model whose last layer is linear over the vocabulary.
        pooling: behind it, by maximum.
        chunk: tokens at a time: memory, no part of the result.

    Raises:
        ConfigError: the pooling is a sum, which needs every logit, or the last layer is something else.
    """
    head: Any = reader.model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        raise ConfigError(f"sparse.chunk: the model's last layer is a {type(head).__name__}, not linear; leave it out")
    if pooling.pooling_strategy != "max":
        raise ConfigError("sparse.chunk: a sum over tokens needs every logit; take pooling: max, or leave chunk out")
    state = _Masks()

    def largest(states: Tensor) -> Tensor:
        assert state.whole is not None  # the reader's hook saw it
        return largest_logits(states, state.whole.bool(), head.weight, head.bias, chunk=chunk)[:, None]

    cast(Any, head).forward = largest
    reader.register_forward_pre_hook(state.seen)
    pooling.register_forward_pre_hook(state.reduced)
    pooling.register_forward_hook(state.restored)


class _Masks:
    """The attention mask of the texts under way, which is one place wide while they are pooled."""

    def __init__(self) -> None:
        self.whole: Tensor | None = None

    def seen(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self.whole = inputs[0]["attention_mask"]

    def reduced(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        features = inputs[0]
        features["attention_mask"] = torch.ones_like(features["attention_mask"][:, :1])

    def restored(self, module: nn.Module, inputs: tuple[Any, ...], output: dict[str, Tensor]) -> None:
        assert self.whole is not None
        output["attention_mask"], self.whole = self.whole, None
