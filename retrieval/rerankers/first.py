"""FIRST (Gangi Reddy et al. 2024): a window's order from the logits where its first identifier would be written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from .identifiers import Identifiers
from .language_model import named
from .listwise import ListwiseReranker, WindowOrder, WindowQuestion, check_window, list_prompts
from .lockstep import Answer, Effort
from .prompts import list_prompt
from .reading import PromptWriter, Reading, count_cuts
from .windows import Schedule

if TYPE_CHECKING:
    from .language_model import LanguageModel

__all__ = ["FirstReranker", "FirstTokenModel"]

OPENING = "["


class FirstReranker(ListwiseReranker):
    """FIRST: one forward pass for a window, nothing generated.

    The answer is opened with "[", and the logits of all identifiers there order the window; ties keep the order in
    which it was shown. Identifiers are single tokens, which is checked when the reranker is made. Prompts of one query
    say what they share, so that an engine may compute it once.

    Args:
        model: the language model.
        schedule: the windows; published 20 by 10 over 100 candidates.
        reading: how passages are shown; published 300 words, and BOS twice.
        prompt: a name of `LIST_PROMPTS`: "rank-zephyr" is FIRST's own wording, "rank-llm" FirstMistral's.
        identifiers: letters, or numbers (of one token each).
        effort: how many queries share a call.

    Raises:
        ConfigError: the window is wider than the alphabet, or an identifier is not one token.
    """

    def __init__(
        self,
        model: LanguageModel,
        *,
        schedule: Schedule | None = None,
        reading: Reading | None = None,
        prompt: str = "rank-zephyr",
        identifiers: Identifiers | None = None,
        effort: Effort | None = None,
    ) -> None:
        schedule = schedule or Schedule()
        windows = FirstTokenModel(model, schedule, reading or Reading(), prompt, identifiers or Identifiers("letters"))
        self.writer = windows.writer
        identity = {
            "reranker": "first",
            "model": model.identity(),
            "prompt": prompt,
            "identifiers": windows.identifiers.kind,
            "schedule": vars(schedule),
            "reading": windows.writer.identity(),
        }
        super().__init__(windows, schedule.plan, effort or Effort(), identity)


class FirstTokenModel:
    """Orders windows by the next-token logits of their identifiers."""

    def __init__(
        self, model: LanguageModel, schedule: Schedule, reading: Reading, prompt: str, identifiers: Identifiers
    ) -> None:
        check_window(schedule, identifiers.most, identifiers.kind)
        self.model, self.identifiers, self.prompt = model, identifiers, list_prompt(prompt)
        self.writer = PromptWriter(model, reading)
        self.tokens = self.writer.answer_tokens(identifiers.labels(schedule.window), continuation=OPENING)

    def order(self, windows: Sequence[WindowQuestion], /) -> list[Answer[WindowOrder]]:
        """One forward pass each. Identifiers beyond a short window's documents are left out."""
        prompts = list_prompts(self.writer, windows, self.prompt, self.identifiers, continuation=OPENING)
        with named(lambda row: windows[row].name):
            answers = self.model.next_token_logits(prompts, self.tokens)
        orders: list[Answer[WindowOrder]] = []
        usages = count_cuts(prompts, answers.usages)
        for window, logits, usage in zip(windows, answers.values, usages, strict=True):
            values = logits[: len(window.places)]
            order = tuple(np.argsort(-values, kind="stable").tolist())
            orders.append(Answer(WindowOrder(order, values), usage))
        return orders
