"""Pairwise reranking: which of two documents is better, asked in both orders; all pairs, a heap, or sliding passes.

PRP (Qin et al. 2024) asks an instruction-tuned model, duoT5 (Pradeep et al. 2021) is a T5 trained for it. A sort is
one of `sorting`, so that both share what a comparison costs and how calls are batched.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import numpy as np

from ...errors import ConfigError
from .base import Request, Result
from .chat import Message, Prompt
from .language_model import named, needs_encoder_decoder
from .lockstep import Answer, Effort, Lockstep, Ranking
from .pointwise_tokens import first_words
from .reading import PromptWriter, Reading, count_cuts, decoder_tokens, share_by
from .sorting import sort_plan

if TYPE_CHECKING:
    from .language_model import LanguageModel

__all__ = ["DuoT5Reranker", "PairQuestion", "PairwiseReranker", "PreferenceModel", "PrpReranker"]

Sorting = Literal["all-pairs", "heap", "bubble"]
_ROUND = 512  # pairs that a query asks for at once


@dataclass(frozen=True)
class PairQuestion:
    """Two candidates of a request, by place, in the order in which the model sees them."""

    request: Request
    first: int
    second: int

    @property
    def texts(self) -> list[str]:
        return [self.request.candidates[place].text for place in (self.first, self.second)]

    @property
    def name(self) -> str:
        """What it is about, for messages."""
        ids = self.request.ids
        return f"query {self.request.qid!r}, documents {ids[self.first]!r} and {ids[self.second]!r}"


class PreferenceModel(Protocol):
    """Says how likely the first of two documents is the better one."""

    def identity(self) -> dict[str, Any]: ...

    def prefer(self, pairs: Sequence[PairQuestion], /) -> list[Answer[float]]: ...


class PairwiseReranker:
    """Reranks by comparisons of pairs.

    A pair is asked in both orders. In the sorts a document wins if it is preferred in both; a conflict is a tie, which
    the one that stood higher in the first stage wins, so that a model that always names the first document changes
    nothing. Sums of all pairs add, for each document, the probabilities (`soft`) or 1, ½ and 0 of a win, a tie and a
    loss. Scores are ordinal; the raw values of all pairs are the sums.

    Args:
        model: prefers.
        sorting: "all-pairs" N(N − 1)/2 pairs; "heap" for the top k; "bubble" k sliding passes.
        k: how many documents the sorts get right; the others follow in their first order.
        soft: sum probabilities, not wins (duoT5).
        both_orders: False asks for the pairs i < j in first-stage order only and takes 1 − p for the other side, as
            rank_llm's duoT5 does: half the calls, and the order's bias stays.
        effort: how many queries share a call.

    Raises:
        ConfigError: an unknown sorting, k below 1.
    """

    def __init__(
        self,
        model: PreferenceModel,
        *,
        sorting: Sorting = "heap",
        k: int = 10,
        soft: bool = False,
        both_orders: bool = True,
        effort: Effort | None = None,
    ) -> None:
        if sorting not in ("all-pairs", "heap", "bubble") or k < 1:
            raise ConfigError(f"sorting {sorting!r}, k {k}: expected all-pairs, heap or bubble, and at least 1")
        self._model, self.k = model, k
        self.sorting: Sorting = sorting
        self.soft, self.both_orders, self._effort = soft, both_orders, effort or Effort()

    def identity(self) -> dict[str, Any]:
        """Method, model, prompt and sort."""
        return {
            **self._model.identity(),
            "sorting": self.sorting,
            "k": self.k,
            "soft": self.soft,
            "both_orders": self.both_orders,
        }

    def rerank(self, requests: Iterable[Request], /) -> Iterator[Result]:
        """Pairs that queries ask for at the same moment are one call of the model."""
        yield from Lockstep(self._ranking, self._wins, self._effort).results(requests)

    def _ranking(self, request: Request) -> Generator[Sequence[PairQuestion], Sequence[float], Ranking]:
        if self.sorting == "all-pairs":
            return (yield from self._all_pairs(request))
        plan = sort_plan(self.sorting, len(request.candidates), self.k)
        winners: list[int] | None = None
        while True:
            try:
                groups = next(plan) if winners is None else plan.send(winners)
            except StopIteration as stop:
                return Ranking(stop.value)
            wins = yield [PairQuestion(request, *group) for group in groups]
            winners = [_winner(group, win) for group, win in zip(groups, wins, strict=True)]

    def _all_pairs(self, request: Request) -> Generator[Sequence[PairQuestion], Sequence[float], Ranking]:
        count = len(request.candidates)
        sums = np.zeros(count, dtype=np.float64)
        pairs = list(combinations(range(count), 2))
        for start in range(0, len(pairs), _ROUND):
            part = pairs[start : start + _ROUND]
            wins = yield [PairQuestion(request, *pair) for pair in part]
            for (first, second), win in zip(part, wins, strict=True):
                share = win if self.soft else _outcome(win)
                sums[first] += share
                sums[second] += 1 - share
        return Ranking(np.argsort(-sums, kind="stable").tolist(), sums)

    def _wins(self, pairs: Sequence[PairQuestion]) -> list[Answer[float]]:
        """How far the first of each pair wins: the mean of p(first, second) and 1 − p(second, first).

        Where documents are compared and not summed up, 1, ½ or 0: preferred in both orders, in one, in none.
        """
        turned = [PairQuestion(pair.request, pair.second, pair.first) for pair in pairs] if self.both_orders else []
        found = self._model.prefer([*pairs, *turned])
        if not self.both_orders:
            return found
        there, back = found[: len(pairs)], found[len(pairs) :]
        wins: list[Answer[float]] = []
        for one, other in zip(there, back, strict=True):
            if self.soft:
                win = (one.value + 1 - other.value) / 2
            else:
                win = (_outcome(one.value) + 1 - _outcome(other.value)) / 2
            wins.append(Answer(win, one.usage + other.usage))
        return wins


def _outcome(probability: float) -> float:
    return 1.0 if probability > 0.5 else 0.0 if probability < 0.5 else 0.5


def _winner(group: Sequence[int], win: float) -> int:
    """The place of the winner in a pair; a tie goes to the first stage's."""
    if win == 0.5:
        return 0 if group[0] < group[1] else 1
    return 0 if win > 0.5 else 1


