"""What a loss may need beside a batch: the model, the data, and a place to log to."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from torch import nn

__all__ = ["Autocast", "Clock", "LossContext", "Metrics"]


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
    """Values told by losses, averaged until they are taken, and counts, added up until then."""

    def __init__(self) -> None:
        self._values: defaultdict[str, list[float]] = defaultdict(list)
        self._counts: defaultdict[str, int] = defaultdict(int)

    def add(self, name: str, value: float) -> None:
        self._values[name].append(value)

    def count(self, name: str, number: int) -> None:
        self._counts[name] += number

    def take(self) -> dict[str, float]:
        """The means and the sums since the last call; forgets them."""
        means = {name: sum(values) / len(values) for name, values in self._values.items()}
        taken = {**means, **self._counts}
        self._values.clear()
        self._counts.clear()
        return taken


class Autocast:
    """The trainer's mixed precision, for a model that a loss holds itself: the trainer prepares its own model only.

    A call gives a context manager, which does nothing until the trainer has set one.
    """

    def __init__(self) -> None:
        self._enter: Callable[[], AbstractContextManager[Any]] = nullcontext

    def set(self, enter: Callable[[], AbstractContextManager[Any]]) -> None:
        self._enter = enter

    def __call__(self) -> AbstractContextManager[Any]:
        return self._enter()


@dataclass(frozen=True)
class LossContext:
    """Given to whoever makes a loss.

    Attributes:
        model: the sentence-transformers model in training.
        tables: what the examples come from, one a collection (`TrainingTable`, or what the method's examples use).
        config: the training configuration (`TrainConfig`), for losses with settings outside their options.
        metrics: see `log`.
        clock: how many steps were taken.
        autocast: see `Autocast`.
    """

    model: nn.Module
    tables: Sequence[Any] = ()
    config: Any = None
    metrics: Metrics = field(default_factory=Metrics)
    clock: Clock = field(default_factory=Clock)
    autocast: Autocast = field(default_factory=Autocast)

    def log(self, name: str, value: float) -> None:
        """Tell a value of this step; the trainer logs the mean over its logging interval (of the first process)."""
        self.metrics.add(name, float(value))

    def count(self, name: str, number: int) -> None:
        """Tell how often something happened in this step; the trainer logs the sum over its logging interval, so that
        what is logged adds up over the run (of the first process)."""
        self.metrics.count(name, number)
