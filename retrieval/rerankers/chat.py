"""Prompts of language models: messages → token ids, in which the text of a document can never become a marker."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from ...errors import ConfigError, DataError
from .batching import first_tokens

__all__ = ["ChatRenderer", "Encoded", "Message", "Piece", "Prompt", "share_prefix"]

_SLOT = re.compile("\ue000([0-9]+)\ue001")


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a language model reads.

    Attributes:
        ids: token ids, special tokens included; nothing is added to them.
        shared: how many leading ids other prompts of the same call have too, so that an engine may compute them once;
            0 when unknown. It never changes a result.
        cut: whether something was left out of it so that it fits the model; for `Usage.cut`.
        begun: how the answer of an encoder-decoder begins: its decoder reads these ids before anything is asked of it.
            A decoder's prompts have the beginning of the answer at the end of `ids`.
    """

    ids: tuple[int, ...]
    shared: int = 0
    cut: bool = False
    begun: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.ids:
            raise DataError("a prompt without a single token: there is no position after which something could follow")
        if not 0 <= self.shared <= len(self.ids):
            raise DataError(f"a prompt of {len(self.ids)} tokens cannot share {self.shared} of them")

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class Message:
    """A turn of a chat: `role` is "system", "user" or "assistant"; nothing in `content` is read as a marker."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a prompt's text.

    Attributes:
        text: what it says.
        markers: whether special tokens written in it are meant (our own template); False for text of others.
    """

    text: str
    markers: bool = False


@dataclass(frozen=True, eq=False)
class Encoded:
    """Token ids of a text and where in the text they stand.

    Attributes:
        ids: (n,) the tokens.
        starts: (n,) first character of each token.
        ends: (n,) one past its last character.
        pieces: (p + 1,) the first character of each piece, then the length of the text.
    """

    ids: tuple[int, ...]
    starts: np.ndarray
    ends: np.ndarray
    pieces: np.ndarray

    def span(self, first: int, last: int | None = None) -> tuple[int, int]:
        """Half-open range of tokens of the pieces `first` to `last` (inclusive; `first` alone when None).

        A token that begins in the span belongs to it. Empty where the pieces have no text: (k, k).
        """
        start, end = int(self.pieces[first]), int(self.pieces[(first if last is None else last) + 1])
        inside = np.flatnonzero((self.ends > self.starts) & (self.starts >= start) & (self.starts < end))
        if not len(inside):
            at = int(np.searchsorted(self.starts, start))
            return at, at
        return int(inside[0]), int(inside[-1]) + 1


def share_prefix(prompts: Sequence[Prompt]) -> list[Prompt]:
    """The same prompts, each saying how many leading ids all of them have in common (never a whole prompt)."""
    if len(prompts) < 2:
        return list(prompts)
    low, high = min(p.ids for p in prompts), max(p.ids for p in prompts)  # the two most different, in sorted order
    common = next((at for at, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))
    shared = min(common, min(map(len, prompts)) - 1)
    return [replace(prompt, shared=shared) for prompt in prompts]


