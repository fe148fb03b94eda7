"""The training configuration: one YAML, checked whole before anything heavy is loaded.

    method: contrastive
    model: minilm
    data:
      collection: data/nfcorpus
      runs: {negatives: bm25.train.run.gz}
    lengths: {query: 32, document: 128}
    evaluation: {collection: data/nfcorpus, split: dev, every: 100}
    trainer: {per_device_train_batch_size: 32, max_steps: 400}
    output: models/nfcorpus

Relative paths are relative to the working directory. `trainer` takes sentence-transformers' own argument names, but
for those that rtk owns. Unknown keys are refused with the nearest known name, and all problems are told at once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import yaml
from pydantic import Field, NonNegativeInt, PositiveInt, SerializeAsAny, ValidationError

from ...errors import ConfigError, DataError, nearest
from ..losses.options import LOSSES, LossOptions
from .arguments import trainer_problems
from .blocks import (
    Block,
    Curriculum,
    Data,
    Evaluation,
    Lengths,
    Lora,
    Matryoshka,
    Optimizer,
    Prompts,
    RandomSampling,
    Sparse,
)
from .checks import configuration_problems
from .list_blocks import Prompting
from .methods import METHODS, Method
from .schema import plain_message, unknown_keys
from .sparse_blocks import Echo, Idf

__all__ = ["TrainConfig", "load_config", "print_config"]


class TrainConfig(Block):
    """A resolved training configuration; every value that was not given is filled in.

    Attributes:
        method: the preset (`METHODS`).
        model: a path, a hub id, or `minilm`.
        prompts: before queries and documents, where they shall not be the model's own. Bi-encoders only.
        sampling: the method's own sampling block.
        loss: the terms that are summed, each an options object of `LOSSES`.
        mini_batch_size: forward passes of this many texts with cached gradients (GradCache): memory for a small
            batch, loss of the whole one. Bi-encoders only.
        curriculum: weights of queries by how hard a first stage finds them, fading out while training goes on.
        matryoshka: the losses also hold for the vectors' first so many dimensions. Bi-encoders only.
        optimizer: an optimiser of ours in place of the trainer's.
        lora: train low-rank adapters in place of the weights.
        attention: "bidirectional" takes the causal mask off a decoder, in training and for good. Bi-encoders and method
            echo-splade only.
        pooling: how tokens become a vector, where it shall not be the model's own way (a plain transformer's is the
            mean). Bi-encoders only.
        drop_normalisation: take off a last module that normalises, for losses over free dot products. Bi-encoders only.
        head_dropout: of a cross-encoder's head, where it shall not be the model's own. Cross-encoders only.
        sparse: how vectors are made of a masked language model's logits; None is `Sparse()`. Sparse encoders only.
        idf: what queries are looked up in; None is `Idf()`. Method inference-free only.
        echo: how a causal language model encodes; None is `Echo()`. Method echo-splade only.
        prompt: what a language model is asked; None is `Prompting()`. Rerankers that are language models only.
        trainer: sentence-transformers training arguments.
        output: the folder that the model is written to.
    """

    method: str
    model: str
    data: Data
    lengths: Lengths = Lengths()
    prompts: Prompts | None = None
    sampling: SerializeAsAny[Block] = RandomSampling()
    loss: tuple[SerializeAsAny[LossOptions], ...]
    mini_batch_size: PositiveInt | None = None
    matryoshka: Matryoshka | None = None
    curriculum: Curriculum | None = None
    optimizer: Optimizer | None = None
    lora: Lora | None = None
    attention: Literal["bidirectional"] | None = None
    pooling: Literal["cls", "mean", "max", "lasttoken"] | None = None
    drop_normalisation: bool = False
    head_dropout: float | None = Field(None, ge=0, lt=1)
    sparse: Sparse | None = None
    idf: Idf | None = None
    echo: Echo | None = None
    prompt: Prompting | None = None
    evaluation: Evaluation | None = None
    trainer: dict[str, Any]
    output: str
    seed: NonNegativeInt = 42

    @property
    def preset(self) -> Method:
        return METHODS[self.method]

    @property
    def sparse_block(self) -> Sparse:
        return self.sparse or Sparse()

    @property
    def idf_block(self) -> Idf:
        return self.idf or Idf()

    @property
    def prompt_block(self) -> Prompting:
        return self.prompt or Prompting()

    @property
    def echo_block(self) -> Echo:
        return self.echo or Echo()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as in the YAML, in its order."""
        return self.model_dump(mode="json")


