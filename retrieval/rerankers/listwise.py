"""Listwise reranking over windows: which windows is the schedule's business, how one is ordered the model's."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ...errors import ConfigError
from .base import Request, Result
from .chat import Message, Prompt
from .identifiers import Identifiers
from .lockstep import Answer, Effort, Lockstep, Ranking
from .prompts import ListPrompt, passage_text
from .reading import PromptWriter, share_by
from .windows import Plan, Schedule

__all__ = [
    "ListwiseReranker",
    "WindowModel",
    "WindowOrder",
    "WindowQuestion",
    "check_window",
    "list_prompts",
]


@dataclass(frozen=True)
class WindowQuestion:
    """Candidates of a request, by place, in the order in which the model sees them."""

    request: Request
    places: tuple[int, ...]

    @property
    def texts(self) -> list[str]:
        return [self.request.candidates[place].text for place in self.places]

    @property
    def name(self) -> str:
        """What it is about, for messages."""
        return f"query {self.request.qid!r}"


@dataclass(frozen=True, eq=False)
class WindowOrder:
    """How a model orders a window.

    Attributes:
        order: places in the window, best first.
        values: (w,) the model's value of each document, along the window; None where it has none.
    """

    order: tuple[int, ...]
    values: np.ndarray | None = None


class WindowModel(Protocol):
    """Orders windows of any queries, several at a time."""

    def order(self, windows: Sequence[WindowQuestion], /) -> list[Answer[WindowOrder]]: ...


class ListwiseReranker:
    """Reranks by a model that orders a window of candidates.

    Scores are ordinal, 1 / rank: windows are ordered each by itself, and no value compares between them. The raw
    values are those of the last window in which a document was seen.

    Args:
        model: orders windows.
        plan: the windows of a list of so many candidates.
        effort: how many queries share a call.
        identity: what makes this reranker what it is.
    """

    def __init__(
        self, model: WindowModel, plan: Callable[[int], Plan], effort: Effort, identity: dict[str, Any]
    ) -> None:
        self._model, self._plan, self._effort, self._identity = model, plan, effort, identity

    def identity(self) -> dict[str, Any]:
        """Method, model, prompt and schedule."""
        return dict(self._identity)

    def rerank(self, requests: Iterable[Request], /) -> Iterator[Result]:
        """Windows that queries ask for at the same moment are one call of the model."""
        yield from Lockstep(self._ranking, self._model.order, self._effort).results(requests)

    def _ranking(self, request: Request) -> Generator[Sequence[WindowQuestion], Sequence[WindowOrder], Ranking]:
        """The plan over a request's candidates, keeping the values that come with the orders."""
        plan = self._plan(len(request.candidates))
        raw = np.full(len(request.candidates), np.nan, dtype=np.float32)
        answers: list[tuple[int, ...]] | None = None
        while True:
            try:
                windows = next(plan) if answers is None else plan.send(answers)
            except StopIteration as stop:
                return Ranking(stop.value, None if np.isnan(raw).any() else raw)
            orders = yield [WindowQuestion(request, window) for window in windows]
            for window, each in zip(windows, orders, strict=True):
                if each.values is not None:
                    raw[list(window)] = each.values
            answers = [each.order for each in orders]


def check_window(schedule: Schedule, most: int | None, kind: str) -> None:
    """Refuse a window wider than the alphabet that names its documents.

    Raises:
        ConfigError: with both numbers.
    """
    if most is not None and schedule.window > most:
        raise ConfigError(
            f"window {schedule.window} is wider than the {most} {kind} that name its documents; "
            "take a smaller window or identifiers=numbers"
        )


def list_prompts(
    writer: PromptWriter,
    windows: Sequence[WindowQuestion],
    prompt: ListPrompt,
    identifiers: Identifiers,
    *,
    continuation: str | None = "",
    rooms: Sequence[int] | None = None,
) -> list[Prompt]:
    """The prompts of windows, those of one query knowing what they share.

    Args:
        writer: renders them.
        windows: what they show.
        prompt: in which words.
        identifiers: what passages are called.
        continuation: how the answer begins.
        rooms: for each window the tokens that must fit after it.
    """
    made: list[Prompt] = []
    for at, window in enumerate(windows):
        texts = [passage_text(text, writer.reading.words) for text in window.texts]

        def messages(shown: Sequence[str], query: str = window.request.query) -> Sequence[Message]:
            return prompt(query, shown, identifiers)

        made.append(writer.write(texts, messages, continuation=continuation, room=rooms[at] if rooms else 0))
    return share_by([window.request.qid for window in windows], made)
