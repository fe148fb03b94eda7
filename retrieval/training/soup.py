"""Model soup: one model whose parameters are the average of several models' (Wortsman et al. 2022).

sentence-transformers merges through mergekit, which holds every model in memory; here the inputs are read tensor by
tensor, and what does not fit together is refused by its name.
"""

from __future__ import annotations

import fnmatch
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ... import progress
from ..._version import __version__
from ...errors import ConfigError
from ...files import atomic_folder, check_output, read_json, sha256_file, write_json

__all__ = ["SOUP_FILE", "make_soup"]

SOUP_FILE = "rtk-soup.json"

# What trainers leave beside a model, and what describes one model only.
_BESIDE = (
    *("README.md", "rtk-*", "checkpoints", "checkpoints/*", "checkpoint-*", ".*", "*/.*"),
    *("optimizer.*", "scheduler.pt", "scaler.pt", "rng_state*", "training_args.bin", "trainer_state.json"),
    *("loss.safetensors", "trained.safetensors", "runs/*"),
)
# Values of configuration files that say how a model was saved, not what it computes.
_SAVED_BY = frozenset({"_name_or_path", "transformers_version", "__version__", "torch_dtype", "dtype", "name_or_path"})
_LENGTHS = frozenset({"query_length", "document_length"})  # where texts are cut: the first model's, as all else
_CALL_SETTINGS = frozenset({"padding", "truncation"})  # tokenizer.json keeps those of the last call


def make_soup(
    models: Sequence[str | Path], out: str | Path, *, weights: Sequence[float] | None = None, overwrite: bool = False
) -> Path:
    """Average several models of one architecture into the folder `out`, which loads as they do.

    θ = θ_1 + Σ_i w_i (θ_i − θ_1) with Σ w_i = 1, in float32 at least, so that models that are equal give themselves bit
    for bit. Integer tensors must be equal. Everything else is the first model's; `rtk-soup.json` says what went in.

    Args:
        models: two or more folders with weights in safetensors.
        out: the folder to write.
        weights: one for each model, above 0; they are divided by their sum. None is the same for all.
        overwrite: replace an earlier soup.

    Raises:
        ConfigError: the models do not fit together (every difference is named), or no weights can be read.
        OutputExists: `out` is there.
    """
    shares = _shares(len(models), weights)
    parts = [_Part(Path(model)) for model in models]
    problems = [problem for part in parts[1:] for problem in _differences(parts[0], part)]
    if problems:
        raise ConfigError(f"these models cannot be averaged; the first is {parts[0].folder}:", problems)
    if any(part.folder.resolve() == Path(out).resolve() for part in parts):
        raise ConfigError(f"{out} is one of the models; give another output")
    out = check_output(out, overwrite=overwrite, folder_with=SOUP_FILE)
    with atomic_folder(out) as temporary:
        _write(parts, shares, temporary)
        write_json(temporary / SOUP_FILE, _record(parts, shares))
    return out


def _shares(count: int, weights: Sequence[float] | None) -> list[float]:
    if count < 2:
        raise ConfigError(f"a soup is made of two models or more, not of {count}")
    given = [1.0] * count if weights is None else [float(weight) for weight in weights]
    if len(given) != count or not all(math.isfinite(weight) and weight > 0 for weight in given):
        raise ConfigError(f"weights: {given} should be {count} numbers above 0, one for each model")
    return [weight / sum(given) for weight in given]


@dataclass(frozen=True)
class _Tensor:
    """Where a tensor is, and its shape and type as safetensors names them."""

    file: Path
    shape: tuple[int, ...]
    dtype: str