class ChatRenderer:
    """Turns messages into prompts by the tokenizer's own chat template.

    The ids are those of the template's text as a whole. Only where a content contains the text of an added token
    (`<|eot_id|>`, `<think>`) is the text cut inside it and encoded in parts, so that it stays the text it is.
    A template without a system role gets the system text in front of the first user content; one that trims contents
    gets them trimmed.

    Args:
        tokenizer: of transformers.
        template: "chat", or "plain": contents joined by a blank line, with the tokenizer's own special tokens at the
            ends, for models that were never taught to chat (and for encoder-decoders).
        options: more for the chat template (`{"enable_thinking": False}`).

    Raises:
        ConfigError: the tokenizer has no chat template and "plain" was not asked for, or the template drops messages.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        template: Literal["chat", "plain"] = "chat",
        options: Mapping[str, Any] | None = None,
    ) -> None:
        if template not in ("chat", "plain"):
            raise ConfigError(f"template {template!r}: expected chat or plain")
        if template == "chat" and not getattr(tokenizer, "chat_template", None):
            raise ConfigError(
                f"the tokenizer {getattr(tokenizer, 'name_or_path', '') or type(tokenizer).__name__} has no chat "
                "template; take an instruction-tuned model, or ask for template='plain'"
            )
        self.tokenizer, self.template, self.options = tokenizer, template, dict(options or {})
        self._added = sorted(token for token in tokenizer.get_added_vocab() if len(token) > 1 and token.strip())
        self._first_space = _first_space(tokenizer)
        self._before, self._after = _specials(tokenizer) if template == "plain" else ((), ())
        self._system, self._trims = template == "plain" or self._has_system(), template == "chat" and self._does_trim()

    def identity(self) -> dict[str, Any]:
        """What decides how a prompt looks."""
        template = str(self.tokenizer.chat_template) if self.template == "chat" else "plain"
        return {"template": template, "options": self.options}

    def render(self, messages: Sequence[Message], *, continuation: str = "") -> Prompt:
        """The prompt after which the assistant speaks.

        Args:
            messages: the turns; when the last one is the assistant's, it is left open and goes on.
            continuation: how the assistant's turn begins (`[` for first-token ranking).
        """
        return Prompt(self.encode(self.pieces(messages, continuation=continuation)).ids)

    def pieces(self, messages: Sequence[Message], *, continuation: str = "") -> list[Piece]:
        """The parts of the prompt's text in order: the template's markers between the contents."""
        messages = _merge_system(messages) if not self._system else list(messages)
        if not messages:
            raise ConfigError("a prompt needs at least one message")
        if self.template == "plain":
            parts = [Piece(part) for message in messages for part in (message.content, "\n\n")][:-1]
            return [*parts, Piece(continuation)] if continuation else parts
        spoken = messages[-1].role == "assistant"
        asked, opening = (messages[:-1], messages[-1].content) if spoken else (messages, "")
        text = self._fill([message.role for message in asked])
        if text is None:
            roles = ", ".join(message.role for message in messages)
            raise ConfigError(f"the chat template does not write every message once (roles: {roles})")
        return [*self._split(text, [message.content for message in asked]), Piece(opening + continuation)]

    def user_markers(self) -> tuple[str, str]:
        """What the template writes before and after a single user content, the opening of the answer included."""
        if self.template == "plain":
            return "", ""
        before, after = _SLOT.split(self._fill(["user"]) or "\ue0000\ue001")[::2]
        return before, after

    def encode(self, pieces: Sequence[Piece]) -> Encoded:
        """Token ids of the pieces' joined text, linear in its length.

        Raises:
            ConfigError: the tokenizer cannot say where its tokens stand (a slow one).
        """
        if not self.tokenizer.is_fast:
            raise ConfigError(f"{type(self.tokenizer).__name__} has no offsets; load the fast tokenizer")
        text = "".join(piece.text for piece in pieces)
        places = np.concatenate([[0], np.cumsum([len(piece.text) for piece in pieces], dtype=np.int64)])
        cuts = [0, *self._cuts(pieces, places), len(text)]
        ids: list[int] = list(self._before)
        starts, ends = [0] * len(ids), [0] * len(ids)
        for at, end in itertools.pairwise(cuts):
            self._chunk(text[at:end], at, ids, starts, ends)
        ids.extend(self._after)
        starts.extend([len(text)] * len(self._after))
        ends.extend([len(text)] * len(self._after))
        return Encoded(tuple(ids), np.asarray(starts, np.int64), np.asarray(ends, np.int64), places)

    def count(self, texts: Sequence[str]) -> np.ndarray:
        """(n,) int64 tokens of each text by itself, without special tokens."""
        if not len(texts):
            return np.zeros(0, dtype=np.int64)
        found = self.tokenizer(
            list(texts), add_special_tokens=False, return_attention_mask=False, split_special_tokens=True
        )
        return np.asarray([len(ids) for ids in found["input_ids"]], dtype=np.int64)

    def cut(self, text: str, tokens: int) -> str:
        """The longest beginning of `text` of at most so many tokens."""
        return first_tokens(self.tokenizer, text, tokens, split_special_tokens=True)

    # --- the template ---

    def _fill(self, roles: Sequence[str]) -> str | None:
        """The template's text with slots for the contents; None if it does not write each of them exactly once."""
        from jinja2.exceptions import TemplateError

        slots = [{"role": role, "content": f"\ue000{at}\ue001"} for at, role in enumerate(roles)]
        try:
            text = self.tokenizer.apply_chat_template(slots, tokenize=False, add_generation_prompt=True, **self.options)
        except TemplateError as error:
            if "system" in roles:
                return None
            raise ConfigError(f"the chat template refuses the roles {', '.join(roles)}: {error}") from error
        return text if [int(found) for found in _SLOT.findall(text)] == list(range(len(roles))) else None

    def _has_system(self) -> bool:
        return self._fill(["system", "user"]) is not None

    def _does_trim(self) -> bool:
        text = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": " \ue0000\ue001 "}], tokenize=False, add_generation_prompt=True, **self.options
        )
        return " \ue0000\ue001 " not in text

    def _split(self, text: str, contents: Sequence[str]) -> list[Piece]:
        pieces: list[Piece] = []
        for at, part in enumerate(_SLOT.split(text)):
            if at % 2:
                content = contents[int(part)]
                pieces.append(Piece(content.strip() if self._trims else content))
            else:
                pieces.append(Piece(part, markers=True))
        return pieces

    # --- tokens ---

    def _cuts(self, pieces: Sequence[Piece], places: np.ndarray) -> list[int]:
        """Where the text must be cut so that no added token in a content stays whole: after its first character."""
        cuts: set[int] = set()
        for piece, place in zip(pieces, places.tolist(), strict=False):
            if piece.markers:
                continue
            for token in self._added:
                at = piece.text.find(token)
                while at >= 0:
                    cuts.add(place + at + 1)
                    at = piece.text.find(token, at + 1)
        return sorted(cuts)

    def _chunk(self, text: str, place: int, ids: list[int], starts: list[int], ends: list[int]) -> None:
        """Append the tokens of a chunk. One in the middle of a text must not get the space that some tokenizers put
        before the first word: a line break in front takes it, and is left out again."""
        anchor = "\n" if place and self._first_space else ""
        found = self.tokenizer(anchor + text, add_special_tokens=False, return_offsets_mapping=True)
        for token, (start, end) in zip(found["input_ids"], found["offset_mapping"], strict=True):
            if anchor and end <= 1:
                continue
            ids.append(token)
            starts.append(place + max(start - len(anchor), 0))
            ends.append(place + end - len(anchor))


def _merge_system(messages: Sequence[Message]) -> list[Message]:
    """System text in front of the first user content."""
    system = "\n\n".join(message.content for message in messages if message.role == "system")
    rest = [message for message in messages if message.role != "system"]
    if not system or not rest:
        return rest or [Message("user", system)] if system else rest
    return [Message(rest[0].role, f"{system}\n\n{rest[0].content}"), *rest[1:]]


def _first_space(tokenizer: Any) -> bool:
    """Whether the tokenizer puts a space before the first word of any text (SentencePiece's dummy prefix)."""
    found = tokenizer.convert_ids_to_tokens(tokenizer("x", add_special_tokens=False)["input_ids"])
    return bool(found) and found[0].startswith("▁")


def _specials(tokenizer: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The special tokens that the tokenizer puts before and after a text."""
    bare, full = tokenizer("x", add_special_tokens=False)["input_ids"], tokenizer("x")["input_ids"]
    at = next(at for at in range(len(full) - len(bare) + 1) if full[at : at + len(bare)] == bare)
    return tuple(full[:at]), tuple(full[at + len(bare) :])
