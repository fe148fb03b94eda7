"""Unknown keys with their nearest known name, and pydantic's messages in plain words."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from ...errors import nearest

__all__ = ["plain_message", "unknown_keys"]


def unknown_keys(model: type[BaseModel], values: Mapping[str, Any], place: str = "") -> list[str]:
    """Name every key of `values`, at any depth, that `model` does not have.

    Args:
        model: the pydantic model that `values` will be read into.
        values: plain values; what is not a mapping where a block stands is left for validation to refuse.
        place: dotted prefix for the messages.
    """
    problems: list[str] = []
    for key, value in values.items():
        field = model.model_fields.get(str(key))
        if field is None:
            known = ", ".join(model.model_fields)
            hint = nearest(str(key), model.model_fields) or f"; known here: {known}"
            problems.append(f"{place}{key}: unknown key{hint}")
            continue
        inner = _block_of(field.annotation)
        if inner is None:
            continue
        if isinstance(value, Mapping):
            problems += unknown_keys(inner, value, f"{place}{key}.")
        elif isinstance(value, list | tuple):
            for number, item in enumerate(value):
                if isinstance(item, Mapping):
                    problems += unknown_keys(inner, item, f"{place}{key}.{number}.")
    return problems


def _block_of(annotation: Any) -> type[BaseModel] | None:
    """The model inside `Model`, `Model | None` or `tuple[Model, ...]`."""
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return annotation if issubclass(annotation, BaseModel) else None
    found = (_block_of(argument) for argument in typing.get_args(annotation) if argument is not Ellipsis)
    return next((model for model in found if model is not None), None)


def plain_message(error: Mapping[str, Any]) -> str:
    """One validation error as a sentence with the value that was given."""
    if error["type"] == "missing":
        return "required, and not given"
    message = str(error["msg"]).removeprefix("Input should be ").removeprefix("Value error, ")
    return f"{error['input']!r} should be {message}" if message != error["msg"] else f"{message} ({error['input']!r})"