def load_config(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> TrainConfig:
    """Read, override, fill in and check a configuration.

    Args:
        source: a YAML file, or the mapping that it would hold.
        overrides: "key.sub=value" strings, applied before the check; values are YAML, list items go by number.

    Raises:
        ConfigError: with every problem found.
        DataError: the file is not readable as YAML.
    """
    given = _read(source)
    chosen = [text.partition("=")[2] for text in overrides if text.startswith("method=")]
    given |= {"method": chosen[-1]} if chosen else {}
    name = given.get("method")
    method = METHODS.get(str(name), METHODS["contrastive"])
    values = _merge(method.defaults, given)  # presets first, so that an override reaches into what they give
    problems = [problem for text in overrides if (problem := _override(values, text))]
    config, found = _validate(values, method)
    problems += found
    problems += _known_names(values, method)
    if isinstance(values.get("trainer"), dict):
        evaluation = isinstance(values.get("evaluation"), Mapping)
        problems += trainer_problems(values["trainer"], evaluation=evaluation, policy=method.family == "policy")
    if name not in METHODS:
        known = ", ".join(METHODS)
        problems.insert(0, f"method: {name!r} is not one of {known}{nearest(str(name), METHODS)}")
    elif config is not None:
        problems += configuration_problems(config)
    if problems or config is None:
        where = source if isinstance(source, str | Path) else "the training configuration"
        raise ConfigError(f"{where} has {len(problems)} problem{'s'[: len(problems) > 1]}:", problems)
    return config


def print_config(config: TrainConfig) -> str:
    """The fully resolved configuration as YAML; reading it again gives the same configuration."""
    return yaml.safe_dump(config.to_dict(), sort_keys=False, allow_unicode=True, width=120)


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads `7e-6` as a string; people who write learning rates mean a number."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(?:\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _parse(text: str) -> Any:
    return yaml.load(text, Loader=_Loader)  # a SafeLoader: plain values only


def _read(source: str | Path | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(source, Mapping):
        return _merge({}, source)
    path = Path(source)
    if not path.is_file():
        raise ConfigError(f"{path} is not a file; give the YAML of a training configuration.")
    try:
        value = _parse(path.read_text(encoding="utf-8"))
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else None
        raise DataError(f"not valid YAML: {error.problem}", path=path, line=line) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"not valid YAML in UTF-8: {error}", path=path) from error
    if not isinstance(value, dict):
        raise DataError(f"a training configuration is a mapping, this is {type(value).__name__}", path=path)
    return cast(dict[str, Any], value)


def _override(values: dict[str, Any], text: str) -> str | None:
    """Apply "key.sub=value" in place; return the problem, if any."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        return f"override {text!r} is not of the form key.sub=value"
    node: Any = values
    *parents, last = key.split(".")
    try:
        parsed = _parse(value)
        for parent in parents:
            node = node[int(parent)] if isinstance(node, list) else node.setdefault(parent, {})
        if isinstance(node, list):
            node[int(last)] = parsed
        elif isinstance(node, dict):
            node[last] = parsed
        else:
            return f"override {text!r}: {'.'.join(parents)} holds a plain value, not a block"
    except (ValueError, IndexError, AttributeError):
        return f"override {text!r}: there is no {key} to set (list items go by number, from 0)"
    except yaml.YAMLError:
        return f"override {text!r}: {value!r} is not a YAML value"
    return None


def _merge(defaults: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """`given` over `defaults`, block by block; lists are replaced whole. Nothing of the arguments is shared."""
    result: dict[str, Any] = {key: _copy(value) for key, value in defaults.items()}
    for key, value in given.items():
        below = result.get(key)
        if isinstance(below, dict) and isinstance(value, Mapping):
            result[key] = _merge(below, value)
        else:
            result[key] = _copy(value)
    return result


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list | tuple) else value


def _validate(values: dict[str, Any], method: Method) -> tuple[TrainConfig | None, list[str]]:
    """The configuration, or the problems that keep it from being one."""
    problems = unknown_keys(TrainConfig, {**values, "sampling": {}, "loss": []})
    built: dict[str, Any] = dict(values)
    sampling = values.get("sampling", {})
    if isinstance(sampling, Mapping):
        problems += unknown_keys(method.sampling, sampling, "sampling.")
        if "cluster_encoder" in method.sampling.model_fields:  # the model as it is before training
            sampling = {**sampling, "cluster_encoder": sampling.get("cluster_encoder") or values.get("model")}
        built["sampling"] = _attempt(method.sampling, sampling, "sampling.", problems)
    losses = values.get("loss")
    if isinstance(losses, list):
        built["loss"] = [_loss(item, f"loss.{number}.", method, problems) for number, item in enumerate(losses)]
        if not losses:
            problems.append("loss: give at least one loss")
    trial = {key: value for key, value in built.items() if value is not None or key not in ("sampling", "loss")}
    if any(item is None for item in trial.get("loss", ())):
        trial["loss"] = []
    config = _attempt(TrainConfig, trial, "", problems)
    return cast("TrainConfig | None", config), problems


def _loss(item: Any, place: str, method: Method, problems: list[str]) -> Block | LossOptions | None:
    if isinstance(item, str):
        item = {"name": item}
    if not isinstance(item, Mapping) or not isinstance(item.get("name"), str):
        problems.append(f"{place[:-1]}: a loss is {{name: …, weight: …}}, this is {item!r}")
        return None
    entry = LOSSES.get(item["name"])
    if entry is None:
        return None  # told by _known_names
    problems += unknown_keys(entry.options, item, place)
    if method.family == "sparse-encoder" and "similarity" in entry.options.model_fields:
        item = {"similarity": "dot", **item}  # what an inverted index computes
    return _attempt(entry.options, item, place, problems)


def _attempt(model: type[Any], values: Mapping[str, Any], place: str, problems: list[str]) -> Any | None:
    """Build `model`, or append what is wrong (unknown keys are told elsewhere, with the nearest name)."""
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        problems += [
            f"{place}{'.'.join(map(str, item['loc']))}: {plain_message(item)}"
            for item in error.errors()
            if item["type"] != "extra_forbidden"
        ]
        return None


def _known_names(values: Mapping[str, Any], method: Method) -> list[str]:
    """Losses that do not exist, or that the method's kind of model cannot use."""
    problems: list[str] = []
    fitting = [name for name, entry in LOSSES.items() if method.family in entry.families]
    losses = values.get("loss")
    for number, item in enumerate(losses if isinstance(losses, list) else []):
        name = item.get("name") if isinstance(item, Mapping) else item
        if not isinstance(name, str):
            continue
        if name not in LOSSES:
            problems.append(f"loss.{number}.name: unknown loss {name!r}{nearest(name, fitting)}")
        elif name not in fitting:
            problems.append(
                f"loss.{number}.name: {name!r} is for a {' or a '.join(LOSSES[name].families)}, method {method.name!r} "
                f"trains a {method.family}; it takes {', '.join(fitting)}"
            )
    return problems
