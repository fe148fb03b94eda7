"""What a model's name can be, and why nothing could be loaded by it."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from ...errors import BackendError, ConfigError

__all__ = ["EMBEDDED_ENCODER", "refuse_encoder", "refuse_headless", "why_not"]

EMBEDDED_ENCODER = "minilm"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def refuse_encoder(model: Any, wanted: str) -> None:
    """Refuse the name of the embedded encoder where another kind of model is wanted ("language model").

    Raises:
        ConfigError: with what takes an encoder.
    """
    if isinstance(model, str | Path) and str(model) == EMBEDDED_ENCODER:
        raise ConfigError(
            f"{EMBEDDED_ENCODER!r} is an encoder, which gives texts vectors, and no {wanted}. Give the path or hub id "
            f"of a {wanted}, or take the reranker maxsim, which compares the vectors of an encoder's tokens"
        )


def refuse_headless(path: str, model: Any, missing: Collection[str]) -> None:
    """Refuse an encoder that was loaded as a language model: with a head of random weights, or with one that fills
    masks and looks both ways.

    Args:
        path: what was loaded.
        model: of transformers.
        missing: names of its weights that were not there.

    Raises:
        BackendError: saying which it is.
    """
    said = f"{path} is no language model: "
    if missing:
        raise BackendError(
            f"{said}its files lack {len(missing)} weights of a {type(model).__name__}, {min(missing)!r} among them, "
            "which would be random. Encoders have no such weights"
        )
    masked = [name for name in getattr(model.config, "architectures", None) or () if name.endswith("ForMaskedLM")]
    if masked and not getattr(model.config, "is_decoder", False) and not model.config.is_encoder_decoder:
        raise BackendError(f"{said}a {masked[0]} is an encoder that fills masks, and says nothing after a prompt")


def why_not(model: Any, error: Exception) -> str:
    """Why a model could not be loaded by its path or hub id: that there is no such folder, before what a hub says."""
    path = Path(str(model))
    if path.is_dir():
        return str(error)
    if path.exists():
        return f"this is a file, expected the folder that holds it and its configuration ({error})"
    if not _HUB_ID.fullmatch(str(model)):
        return "there is no folder of that name"
    return f"there is no folder of that name, and the hub did not give it: {error}"
