"""How texts get into prompts of a language model: cut to a length, put into a chat, made to fit the context."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ...errors import ConfigError
from .base import Usage
from .chat import ChatRenderer, Message, Prompt, share_prefix
from .language_model import is_encoder_decoder

if TYPE_CHECKING:
    from .language_model import LanguageModel

__all__ = ["PromptWriter", "Reading", "count_cuts", "decoder_tokens", "even_cut", "share_by"]

log = logging.getLogger(__name__)

MakeMessages = Callable[[Sequence[str]], Sequence[Message]]


@dataclass(frozen=True)
class Reading:
    """How documents and prompts are read.

    Attributes:
        words: a document's first words, split at white space; None takes all of it.
        tokens: a document's first tokens, after `words`; None takes all.
        template: "chat" is the tokenizer's own; "plain" puts the contents one after the other, for models that were
            never taught to chat.
        thinking: for chat templates that know `enable_thinking` (Qwen3): on or off; None leaves it to the template.
        double_bos: begin with the BOS token twice. FIRST's and rank_llm's code did, in training and after: a prompt
            that holds it already was tokenized with special tokens added.
        overlong: what is done with a prompt longer than the context: "cut" shortens its documents, all to the same
            length, and counts it (`Usage.cut`); "refuse" fails the query.
    """

    words: int | None = 300
    tokens: int | None = None
    template: Literal["chat", "plain"] = "chat"
    thinking: bool | None = None
    double_bos: bool = False
    overlong: Literal["cut", "refuse"] = "cut"

    def __post_init__(self) -> None:
        problems = [
            f"{name} {value}: expected at least 1, or none"
            for name, value in (("words", self.words), ("tokens", self.tokens))
            if value is not None and value < 1
        ]
        if self.overlong not in ("cut", "refuse"):
            problems.append(f"overlong {self.overlong!r}: expected 'cut' or 'refuse'")
        if problems:
            raise ConfigError("documents cannot be read so", problems)

    def identity(self) -> dict[str, Any]:
        """What decides how a prompt looks."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


