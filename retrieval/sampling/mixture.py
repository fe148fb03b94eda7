"""Several collections by weight; every batch comes from one of them, so that in-batch negatives are of its kind."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .base import Draw, Sampler

__all__ = ["MixtureSampler"]

_CHOICE = 3


class MixtureSampler:
    """Draws the collection of each batch by weight; each collection goes through its own epochs.

    Args:
        samplers: one a collection, of one batch size; sampler i gives draws of part i.
        weights: their shares of the batches; None is by number of batches in an epoch.
        seed: of the choice.
    """

    def __init__(self, samplers: Sequence[Sampler], weights: Sequence[float] | None, seed: int) -> None:
        if len({sampler.batch_size for sampler in samplers}) != 1:
            raise ValueError("the samplers of a mixture have one batch size")
        self.samplers, self.seed = list(samplers), seed
        shares = np.asarray(weights or [sampler.batches_per_epoch for sampler in samplers], dtype=np.float64)
        self._bounds = np.cumsum(shares / shares.sum())[:-1]
        self._parts = np.zeros(0, dtype=np.int64)
        self._before = np.zeros((0, len(samplers)), dtype=np.int64)

    @property
    def batch_size(self) -> int:
        return self.samplers[0].batch_size

    @property
    def batches_per_epoch(self) -> int:
        """As many as the collections have together; with weights, not each once."""
        return sum(sampler.batches_per_epoch for sampler in self.samplers)

    def draw(self, number: int, /) -> Draw:
        self._reach(number)
        part = int(self._parts[number])
        return self.samplers[part].draw(int(self._before[number, part]))

    def _reach(self, number: int) -> None:
        """Have the choices up to `number`; a longer series begins with the shorter one."""
        if number < len(self._parts):
            return
        size = max(1024, 2 * number)
        uniform = np.random.default_rng([self.seed, _CHOICE]).random(size)
        self._parts = np.searchsorted(self._bounds, uniform, side="right")
        chosen = self._parts[:, None] == np.arange(len(self.samplers))[None, :]
        self._before = np.cumsum(chosen, axis=0) - chosen
