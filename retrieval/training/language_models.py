"""Causal language models in training: loading them, and asking them what their rerankers ask."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, cast

from ...errors import ConfigError
from .config import TrainConfig
from .list_blocks import ListSampling
from .list_prompts import ListWriter

__all__ = ["language_tokenizer", "list_reranker", "list_writer", "load_language_model"]


def load_language_model(config: TrainConfig) -> Any:
    """A causal language model in float32; mixed precision is the trainer's business.

    Raises:
        ConfigError: it does not load as one.
    """
    from transformers import AutoModelForCausalLM

    try:
        return AutoModelForCausalLM.from_pretrained(config.model, dtype="float32")
    except (OSError, ValueError) as error:
        raise ConfigError(f"model: {config.model!r} does not load as a causal language model: {error}") from error


def language_tokenizer(config: TrainConfig) -> Any:
    """The model's tokenizer.

    Raises:
        ConfigError: it has none.
    """
    return _tokenizer(config.model)


@lru_cache(maxsize=2)
def _tokenizer(path: str) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"model: {path!r} has no tokenizer that loads: {error}") from error


def list_writer(model: Any, config: TrainConfig) -> ListWriter:
    """Writes the configuration's prompts for this model."""
    from ..rerankers.engine_transformers import context_of

    tokenizer = language_tokenizer(config)
    return ListWriter(tokenizer, config.prompt_block.context or context_of(model, tokenizer), config.prompt_block)


def list_reranker(model: Any, config: TrainConfig) -> Any:
    """The reranker that a listwise model is trained for, over the model as it is now: `first` for FIRST's loss,
    `full-rank` for FullRank's, `rank-gpt` for others; windows as in training, half a window apart."""
    from ..rerankers.first import FirstReranker
    from ..rerankers.generative import FullRankReranker, RankGptReranker
    from ..rerankers.language_model import load_language_model as engine
    from ..rerankers.windows import Schedule

    writer = list_writer(model, config)
    context = writer.writer.model.context_length
    asked = engine((model, writer.tokenizer), context_length=context)
    window = cast(ListSampling, config.sampling).window
    name = config.loss[0].name
    settings: dict[str, Any] = {"reading": writer.writer.reading, "prompt": config.prompt_block.wording}
    if name == "full-rank":
        return FullRankReranker(asked, **settings)
    schedule = Schedule(window=window, step=max(1, window // 2))
    kind = FirstReranker if name == "first" else RankGptReranker
    return kind(asked, schedule=schedule, identifiers=writer.identifiers, **settings)