@dataclass(frozen=True, eq=False)
class TokenPreference:
    """Prefers by the softmax over two tokens after the prompt.

    Attributes:
        name: the method's.
        writer: renders prompts.
        template: the prompt with {query}, {first} and {second}.
        tokens: of "the first" and "the second".
        continuation: how the answer begins.
    """

    name: str
    writer: PromptWriter
    template: str
    tokens: Sequence[int]
    continuation: str | None = ""

    def identity(self) -> dict[str, Any]:
        return {
            "reranker": self.name,
            "model": self.writer.model.identity(),
            "prompt": self.template,
            "reading": self.writer.identity(),
        }

    def prefer(self, pairs: Sequence[PairQuestion], /) -> list[Answer[float]]:
        prompts = [self._prompt(pair) for pair in pairs]
        prompts = share_by([pair.request.qid for pair in pairs], prompts)
        with named(lambda row: pairs[row].name):
            answers = self.writer.model.next_token_logits(prompts, self.tokens)
        differences = np.clip(answers.values[:, 1] - answers.values[:, 0], -500, 500).astype(np.float64)
        chances = 1 / (1 + np.exp(differences))
        return [
            Answer(float(chance), usage)
            for chance, usage in zip(chances, count_cuts(prompts, answers.usages), strict=True)
        ]

    def _prompt(self, pair: PairQuestion) -> Prompt:
        texts = [first_words(text, self.writer.reading.words) for text in pair.texts]

        def messages(shown: Sequence[str]) -> list[Message]:
            content = self.template.format(query=pair.request.query, first=shown[0], second=shown[1])
            return [Message("user", content)]

        return self.writer.write(texts, messages, continuation=self.continuation)


class PrpReranker(PairwiseReranker):
    """PRP (Qin et al. 2024): "Passage A" or "Passage B", by the probability of the letter (its scoring mode).

    Args:
        model: the language model.
        sorting: see `PairwiseReranker`.
        k: see `PairwiseReranker`.
        reading: how documents are shown; published 128 tokens.
        effort: how many queries share a call.
    """

    READING: ClassVar[Reading] = Reading(words=None, tokens=128)

    def __init__(
        self,
        model: LanguageModel,
        *,
        sorting: Sorting = "heap",
        k: int = 10,
        reading: Reading | None = None,
        effort: Effort | None = None,
    ) -> None:
        self.writer = PromptWriter(model, reading or self.READING)
        tokens = self.writer.answer_tokens([" A", " B"], continuation="Passage")
        preference = TokenPreference("prp", self.writer, _PRP, tokens, continuation="Passage")
        super().__init__(preference, sorting=sorting, k=k, effort=effort)


_PRP = """Given a query "{query}", which of the following two passages is more relevant to the query?

Passage A: "{first}"

Passage B: "{second}"

Output Passage A or Passage B:"""


class DuoT5Reranker(PairwiseReranker):
    """duoT5 (Pradeep et al. 2021): the probability of "true" that the first document is the better one; sums of all.

    The paper sums p(i over j) and 1 − p(j over i); rank_llm asks in one order only (`both_orders` False).

    Args:
        model: an encoder-decoder.
        sorting: see `PairwiseReranker`.
        k: see `PairwiseReranker`.
        both_orders: see `PairwiseReranker`.
        reading: how documents are shown; published whole, cut to 512 tokens in all.
        effort: how many queries share a call.

    Raises:
        ConfigError: the model is a decoder, or "true" or "false" is not one token.
    """

    READING: ClassVar[Reading] = Reading(words=None, template="plain")

    def __init__(
        self,
        model: LanguageModel,
        *,
        sorting: Sorting = "all-pairs",
        k: int = 10,
        both_orders: bool = True,
        reading: Reading | None = None,
        effort: Effort | None = None,
    ) -> None:
        needs_encoder_decoder(model, "duo-t5", "prp")
        self.writer = PromptWriter(model, reading or self.READING)
        preference = TokenPreference(
            "duo-t5", self.writer, "Query: {query} Document0: {first} Document1: {second} Relevant:",
            decoder_tokens(model.tokenizer, ["true", "false"]), continuation=None,
        )  # fmt: skip
        super().__init__(preference, sorting=sorting, k=k, soft=True, both_orders=both_orders, effort=effort)
