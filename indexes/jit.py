"""Kernels compiled by numba (extra `sparse`): without the interpreter's lock, cached on disk after the first call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from ..extras import require

__all__ = ["jit"]

F = TypeVar("F", bound=Callable[..., Any])

_numba: Any = require("numba", "sparse", "the exact back-end")


def jit(function: F) -> F:
    """Compile on the first call for each combination of argument types. Indices are not checked inside."""
    return _numba.njit(nogil=True, cache=True, error_model="numpy")(function)
