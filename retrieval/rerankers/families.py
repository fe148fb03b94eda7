"""The rerankers of language models by name, built from flat settings as the command line and recipes give them."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from ...errors import ConfigError
from .base import Reranker
from .identifiers import Identifiers
from .lockstep import Effort
from .reading import Reading
from .windows import Schedule

__all__ = ["FAMILIES", "family_settings", "load_family"]

ENGINE_SETTINGS = ("engine", "device", "dtype", "batch_tokens", "context_length", "engine_options")


@dataclass(frozen=True)
class Family:
    """Where a reranker is.

    Attributes:
        home: its module in this package.
        name: its class.
    """

    home: str
    name: str

    def load(self) -> type:
        return getattr(importlib.import_module(f".{self.home}", __package__), self.name)


FAMILIES: dict[str, Family] = {
    "duo-t5": Family("pairwise", "DuoT5Reranker"),
    "erank": Family("pointwise_written", "ERankReranker"),
    "first": Family("first", "FirstReranker"),
    "full-rank": Family("generative", "FullRankReranker"),
    "graded": Family("pointwise_tokens", "GradedReranker"),
    "icr": Family("icr", "IcrReranker"),
    "mono-t5": Family("pointwise_tokens", "MonoT5Reranker"),
    "prorank": Family("pointwise_tokens", "ProRankReranker"),
    "prp": Family("pairwise", "PrpReranker"),
    "query-likelihood": Family("query_likelihood", "QueryLikelihoodReranker"),
    "rank-gpt": Family("generative", "RankGptReranker"),
    "rank-r1": Family("setwise", "RankR1Reranker"),
    "retro": Family("pointwise_written", "RetroReranker"),
    "setwise": Family("setwise", "SetwiseReranker"),
    "yes-no": Family("pointwise_tokens", "YesNoReranker"),
}
"""Name → where it is."""


@dataclass(frozen=True)
class _Group:
    """Settings that travel together: a parameter of a reranker, its class, and fields that are called otherwise."""

    kind: type
    renamed: Mapping[str, str]
    default: str

    def names(self) -> dict[str, str]:
        """Flat name → field."""
        return {self.renamed.get(each.name, each.name): each.name for each in fields(self.kind)}


def _groups() -> dict[str, _Group]:
    from .icr import Scoring, Wording
    from .setwise import SetSort

    return {
        "schedule": _Group(Schedule, {"kind": "schedule"}, "SCHEDULE"),
        "reading": _Group(Reading, {}, "READING"),
        "effort": _Group(Effort, {}, "EFFORT"),
        "scoring": _Group(Scoring, {}, "SCORING"),
        "sort": _Group(SetSort, {}, "SORT"),
        "identifiers": _Group(Identifiers, {"kind": "identifiers"}, "IDENTIFIERS"),
        "wording": _Group(Wording, {}, "WORDING"),
    }


def _parameters(kind: type) -> list[str]:
    return [name for name in inspect.signature(kind).parameters if name != "model"]


def family_settings(name: str) -> set[str]:
    """The flat settings that a reranker takes, its engine's among them."""
    groups = _groups()
    names: set[str] = set(ENGINE_SETTINGS)
    for parameter in _parameters(FAMILIES[name].load()):
        names |= set(groups[parameter].names()) if parameter in groups else {parameter}
    return names


def load_family(name: str, model: Any, **settings: Any) -> Reranker:
    """Load a language model and make the reranker `name` over it.

    Args:
        name: a key of `FAMILIES`.
        model: what `load_language_model` takes.
        settings: flat: the engine's (`ENGINE_SETTINGS`), the reranker's own, and the fields of its groups (`window`,
            `words`, `in_flight`, …); what is not given keeps the method's published value.

    Raises:
        ConfigError: a setting that cannot be.
    """
    from .language_model import load_language_model

    kind, groups = FAMILIES[name].load(), _groups()
    _refuse_other_kinds(kind, settings)
    engine = {each: settings.pop(each) for each in ENGINE_SETTINGS if each in settings}
    values: dict[str, Any] = {}
    for parameter in _parameters(kind):
        group = groups.get(parameter)
        if group is None:
            continue
        given = {field: settings.pop(flat) for flat, field in group.names().items() if flat in settings}
        if given:
            default = getattr(kind, group.default, None)
            values[parameter] = group.kind(**given) if default is None else replace(default, **given)
    language_model = load_language_model(model, **{each: value for each, value in engine.items() if value is not None})
    return kind(language_model, **values, **settings)


_PLAIN = {"int": int, "float": (int, float), "bool": bool, "str": str, "None": type(None)}


def _refuse_other_kinds(kind: type, settings: Mapping[str, Any]) -> None:
    """Refuse text where a number is expected, and True where words are.

    A bare yes, no, true or false is a truth value in YAML.

    Raises:
        ConfigError: with what is expected, and how to write it.
    """
    groups, expected = _groups(), dict[str, str]()
    for name, parameter in inspect.signature(kind).parameters.items():
        if name in groups:
            types = {each.name: str(each.type) for each in fields(groups[name].kind)}
            expected |= {flat: types[field] for flat, field in groups[name].names().items()}
        else:
            expected[name] = str(parameter.annotation)
    problems = [
        f"{name} is {value!r}, expected {expected[name]}"
        + (f": put words in quotes, as in --set '{name}=\"yes\"'" if isinstance(value, bool) else "")
        for name, value in settings.items()
        if name in expected and not _fits(value, expected[name])
    ]
    if problems:
        raise ConfigError("these settings cannot be", problems)


def _fits(value: Any, annotation: str) -> bool:
    """Whether a value is of a plain type; annotations that are not plain are checked by whoever has them."""
    parts = [part.strip() for part in annotation.split("|")]
    if not all(part in _PLAIN for part in parts):
        return True
    if isinstance(value, bool):
        return "bool" in parts
    return any(isinstance(value, _PLAIN[part]) for part in parts)
