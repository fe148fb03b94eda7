"""Loading sparse encoders with modules of ours among sentence-transformers' own."""

from __future__ import annotations

from typing import Any

from sentence_transformers import SparseEncoder
from torch import nn

from .echo import EchoTransformer
from .top_terms import TopTerms

__all__ = ["MODULE_CLASSES", "load_sparse"]

MODULE_CLASSES: dict[str, type[nn.Module]] = {
    f"{module.__module__}.{module.__qualname__}": module for module in (EchoTransformer, TopTerms)
}
"""Modules of ours that stand in `modules.json`, by the name there."""


def load_sparse(path: str, **settings: Any) -> SparseEncoder:
    """A SparseEncoder whose modules are stock ones, or of `MODULE_CLASSES`; `settings` go to its constructor.

    sentence-transformers itself imports no class from outside without `trust_remote_code`, which would also trust the
    model's own code.
    """
    return SparseEncoder._load_with_module_classes(path, MODULE_CLASSES, **settings)
