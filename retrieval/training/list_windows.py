"""Windows of lists: which documents a language model sees together, and in which order they should be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..rerankers.chat import Message

if TYPE_CHECKING:
    from .list_blocks import ListSampling

__all__ = ["Conversation", "Window", "Windows"]

_STREAM = 3  # of random numbers, beside those of the samplers


@dataclass(frozen=True)
class Conversation:
    """A published example: the turns before the answer, and the answer's places from 0, best first."""

    messages: tuple[Message, ...]
    order: tuple[int, ...]
    kind: str


@dataclass(frozen=True, eq=False)
class Window:
    """An example: what the model sees, and what it should make of it.

    Attributes:
        query: the query.
        passages: texts in the order shown.
        order: places from 0, best first.
        levels: (w,) float32 along the passages, larger is better; ties are not held against each other.
        talk: the turns themselves, where a file of conversations holds them; there are no passages then.
        reference: (w,) float32, a supervised model's scores of the passages, where the list has them.
    """

    query: str
    passages: tuple[str, ...]
    order: tuple[int, ...]
    levels: np.ndarray
    talk: Conversation | None = None
    reference: np.ndarray | None = None


@dataclass(frozen=True)
class Windows:
    """Which documents of a list are shown, and in which order.

    Every window holds documents of two levels at least. One in which nothing is better than anything else teaches the
    first stage's order as if it were right: the reward would be paid for its first document, the permutation of its
    target would be the one that is shown. Published training data have the positive in every list.
    """

    block: ListSampling
    seed: int

    @property
    def reach(self) -> int | None:
        """How many documents of a list windows can show; None is all."""
        block = self.block
        return block.depth if block.start == "anywhere" else min(block.window, block.depth or block.window)

    def draw(self, levels: np.ndarray, number: int, slot: int, part: int) -> np.ndarray:
        """Places in a list, in the order shown: a function of the seed, the batch number and the slot.

        Windows of one batch are of one size, where the lists are long enough: little is padded. At the list's top one
        is longer than that where the shorter one would hold a single level.

        Args:
            levels: (n,) of the list, cut to `reach`; at least two different ones.
        """
        shared = np.random.default_rng([self.seed, _STREAM, part, number])
        generator = np.random.default_rng([self.seed, _STREAM, part, number, slot + 1])
        window = self.block.window
        size = min(int(shared.integers(self.block.smallest or window, window + 1)), len(levels))
        changes = np.concatenate([[0], np.cumsum(np.diff(levels) != 0)])  # of level, up to each place
        if self.block.start == "top":
            size = max(size, int(np.searchsorted(changes, 1)) + 1)
        starts = np.flatnonzero(changes[size - 1 :] > changes[: len(levels) - size + 1])
        starts = starts[:1] if self.block.start == "top" else starts
        start = int(starts[generator.integers(len(starts))])
        shown = np.arange(start, start + size)
        return generator.permutation(shown) if generator.random() < self.block.shuffle else shown
