"""Which candidates may serve as negatives: small rules that compose.

A filter is a frozen value with a `name` and a call `(pool, alive) -> keep`, both (entries,) bool: `alive` are the
entries that filters before it left. Formulas after NV-Retriever (arXiv 2407.15831); s⁻ is a candidate's score, s⁺ the
score of the query's positives.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

import numpy as np

from ...errors import ConfigError
from .copies import IdenticalTexts
from .pool import MiningPool, ranks_within

if TYPE_CHECKING:
    from ...eval.collection import Queries
    from ...eval.documents import Documents

__all__ = [
    "AbsoluteMargin",
    "ConsistentRanking",
    "IdenticalIds",
    "MiningFilter",
    "MiningLimits",
    "NotPositive",
    "PseudoPositive",
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
class _Threshold(ABC):
    """A rule with one number, which its name shows.

    A query none of whose positives was scored keeps nothing under a margin: a first stage that missed the positive put
    every document of its list above it.
    """

    limit: float
    says: ClassVar[str]

    @property
    def name(self) -> str:
        return f"{self.says} {self.limit:g}"

    def __call__(self, pool: MiningPool, alive: np.ndarray, /) -> np.ndarray:
        return self.keeps(pool, np.float32(self.limit))

    @abstractmethod
    def keeps(self, pool: MiningPool, limit: np.float32) -> np.ndarray:
        """(entries,) bool by the pool's scores alone."""


class AbsoluteMargin(_Threshold):
    """s⁻ <= s⁺ - margin."""

    says = "absolute margin"

    def keeps(self, pool: MiningPool, limit: np.float32) -> np.ndarray:
        return pool.scores <= pool.entry_reference - limit


class RelativeMargin(_Threshold):
    """s⁻ <= s⁺ - |s⁺| · margin. The absolute value keeps the rule strict where scores are negative."""

    says = "relative margin"

    def keeps(self, pool: MiningPool, limit: np.float32) -> np.ndarray:
        reference = pool.entry_reference
        return pool.scores <= reference - np.abs(reference) * limit


class ScoreCeiling(_Threshold):
    """s⁻ <= limit: denoising by a teacher's score (RocketQA keeps what a cross-encoder holds irrelevant)."""

    says = "score above"

    def keeps(self, pool: MiningPool, limit: np.float32) -> np.ndarray:
        return pool.scores <= limit


class ScoreFloor(_Threshold):
    """s⁻ >= limit: not too easy."""

    says = "score below"

    def keeps(self, pool: MiningPool, limit: np.float32) -> np.ndarray:
        return pool.scores >= limit


class PseudoPositive(_Threshold):
    """s⁻ < limit: what a teacher holds relevant is no negative, whatever the other rules say."""

    says = "pseudo-positive, score from"

    def keeps(self, pool: MiningPool, limit: np.float32) -> np.ndarray:
        return ~(pool.scores >= limit)


def percent_of_positive(share: float) -> RelativeMargin:
    """At most `share` of the positive's score (0.95): the relative margin 1 - share."""
    if not 0 < share <= 1:
        raise ConfigError(f"percent_of_positive {share}: expected a share in (0, 1], such as 0.95")
    return RelativeMargin(round(1 - share, 9))


