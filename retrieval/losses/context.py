"""What a loss may need beside a batch: the model, the data, and a place to log to."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

__all__ = ["LossContext", "Metrics"]


class Metrics:
    """Values told by losses, averaged until they are taken."""

    def __init__(self) -> None:
        self._values: defaultdict[str, list[float]] = defaultdict(list)

    def add(self, name: str, value: float) -> None:
        self._values[name].append(value)

    def take(self) -> dict[str, float]:
        """The means since the last call; forgets them."""
        means = {name: sum(values) / len(values) for name, values in self._values.items()}
        self._values.clear()
        return means


@dataclass(frozen=True)
class LossContext:
    """Given to whoever makes a loss.

    Attributes:
        model: the sentence-transformers model in training.
        tables: what the examples come from, one a collection (`TrainingTable`, or what the method's examples use).
        config: the training configuration (`TrainConfig`), for losses with settings outside their options.
        metrics: see `log`.
    """

    model: nn.Module
    tables: Sequence[Any] = ()
    config: Any = None
    metrics: Metrics = field(default_factory=Metrics)

    def log(self, name: str, value: float) -> None:
        """Tell a value of this step; the trainer logs the mean over its logging interval (of the first process)."""
        self.metrics.add(name, float(value))
