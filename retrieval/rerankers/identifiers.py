"""What documents are called in a prompt: letters or numbers, and which tokens these are."""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ...errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Identifiers", "separator_token"]

_LETTERS = string.ascii_uppercase


@dataclass(frozen=True)
class Identifiers:
    """The alphabet that names documents, by place: "letters" A … Z or "numbers" 1, 2, ….

    Raises:
        ConfigError: neither of them.
    """

    kind: Literal["letters", "numbers"] = "numbers"

    def __post_init__(self) -> None:
        if self.kind not in ("letters", "numbers"):
            raise ConfigError(f"identifiers {self.kind!r}: expected 'letters' or 'numbers'")

    @property
    def most(self) -> int | None:
        """How many documents can be named; None is any number."""
        return len(_LETTERS) if self.kind == "letters" else None

    def label(self, place: int) -> str:
        """The name of the document at a place from 0: "C" or "3" for 2."""
        return _LETTERS[place] if self.kind == "letters" else str(place + 1)

    def labels(self, count: int) -> list[str]:
        """The names of the first `count` documents.

        Raises:
            ConfigError: more documents than the alphabet has names.
        """
        if self.most is not None and count > self.most:
            raise ConfigError(
                f"a window of {count} documents cannot be named by {self.kind}: there are {self.most} of them; "
                "take a smaller window or numbers"
            )
        return [self.label(place) for place in range(count)]

    def read(self, text: str, *, bracketed: bool) -> list[int]:
        """The places that are named in a piece of text, in order; negative ones for numbers that name nothing.

        Args:
            text: what stood between two brackets, or a whole output without any.
            bracketed: whether it stood between brackets: a letter alone there counts in lower case too; elsewhere only
                upper-case letters that stand alone do.
        """
        if self.kind == "letters":
            alone = text.strip().upper() if bracketed else ""
            found = [alone] if len(alone) == 1 and alone in _LETTERS else re.findall(r"(?<!\w)([A-Z])(?!\w)", text)
            return [_LETTERS.index(letter) for letter in found]
        return [_number(digits) - 1 for digits in re.findall(r"\d+", _plain_digits(text))]


def _plain_digits(text: str) -> str:
    """Digits of other scripts, circled and superscript ones as ASCII; "½" is no digit and stays."""
    return "".join(_plain(each) for each in text)


def _plain(character: str) -> str:
    if character.isascii():
        return character
    value = unicodedata.numeric(character, -1.0)
    if value < 0 or value != int(value):
        return character
    separate = "" if unicodedata.category(character) == "Nd" else " "
    return f"{separate}{int(value)}{separate}"


def _number(digits: str) -> int:
    """The number; 0 for one that no window can hold, however long it is."""
    return int(digits) if len(digits) < 9 else 0


def separator_token(tokenizer: PreTrainedTokenizerBase, labels: Sequence[str] = ("1", "2", "10")) -> int:
    """The token of " >" between two bracketed identifiers.

    Raises:
        ConfigError: it is not one and the same single token between all of `labels`.
    """
    found: set[tuple[int, ...]] = set()
    for left in labels:
        for right in labels:
            whole = tokenizer.encode(f"[{left}] > [{right}]", add_special_tokens=False)
            head = tokenizer.encode(f"[{left}]", add_special_tokens=False)
            tail = tokenizer.encode(f" [{right}]", add_special_tokens=False)
            found.add(tuple(whole[len(head) : len(whole) - len(tail)]))
    if len(found) != 1 or len(next(iter(found))) != 1:
        raise ConfigError(f"the separator ' >' is not one token in this tokenizer: {sorted(found)[:4]}")
    return next(iter(found))[0]
