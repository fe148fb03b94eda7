"""How many terms are active while a sparse encoder trains, and an end to a training that has lost them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ...errors import BackendError
from .batch import DenseBatch
from .context import LossContext
from .gathering import gather_constant
from .options import LossOptions
from .regularisation import active_terms, expected_flops
from .sparse_options import ActiveLimits, RegulariserOptions

__all__ = ["ActiveWatch"]

_DEAD = (
    "A relu that is zero everywhere has no gradient and stays so. Take a smaller weight for flops or l1, more steps "
    "until it is reached, a lower learning rate"
)


class ActiveWatch:
    """Logs active-query, active-document and flops of the whole batch, and stops a training that breaks a limit.

    Args:
        limits: see `ActiveLimits`.
        options: the terms of the loss; without a regulariser among them vectors may stay dense.
        context: knows the step.
    """

    def __init__(self, limits: ActiveLimits, options: Sequence[LossOptions], context: LossContext) -> None:
        self.limits, self.context = limits, context
        self.regularisers = [item for item in options if isinstance(item, RegulariserOptions)]
        self._divides = any(item.name == "anti-collapse" for item in options)
        self._looked, self._broken = -1, 0

    def __call__(self, batch: DenseBatch) -> None:
        """Look, where it is time to.

        Raises:
            BackendError: a limit was broken `patience` times in a row, or anti-collapse meets a side without a term,
                which it divides by; says which, and what to change.
        """
        step = self.context.clock.step
        if self._divides:  # at every step: the loss is infinite at once, whatever the patience
            self._refuse_zeros(batch, step)
        if step % self.limits.every or step == self._looked:
            return
        self._looked = step
        queries = gather_constant(batch.queries)
        documents = batch.documents.detach()
        counts = torch.stack([active_terms(rows).float().mean() for rows in (queries, documents)])
        found: dict[str, float] = dict(zip(("query", "document"), counts.tolist(), strict=True))
        for side, active in found.items():
            self.context.log(f"active-{side}", active)
        self.context.log("expected-flops", float(expected_flops(queries, documents)))
        reason = self._reason(found, documents.shape[1], step)
        self._broken = self._broken + 1 if reason else 0
        if reason and self._broken >= self.limits.patience:
            raise BackendError(f"training stopped at step {step + 1}: {reason}")

    def _refuse_zeros(self, batch: DenseBatch, step: int) -> None:
        sides = {"query": gather_constant(active_terms(batch.queries)), "document": active_terms(batch.documents)}
        dead = [side for side, counts in sides.items() if not bool(counts.any())]
        if dead:
            raise BackendError(
                f"training stopped at step {step + 1}: the representations of {' and '.join(dead)} have collapsed: not "
                f"one term of this batch is active, and anti-collapse divides by their sum. {_DEAD}, or a larger batch."
            )

    def _reason(self, found: dict[str, float], vocabulary: int, step: int) -> str | None:
        """What is wrong with these mean numbers of active terms, if anything."""
        dead = [side for side, active in found.items() if active < self.limits.least]
        if dead:
            return (
                f"the representations of {' and '.join(dead)} have collapsed: {found[dead[0]]:.2f} active terms on "
                f"average, below sparse.active.least ({self.limits.least:g}). {_DEAD}, or add the loss anti-collapse."
            )
        full = max((item.resolved_steps(self.context.clock.total) for item in self.regularisers), default=step + 1)
        sides = {side for item in self.regularisers for side in (item.side, *(found if item.side == "both" else ()))}
        bound = self.limits.most * vocabulary
        dense = [side for side, active in found.items() if side in sides and active > bound]
        if dense and step >= full:
            return (
                f"the representations of {' and '.join(dense)} stay dense: {found[dense[0]]:.0f} of {vocabulary} terms "
                f"are active on average, above sparse.active.most ({self.limits.most:g} of the vocabulary), although "
                f"the regularisers have had their full weight since step {full}. Take a larger weight for them, or "
                "raise the limit."
            )
        return None
