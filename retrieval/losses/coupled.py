"""Coupled estimation as a loss that stands alone: two models, each weighted by the other (equations in `cet`)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from .batch import Side
from .cet import CetCosts, Debiasing, cet_costs, spearman
from .context import LossContext
from .gathering import gather_constant
from .modules import candidate_scores
from .options import CetOptions, LossOptions
from .selection import SelectionModel, make_selection
from .telling import tell_quantiles

__all__ = ["CetLoss", "make_cet"]


class CetLoss(nn.Module):
    """L_rel + L_sel over a batch; each part's gradient reaches its own model only.

    Both models step on every batch. Weights come from both in evaluation mode as they stand before the step. The
    selection model is this loss's own: checkpoints hold it, its gradients are averaged over processes and clipped
    apart from the relevance model's. With several micro-batches a step the gradients are clipped once a step (the
    published code clips after each).

    Logged: quantiles of both weights over the batch of all processes, and the rank correlation of the two models'
    logits over its negatives: both see the same texts and labels, so that they can collapse into each other.

    Args:
        model: the relevance model, which is trained, evaluated and saved.
        selection: the other one.
        options: T, cap and normalisation.
        context: see `LossContext`.
    """

    def __init__(self, model: nn.Module, selection: SelectionModel, options: CetOptions, context: LossContext) -> None:
        super().__init__()
        self.model = model
        self.selection = selection
        self.options = options
        self.debiasing = Debiasing(options.temperature, options.weight_cap)
        self._log = context.log

    def get_config_dict(self) -> dict[str, Any]:
        """What sentence-transformers' model card asks a loss."""
        return {self.options.name: self.options.model_dump(exclude={"name"})}

    def forward(self, inputs: Sequence[Any], labels: Side, **preprocessing: Any) -> dict[str, Tensor]:
        """(queries, documents of each query, the positive first) and the batch's `Side` → both losses by name."""
        relevance = cast(Any, getattr(self.model, "module", self.model))  # weights need no data-parallel wrapper
        with torch.no_grad(), _evaluating(relevance, self.selection):
            before = (
                candidate_scores(relevance, inputs, **preprocessing),
                self.selection(inputs, labels, **preprocessing),
            )
        scores = (
            candidate_scores(self.model, inputs, **preprocessing),
            self.selection(inputs, labels, **preprocessing),
        )
        costs = cet_costs(scores, before, self.debiasing)
        scales = self._tell(costs, before)
        weight = self.options.weight
        return {
            "cet-relevance": weight * scales[0] * costs.relevance.mean(),
            "cet-selection": weight * scales[1] * costs.selection.mean(),
        }

    def _tell(self, costs: CetCosts, before: tuple[Tensor, Tensor]) -> tuple[float, float]:
        """Log the weights; return what normalises each kind over the batch of all processes (1 and 1 unless asked)."""
        logits = [gather_constant(side[:, 1:]) for side in before]
        correlation = spearman(logits[0], logits[1])
        if not math.isnan(correlation):
            self._log("cet-rank-correlation", correlation)
        scales: list[float] = []
        for name, local in (("relevance", costs.relevance_weights), ("selection", costs.selection_weights)):
            weights = gather_constant(local)
            tell_quantiles(self._log, f"cet-{name}-weight", weights)
            scales.append(1 / float(weights.mean()) if self.options.self_normalise else 1.0)
        return scales[0], scales[1]

    def save_beside(self, output: Path) -> None:
        """Write the selection model to OUTPUT/selection."""
        self.selection.save(output / "selection")


@contextmanager
def _evaluating(*models: nn.Module) -> Iterator[None]:
    """Without dropout; every module's own mode is restored."""
    modes = [(module, module.training) for model in models for module in model.modules()]
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def make_cet(model: nn.Module, options: LossOptions, context: LossContext) -> CetLoss:
    """The loss of a configuration. See `make_selection` for what it raises."""
    chosen = cast(CetOptions, options)
    return CetLoss(model, make_selection(chosen, context), chosen, context)
