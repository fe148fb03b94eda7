"""Reading the order that a model wrote, whatever it wrote."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from .identifiers import Identifiers

__all__ = ["Permutation", "format_permutation", "parse_permutation"]

_THOUGHT = re.compile(r"^.*</think>", re.DOTALL)
_BRACKETS = re.compile(r"[\[\uff3b]([^\[\]\uff3b\uff3d]*)[\]\uff3d]")
_OPEN = re.compile(r"[\[\uff3b]([^\[\]\uff3b\uff3d]*)$")


@dataclass(frozen=True)
class Permutation:
    """An order read from a model's output.

    Attributes:
        order: 0-based places, every one of them exactly once, best first.
        well_formed: the output was the permutation, written in brackets, and nothing had to be repaired.
        read: how many identifiers were read from the output; the others follow in their first order.
    """

    order: tuple[int, ...]
    well_formed: bool
    read: int


def parse_permutation(output: str, count: int, identifiers: Identifiers) -> Permutation:
    """Read a ranking of `count` documents.

    Bracketed identifiers count first; bare ones are read only where no bracket holds an identifier of the alphabet, so
    that the figures and letters of prose do not rank (published parsers turn everything else into spaces and read
    "The 3 passages: [2] > [1]" as 3 first). What precedes `</think>` is not read. Letters are read in either case
    inside brackets, digits of any script and in circles. Identifiers that are repeated or out of range are dropped;
    documents that are missing follow in their first order.

    Args:
        output: what the model wrote.
        count: how many documents it saw.
        identifiers: the alphabet that the prompt used.
    """
    text = _THOUGHT.sub("", output)
    inside = [match.group(1) for match in _BRACKETS.finditer(text)]
    unclosed = _OPEN.search(text)
    if unclosed is not None:
        inside.append(unclosed.group(1))
    named = [place for each in inside for place in identifiers.read(each, bracketed=True)]
    if not named:
        named = identifiers.read(text, bracketed=False)
    seen = list(dict.fromkeys(place for place in named if 0 <= place < count))
    order = tuple(seen) + tuple(place for place in range(count) if place not in set(seen))
    expected = format_permutation(seen, identifiers)
    well_formed = len(seen) == count and _spaceless(text) == _spaceless(expected)
    return Permutation(order, well_formed, len(seen))


def format_permutation(order: Sequence[int], identifiers: Identifiers) -> str:
    """ "[B] > [A] > [C]" for places (1, 0, 2)."""
    return " > ".join(f"[{identifiers.label(place)}]" for place in order)


def _spaceless(text: str) -> str:
    return "".join(text.split())
