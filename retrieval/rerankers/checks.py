"""Settings that count something, checked when an engine or a reranker is made and not at its first query."""

from __future__ import annotations

from numbers import Integral
from typing import Any

from ...errors import ConfigError

__all__ = ["check_counts"]


def check_counts(least: int = 1, /, **settings: Any) -> None:
    """Refuse counts that are no whole numbers from `least` on. None leaves a count to the model, and is fine.

    Raises:
        ConfigError: with the name and the value of each.
    """
    problems = [
        f"{name} {value!r}: expected a whole number of at least {least}"
        for name, value in settings.items()
        if value is not None and (not isinstance(value, Integral) or isinstance(value, bool) or int(value) < least)
    ]
    if problems:
        raise ConfigError("these settings cannot be", problems)
