"""The model that a configuration trains, ready for its method."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from typing import Any

from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize
from sentence_transformers.cross_encoder import CrossEncoder

from ...errors import ConfigError
from ..encoders.sides import PROMPT_NAMES, Task, keep_length, normalises
from ..losses.options import ScoredOptions
from .blocks import Prompts
from .config import TrainConfig

__all__ = ["finish_model", "load_model", "merge_adapters", "model_path", "open_tokenizer", "score"]

_LOG = logging.getLogger(__name__)


def load_model(config: TrainConfig) -> Any:
    """Load the model, put adapters on it where asked for, let the method prepare it, and let it keep its lengths.

    Raises:
        ConfigError: it does not load as what the method trains.
    """
    if config.preset.load is not None:
        model = _call(config.preset.load, model_path(config), config)
    else:
        model = _LOADERS[config.preset.family](config)
    if config.lora:
        from .lora import add_lora

        add_lora(model, config.lora, checkpointing=_checkpointing(config))
    model = _call(config.preset.prepare, model, config)
    if config.preset.family in ("bi-encoder", "sparse-encoder"):
        _keep_lengths(model, config)
    return model


def _keep_lengths(model: Any, config: TrainConfig) -> None:
    """What is trained on texts of these lengths reads no more of them when it is evaluated and searched with."""
    tasks: tuple[Task, ...] = ("query", "document")
    for task in tasks:
        length = getattr(config.lengths, task)
        if length is not None:
            keep_length(model, task, length)


def finish_model(model: Any, config: TrainConfig) -> Any:
    """What is saved: adapters merged where asked for, and what the method makes of it."""
    merge_adapters(model, config)
    return _call(config.preset.finish, model, config)


def merge_adapters(module: Any, config: TrainConfig) -> None:
    """Merge the adapters of a model, or of a loss that has a model of its own, where the configuration asks for it."""
    if config.lora and config.lora.merge:
        from .lora import merge_lora

        merge_lora(module)


def _checkpointing(config: TrainConfig) -> bool:
    """Whether activations are computed a second time on the way back; transformers changes the argument's name."""
    return any(config.trainer.get(f"{name}_checkpointing") for name in ("gradient", "activation"))


def _call(place: str | None, model: Any, config: TrainConfig) -> Any:
    if place is None:
        return model
    module, _, function = place.partition(":")
    return getattr(importlib.import_module(f"..{module}", __package__), function)(model, config)


def model_path(config: TrainConfig) -> str:
    """What sentence-transformers loads: a path or a hub id."""
    if config.model != "minilm":
        return config.model
    from ..encoders.load import load_minilm_path

    return str(load_minilm_path())


def open_tokenizer(config: TrainConfig) -> Any:
    """The model's own tokenizer, with all that the model's configuration does to it.

    Raises:
        ConfigError: the model does not load, or has none.
    """
    try:
        tokenizer = SentenceTransformer(model_path(config), device="cpu").tokenizer
    except (OSError, ValueError) as error:
        raise ConfigError(f"model: {config.model!r} does not load as a SentenceTransformer: {error}") from error
    if not callable(tokenizer):
        raise ConfigError(f"model: {config.model!r} has no tokenizer of transformers; its texts cannot be cropped")
    return tokenizer


def _load_bi_encoder(config: TrainConfig) -> SentenceTransformer:
    try:
        model = SentenceTransformer(model_path(config))
    except (OSError, ValueError) as error:
        raise ConfigError(f"model: {config.model!r} does not load as a SentenceTransformer: {error}") from error
    if config.attention == "bidirectional":
        from ..encoders.bidirectional import attend_both_ways

        attend_both_ways(model)
    if config.pooling:  # after the above, which chooses the mean itself
        _change_pooling(model, config)
    if config.drop_normalisation:
        _drop_normalisation(model, config)
    similarity = score(config)["similarity"]
    if similarity is not None:
        model.similarity_fn_name = similarity
    flat = normalises(model, "query")
    for item in config.loss:
        if isinstance(item, ScoredOptions) and flat and item.resolved_scale < 5 and not item.learn_scale:
            _LOG.warning(
                "the model normalises its vectors, so that scores lie within ±%g: too flat for a softmax to learn "
                "from. Give the loss a scale (20 is usual), or take the last module off.",
                item.resolved_scale,
            )
    if config.prompts:
        _change_prompts(model, config.prompts)
    _check_dims(model, config)
    return model


