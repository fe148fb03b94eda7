"""Which candidates may serve as negatives: small rules that compose.

A filter is a frozen value with a `name` and a call `(pool, alive) -> keep`, both (entries,) bool: `alive` are the
entries that filters before it left. Formulas after NV-Retriever (arXiv 2407.15831); s⁻ is a candidate's score, s⁺ the
score of the query's positives.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ...errors import ConfigError
from .pool import MiningPool, ranks_within

__all__ = [
    "AbsoluteMargin",
    "IdenticalIds",
    "MiningFilter",
    "MiningLimits",
    "NotPositive",
    "RankWindow",
    "RelativeMargin",
    "ScoreCeiling",
    "ScoreFloor",
    "Scored",
    "SkipFirst",
    "percent_of_positive",
]


class MiningFilter(Protocol):
    """Says which entries stay."""

    @property
    def name(self) -> str:
        """The filter with its setting, as reports show it."""
        ...

    def __call__(self, pool: MiningPool, alive: np.ndarray, /) -> np.ndarray:
        """Return (entries,) bool: True stays."""
        ...


@dataclass(frozen=True)
class NotPositive:
    """Never a judged positive, and nothing at all for a query that has none."""

    name: str = "positive"

    def __call__(self, pool: MiningPool, alive: np.ndarray, /) -> np.ndarray:
        return ~pool.positive


@dataclass(frozen=True)
class IdenticalIds:
    """Not the document whose id is the query's own (collections where queries are documents: ArguAna, Quora)."""

    name: str = "identical id"

    def __call__(self, pool: MiningPool, alive: np.ndarray, /) -> np.ndarray:
        own = pool.run.vocabulary.rows(pool.run.qids)
        return pool.run.codes != np.repeat(own, np.diff(pool.run.offsets))


@dataclass(frozen=True)
class RankWindow:
    """Ranks first..last, from 1 and inclusive, counted over the candidates that are not positives."""

    first: int
    last: int

    def __post_init__(self) -> None:
        if not 1 <= self.first <= self.last:
            raise ConfigError(f"ranks {self.first}:{self.last}: expected 1 <= first <= last, counted from 1")

    @property
    def name(self) -> str:
        return f"ranks {self.first}:{self.last}"

    def __call__(self, pool: MiningPool, alive: np.ndarray, /) -> np.ndarray:
        return (pool.ranks >= self.first) & (pool.ranks <= self.last)


@dataclass(frozen=True)
class SkipFirst:
    """Without the first `count` of those that filters before it left (NV-Retriever's shift)."""

    count: int

    @property
    def name(self) -> str:
        return f"skip first {self.count}"

    def __call__(self, pool: MiningPool, alive: np.ndarray, /) -> np.ndarray:
        return ranks_within(pool.run, alive) > self.count


@dataclass(frozen=True)
class Scored:
    """Only what the teacher scored."""

    name: str = "without teacher score"

    def __call__(self, pool: MiningPool, alive: np.ndarray, /) -> np.ndarray:
        return ~np.isnan(pool.scores)


@dataclass(frozen=True)
class AbsoluteMargin:
    """s⁻ <= s⁺ - margin.

    A query none of whose positives was scored keeps nothing: a first stage that missed the positive put every document
    of its list above it.
    """

    margin: float

    @property
    def name(self) -> str:
        return f"absolute margin {self.margin:g}"

    def __call__(self, pool: MiningPool, alive: np.ndarray, /) -> np.ndarray:
        return pool.scores <= pool.entry_reference - np.float32(self.margin)


@dataclass(frozen=True)
class RelativeMargin:
    """s⁻ <= s⁺ - |s⁺| · margin. The absolute value keeps the rule strict where scores are negative."""

    margin: float

    @property
    def name(self) -> str:
        return f"relative margin {self.margin:g}"

    def __call__(self, pool: MiningPool, alive: np.ndarray, /) -> np.ndarray:
        reference = pool.entry_reference
        return pool.scores <= reference - np.abs(reference) * np.float32(self.margin)


def percent_of_positive(share: float) -> RelativeMargin:
    """At most `share` of the positive's score (0.95): the relative margin 1 - share."""
    if not 0 < share <= 1:
        raise ConfigError(f"percent_of_positive {share}: expected a share in (0, 1], such as 0.95")
    return RelativeMargin(round(1 - share, 9))


@dataclass(frozen=True)
class ScoreCeiling:
    """s⁻ <= limit: denoising by a teacher's score (RocketQA keeps what a cross-encoder holds irrelevant)."""

    limit: float

    @property
    def name(self) -> str:
        return f"score above {self.limit:g}"

    def __call__(self, pool: MiningPool, alive: np.ndarray, /) -> np.ndarray:
        return pool.scores <= np.float32(self.limit)


@dataclass(frozen=True)
class ScoreFloor:
    """s⁻ >= limit: not too easy."""

    limit: float

    @property
    def name(self) -> str:
        return f"score below {self.limit:g}"

    def __call__(self, pool: MiningPool, alive: np.ndarray, /) -> np.ndarray:
        return pool.scores >= np.float32(self.limit)


@dataclass(frozen=True)
class MiningLimits:
    """The limits that `mine` takes, and the filters that they stand for, in the order of application."""

    ranks: tuple[int, int] = (1, 200)
    absolute_margin: float | None = None
    relative_margin: float | None = None
    percent_of_positive: float | None = None
    max_score: float | None = None
    min_score: float | None = None
    skip: int = 0
    drop_identical_ids: bool = False

    def filters(self, *, with_teacher: bool) -> list[MiningFilter]:
        """The filters; `with_teacher` leaves out what the teacher did not score."""
        if self.relative_margin is not None and self.percent_of_positive is not None:
            raise ConfigError(
                f"relative_margin {self.relative_margin} and percent_of_positive {self.percent_of_positive} "
                "say the same thing; give one of them"
            )
        chosen: list[MiningFilter | None] = [
            IdenticalIds() if self.drop_identical_ids else None,
            RankWindow(*self.ranks),
            Scored() if with_teacher else None,
            None if self.absolute_margin is None else AbsoluteMargin(self.absolute_margin),
            None if self.relative_margin is None else RelativeMargin(self.relative_margin),
            None if self.percent_of_positive is None else percent_of_positive(self.percent_of_positive),
            None if self.max_score is None else ScoreCeiling(self.max_score),
            None if self.min_score is None else ScoreFloor(self.min_score),
            SkipFirst(self.skip) if self.skip else None,
        ]
        return [rule for rule in chosen if rule is not None]
