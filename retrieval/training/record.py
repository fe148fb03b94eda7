"""What a run leaves beside its model, and whether an output folder can be written, resumed or must be refused."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from accelerate.utils import broadcast_object_list

from ..._version import __version__
from ...errors import ConfigError, OutputExists
from ...files import atomic_path, check_output, read_json, sha256_file, write_json
from .config import TrainConfig, print_config
from .examples import TrainingTable

__all__ = ["CHECKPOINTS", "CONFIG_FILE", "RUN_FILE", "agreed_checkpoint", "finish", "prepare_output", "start"]

RUN_FILE, CONFIG_FILE, CHECKPOINTS = "rtk-run.json", "rtk-config.yaml", "checkpoints"

# What may differ between the two halves of a resumed run: nothing that the weights depend on.
_FREE = frozenset(
    f"trainer.{name}"
    for name in ("logging_steps", "report_to", "disable_tqdm", "dataloader_num_workers", "save_total_limit", "run_name")
)
_MODEL_KEYS = ("teacher", "guide", "selection_model")
_PACKAGES = ("torch", "transformers", "sentence-transformers", "accelerate", "datasets", "numpy", "tokenizers")


def prepare_output(config: TrainConfig, *, overwrite: bool) -> Path | None:
    """Make the output folder ready; return the checkpoint to resume from, if this run was begun before.

    Raises:
        OutputExists: the folder holds a finished model or something else.
        ConfigError: the folder holds an unfinished run of another configuration; names the keys that differ.
    """
    output = Path(config.output)
    if overwrite or not output.exists():
        check_output(output, overwrite=overwrite, folder_with=CONFIG_FILE)
        return None
    if not (output / CONFIG_FILE).is_file() or _status(output) == "finished":
        raise OutputExists(output)
    before = yaml.safe_load((output / CONFIG_FILE).read_text(encoding="utf-8"))
    differing = differences(before, config.to_dict())
    if differing:
        raise ConfigError(
            f"{output} holds an unfinished run of another configuration. Give its configuration to resume it, another "
            "output, or --overwrite to begin anew. These keys differ:",
            differing,
        )
    return latest_checkpoint(output / CHECKPOINTS)


def agreed_checkpoint(config: TrainConfig, arguments: Any, *, overwrite: bool) -> Path | None:
    """What `prepare_output` says, looked for by the first process and told to the others.

    Args:
        arguments: the trainer's, which know the processes.
    """
    found = [prepare_output(config, overwrite=overwrite) if arguments.process_index == 0 else None]
    return broadcast_object_list(found)[0] if arguments.world_size > 1 else found[0]


def _status(output: Path) -> str | None:
    path = output / RUN_FILE
    return read_json(path).get("status") if path.is_file() else None


def latest_checkpoint(folder: Path) -> Path | None:
    """The complete checkpoint of the highest step: one whose trainer state, which is written late, is there."""
    found = [path for path in folder.glob("checkpoint-*") if (path / "trainer_state.json").is_file()]
    return max(found, key=lambda path: int(path.name.rsplit("-", 1)[1]), default=None)


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """ "key: there …, now …" for each key that differs and matters."""
    old, new = _flat(before), _flat(now)
    keys = [key for key in dict.fromkeys([*old, *new]) if key not in _FREE and key != "output"]
    return [
        f"{key}: there {old.get(key, 'nothing')!r}, now {new.get(key, 'nothing')!r}"
        for key in keys
        if old.get(key) != new.get(key)
    ]


def _flat(value: Any, place: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping):
        items = [(str(key), item) for key, item in value.items()]
    elif isinstance(value, Sequence) and not isinstance(value, str):
        items = [(str(number), item) for number, item in enumerate(value)]
    else:
        return {place: value}
    return {
        key: leaf for name, item in items for key, leaf in _flat(item, f"{place}.{name}" if place else name).items()
    }


def start(
    config: TrainConfig,
    tables: Sequence[TrainingTable],
    *,
    processes: int,
    score: Mapping[str, Any],
    sampler: Any = None,
) -> None:
    """Write `rtk-config.yaml` and `rtk-run.json` into the output; on resuming, check that data and models are the same.

    Args:
        processes: how many share a batch.
        score: what the model's scores are: similarity and scale of a bi-encoder, logits of a reranker.
        sampler: gives the batches. One with `record()` and `save(folder)` gives plain values, with a `fingerprint` of
            what its batches depend on beside the data (clusters that were made), and leaves its files in the folder;
            one with `lines()` alone says what was filled up or left out.
    """
    output = Path(config.output)
    data = [{"name": table.name, "fingerprint": table.fingerprint, **asdict(table.report)} for table in tables]
    samplers = getattr(sampler, "samplers", [sampler])
    told = [part for part in samplers if hasattr(part, "record")]
    notes = [line for part in samplers if part not in told for line in getattr(part, "lines", list)()]
    sampling: list[dict[str, Any]] = [part.record() for part in told]
    models = _models(config)
    values = {
        "status": "running",
        "seed": config.seed,
        "processes": processes,
        "score": dict(score),
        "loss": [item.model_dump(mode="json") for item in config.loss],
        "data": data,
        "models": models,
        "sampling": sampling,
        "notes": notes,
        "versions": {"rtk": __version__, "python": platform.python_version(), **_versions()},
        "commit": _commit(),
    }
    if (output / RUN_FILE).is_file():
        before = read_json(output / RUN_FILE)
        keys = [("processes", before["processes"], processes)]
        keys += [
            (f"{name}.{number}.fingerprint", old["fingerprint"], new["fingerprint"])
            for name, found in (("data", data), ("sampling", sampling))
            for number, (old, new) in enumerate(zip(before[name], found, strict=True))
        ]
        keys += [(f"{key}, its weights", old, models.get(key)) for key, old in before.get("models", {}).items()]
        changed = [f"{key}: there {old!r}, now {new!r}" for key, old, new in keys if old != new]
        if changed:
            raise ConfigError(f"{output} cannot be resumed, it would go on with something else:", changed)
    with atomic_path(output / CONFIG_FILE) as temporary:
        temporary.write_text(print_config(config), encoding="utf-8")
    for part in told:
        part.save(output)
    write_json(output / RUN_FILE, values)


def finish(config: TrainConfig, results: Mapping[str, Any]) -> None:
    """Mark the run as finished and add its results."""
    path = Path(config.output) / RUN_FILE
    write_json(path, {**read_json(path), "status": "finished", **results})


def _models(config: TrainConfig) -> dict[str, str]:
    """A sha256 of the weights of each folder that the configuration names, by key: the model, teachers, guides. What a
    hub or a package holds goes by its name."""
    named = [("model", config.model)]
    for number, item in enumerate(config.loss):
        named += [
            (f"loss.{number}.{key}", value) for key in _MODEL_KEYS if isinstance(value := getattr(item, key, None), str)
        ]
    return {key: _weights(Path(path)) for key, path in named if Path(path).is_dir()}


def _weights(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(path for kind in ("*.safetensors", "*.bin") for path in folder.rglob(kind)):
        place = path.relative_to(folder)
        if CHECKPOINTS not in place.parts:
            digest.update(f"{place} {sha256_file(path)}\n".encode())
    return digest.hexdigest()


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in _PACKAGES}


def _commit() -> str | None:
    """The git commit of this library's source, with "+changes" when files differ from it; None outside a repository."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        commit = _git(root, "rev-parse", "HEAD")
        return commit + ("+changes" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(root: Path, *arguments: str) -> str:
    found = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True, timeout=30)
    return found.stdout.strip()
