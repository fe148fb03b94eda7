"""Setwise reranking (Zhuang et al. 2024): which of a few documents is the best, until the top k is sorted."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import numpy as np

from ...errors import ConfigError
from .base import Request, Result, Usage
from .chat import Message, Prompt
from .language_model import Sampling, named
from .listwise import WindowQuestion
from .lockstep import Answer, Effort, Lockstep, Ranking
from .pointwise_tokens import first_words
from .reading import PromptWriter, Reading, count_cuts, share_by
from .setwise_prompts import RANK_R1, SETWISE, SETWISE_BRACKETS, SetPrompt, read_choice
from .sorting import SortKind, sort_plan

if TYPE_CHECKING:
    from .language_model import LanguageModel

__all__ = ["RankR1Reranker", "SetModel", "SetSort", "SetwiseReranker", "SetwiseSorter"]

Presentation = Literal["first-stage", "sorted", "shuffled"]


class SetModel(Protocol):
    """Names the best document of a set: its place in the set, or None when what it said names none."""

    def identity(self) -> dict[str, Any]: ...

    def choose(self, sets: Sequence[WindowQuestion], /) -> list[Answer[int | None]]: ...


@dataclass(frozen=True)
class SetSort:
    """How sets are sorted.

    Attributes:
        sorting: "heap" or "bubble".
        k: how many documents are sorted; the others follow in their first order.
        children: documents beside the first in a set: a set has one more.
        presentation: the order in a set: "first-stage"; "sorted" puts the heap's parent first, as published for
            Setwise; "shuffled" draws it for each query and set from `seed`, as published for Rank-R1.
        seed: of the shuffles.
    """

    sorting: SortKind = "heap"
    k: int = 10
    children: int = 3
    presentation: Presentation = "first-stage"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.presentation not in ("first-stage", "sorted", "shuffled") or self.children < 2:
            raise ConfigError(
                f"presentation {self.presentation!r}, children {self.children}: expected first-stage, sorted or "
                "shuffled, and at least 2 (pairs are pairwise rerankers')"
            )
        sort_plan(self.sorting, 0, self.k, children=self.children)

    def shown(self, request: Request, group: Sequence[int]) -> tuple[int, ...]:
        """A group in the order in which the model sees it."""
        if self.presentation == "sorted":
            return tuple(group)
        order = sorted(group)
        if self.presentation == "shuffled":
            Random(f"{self.seed} {request.qid} {order}").shuffle(order)
        return tuple(order)


class SetwiseSorter:
    """Reranks by sorting the top k with a model that names the best of a set.

    A set that the model gave no readable answer for counts as malformed, and its document that stood highest in the
    first stage wins (the published code lets the heap's root win, which moves the last documents of the list up).
    Scores are ordinal.

    Args:
        model: names the best of a set.
        sort: how sets are sorted.
        effort: how many queries share a call.
    """

    def __init__(self, model: SetModel, *, sort: SetSort | None = None, effort: Effort | None = None) -> None:
        self._model, self._sort, self._effort = model, sort or SetSort(), effort or Effort()

    def identity(self) -> dict[str, Any]:
        """Method, model, prompt and sort."""
        return {**self._model.identity(), **vars(self._sort)}

    def rerank(self, requests: Iterable[Request], /) -> Iterator[Result]:
        """Sets that queries ask for at the same moment are one call of the model."""
        yield from Lockstep(self._ranking, self._choices, self._effort).results(requests)

    def _ranking(self, request: Request) -> Generator[Sequence[WindowQuestion], Sequence[int | None], Ranking]:
        sort = self._sort
        plan = sort_plan(sort.sorting, len(request.candidates), sort.k, children=sort.children)
        winners: list[int] | None = None
        while True:
            try:
                groups = next(plan) if winners is None else plan.send(winners)
            except StopIteration as stop:
                return Ranking(stop.value)
            sets = [sort.shown(request, group) for group in groups]
            chosen = yield [WindowQuestion(request, places) for places in sets]
            best = [min(places) if at is None else places[at] for places, at in zip(sets, chosen, strict=True)]
            winners = [group.index(place) for group, place in zip(groups, best, strict=True)]

    def _choices(self, sets: Sequence[WindowQuestion]) -> list[Answer[int | None]]:
        with named(lambda row: sets[row].name):
            chosen = self._model.choose(sets)
        return [Answer(found.value, found.usage + Usage(malformed=int(found.value is None))) for found in chosen]


def set_prompts(
    writer: PromptWriter, sets: Sequence[WindowQuestion], prompt: SetPrompt, *, room: int = 0
) -> list[Prompt]:
    """The prompts of sets, those of one query knowing what they share."""
    made: list[Prompt] = []
    for each in sets:
        texts = [first_words(text, writer.reading.words) for text in each.texts]

        def messages(shown: Sequence[str], query: str = each.request.query) -> Sequence[Message]:
            return prompt.messages(query, shown)

        made.append(writer.write(texts, messages, continuation=prompt.continuation, room=room))
    return share_by([each.request.qid for each in sets], made)


class SetwiseReranker(SetwiseSorter):
    """Setwise without reasoning: the likeliest label where the answer's label would be; nothing is generated.

    The paper's likelihood mode; generation of one token takes the same label, and needs reading.

    Args:
        model: the language model.
        sort: how sets are sorted; published a heap with 4 documents to a set, k 10.
        labels: "passage" writes documents as 'Passage A: "…"', as published; "brackets" as "[A] …".
        reading: how documents are shown; published 128 tokens.
        effort: how many queries share a call.

    Raises:
        ConfigError: more documents in a set than letters, or a letter that is not one token.
    """

    READING: ClassVar[Reading] = Reading(words=None, tokens=128)

    def __init__(
        self,
        model: LanguageModel,
        *,
        sort: SetSort | None = None,
        labels: Literal["passage", "brackets"] = "passage",
        reading: Reading | None = None,
        effort: Effort | None = None,
    ) -> None:
        if labels not in ("passage", "brackets"):
            raise ConfigError(f"labels {labels!r}: expected 'passage' or 'brackets'")
        sort = sort or SetSort()
        self.writer = PromptWriter(model, reading or self.READING)
        prompt = SETWISE if labels == "passage" else SETWISE_BRACKETS
        super().__init__(_LabelModel(self.writer, prompt, sort.children + 1), sort=sort, effort=effort)


class _LabelModel:
    """Chooses the label with the largest logit."""

    def __init__(self, writer: PromptWriter, prompt: SetPrompt, most: int) -> None:
        space = "" if prompt.continuation.endswith("[") else " "
        labels = [f"{space}{label}" for label in prompt.identifiers.labels(most)]
        self.writer, self.prompt = writer, prompt
        self.tokens = writer.answer_tokens(labels, continuation=prompt.continuation)

    def identity(self) -> dict[str, Any]:
        return _identity("setwise", self.writer, self.prompt)

    def choose(self, sets: Sequence[WindowQuestion], /) -> list[Answer[int | None]]:
        prompts = set_prompts(self.writer, sets, self.prompt)
        answers = self.writer.model.next_token_logits(prompts, self.tokens)
        return [
            Answer(int(np.argmax(logits[: len(each.places)])), usage)
            for each, logits, usage in zip(sets, answers.values, count_cuts(prompts, answers.usages), strict=True)
        ]


def _identity(name: str, writer: PromptWriter, prompt: SetPrompt) -> dict[str, Any]:
    said = [message.content for message in prompt.messages("{query}", ["{text}"])]
    return {"reranker": name, "model": writer.model.identity(), "prompt": said, "reading": writer.identity()}


class RankR1Reranker(SetwiseSorter):
    """Rank-R1 (Zhuang et al. 2025): setwise, the model thinks before it names the best of up to twenty documents.

    Greedy. Documents of a set are shuffled, by query and seed (the published code draws from a global generator).

    Args:
        model: the language model.
        sort: how sets are sorted; published a heap with 20 documents to a set, k 10, shuffled.
        reading: how documents are shown; published 512 tokens for TREC DL, 1,024 for BRIGHT.
        max_new_tokens: room for thinking.
        effort: how many queries share a call.
    """

    READING: ClassVar[Reading] = Reading(words=None, tokens=512)
    SORT: ClassVar[SetSort] = SetSort(children=19, presentation="shuffled")

    def __init__(
        self,
        model: LanguageModel,
        *,
        sort: SetSort | None = None,
        reading: Reading | None = None,
        max_new_tokens: int = 2048,
        effort: Effort | None = None,
    ) -> None:
        self.writer = PromptWriter(model, reading or self.READING)
        chooser = _ReasoningModel(self.writer, RANK_R1, Sampling(max_new_tokens))
        sort = sort or self.SORT
        super().__init__(chooser, sort=sort, effort=effort)


@dataclass(frozen=True, eq=False)
class _ReasoningModel:
    """Chooses the document that the generated answer names."""

    writer: PromptWriter
    prompt: SetPrompt
    sampling: Sampling

    def identity(self) -> dict[str, Any]:
        return {**_identity("rank-r1", self.writer, self.prompt), "sampling": vars(self.sampling)}

    def choose(self, sets: Sequence[WindowQuestion], /) -> list[Answer[int | None]]:
        prompts = set_prompts(self.writer, sets, self.prompt, room=self.sampling.max_new_tokens)
        answers = self.writer.model.generate(prompts, self.sampling)
        return [
            Answer(read_choice(said[0].text, len(each.places)), usage)
            for each, said, usage in zip(sets, answers.values, count_cuts(prompts, answers.usages), strict=True)
        ]
