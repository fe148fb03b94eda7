"""Loading a sparse encoder for training: its masked-LM head is checked, and its modules follow the configuration."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from sentence_transformers import SparseEncoder
from sentence_transformers.base.modules import Router, Transformer
from sentence_transformers.sparse_encoder.modules import SparseStaticEmbedding, SpladePooling
from torch import nn
from transformers import AutoConfig, AutoModelForMaskedLM

from ...errors import ConfigError
from ..encoders.sides import side_modules

if TYPE_CHECKING:
    from .blocks import Sparse
    from .config import TrainConfig

__all__ = ["check_masked_lm", "load_sparse_encoder", "shape_encoder"]

_LOG = logging.getLogger(__name__)
_REMEDY = (
    "Take a checkpoint that was saved with its masked-LM head (…ForMaskedLM), or make one of this encoder: rtk train "
    "with method: masked-lm."
)


def load_sparse_encoder(path: str, config: TrainConfig) -> SparseEncoder:
    """The model at `path` as a SPLADE encoder, as `config.sparse` and `config.lengths` want it.

    Raises:
        ConfigError: it does not load, has no masked-LM head, or cannot be what the block asks for.
    """
    try:
        if not _is_saved_encoder(path):
            check_masked_lm(path)
        model = SparseEncoder(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"model: {config.model!r} does not load as a SparseEncoder: {error}") from error
    _check_modules(model, config.model)
    model = shape_encoder(model, config.sparse_block, query_length=config.lengths.query)
    model.similarity_fn_name = "dot"
    return model


def _is_saved_encoder(path: str) -> bool:
    """Whether sentence-transformers saved it; what its modules are is looked at after loading."""
    return (Path(path) / "modules.json").is_file()


def check_masked_lm(path: str) -> None:
    """Refuse a checkpoint without a trained masked-LM head, which would begin as random weights, or as none at all.

    sentence-transformers makes mean pooling with a fresh SparseAutoEncoder of an encoder without one, silently.

    Raises:
        ConfigError: says what is missing, and what to do.
    """
    architectures = getattr(AutoConfig.from_pretrained(path), "architectures", None) or []
    if not any(name.endswith("ForMaskedLM") for name in architectures):
        raise ConfigError(
            f"model: {path!r} is a {' + '.join(architectures) or 'model of unknown architecture'} without a masked-LM "
            f"head, which gives the weights of the vocabulary's terms. {_REMEDY}"
        )
    _, found = AutoModelForMaskedLM.from_pretrained(path, output_loading_info=True)
    if found["missing_keys"]:
        raise ConfigError(
            f"model: {path!r} calls itself {architectures[0]}, but lacks weights of it: "
            f"{', '.join(sorted(found['missing_keys'])[:8])}. They would begin at random. {_REMEDY}"
        )


def _check_modules(model: SparseEncoder, name: str) -> None:
    """A masked language model's logits, pooled over tokens; anything else is no SPLADE encoder."""
    modules = side_modules(model, "document")
    kinds = [type(module).__name__ for module in modules]
    first = modules[0]
    if not isinstance(first, Transformer) or first.transformer_task != "fill-mask":
        raise ConfigError(
            f"model: the document side of {name!r} is {' + '.join(kinds)}, not a masked language model whose logits "
            f"are pooled. {_REMEDY}"
        )
    if not any(isinstance(module, SpladePooling) for module in modules):
        raise ConfigError(f"model: the document side of {name!r} is {' + '.join(kinds)}, without SpladePooling")


def shape_encoder(model: SparseEncoder, block: Sparse, *, query_length: int | None = None) -> SparseEncoder:
    """The encoder with the pooling, the query side and the expansion that the block asks for; stock modules only.

    Its transformer is the same object on both sides. A bag of word pieces is cut to `query_length` by its tokenizer.

    Raises:
        ConfigError: the model has two sides of its own and shall get others.
    """
    for module in model.modules():
        if isinstance(module, SpladePooling):
            module.pooling_strategy = block.pooling or module.pooling_strategy
            module.activation_function = block.activation or module.activation_function
            module.chunk_size = block.chunk or module.chunk_size
    changed = {"query": block.query == "bag" or block.expansion in ("document", "none")}
    changed["document"] = block.expansion in ("query", "none")
    if not any(changed.values()):
        return model
    if any(isinstance(module, Router) for module in model.children()):
        raise ConfigError("sparse: the model has a query side and a document side of its own; leave query, expansion")
    base = list(model.children())
    tokenizer = model.tokenizer
    sides = {side: [*base, ordinary_tokens(tokenizer)] if new else base for side, new in changed.items()}
    if block.query == "bag":
        sides["query"] = [ordinary_tokens(tokenizer, length=query_length)]
    modules: list[nn.Module]
    if changed["query"] and changed["document"] and block.query != "bag":
        modules = sides["document"]
    else:
        modules = [Router.for_query_document(sides["query"], sides["document"])]  # type: ignore[arg-type]
    prompts = {name: prompt for name, prompt in model.prompts.items() if prompt is not None}
    return SparseEncoder(modules=modules, device=str(model.device), prompts=prompts)


def ordinary_tokens(tokenizer: Any, *, length: int | None = None) -> SparseStaticEmbedding:
    """1 for each word piece of the text and 0 for special tokens, padding among them: a frozen stock module.

    On its own it is the bag of the text's word pieces; behind a pooling it keeps the weights of those, and no others.
    """
    weights = torch.ones(len(tokenizer))
    weights[torch.tensor(sorted(set(tokenizer.all_special_ids)))] = 0
    own = copy.deepcopy(tokenizer)
    own.model_max_length = length or own.model_max_length
    return SparseStaticEmbedding(own, weight=weights, frozen=True)
