"""A loss over lists as a term: of the whole batch, or list by list."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .batch import CandidateBatch
from .gathering import gather_constant, gather_with_gradient
from .ranking import binary_costs, binary_cross_entropy

__all__ = ["BinaryTerm", "ListTerm"]


class ListTerm:
    """function(scores, targets) → scalar, a mean over lists.

    Args:
        function: (B, N) scores and (B, N) targets → the loss.
        targets: what the scores are held against; the batch's labels by default.
    """

    def __init__(
        self, function: Callable[[Tensor, Tensor], Tensor], targets: Callable[[CandidateBatch], Tensor] | None = None
    ) -> None:
        self.function = function
        self.targets = targets or (lambda batch: batch.labels)

    def __call__(self, batch: CandidateBatch) -> Tensor:
        """The loss over the lists of all processes."""
        return self.function(gather_with_gradient(batch.scores), gather_constant(self.targets(batch)))

    def by_query(self, batch: CandidateBatch) -> Tensor:
        """The loss of each list of this process alone, for weights to multiply. (B,)."""
        targets = self.targets(batch)
        lists = zip(batch.scores.split(1), targets.split(1), strict=True)
        return torch.stack([self.function(scores, wanted) for scores, wanted in lists])


class BinaryTerm(ListTerm):
    """Binary cross-entropy, which costs by document too."""

    def __init__(self, positive_weight: float | None) -> None:
        super().__init__(lambda scores, labels: binary_cross_entropy(scores, labels, positive_weight=positive_weight))
        self.positive_weight = positive_weight

    def by_document(self, batch: CandidateBatch) -> Tensor:
        """The cost of every document. (B, N)."""
        return binary_costs(batch.scores, batch.labels, positive_weight=self.positive_weight)
