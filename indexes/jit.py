"""Kernels compiled by numba (extra `sparse`): without the interpreter's lock, cached on disk after the first call."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, TypeVar

from ..extras import require

__all__ = ["jit", "prefetch"]

F = TypeVar("F", bound=Callable[..., Any])

_numba: Any = require("numba", "sparse", "the exact back-end")
_extending: Any = importlib.import_module("numba.extending")
_cgutils: Any = importlib.import_module("numba.core.cgutils")
_types: Any = importlib.import_module("numba.core.types")
_ir: Any = importlib.import_module("llvmlite.ir")


def jit(function: F) -> F:
    """Compile on the first call for each combination of argument types. Indices are not checked inside."""
    return _numba.njit(nogil=True, cache=True, error_model="numpy")(function)


def _prefetch(_: Any, array: Any, index: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, values[0]).data
        place = builder.bitcast(builder.gep(data, [values[1]]), _ir.IntType(8).as_pointer())
        number = _ir.IntType(32)
        kind = _ir.FunctionType(_ir.VoidType(), [place.type, number, number, number])
        function = _cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        builder.call(function, [place, number(0), number(3), number(1)])  # to be read, kept, data
        return context.get_dummy_value()

    return _types.void(array, index), generate


prefetch = _extending.intrinsic(_prefetch)
"""`prefetch(array, index)`, within a kernel: ask for a value of an array of one dimension ahead of its use."""