def _change_prompts(model: SentenceTransformer, prompts: Prompts) -> None:
    """Prompts that stay with the model. A document's may have another name there, which would come first."""
    for task, names in PROMPT_NAMES.items():
        given = getattr(prompts, task)
        if given is not None:
            model.prompts = {name: text for name, text in model.prompts.items() if name not in names} | {task: given}


def _change_pooling(model: SentenceTransformer, config: TrainConfig) -> None:
    from sentence_transformers.sentence_transformer.modules import Pooling

    from ..encoders.pooling import set_pooling

    if not any(isinstance(module, Pooling) for module in model.modules()):
        raise ConfigError(f"pooling: {config.model!r} has no module that pools; leave it out")
    set_pooling(model, str(config.pooling))


def _drop_normalisation(model: SentenceTransformer, config: TrainConfig) -> None:
    """Take off the last module, which must be one that normalises."""
    name, last = list(model.named_children())[-1]
    if not isinstance(last, Normalize):
        raise ConfigError(
            f"drop_normalisation: {config.model!r} ends with {type(last).__name__}, not with a module that normalises; "
            "leave it out"
        )
    delattr(model, name)
    _LOG.info("the model's last module, which normalises, is taken off: its vectors keep their lengths")


def _check_dims(model: SentenceTransformer, config: TrainConfig) -> None:
    """Matryoshka's numbers of dimensions against the model's."""
    full = model.get_embedding_dimension()
    if config.matryoshka and full is not None and max(config.matryoshka.dims) != full:
        raise ConfigError(f"matryoshka.dims: the largest is {max(config.matryoshka.dims)}, the model has {full}")


def _load_cross_encoder(config: TrainConfig) -> CrossEncoder:
    lengths = config.lengths
    length = lengths.query + lengths.document if lengths.query and lengths.document else None
    try:
        model = CrossEncoder(model_path(config), num_labels=1, max_length=length)
    except (OSError, ValueError) as error:
        raise ConfigError(f"model: {config.model!r} does not load as a CrossEncoder: {error}") from error
    if config.head_dropout is not None:
        from ..encoders.heads import set_head_dropout

        set_head_dropout(model, config.head_dropout)
    return model


def _load_sparse_encoder(config: TrainConfig) -> Any:
    from .sparse_models import load_sparse_encoder

    return load_sparse_encoder(model_path(config), config)


def _load_language_model(config: TrainConfig) -> Any:
    from .language_models import load_language_model

    return load_language_model(config)


_LOADERS: dict[str, Callable[[TrainConfig], Any]] = {
    "bi-encoder": _load_bi_encoder,
    "sparse-encoder": _load_sparse_encoder,
    "cross-encoder": _load_cross_encoder,
    "language-model": _load_language_model,
    "policy": _load_language_model,
}


def score(config: TrainConfig) -> dict[str, Any]:
    """What the model's scores are in this training."""
    if config.preset.family == "cross-encoder":
        return {"similarity": None, "scale": 1.0, "what": "raw logits"}
    if config.preset.family == "language-model":
        return {"similarity": None, "scale": 1.0, "what": "none: a list's order"}
    first = next((item for item in config.loss if isinstance(item, ScoredOptions)), None)
    if first is None:
        return {"similarity": None, "scale": 1.0, "what": "the model's own similarity"}
    return {
        "similarity": first.similarity,
        "scale": first.resolved_scale,
        "learn_scale": first.learn_scale,
        "what": "scale times similarity, in the loss",
    }
