"""Random numbers that are a function of a number."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["NumberedStream"]


class NumberedStream:
    """One stream of random numbers for each whole number, without the cost of seeding each.

    Philox is a block cipher over a counter: the seed becomes its key, once, and the number the counter's highest word,
    so that the streams of two numbers never overlap.

    Args:
        seed: whole numbers ≥ 0; different sequences give unrelated streams.
    """

    def __init__(self, seed: Sequence[int]) -> None:
        key = np.random.SeedSequence(list(seed)).generate_state(2, np.uint64)
        self._bits = np.random.Philox(key=key)
        self._generator = np.random.Generator(self._bits)
        self._start = self._bits.state

    def at(self, number: int) -> np.random.Generator:
        """The generator of `number` (≥ 0), at its beginning. It is the same object each time: use it up at once."""
        self._start["state"]["counter"][3] = number
        self._bits.state = self._start
        return self._generator
