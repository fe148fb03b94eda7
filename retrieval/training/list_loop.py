"""The trainer of transformers for language models, with our batches, losses and evaluations."""

from __future__ import annotations

from typing import Any, cast

from accelerate.utils import broadcast_object_list
from transformers import Trainer

from .loops import _Loop  # pyright: ignore[reportPrivateUsage]

__all__ = ["LanguageModelLoop"]


class _LossTrainer(Trainer):
    """A transformers trainer whose loss and evaluation are objects of their own, as sentence-transformers has them.

    Args:
        loss: (network, features, label) → terms by name.
        evaluator: model → measures, run by the first process.
    """

    def __init__(self, *, loss: Any, evaluator: Any = None, **settings: Any) -> None:
        # Asked for evaluations, the trainer insists on a data set for them; ours have their own.
        super().__init__(eval_dataset=cast(Any, [] if evaluator else None), **settings)
        self.loss, self.evaluator = loss, evaluator

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        features = {name: value for name, value in inputs.items() if name != "label"}
        terms = self.loss(model, features, inputs["label"])
        if len(terms) > 1:
            for name, value in terms.items():
                self.loss.context.log(name, float(value.detach()))
        return sum(terms.values())

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """The evaluator's measures, the same on every process."""
        found = [self.evaluator(self.model) if self.is_world_process_zero() else None]
        if self.args.world_size > 1:
            found = broadcast_object_list(found)
        values = cast("dict[str, float]", found[0])
        measures = {f"{metric_key_prefix}_{name}": value for name, value in values.items()}
        self.log(measures)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, measures)
        return measures


class LanguageModelLoop(_Loop, _LossTrainer):  # pyright: ignore[reportIncompatibleMethodOverride]
    pass
