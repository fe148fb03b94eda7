"""A model whose query side is trained and whose document side stays what it was."""

from __future__ import annotations

from typing import cast

from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Module, Router

from .sides import side_modules

__all__ = ["query_trained"]


def query_trained(model: SentenceTransformer, frozen: SentenceTransformer) -> SentenceTransformer:
    """A sentence-transformers Router: the query side of `model`, the document side of `frozen` without gradient.

    Plain sentence-transformers saves and loads it; `encode_query` and `encode_document` take their routes. Its document
    side has the fingerprint of `frozen`'s, so it searches the indexes that `frozen` made.

    Args:
        model: its modules become the query route; they are not copied.
        frozen: its modules become the document route; another object than `model`, sharing no module with it.
    """
    for module in side_modules(frozen, "document"):
        module.requires_grad_(False)
    query, document = side_modules(model, "query"), side_modules(frozen, "document")
    router = Router.for_query_document(cast("list[Module]", query), cast("list[Module]", document))
    return SentenceTransformer(
        modules=[router],
        device=str(model.device),
        similarity_fn_name=frozen.similarity_fn_name,
        prompts={name: prompt for name, prompt in model.prompts.items() if prompt is not None},
        default_prompt_name=model.default_prompt_name,
        truncate_dim=model.truncate_dim,
    )
