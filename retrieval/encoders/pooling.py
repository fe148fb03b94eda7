"""How tokens become one vector, changed in a model that is loaded."""

from __future__ import annotations

import logging

from sentence_transformers import SentenceTransformer, SparseEncoder
from sentence_transformers.sentence_transformer.modules import Pooling

__all__ = ["set_pooling"]

_LOG = logging.getLogger(__name__)


def set_pooling(model: SentenceTransformer | SparseEncoder, mode: str, *, instead_of: str | None = None) -> int:
    """Let every pooling module of `model` pool by `mode`, in place; return how many were changed.

    Args:
        model: changed in place.
        mode: a mode of sentence-transformers' Pooling ("cls", "mean", "max", "lasttoken", …).
        instead_of: change only modules of this mode.
    """
    changed = 0
    for parent in list(model.modules()):
        for name, module in parent.named_children():
            if not isinstance(module, Pooling) or module.pooling_mode == mode:
                continue
            if instead_of is None or module.pooling_mode == instead_of:
                setattr(parent, name, Pooling(module.embedding_dimension, mode, include_prompt=module.include_prompt))  # pyright: ignore[reportArgumentType]
                _LOG.info("pooling by %s in place of %s", mode, module.pooling_mode)
                changed += 1
    return changed
