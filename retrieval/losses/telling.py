"""What losses tell of a batch beside their value."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .cet import quantiles

__all__ = ["Log", "tell_batch", "tell_quantiles"]

Log = Callable[[str, float], None]
_QUANTILES = {"p10": 0.1, "median": 0.5, "p90": 0.9, "max": 1.0}


def tell_quantiles(log: Log, name: str, values: Tensor) -> None:
    """Log tenth, middle and ninetieth percentile and the largest of `values`, such as weights of queries."""
    for label, value in zip(_QUANTILES, quantiles(values, tuple(_QUANTILES.values())), strict=True):
        log(f"{name}-{label}", value)


def tell_batch(log: Log, name: str, scores: Tensor, own: Tensor) -> None:
    """Log a batch's accuracy among what counts, the share of documents that do not count, and the mean margin of the
    positive over the best of the others.

    Args:
        scores: (B, D), −inf where a document does not count.
        own: (B, 1) int64, the column of each query's positive.
    """
    with torch.no_grad():
        others = scores.scatter(1, own, -torch.inf).amax(dim=1, keepdim=True)
        margins = (scores.gather(1, own) - others).float()
        some = margins.isfinite()
        values = [(margins >= 0).float().mean(), scores.isneginf().float().mean(), margins[some].mean()]
        accuracy, masked, margin = torch.stack(values).tolist()
    log(f"{name}-accuracy", accuracy)
    log(f"{name}-masked", masked)
    if not math.isnan(margin):
        log(f"{name}-margin", margin)
