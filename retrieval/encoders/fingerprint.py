"""A hash of everything on the document side that decides a document's vector."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sparse_encoder.modules import SpladePooling
from torch import nn

__all__ = ["cutting_differences", "fingerprint", "tokenizer_fingerprint"]

# Settings that say how a model is loaded, trained or described, not what it computes. `modality_config` and the like
# follow from the transformer's own configuration, which is hashed.
_IGNORED_MODULE_KEYS = {
    "document_length",
    "modality_config",
    "processing_kwargs",
    "query_expansion",
    "query_length",
    "unpad_inputs",
}
_IGNORED_CONFIG_KEYS = {
    "_name_or_path",
    "architectures",
    "chunk_size_feed_forward",
    "dtype",
    "gradient_checkpointing",
    "id2label",
    "initializer_factor",
    "initializer_range",
    "label2id",
    "num_labels",
    "output_attentions",
    "output_hidden_states",
    "problem_type",
    "return_dict",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}


def fingerprint(modules: Iterable[nn.Module], *, settings: Mapping[str, Any] | None = None) -> str:
    """Hex sha256 over the modules' weights (in float32), saved buffers, configurations and tokenizers, in order.

    The same model gives the same value wherever it lies, in whichever precision it was loaded and whether or not it
    stands inside a Router; any changed weight gives another.

    Args:
        modules: the document side, in order.
        settings: what the adapter adds that changes vectors (plain JSON values).
    """
    digest = hashlib.sha256(_canonical(dict(settings or {})))
    for module in modules:
        digest.update(_canonical(_module_settings(module)))
        state = sorted(module.state_dict().items())
        with ThreadPoolExecutor(4) as pool:  # hashing releases the interpreter's lock
            for (name, _), value in zip(state, pool.map(lambda item: _tensor_digest(item[1]), state), strict=True):
                digest.update(name.encode() + value)
    return digest.hexdigest()


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Hex sha256 of a tokenizer's rules and vocabulary; equal for tokenizers that cut every text alike."""
    return hashlib.sha256(_canonical(_tokenizer_settings(tokenizer))).hexdigest()


def cutting_differences(one: Any, other: Any) -> list[str]:
    """The parts of two tokenizers that cut a text into pieces and differ, by name; empty for equal rules.

    What puts special tokens around a text (the post-processor) and what joins pieces again (the decoder) cut nothing,
    and special tokens are no words.
    """
    ours, theirs = (_cutting(_tokenizer_settings(tokenizer)) for tokenizer in (one, other))
    return [name for name in sorted({*ours, *theirs}) if _canonical(ours.get(name)) != _canonical(theirs.get(name))]


def _cutting(settings: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in settings.items() if name not in ("decoder", "post_processor")}
    if "added_tokens" in kept:
        kept["added_tokens"] = [token for token in kept["added_tokens"] if not token["special"]]
    return kept


def _tensor_digest(tensor: torch.Tensor) -> bytes:
    values = tensor.detach().to("cpu")
    if values.is_floating_point():
        values = values.float()
    head = _canonical([list(values.shape), str(values.dtype)])
    return hashlib.sha256(head + values.contiguous().numpy().tobytes()).digest()


def _module_settings(module: nn.Module) -> dict[str, Any]:
    describe = getattr(module, "get_config_dict", None)
    settings = {key: value for key, value in describe().items() if key not in _IGNORED_MODULE_KEYS} if describe else {}
    if isinstance(module, SpladePooling):
        settings["embedding_dimension"] = None  # filled in by its first forward; a fresh one has None
    found: dict[str, Any] = {"class": type(module).__name__, "settings": settings}
    if isinstance(module, Transformer):
        found["config"] = _config_settings(module.config.to_dict())
    tokenizer = getattr(module, "tokenizer", None)
    if tokenizer is not None:
        found["tokenizer"] = _tokenizer_settings(tokenizer)
    return found


def _config_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: value
        for key, value in config.items()
        if key not in _IGNORED_CONFIG_KEYS and "dropout" not in key and not key.startswith("_attn")
    }


def _tokenizer_settings(tokenizer: Any) -> Any:
    """The tokenizer's rules and vocabulary, without truncation and padding, which every call sets anew."""
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if hasattr(backend, "to_str"):
        rules = json.loads(backend.to_str())
        return {key: value for key, value in rules.items() if key not in ("padding", "truncation")}
    vocabulary = getattr(tokenizer, "get_vocab", dict)()
    return {"class": type(tokenizer).__name__, "vocabulary": dict(vocabulary)}


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, default=str).encode()
