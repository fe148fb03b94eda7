"""A masked-LM head for an encoder that has none, so that a sparse encoder can be made of it.

The decoder is tied to the word embeddings. The head's transform, dense → activation → LayerNorm, begins as near to the
identity as it can: the dense layer is the identity plus an offset in its bias, far enough above 0 that the activation
(GELU, ReLU, SiLU) is linear there; the LayerNorm behind it takes off what is the same in every dimension, and with it
the offset. So the logits are at first those of LayerNorm(hidden) · embeddings + b: what the encoder's last layer still
says about its own input words. b begins as the logarithm of the terms' frequencies, the best that a head can do that
does not yet look at the text.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from torch import Tensor, nn
from transformers import AutoModelForMaskedLM

from ...errors import ConfigError

__all__ = ["largest_logits_of", "shift_to_active", "with_masked_head"]

_LOG = logging.getLogger(__name__)
_OFFSET = 6.0


def with_masked_head(encoder: SentenceTransformer, frequencies: np.ndarray | None = None) -> tuple[Any, Any]:
    """A masked language model around the encoder's transformer, and its tokenizer.

    Args:
        encoder: its first module is a transformer; what it pools with is left out.
        frequencies: (V,) counts of the terms in the texts to train on; None begins with a bias of 0.

    Raises:
        ConfigError: transformers has no masked-LM head for this kind of model.
    """
    reader = next(encoder.children())
    if not isinstance(reader, Transformer) or reader.tokenizer is None:
        raise ConfigError(
            f"a {type(reader).__name__} is no transformer with a tokenizer; it cannot get a masked-LM head"
        )
    network: Any = reader.model
    try:
        model: Any = AutoModelForMaskedLM.from_config(network.config)
    except ValueError as error:
        kind = network.config.model_type
        raise ConfigError(f"transformers has no masked-LM head for models of type {kind!r}: {error}") from error
    base = getattr(model, model.base_model_prefix)
    _take_over(base, network)
    model.tie_weights()
    for name, child in model.named_children():
        if child is not base:
            _near_identity(child, network.config.hidden_size, name)
    _begin_with_frequencies(model, frequencies)
    model.config.architectures = [type(model).__name__]
    return model.to(torch.float32), reader.tokenizer


def _take_over(base: nn.Module, network: nn.Module) -> None:
    """The encoder's weights, all of them; a pooler that the masked language model has not is left."""
    found = base.load_state_dict(network.state_dict(), strict=False)
    strange = [*found.missing_keys, *(name for name in found.unexpected_keys if not name.startswith("pooler."))]
    if strange:
        raise ConfigError(f"the encoder does not fit its masked language model: {', '.join(strange[:8])}")


def _begin_with_frequencies(model: Any, frequencies: np.ndarray | None) -> None:
    """log p of every term, less their mean, as the bias over the vocabulary."""
    bias = _vocabulary_bias(model)
    if bias is None:
        return
    with torch.no_grad():
        bias.zero_()
        if frequencies is not None:
            logs = np.log((frequencies[: len(bias)] + 1.0) / (frequencies.sum() + len(bias)))
            bias[: len(logs)] = torch.from_numpy((logs - logs.mean()).astype(np.float32)).to(bias)


def _near_identity(head: nn.Module, hidden: int, place: str) -> None:
    """Square dense layers become the identity with an offset; layer norms are the identity already."""
    for module in head.modules():
        if isinstance(module, nn.Linear) and tuple(module.weight.shape) == (hidden, hidden):
            with torch.no_grad():
                nn.init.eye_(module.weight)
                if module.bias is not None:
                    module.bias.fill_(_OFFSET)
            if module.bias is None:
                _LOG.warning(
                    "the head's %s has no bias: behind its activation it begins less near to the identity", place
                )


def _vocabulary_bias(model: Any) -> nn.Parameter | None:
    return cast("nn.Parameter | None", getattr(model.get_output_embeddings(), "bias", None))


def largest_logits_of(reader: Transformer, texts: Sequence[str], *, length: int, batch_size: int = 16) -> Tensor:
    """The largest logit of every term over each text's tokens, special ones included. (n, V) float32 on the CPU."""
    found: list[Tensor] = []
    network: Any = reader.model
    training = network.training
    network.eval()
    with torch.inference_mode():
        for start in range(0, len(texts), batch_size):
            features = reader.preprocess(
                list(texts[start : start + batch_size]), processing_kwargs={"text": {"max_length": length}}
            )
            features = {name: value.to(network.device) for name, value in features.items() if isinstance(value, Tensor)}
            logits = network(**features).logits.float()
            found.append(logits.masked_fill(features["attention_mask"][..., None] == 0, -torch.inf).amax(dim=1).cpu())
    network.train(training)
    return torch.cat(found)


def shift_to_active(reader: Transformer, texts: Sequence[str], active: int, *, length: int) -> float:
    """Move the head's bias, in place, so that texts have so many logits above 0 on average; return the shift.

    A softmax does not see a constant added to all logits, so masked-LM training leaves it undecided; but it is what
    decides how many terms a sparse vector begins with.

    Raises:
        ConfigError: the head has no bias over the vocabulary.
    """
    bias = _vocabulary_bias(reader.model)
    if bias is None:
        raise ConfigError("the head has no bias over the vocabulary that could be shifted; leave active out")
    values = largest_logits_of(reader, texts, length=length).numpy().ravel()
    rank = min(len(values) - 1, active * len(texts))
    shift = -float(np.partition(values, len(values) - 1 - rank)[len(values) - 1 - rank])
    with torch.no_grad():
        bias.add_(shift)
    return shift
