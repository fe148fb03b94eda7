"""ONNX Runtime on the CPU in place of a model's transformer: exported once, kept by the weights' fingerprint."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sentence_transformers.base.modules import Transformer
from torch import nn
from transformers.modeling_outputs import BaseModelOutput

from ...errors import BackendError, ConfigError
from ...extras import require
from ...files import atomic_path, cache_dir
from .fingerprint import fingerprint

__all__ = ["OnnxTransformer", "exported", "to_onnx"]

logger = logging.getLogger(__name__)

_PURPOSE = "encoding through ONNX Runtime"


class OnnxTransformer(nn.Module):
    """Stands where a transformers model stood in a Transformer module.

    Attributes:
        config: the model's configuration, which the modules around it read.
        inputs: names of the tensors that the graph takes.
    """

    def __init__(self, path: Path, config: Any, threads: int) -> None:
        super().__init__()
        runtime = require("onnxruntime", "onnx", _PURPOSE)
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.config = config
        self.inputs = tuple(value.name for value in self.session.get_inputs())

    def forward(self, **features: Any) -> BaseModelOutput:
        """`last_hidden_state` (texts, tokens, hidden) float32 for padded features."""
        found = self.session.run(None, {name: features[name].numpy() for name in self.inputs})
        return BaseModelOutput(last_hidden_state=torch.from_numpy(found[0]))


def to_onnx(transformer: Transformer) -> None:
    """Replace the transformers model inside `transformer` by its ONNX form, in place.

    Raises:
        MissingExtra: the extra `onnx` is not installed.
        ConfigError: a module that is not a plain text encoder.
        BackendError: the model cannot be exported.
    """
    params = transformer.modality_config.get("text", {})
    if params.get("method") != "forward" or params.get("method_output_name") not in ("last_hidden_state",):
        raise ConfigError("backend 'onnx' is for models that give token embeddings by their last hidden state")
    path = exported(transformer)
    model = transformer.model
    transformer.model = OnnxTransformer(path, model.config, torch.get_num_threads())  # type: ignore[assignment]


def exported(transformer: Transformer) -> Path:
    """The ONNX file of a transformer in the cache, made on the first call."""
    onnx = require("onnx", "onnx", _PURPOSE)
    require("onnxscript", "onnx", _PURPOSE)
    require("onnxruntime", "onnx", _PURPOSE)
    made_by = {"torch": torch.__version__, "onnx": onnx.__version__, "form": 1}
    path = cache_dir() / "onnx" / f"{fingerprint([transformer], settings=made_by)[:32]}.onnx"
    if not path.exists():
        logger.info("exporting the encoder to ONNX: %s", path)
        with atomic_path(path) as temporary:
            _export(transformer, temporary)
    return path


@dataclass(frozen=True)
class _Inputs:
    """What the graph takes: the tokenizer's own columns for two texts of different length."""

    names: tuple[str, ...]
    tensors: tuple[torch.Tensor, ...]


class _Graph(nn.Module):
    """The model with tensors by position, as the exporter wants it."""

    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        return self.model(**dict(zip(self.names, tensors, strict=True)), return_dict=True).last_hidden_state


def _example(transformer: Transformer) -> _Inputs:
    features = transformer.preprocess(["an example of a text", "another"])
    names = tuple(name for name, value in features.items() if isinstance(value, torch.Tensor))
    return _Inputs(names, tuple(features[name] for name in names))


def _export(transformer: Transformer, path: Path) -> None:
    example = _example(transformer)
    positions = getattr(transformer.config, "max_position_embeddings", 0) or 1 << 20
    shape = {0: torch.export.Dim("texts", min=1, max=1 << 20), 1: torch.export.Dim("tokens", min=1, max=positions)}
    graph = _Graph(transformer.model, example.names).eval()
    with _quiet(), torch.inference_mode(False):
        try:
            program = torch.onnx.export(
                graph,
                example.tensors,
                dynamo=True,
                dynamic_shapes=(tuple(shape for _ in example.names),),
                input_names=list(example.names),
                output_names=["last_hidden_state"],
                verbose=False,
            )
        except (torch.onnx.errors.OnnxExporterError, RuntimeError, ValueError) as error:
            raise BackendError(f"torch.onnx cannot export a {type(transformer.model).__name__}: {error}") from error
    assert program is not None
    program.save(str(path))


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns about itself, not about the model."""
    root = logging.getLogger()
    torch_exporter = logging.getLogger("torch.onnx")
    levels = root.level, torch_exporter.level
    root.setLevel(logging.ERROR)
    torch_exporter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        root.setLevel(levels[0])
        torch_exporter.setLevel(levels[1])
