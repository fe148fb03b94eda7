"""Reading a score that a model wrote."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ...errors import ConfigError

__all__ = ["ScoreFormat", "WrittenScore"]


@dataclass(frozen=True)
class WrittenScore:
    """A score and where in the text its digits stand, half open."""

    value: int
    start: int
    end: int


@dataclass(frozen=True)
class ScoreFormat:
    """An integer between two tags: `<answer>7</answer>`.

    Attributes:
        tag: the tag's name.
        most: the largest score; the smallest is 0.
    """

    tag: str
    most: int

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z]+", self.tag) or self.most < 1:
            raise ConfigError(f"score between <{self.tag}> tags up to {self.most}: expected a name and at least 1")

    def read(self, text: str) -> WrittenScore | None:
        """The score in the last pair of tags; None unless that is an integer from 0 to `most` and nothing else.

        The last pair: a model that names the tags while it thinks has not answered yet. "07" is 7; "8.5", "101" of
        100 and "8/10" are no scores.
        """
        found = list(re.finditer(rf"<{self.tag}>\s*([^<]*?)\s*</{self.tag}>", text))
        if not found or not re.fullmatch(r"[0-9]{1,9}", found[-1].group(1)) or int(found[-1].group(1)) > self.most:
            return None
        return WrittenScore(int(found[-1].group(1)), *found[-1].span(1))
