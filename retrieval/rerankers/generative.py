"""Generative listwise reranking: the model writes the order of what it sees.

RankGPT (Sun et al. 2023), RankVicuna and RankZephyr (Pradeep et al. 2023) slide windows over the list; FullRank (Liu
et al. 2024) reads and writes all of it at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from .base import Usage
from .identifiers import Identifiers
from .language_model import Sampling, named
from .listwise import ListwiseReranker, WindowOrder, WindowQuestion, check_window, list_prompts
from .lockstep import Answer, Effort
from .permutations import format_permutation, parse_permutation
from .prompts import list_prompt
from .reading import PromptWriter, Reading, count_cuts
from .windows import Plan, Schedule

if TYPE_CHECKING:
    from .language_model import LanguageModel

__all__ = ["FullRankReranker", "GenerativeModel", "RankGptReranker"]


class RankGptReranker(ListwiseReranker):
    """Generative listwise reranking over windows, in the style of RankGPT and RankZephyr.

    Greedy decoding, and exactly as many tokens as a full permutation has, so that the model neither stops early nor
    rambles. What it writes is read by `parse_permutation`; every window that is not a well-formed permutation counts
    as malformed.

    Args:
        model: the language model.
        schedule: the windows; published 20 by 10, one pass.
        reading: how passages are shown; published 300 words.
        prompt: a name of `LIST_PROMPTS`.
        identifiers: numbers or letters.
        max_new_tokens: let the model write up to so many tokens, and stop (models that think first); None is the
            length of a permutation, no less and no more.
        effort: how many queries share a call.
    """

    def __init__(
        self,
        model: LanguageModel,
        *,
        schedule: Schedule | None = None,
        reading: Reading | None = None,
        prompt: str = "rank-zephyr",
        identifiers: Identifiers | None = None,
        max_new_tokens: int | None = None,
        effort: Effort | None = None,
    ) -> None:
        schedule, names = schedule or Schedule(), identifiers or Identifiers("numbers")
        check_window(schedule, names.most, names.kind)
        windows = GenerativeModel(model, reading or Reading(), prompt, names, max_new_tokens)
        self.writer = windows.writer
        identity = {"reranker": "rank-gpt", "schedule": vars(schedule), **windows.identity()}
        super().__init__(windows, schedule.plan, effort or Effort(), identity)


class FullRankReranker(ListwiseReranker):
    """FullRank: the whole list in one prompt, its order in one generation; no windows.

    As `RankGptReranker` otherwise. A list that does not fit the context has its documents cut alike; none is left out.

    Args:
        model: the language model.
        reading: how passages are shown; published 100 words.
        prompt: a name of `LIST_PROMPTS`.
        max_new_tokens: as in `RankGptReranker`.
        effort: how many queries share a call.
    """

    READING: ClassVar[Reading] = Reading(words=100)
    EFFORT: ClassVar[Effort] = Effort(in_flight=4)

    def __init__(
        self,
        model: LanguageModel,
        *,
        reading: Reading | None = None,
        prompt: str = "rank-zephyr",
        max_new_tokens: int | None = None,
        effort: Effort | None = None,
    ) -> None:
        windows = GenerativeModel(model, reading or self.READING, prompt, Identifiers("numbers"), max_new_tokens)
        self.writer = windows.writer
        identity = {"reranker": "full-rank", **windows.identity()}
        super().__init__(windows, _whole, effort or self.EFFORT, identity)


def _whole(count: int) -> Plan:
    """One window with everything; nothing to ask about a single document."""
    if count < 2:
        return list(range(count))
    (order,) = yield [tuple(range(count))]
    return list(order)


class GenerativeModel:
    """Orders windows by generating their permutation."""

    def __init__(
        self,
        model: LanguageModel,
        reading: Reading,
        prompt: str,
        identifiers: Identifiers,
        max_new_tokens: int | None = None,
    ) -> None:
        self.model, self.identifiers, self.name = model, identifiers, prompt
        self.prompt, self.max_new_tokens = list_prompt(prompt), max_new_tokens
        self._freely = None if max_new_tokens is None else Sampling(max_new_tokens)
        self.writer = PromptWriter(model, reading)

    def identity(self) -> dict[str, object]:
        return {
            "model": self.model.identity(),
            "prompt": self.name,
            "identifiers": self.identifiers.kind,
            "max_new_tokens": self.max_new_tokens,
            "reading": self.writer.identity(),
        }

    def order(self, windows: Sequence[WindowQuestion], /) -> list[Answer[WindowOrder]]:
        """One generation each; windows of one size are one call."""
        sizes = np.asarray([len(window.places) for window in windows])
        orders: list[Answer[WindowOrder] | None] = [None] * len(windows)
        for size in sorted(set(sizes.tolist())):
            rows = np.flatnonzero(sizes == size).tolist()
            for row, answer in zip(rows, self._order([windows[row] for row in rows], size), strict=True):
                orders[row] = answer
        return [order for order in orders if order is not None]

    def _order(self, windows: Sequence[WindowQuestion], size: int) -> list[Answer[WindowOrder]]:
        whole = int(self.writer.renderer.count([format_permutation(range(size), self.identifiers)])[0])
        sampling = self._freely or Sampling(max_new_tokens=whole, min_new_tokens=whole)
        rooms = [sampling.max_new_tokens] * len(windows)
        prompts = list_prompts(self.writer, windows, self.prompt, self.identifiers, rooms=rooms)
        with named(lambda row: windows[row].name):
            answers = self.model.generate(prompts, sampling)
        orders: list[Answer[WindowOrder]] = []
        for said, usage in zip(answers.values, count_cuts(prompts, answers.usages), strict=True):
            read = parse_permutation(said[0].text, size, self.identifiers)
            cost = usage + Usage(malformed=int(not read.well_formed))
            orders.append(Answer(WindowOrder(read.order), cost))
        return orders
