"""Pruning of sparse vectors: the largest weights of a text, the same in training and afterwards."""

from __future__ import annotations

from typing import Any

import torch
from sentence_transformers import SparseEncoder
from sentence_transformers.base.modules import Module
from torch import Tensor

__all__ = ["MODULE_CLASSES", "TopTerms", "load_sparse", "prune"]


def prune(weights: Tensor, *, top: int | None = None, ratio: float | None = None) -> Tensor:
    """The largest weights of each row, zero elsewhere. (N, V) → (N, V).

    Of equal weights across the cut, those of the lowest term numbers stay: exactly `top` do, at every call.

    Args:
        weights: (N, V), none below 0.
        top: keep so many of a row.
        ratio: keep what is above this share of the row's largest weight (OpenSearch's prune ratio).
    """
    if ratio is not None:
        weights = weights * (weights > ratio * weights.amax(dim=1, keepdim=True))
    if top is None or top >= weights.shape[1]:
        return weights
    least = weights.detach().topk(top, dim=1).values[:, -1:]
    above, level = weights > least, weights == least
    free = top - above.sum(dim=1, keepdim=True)
    return weights * (above | (level & (level.cumsum(dim=1) <= free)))


class TopTerms(Module):
    """`prune` as the last module of a side.

    sentence-transformers has one number for both sides (max_active_dims) and none for training; a model with this
    module is loaded by `load_sparse`.
    """

    config_keys = ["top", "ratio"]  # noqa: RUF012

    def __init__(self, top: int | None = None, ratio: float | None = None) -> None:
        super().__init__()
        self.top, self.ratio = top, ratio

    def forward(self, features: dict[str, Tensor], **kwargs: Any) -> dict[str, Tensor]:
        features["sentence_embedding"] = prune(features["sentence_embedding"], top=self.top, ratio=self.ratio)
        return features

    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
        self.save_config(output_path)


MODULE_CLASSES: dict[str, type[torch.nn.Module]] = {f"{TopTerms.__module__}.{TopTerms.__qualname__}": TopTerms}
"""Modules of ours that stand in `modules.json`, by the name there."""


def load_sparse(path: str, **settings: Any) -> SparseEncoder:
    """A SparseEncoder whose modules are stock ones, or of `MODULE_CLASSES`; `settings` go to its constructor.

    sentence-transformers itself imports no class from outside without `trust_remote_code`, which would also trust the
    model's own code.
    """
    return SparseEncoder._load_with_module_classes(path, MODULE_CLASSES, **settings)
