"""Packages whose names load on first use, so that importing them costs nothing."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["lazy_names"]


def lazy_names(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """A package's `__getattr__` and `__dir__`.

        __getattr__, __dir__ = lazy_names(__name__, {"Run": "run", "read_run": "files"})

    Args:
        package: the package's `__name__`.
        homes: name → the module of the package that has it.
    """

    def load(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f".{homes[name]}", package), name)

    return load, lambda: sorted({*vars(sys.modules[package]), *homes})
