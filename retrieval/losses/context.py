"""What a loss may need beside a batch: the model, the data, and a place to log to."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

__all__ = ["Clock", "LossContext", "Metrics"]


@dataclass
class Clock:
    """Where training is, for weights that change with it; the trainer sets it before every loss.

    Attributes:
        step: optimiser steps taken before, the ones before a resume included.
        total: of the whole run.
    """

    step: int = 0
    total: int = 0


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
        clock: how many steps were taken.
    """

    model: nn.Module
    tables: Sequence[Any] = ()
    config: Any = None
    metrics: Metrics = field(default_factory=Metrics)
    clock: Clock = field(default_factory=Clock)

    def log(self, name: str, value: float) -> None:
        """Tell a value of this step; the trainer logs the mean over its logging interval (of the first process)."""
        self.metrics.add(name, float(value))