class _Part:
    """A model folder: its files by role, and where each tensor lies."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not folder.is_dir():
            raise ConfigError(f"{folder} is not the folder of a model")
        self.files = sorted(path for path in _relative_files(folder) if not _beside(path))
        adapters = [path for path in self.files if Path(path).name.startswith("adapter_")]
        if adapters:
            raise ConfigError(
                f"{folder} holds an adapter ({adapters[0]}): the average of two adapters is not the adapter of the "
                "average. Merge it into its model first (train with `lora: {merge: true}`)."
            )
        pickled = [path for path in self.files if path.endswith((".bin", ".pt", ".pth", ".ckpt"))]
        if pickled:
            raise ConfigError(f"{folder} has weights as a pickle ({pickled[0]}); save the model as safetensors")
        self.weights = [path for path in self.files if path.endswith(".safetensors")]
        if not self.weights:
            raise ConfigError(f"{folder} has no weights (*.safetensors)")
        # By folder and name: models may be cut into files differently.
        self.tensors = {
            (str(Path(path).parent), name): tensor for path in self.weights for name, tensor in _tensors(folder / path)
        }

    @property
    def settings(self) -> list[str]:
        """Files that must say the same in every model."""
        return [path for path in self.files if path not in self.weights and not path.endswith(".index.json")]


def _relative_files(folder: Path) -> Iterator[str]:
    for path in folder.rglob("*"):
        if path.is_file():
            yield path.relative_to(folder).as_posix()


def _beside(path: str) -> bool:
    return any(fnmatch.fnmatch(path, pattern) for pattern in _BESIDE)


def _tensors(file: Path) -> Iterator[tuple[str, _Tensor]]:
    with safe_open(file, framework="pt") as opened:
        for name in opened.keys():  # noqa: SIM118 - no mapping
            view = opened.get_slice(name)
            yield name, _Tensor(file, tuple(view.get_shape()), view.get_dtype())


def _differences(first: _Part, other: _Part) -> list[str]:
    """What keeps `other` from being averaged with `first`, one line each."""
    name = str(other.folder)
    problems = [f"{name}: {path}: only in the first model" for path in first.settings if path not in other.settings]
    problems += [f"{name}: {path}: not in the first model" for path in other.settings if path not in first.settings]
    for path in first.settings:
        if path in other.settings:
            problems += [f"{name}: {path}: {text}" for text in _unlike(first.folder / path, other.folder / path)]
    problems += [f"{name}: {tensor}: missing" for tensor in _labels(first.tensors.keys() - other.tensors.keys())]
    problems += [
        f"{name}: {tensor}: not in the first model" for tensor in _labels(other.tensors.keys() - first.tensors.keys())
    ]
    for key, tensor in first.tensors.items():
        there = other.tensors.get(key)
        if there is None:
            continue
        if there.shape != tensor.shape:
            problems.append(f"{name}: {_label(key)}: shape {there.shape}, in the first {tensor.shape}")
        elif there.dtype != tensor.dtype:
            problems.append(f"{name}: {_label(key)}: {there.dtype}, in the first {tensor.dtype}")
        elif not _floating(tensor.dtype) and not torch.equal(_read(tensor.file, key[1]), _read(there.file, key[1])):
            problems.append(f"{name}: {_label(key)}: integers differ, and cannot be averaged")
    return problems


def _floating(dtype: str) -> bool:
    return dtype.startswith(("F", "BF"))


def _labels(keys: set[tuple[str, str]]) -> list[str]:
    return [_label(key) for key in sorted(keys)]


def _label(key: tuple[str, str]) -> str:
    return key[1] if key[0] == "." else f"{key[0]}/{key[1]}"


def _unlike(first: Path, other: Path) -> list[str]:
    """How two settings files differ: by key for JSON, else that they do."""
    if first.read_bytes() == other.read_bytes():
        return []
    if first.suffix != ".json":
        return ["another content"]
    here, there = (_settings(path) for path in (first, other))
    if not (isinstance(here, dict) and isinstance(there, dict)):
        return [] if here == there else ["another content"]
    keys = sorted(key for key in here.keys() | there.keys() if here.get(key) != there.get(key))
    return [f"{key} is {_short(there.get(key))}, in the first {_short(here.get(key))}" for key in keys]


def _settings(path: Path) -> Any:
    """The values of a JSON file that decide what a model computes."""
    value = read_json(path)
    if not isinstance(value, dict):
        return value
    ignored = _SAVED_BY | _LENGTHS | (_CALL_SETTINGS if path.name == "tokenizer.json" else set())
    return {key: item for key, item in value.items() if key not in ignored}


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _read(file: Path, name: str) -> torch.Tensor:
    with safe_open(file, framework="pt") as opened:
        return opened.get_tensor(name)


def _average(values: Iterator[torch.Tensor], shares: Sequence[float]) -> torch.Tensor:
    """θ_1 + Σ w_i (θ_i − θ_1) over floating tensors of one shape, in float32 at least; dtype of the first."""
    first = next(values)
    dtype = torch.promote_types(torch.float32, first.dtype)
    base = first.to(dtype)
    total = base.clone()
    same = torch.ones_like(base, dtype=torch.bool)
    for value, share in zip(values, shares[1:], strict=True):
        same &= value.to(dtype) == base
        total += share * (value.to(dtype) - base)
    # -0.0 + 0.0 is 0.0: what all models share is copied, so that a frozen side keeps its fingerprint.
    return torch.where(same, first, total.to(first.dtype))


def _write(parts: Sequence[_Part], shares: Sequence[float], folder: Path) -> None:
    """The first model's files with averaged tensors; one of its weight files is in memory at a time."""
    first = parts[0]
    for path in first.files:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        if path not in first.weights:
            shutil.copyfile(first.folder / path, folder / path)
    with progress.task("average", len(first.tensors)) as advance:
        for path in first.weights:
            mixed: dict[str, torch.Tensor] = {}
            with safe_open(first.folder / path, framework="pt") as opened:
                names, metadata = list(opened.keys()), opened.metadata()
            for name in names:
                mixed[name] = _mix([part.tensors[str(Path(path).parent), name].file for part in parts], name, shares)
                advance(1)
            save_file(mixed, folder / path, metadata=metadata)
            with open(folder / path, "rb") as handle:
                os.fsync(handle.fileno())


def _mix(files: Sequence[Path], name: str, shares: Sequence[float]) -> torch.Tensor:
    first = _read(files[0], name)
    if not first.is_floating_point():
        return first
    return _average((_read(file, name) for file in files), shares)


def _record(parts: Sequence[_Part], shares: Sequence[float]) -> Mapping[str, Any]:
    return {
        "models": [
            {
                "path": str(part.folder),
                "weight": share,
                "sha256": {path: sha256_file(part.folder / path) for path in part.weights},
            }
            for part, share in zip(parts, shares, strict=True)
        ],
        "versions": {"rtk": __version__, "torch": torch.__version__},
    }
