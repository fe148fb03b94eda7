"""Which documents are negatives."""

from __future__ import annotations

from .filters import (
    AbsoluteMargin,
    IdenticalIds,
    MiningFilter,
    MiningLimits,
    NotPositive,
    RankWindow,
    RelativeMargin,
    ScoreCeiling,
    Scored,
    ScoreFloor,
    SkipFirst,
    percent_of_positive,
)
from .pool import MiningPool, make_pool
from .static import MiningReport, mine, mine_with

__all__ = [
    "AbsoluteMargin",
    "IdenticalIds",
    "MiningFilter",
    "MiningLimits",
    "MiningPool",
    "MiningReport",
    "NotPositive",
    "RankWindow",
    "RelativeMargin",
    "ScoreCeiling",
    "ScoreFloor",
    "Scored",
    "SkipFirst",
    "make_pool",
    "mine",
    "mine_with",
    "percent_of_positive",
]
