"""Prompt and answer of a list as tokens: the prompt is what the reranker sends, the answer stands in its context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import ConfigError
from ..rerankers.base import Candidate, Request
from ..rerankers.chat import Message, Piece, Prompt
from ..rerankers.identifiers import Identifiers
from ..rerankers.listwise import WindowQuestion, list_prompts
from ..rerankers.permutations import format_permutation
from ..rerankers.prompts import list_prompt
from ..rerankers.reading import PromptWriter, Reading
from .list_blocks import Prompting
from .list_windows import Window

__all__ = ["OPENING", "AnsweredPrompt", "ListWriter", "Reader"]

OPENING = "["


@dataclass(frozen=True)
class Reader:
    """What a prompt writer asks of a language model, without the model."""

    tokenizer: Any
    context_length: int


@dataclass(frozen=True, eq=False)
class AnsweredPrompt:
    """Token ids of a prompt and of its answer.

    Attributes:
        prompt: the ids that the reranker sends, without the opening of the answer.
        answer: the ids that should follow, the end included.
        numbers: (answer,) int64, for each token of the answer the number (from 1) of the identifier that it writes, 0
            for separators and the end.
    """

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    numbers: np.ndarray


class ListWriter:
    """Writes windows as prompts and answers, for one tokenizer.

    Args:
        tokenizer: of transformers, fast.
        context: tokens of prompt and answer.
        block: wording, identifiers and lengths.

    Raises:
        ConfigError: no such wording, or a tokenizer without a chat template where one is asked for.
    """

    def __init__(self, tokenizer: Any, context: int, block: Prompting) -> None:
        self.tokenizer, self.block = tokenizer, block
        self.identifiers = Identifiers(block.identifiers)
        self._prompt = list_prompt(block.wording)
        reading = Reading(block.words, block.tokens, block.template, block.thinking, block.double_bos)
        self.writer = PromptWriter(Reader(tokenizer, context), reading)  # type: ignore[arg-type]
        if block.end and tokenizer.eos_token_id is None:
            raise ConfigError("prompt.end: this tokenizer has no end-of-sequence token; set it to false")

    def identifier_tokens(self, window: int) -> list[int]:
        """The one token of each identifier after the opening bracket, as FIRST reads them.

        Raises:
            ConfigError: more documents than identifiers, or an identifier is not one token there.
        """
        return self.writer.answer_tokens(self.identifiers.labels(window), continuation=OPENING)

    def opening_token(self) -> int:
        """The token of the bracket that opens an answer."""
        return self._answer((0, 1))[0][0]

    def write(self, window: Window) -> AnsweredPrompt:
        """The prompt of a window and the answer that gives its target order.

        Raises:
            ConfigError: the prompt does not fit, or the tokenizer merges its end with the answer's beginning.
        """
        kind = window.talk.kind if window.talk is not None else self.identifiers.kind
        if kind != self.identifiers.kind:
            raise ConfigError(f"prompt.identifiers: {self.identifiers.kind}, but the file's answers name {kind}")
        answer, numbers = self._answer(window.order)
        return AnsweredPrompt(self._prompt_of(window, len(answer)).ids, answer, numbers)

    def _prompt_of(self, window: Window, room: int) -> Prompt:
        if window.talk is not None:
            messages = window.talk.messages
            return self.writer.write([], lambda _: messages, room=room)
        candidates = tuple(Candidate(str(at), text) for at, text in enumerate(window.passages))
        question = WindowQuestion(Request("", window.query, candidates), tuple(range(len(candidates))))
        return list_prompts(self.writer, [question], self._prompt, self.identifiers, rooms=[room])[0]

    def _answer(self, order: Sequence[int]) -> tuple[tuple[int, ...], np.ndarray]:
        """The answer's tokens as they are after a prompt, and whose identifier each writes."""
        text, owners = format_permutation(order, self.identifiers), _owners(order, self.identifiers)
        renderer = self.writer.renderer
        line = "\n" if self.block.template == "plain" else ""
        before = [piece for piece in renderer.pieces([Message("user", "x")], continuation=line) if piece.text]
        encoded = renderer.encode([*before, Piece(text)])
        start, stop = encoded.span(len(before))
        begin = int(encoded.pieces[-2])
        if start == stop or int(encoded.starts[start]) != begin:
            raise ConfigError("this tokenizer merges the end of the prompt with the beginning of the answer")
        numbers = owners[encoded.ends[start:stop] - begin - 1]
        answer = encoded.ids[start:stop]
        if not self.block.end:
            return answer, numbers
        return (*answer, int(self.tokenizer.eos_token_id)), np.append(numbers, 0)


def _owners(order: Sequence[int], identifiers: Identifiers) -> np.ndarray:
    """For each character of "[B] > [A]" the number of the identifier that it belongs to, the space before it included;
    0 for " >"."""
    parts: list[np.ndarray] = []
    for number, place in enumerate(order, start=1):
        lead = 0 if number == 1 else 2
        length = len(identifiers.label(place)) + 2 + (number > 1)
        parts += [np.zeros(lead, np.int64), np.full(length, number, np.int64)]
    return np.concatenate(parts)
