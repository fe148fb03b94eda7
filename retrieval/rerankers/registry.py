"""Rerankers by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ...errors import BackendError, ConfigError, nearest
from ...files import read_json
from .base import Reranker
from .families import FAMILIES, family_settings, load_family
from .model_names import EMBEDDED_ENCODER, refuse_encoder, why_not

__all__ = ["RERANKERS", "load_reranker"]

Loader = Callable[..., Reranker]


def _cross_encoder(model: Any, *, device: str | None = None, dtype: str | None = None, **settings: Any) -> Reranker:
    from sentence_transformers import CrossEncoder

    from .cross_encoder import CrossEncoderReranker

    if isinstance(model, str | Path):
        refuse_encoder(model, "cross-encoder")
        settings.setdefault("name", str(model))
        model = _load(CrossEncoder, model, device, dtype)
    return CrossEncoderReranker(model, **settings)


def _maxsim(model: Any, *, device: str | None = None, dtype: str | None = None, **settings: Any) -> Reranker:
    from sentence_transformers import MultiVectorEncoder, SentenceTransformer

    from .maxsim import MaxSimReranker

    if isinstance(model, str | Path):
        settings.setdefault("name", str(model))
        path = _path(model)
        model = _load(MultiVectorEncoder if _multi_vector(path) else SentenceTransformer, path, device, dtype)
    return MaxSimReranker(model, **settings)


def _predict(model: Any, **settings: Any) -> Reranker:
    from .predict import PredictReranker

    if isinstance(model, str | Path):
        raise ConfigError(f"reranker 'predict' lifts an object with predict(pairs), not a path ({str(model)!r})")
    return PredictReranker(model, **settings)


RERANKERS: dict[str, Loader] = {
    "cross-encoder": _cross_encoder,
    "maxsim": _maxsim,
    "predict": _predict,
    **{name: partial(load_family, name) for name in FAMILIES},
}
"""Name → loader (model, **settings). Add your own under a name of its own."""


def load_reranker(name: str, model: Any, **settings: Any) -> Reranker:
    """Load a reranker.

    Args:
        name: a key of `RERANKERS` ("cross-encoder", "first", …); never guessed from the model's name.
        model: a path, a hub id, "minilm" (for "maxsim"), or a loaded model; for "predict" anything with predict(pairs);
            for rerankers of language models what `load_language_model` takes.
        settings: what the reranker takes (`max_length`, `window`, `batch_tokens`, …); with a path also `device` and
            `dtype`, which is float32 where nothing is said, and the checkpoint's on vLLM.

    Raises:
        ConfigError: no reranker of that name, or a setting that it does not have, with the nearest name; a setting that
            cannot be; an encoder's name for another kind of model.
        BackendError: the model cannot be loaded.
    """
    if name not in RERANKERS:
        raise ConfigError(f"no reranker {name!r}{nearest(name, RERANKERS)}; there are {', '.join(sorted(RERANKERS))}")
    known = _settings(name)
    wrong = [f"unknown setting {each!r}{nearest(each, known)}" for each in settings if known and each not in known]
    if wrong:
        raise ConfigError(f"reranker {name!r} takes {', '.join(sorted(known))}", wrong)
    return RERANKERS[name](model, **settings)


def _settings(name: str) -> set[str]:
    """The settings of our own rerankers; nothing for others, which check themselves."""
    if name in FAMILIES:
        return family_settings(name)
    from . import CrossEncoderReranker, MaxSimReranker, PredictReranker

    kinds = {"cross-encoder": CrossEncoderReranker, "maxsim": MaxSimReranker, "predict": PredictReranker}
    if name not in kinds:
        return set()
    parameters = set(inspect.signature(kinds[name].__init__).parameters) - {"self", "model"}
    return parameters if name == "predict" else parameters | {"device", "dtype"}


def _path(model: str | Path) -> str:
    if str(model) == EMBEDDED_ENCODER:
        from ..encoders.load import load_minilm_path

        return str(load_minilm_path())
    return str(model)


def _multi_vector(path: str) -> bool:
    """Whether the model's own configuration says that it is a MultiVectorEncoder."""
    from sentence_transformers.util import load_file_path

    found = load_file_path(path, "config_sentence_transformers.json")
    return found is not None and read_json(found).get("model_type") == "MultiVectorEncoder"


def _load(kind: Any, path: str | Path, device: str | None, dtype: str | None) -> Any:
    try:
        return kind(str(path), device=device, model_kwargs={"dtype": dtype or "float32"})
    except (OSError, ValueError) as error:
        raise BackendError(f"cannot load {path} as a {kind.__name__}: {why_not(path, error)}") from error
