"""Decoders that attend both ways: a causal language model as an encoder (KaLM-Embedding-V2, arXiv 2506.20923).

The causal mask goes by transformers' own switch, `is_causal: false` in the model's configuration, which every attention
implementation follows and which is saved with the model: plain sentence-transformers loads it as it was trained.
"""

from __future__ import annotations

import logging
from typing import Any, TypeVar

import torch
from sentence_transformers import SentenceTransformer, SparseEncoder
from sentence_transformers.base.modules import Transformer
from torch import nn

from ...errors import ConfigError
from .pooling import set_pooling

__all__ = ["attend_both_ways", "sees_what_follows"]

_LOG = logging.getLogger(__name__)
M = TypeVar("M", SentenceTransformer, SparseEncoder)
_PROBE = 8


def attend_both_ways(model: M) -> M:
    """Take the causal mask off every transformer of `model`, in place; pooling of the last token becomes the mean.

    A transformer that attends both ways already is left as it is. A sliding window stays a window, to both sides.

    Raises:
        ConfigError: there is no transformer, or one does not follow the switch.
    """
    transformers = [module for module in model.modules() if isinstance(module, Transformer)]
    if not transformers:
        raise ConfigError("attention: the model has no transformer that could attend both ways")
    for transformer in transformers:
        if sees_what_follows(transformer):
            continue
        for config in {id(config): config for config in _configurations(transformer)}.values():
            config.is_causal = False
        if not sees_what_follows(transformer):
            raise ConfigError(
                f"attention: {type(_network(transformer)).__name__} stays causal whatever its configuration says; "
                "transformers 5.2 and later can change Llama, Qwen, Mistral, Gemma and other decoders of its own"
            )
        _LOG.info("%s attends both ways from now on", type(_network(transformer)).__name__)
    set_pooling(model, "mean", instead_of="lasttoken")  # it alone had seen all tokens
    return model


@torch.no_grad()
def sees_what_follows(transformer: Transformer) -> bool:
    """Whether the last token of a text changes the state of its first."""
    network = _network(transformer)
    training, device = network.training, next(network.parameters()).device
    network.eval()
    try:
        ids = torch.arange(1, _PROBE + 1, device=device)[None]
        mask = torch.ones_like(ids)
        before = network(input_ids=ids, attention_mask=mask)[0][:, 0]
        ids[0, -1] = 0  # in a pass of its own, of equal shape: what does not depend on it is equal bit for bit
        after = network(input_ids=ids, attention_mask=mask)[0][:, 0]
    finally:
        network.train(training)
    return not torch.equal(before, after)


def _network(transformer: Transformer) -> nn.Module:
    return transformer.model


def _configurations(transformer: Transformer) -> list[Any]:
    """The configuration, and the text part's where a model of several kinds of input has one."""
    config = transformer.config
    return [config, config.get_text_config()]