@dataclass(frozen=True)
class ConsistentRanking:
    """Nothing for a query whose best positive scores below the candidate at place `rank`, counted from 0 over all of
    the list: its judgments and the scores contradict each other (KaLM's ranking-consistency filter).

    By a teacher's scores where there is one. A positive that was not scored stands below any full list. A list that
    ends before the place contradicts nothing.

    Raises:
        ConfigError: no list of the run is longer than `rank`, so that the rule would do nothing (it is silently off
            there in the published code).
    """

    rank: int

    @property
    def name(self) -> str:
        return f"ranking consistency {self.rank}"

    def kept_queries(self, pool: MiningPool) -> np.ndarray:
        """(queries,) bool."""
        run = pool.run
        deepest = int(np.diff(run.offsets).max(initial=0))
        if deepest <= self.rank:
            raise ConfigError(
                f"consistency_rank {self.rank} looks at place {self.rank} (from 0) of a list, but the longest list of "
                f"run {run.tag!r} has {deepest} documents; search deeper or give a lower rank"
            )
        known = ~np.isnan(pool.scores)
        order = np.lexsort([-np.where(known, pool.scores, -np.inf), run.query_rows])
        counts = np.add.reduceat(np.append(known, False), run.offsets[:-1]) * (np.diff(run.offsets) > 0)
        full = np.flatnonzero(counts > self.rank)
        keep = np.ones(len(run), dtype=bool)
        there = pool.scores[order[run.offsets[full] + self.rank]]
        keep[full] = pool.best[full] >= there  # False where no positive was scored
        return keep

    def __call__(self, pool: MiningPool, alive: np.ndarray, /) -> np.ndarray:
        return np.repeat(self.kept_queries(pool), np.diff(pool.run.offsets))


@dataclass(frozen=True)
class MiningLimits:
    """The rules of `mine` by their settings, in the order of application.

    Attributes:
        ranks: first and last rank, from 1, counted over the documents that are not positives.
        absolute_margin: negatives score at least this much below the positive.
        relative_margin: the same as a share of the positive's absolute score.
        percent_of_positive: negatives score at most this share of the positive's (0.95 = relative margin 0.05).
        max_score: negatives score at most this (denoising: give a cross-encoder's run as the teacher).
        min_score: negatives score at least this.
        skip: leave out the first so many of what all other rules left.
        drop_identical_ids: leave out the document that has the query's own id.
        positive_score: what scores this or more is held relevant and is no negative (`pseudo_positives` gives those).
        consistency_rank: see `ConsistentRanking`.
        identical_texts: queries and documents; leave out documents that say what the query says.

    Raises:
        ConfigError: limits that contradict each other.
    """

    ranks: tuple[int, int] = (1, 200)
    absolute_margin: float | None = None
    relative_margin: float | None = None
    percent_of_positive: float | None = None
    max_score: float | None = None
    min_score: float | None = None
    skip: int = 0
    drop_identical_ids: bool = False
    positive_score: float | None = None
    consistency_rank: int | None = None
    identical_texts: tuple[Queries, Documents] | None = None

    def __post_init__(self) -> None:
        if self.relative_margin is not None and self.percent_of_positive is not None:
            raise ConfigError(
                f"relative_margin {self.relative_margin} and percent_of_positive {self.percent_of_positive} "
                "say the same thing; give one of them"
            )
        below, above = self.max_score, self.positive_score
        if below is not None and above is not None and above <= below:
            raise ConfigError(
                f"positive_score {above} must be above max_score {below}: between them nothing is certain"
            )
        if self.consistency_rank is not None and self.consistency_rank < 1:
            raise ConfigError(f"consistency_rank {self.consistency_rank}: expected at least 1")
        if self.skip < 0:
            raise ConfigError(f"skip {self.skip}: expected 0 or more")

    def filters(self, *, with_teacher: bool) -> list[MiningFilter]:
        """The filters; `with_teacher` leaves out what the teacher did not score."""
        chosen: list[MiningFilter | None] = [
            None if self.consistency_rank is None else ConsistentRanking(self.consistency_rank),
            IdenticalIds() if self.drop_identical_ids else None,
            None if self.identical_texts is None else IdenticalTexts(*self.identical_texts),
            RankWindow(*self.ranks),
            Scored() if with_teacher else None,
            None if self.positive_score is None else PseudoPositive(self.positive_score),
            None if self.absolute_margin is None else AbsoluteMargin(self.absolute_margin),
            None if self.relative_margin is None else RelativeMargin(self.relative_margin),
            None if self.percent_of_positive is None else percent_of_positive(self.percent_of_positive),
            None if self.max_score is None else ScoreCeiling(self.max_score),
            None if self.min_score is None else ScoreFloor(self.min_score),
            SkipFirst(self.skip) if self.skip else None,
        ]
        return [rule for rule in chosen if rule is not None]
