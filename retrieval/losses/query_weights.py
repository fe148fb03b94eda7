"""Weights of a curriculum as tensors, from what the batch carries."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..sampling.curriculum import Schedule, curriculum_weights, missing_easiness
from .batch import Side
from .gathering import gather_constant

if TYPE_CHECKING:
    from .context import LossContext

__all__ = ["CurriculumWeights"]


class CurriculumWeights:
    """The curriculum of a configuration, at the batch's number.

    `per_sample` weighs each query's cost, or each document's: the paper. `batch_mean_product` multiplies the mean cost
    of the batch by the mean weight, as the published code does; the two are the same for batches of one query.

    Args:
        block: the configuration's `curriculum`.
        context: told the mean weight of each batch.
    """

    def __init__(self, block: Any, context: LossContext) -> None:
        self.block, self._log = block, context.log
        self.schedule = Schedule(block.end, block.batches_per_epoch, block.anti)

    def of(self, side: Side) -> Tensor:
        """(B,) for pairwise and (B, 1 + k) for pointwise weights, float32."""
        easy = side["difficulty"].cpu().numpy().astype(np.float64)
        easy = np.where(np.isnan(easy), missing_easiness(self.block.difficulty), easy)
        epoch = self.schedule.epoch(int(side["number"][0]))
        weights = curriculum_weights(easy, side["labels"].cpu().numpy(), self.block.weighting, epoch, self.schedule)
        return torch.from_numpy(weights.astype(np.float32))

    def value(self, term: Any, batch: Any) -> Tensor:
        """The term's value under these weights; a scalar."""
        weights = self.of(batch.side)
        self._log("curriculum-weight", float(weights.mean()))
        if self.block.reduction == "batch_mean_product":
            value = term(batch).mean()
            return value * gather_constant(weights.to(value.device)).mean()
        costs: Tensor = term.by_document(batch) if weights.ndim == 2 else term.by_query(batch)
        return (weights.to(costs.device) * costs).mean()
