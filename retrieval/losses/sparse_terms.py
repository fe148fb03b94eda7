"""The terms that keep a sparse encoder's vectors sparse, over the vectors of all processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import cast

import torch
from torch import Tensor

from .batch import DenseBatch, DenseTerm
from .context import LossContext
from .gathering import gather_with_gradient
from .options import LossOptions
from .regularisation import anti_collapse, flops, l1, schedule
from .sparse_options import FlopsOptions, RegulariserOptions

__all__ = ["SPARSE_TERMS", "AntiCollapse", "Regulariser", "document_groups"]


class Regulariser:
    """Share of λ in force · cost of the sides meant; λ itself is the term's weight.

    Every process computes it on the vectors of all of them, so that the value does not depend on their number.

    Args:
        options: the side, its grouping, the schedule.
        context: knows the step, and is told values and λ.
        cost: (N, V) or (B, n, V) and a keyword `threshold` → scalar. With weights of terms:
            `partial(flops, term_weights=…)`.
    """

    def __init__(self, options: RegulariserOptions, context: LossContext, cost: Callable[..., Tensor]) -> None:
        self.options, self.context = options, context
        self.cost = partial(cost, threshold=options.threshold)

    @property
    def share(self) -> float:
        """Of λ, at the present step."""
        chosen, clock = self.options, self.context.clock
        steps = chosen.resolved_steps(clock.total)
        return schedule(clock.step, steps=steps, shape=chosen.schedule, convention=chosen.convention)

    def __call__(self, batch: DenseBatch) -> Tensor:
        values = {side: self._of(batch, side) for side in self._sides()}
        share = self.share
        for side, value in values.items():
            self.context.log(f"{self.options.name}-{side}", float(value.detach()))
            self.context.log(f"{self.options.name}-{side}-lambda", share * self.options.weight)
        return share * torch.stack(list(values.values())).sum()

    def _sides(self) -> tuple[str, ...]:
        return ("query", "document") if self.options.side == "both" else (self.options.side,)

    def _of(self, batch: DenseBatch, side: str) -> Tensor:
        if side == "query":
            return self.cost(gather_with_gradient(batch.queries))
        grouping = self.options.grouping if isinstance(self.options, FlopsOptions) else "all"
        return torch.stack([self.cost(rows) for rows in document_groups(batch, grouping)]).mean()


def document_groups(batch: DenseBatch, grouping: str) -> Iterator[Tensor]:
    """The documents of the batch as `flops` wants them; what it gives for several is averaged.

    "all" is (D, V); "by-side" the positives and, where there are any, all negatives; "by-rank" (Q, 1 + k, V).
    """
    width = batch.own.shape[1]
    queries = len(batch.documents) // width
    if grouping == "by-rank":
        yield batch.documents.view(width, queries, -1).transpose(0, 1)
    elif grouping == "by-side" and width > 1:
        yield batch.documents[:queries]
        yield batch.documents[queries:]
    else:
        yield batch.documents


class AntiCollapse:
    """See `regularisation.anti_collapse`; over the vectors of all processes."""

    def __init__(self, options: LossOptions, context: LossContext) -> None:
        del options, context

    def __call__(self, batch: DenseBatch) -> Tensor:
        return anti_collapse(gather_with_gradient(batch.queries), batch.documents)


def _regulariser(cost: Callable[..., Tensor]) -> Callable[[LossOptions, LossContext], DenseTerm]:
    return lambda options, context: Regulariser(cast(RegulariserOptions, options), context, cost)


SPARSE_TERMS: dict[str, Callable[[LossOptions, LossContext], DenseTerm]] = {
    "flops": _regulariser(flops),
    "l1": _regulariser(l1),
    "anti-collapse": AntiCollapse,
}
