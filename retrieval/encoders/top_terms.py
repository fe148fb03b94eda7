"""Pruning of sparse vectors: the largest weights of a text, in training and afterwards."""

from __future__ import annotations

from typing import Any

from sentence_transformers.base.modules import Module
from torch import Tensor

__all__ = ["TopTerms", "prune"]


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
    module is loaded by `own_modules.load_sparse`.
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
