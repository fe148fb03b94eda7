"""Method echo-splade: a causal language model that sees each text twice, as the sparse encoder to train."""

from __future__ import annotations

from typing import Any

from sentence_transformers import SparseEncoder
from transformers import AutoConfig

from ...errors import ConfigError
from ..encoders.bidirectional import attend_both_ways
from ..encoders.echo import is_echo, make_echo
from .config import TrainConfig
from .sparse_blocks import Echo
from .sparse_models import shape_encoder

__all__ = ["load_echo_model"]


def load_echo_model(path: str, config: TrainConfig) -> SparseEncoder:
    """The causal language model at `path` as `config.echo`, `config.sparse` and `config.lengths` want it.

    What the configuration leaves open is the model's own, where it was trained in this way before.

    Raises:
        ConfigError: see `make_echo`.
    """
    block = config.echo_block
    try:
        own: dict[str, Any] = _own_settings(path) if is_echo(path) else {}
        hidden = AutoConfig.from_pretrained(path).get_text_config().hidden_size
    except (OSError, ValueError) as error:
        raise ConfigError(f"model: {config.model!r} does not load as a causal language model: {error}") from error
    given: dict[str, Any] = {
        "activation_function": config.sparse_block.activation,
        "logit_scale": _scale(block, hidden),
        "query_length": config.lengths.query,
        "document_length": config.lengths.document,
    }
    templates = {task: text for task, text in (("query", block.query), ("document", block.document)) if text}
    settings = {**own, **{name: value for name, value in given.items() if value is not None}}
    settings["templates"] = {**own.get("templates", {}), **templates}
    model = make_echo(path, head_chunk=block.head_chunk, **settings)
    if config.attention == "bidirectional":
        attend_both_ways(model)
    return shape_encoder(model, config.sparse_block)


def _own_settings(path: str) -> dict[str, Any]:
    from ..encoders.echo import EchoTransformer

    found = EchoTransformer.load_config(path)
    names = ("templates", "activation_function", "logit_scale", "query_length", "document_length")
    return {name: found[name] for name in names if name in found}


def _scale(block: Echo, hidden: int) -> float | None:
    return hidden**-0.25 if block.logit_scale == "hidden-size" else block.logit_scale