class PromptWriter:
    """Writes prompts for one model and makes them fit.

    Args:
        model: whose tokenizer and context count.
        reading: how.

    Attributes:
        cut: how many prompts were written with their documents shortened to fit the context. The first is logged;
            what reranking counts is `Usage.cut`, in which a prompt that is asked again is one.
    """

    def __init__(self, model: LanguageModel, reading: Reading | None = None) -> None:
        self.model, self.reading = model, reading or Reading()
        options = {} if self.reading.thinking is None else {"enable_thinking": self.reading.thinking}
        self.renderer = ChatRenderer(model.tokenizer, template=self.reading.template, options=options)
        self.cut = 0
        self._answers_apart = bool(is_encoder_decoder(model))

    def write(
        self, texts: Sequence[str], messages: MakeMessages, *, continuation: str | None = "", room: int = 0
    ) -> Prompt:
        """A prompt with these documents.

        Args:
            texts: the documents, cut already to what the method shows of them.
            messages: makes the turns of documents.
            continuation: how the answer begins; a plain prompt gets a new line for it, unless it is None. In an
                encoder-decoder the decoder reads it, not the encoder.
            room: tokens that must fit after the prompt; an encoder-decoder's answer takes none of the prompt's.

        Raises:
            ConfigError: it does not fit the context: refused, or not even with a token of each document.
        """
        room = 0 if self._answers_apart else room
        tokens = self.reading.tokens
        texts = texts if tokens is None else [self.renderer.cut(text, tokens) for text in texts]
        prompt = self._render(messages(texts), continuation)
        limit = self.model.context_length - room
        if len(prompt) <= limit:
            return prompt
        if self.reading.overlong == "refuse":
            raise ConfigError(self._too_long(prompt, room) + "show fewer words or fewer documents")
        return self._shortened(texts, messages, continuation, prompt=prompt, room=room)

    def answer_tokens(self, labels: Sequence[str], *, continuation: str = "") -> list[int]:
        """The one token that each label is at the beginning of an answer, checked in a rendered prompt.

        "A" and " A" are different tokens, and some vocabularies merge a bracket with the letter that follows: the
        prompt with the label must be the prompt without it and one more token.

        Args:
            labels: what the model may answer.
            continuation: what of the answer is in the prompt already ("[").

        Raises:
            ConfigError: a label is several tokens there, changes what is before it, or has another one's token.
        """
        if self._answers_apart:
            return decoder_tokens(self.renderer.tokenizer, labels, continuation=continuation)
        probe = [Message("user", "x")]
        before = self._render(probe, continuation).ids
        found = [self._render(probe, continuation + label).ids for label in labels]
        return _one_more(self.renderer.tokenizer, list(labels), before, found)

    def followed(self, prompt: Prompt, ids: Sequence[int]) -> Prompt:
        """A prompt whose answer has already been given so far."""
        if self._answers_apart:
            return replace(prompt, begun=(*prompt.begun, *ids))
        return Prompt((*prompt.ids, *ids), prompt.shared)

    def _shortened(
        self, texts: Sequence[str], messages: MakeMessages, continuation: str | None, *, prompt: Prompt, room: int
    ) -> Prompt:
        """The prompt with every document cut to the same number of tokens, the largest that fits."""
        limit = self.model.context_length - room
        counts = self.renderer.count(texts)
        fixed = len(prompt) - int(counts.sum())
        most = even_cut(counts, limit - fixed)
        while most > 0:
            prompt = self._render(messages([self.renderer.cut(text, most) for text in texts]), continuation)
            if len(prompt) <= limit:
                if not self.cut:
                    log.warning(
                        "a prompt of %d documents does not fit the context of %d tokens: each was cut to %d tokens "
                        "(said once)",
                        len(texts), self.model.context_length, most,
                    )  # fmt: skip
                self.cut += 1
                return replace(prompt, cut=True)
            most -= max(1, (len(prompt) - limit) // max(1, len(texts)))
        raise ConfigError(self._too_long(prompt, room) + "no documents cut alike fit; take fewer of them")

    def _too_long(self, prompt: Prompt, room: int) -> str:
        more = f" and {room} for the answer (max_new_tokens)" if room else ""
        return f"the prompt needs {len(prompt)} tokens{more}, the model reads {self.model.context_length}: "

    def _render(self, messages: Sequence[Message], continuation: str | None) -> Prompt:
        if self._answers_apart:
            begun = _spoken(self.renderer.tokenizer, continuation or "")
            prompt = replace(self.renderer.render(messages), begun=begun)
        else:
            line = "\n" if self.reading.template == "plain" and continuation is not None else ""
            prompt = self.renderer.render(messages, continuation=line + (continuation or ""))
        if not self.reading.double_bos:
            return prompt
        bos = self.renderer.tokenizer.bos_token_id
        if bos is None:
            raise ConfigError("double_bos: this tokenizer has no BOS token")
        return replace(prompt, ids=(bos, *prompt.ids))

    def identity(self) -> dict[str, Any]:
        """How prompts look, and where they are cut."""
        return {**self.reading.identity(), **self.renderer.identity(), "context_length": self.model.context_length}


def count_cuts(prompts: Sequence[Prompt], usages: Sequence[Usage]) -> list[Usage]:
    """What prompts cost (n,), those that were cut to fit counted as such."""
    return [usage + Usage(cut=int(prompt.cut)) for prompt, usage in zip(prompts, usages, strict=True)]


def even_cut(counts: np.ndarray, room: int) -> int:
    """The largest t with Σ min(count, t) ≤ room; 0 when there is none."""
    low, high = 0, int(counts.max(initial=0))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if int(np.minimum(counts, middle).sum()) <= room else (low, middle - 1)
    return low


def _one_more(
    tokenizer: Any, labels: list[str], before: tuple[int, ...], found: Sequence[tuple[int, ...]]
) -> list[int]:
    """The last token of each of `found`, all of which must be `before` and one more."""
    tokens: list[int] = []
    problems: list[str] = []
    for label, ids in zip(labels, found, strict=True):
        if ids[:-1] != before or ids[-1] == tokenizer.unk_token_id:
            written = tokenizer.convert_ids_to_tokens(list(ids[max(0, len(before) - 1) :]))
            problems.append(f"{label!r} ends the prompt in {written}; expected one token after what was there")
        elif ids[-1] in tokens:
            problems.append(f"{label!r} has the same token as {labels[tokens.index(ids[-1])]!r}")
        tokens.append(ids[-1])
    if problems:
        raise ConfigError("this tokenizer cannot give these answers by single tokens", problems)
    return tokens


def decoder_tokens(tokenizer: Any, labels: Sequence[str], *, continuation: str = "") -> list[int]:
    """The one token that each label is at the beginning of an encoder-decoder's answer.

    Args:
        tokenizer: of the model.
        labels: what the model may answer.
        continuation: what of the answer is there already.

    Raises:
        ConfigError: a label is several tokens or unknown, changes what is before it, or has another one's token.
    """
    found = [_spoken(tokenizer, continuation + label) for label in labels]
    return _one_more(tokenizer, list(labels), _spoken(tokenizer, continuation), found)


def _spoken(tokenizer: Any, text: str) -> tuple[int, ...]:
    """The tokens of a text that a decoder says by itself, without special ones."""
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) if text else ()


def share_by(qids: Sequence[str], prompts: Sequence[Prompt]) -> list[Prompt]:
    """Prompts that know what they share with the others of their query. Equal ones keep their places."""
    groups: dict[str, list[int]] = {}
    for row, qid in enumerate(qids):
        groups.setdefault(qid, []).append(row)
    made = list(prompts)
    for rows in groups.values():
        for row, prompt in zip(rows, share_prefix([prompts[row] for row in rows]), strict=True):
            made[row] = prompt
    return made
