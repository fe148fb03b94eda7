"""Methods that train the query side only: the document side is the model as it lies on disk."""

from __future__ import annotations

from sentence_transformers import SentenceTransformer

from ..encoders.router import query_trained
from .config import TrainConfig
from .models import model_path

__all__ = ["freeze_documents"]


def freeze_documents(model: SentenceTransformer, config: TrainConfig) -> SentenceTransformer:
    """A Router whose query route is `model` and whose document route is what the configuration names, without gradient.

    The document side is loaded anew, so that adapters put on `model` are on its queries only.
    """
    return query_trained(model, SentenceTransformer(model_path(config), device=str(model.device)))
