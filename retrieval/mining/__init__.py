"""Which documents are negatives."""

from __future__ import annotations

from .copies import IdenticalTexts
from .filters import (
    AbsoluteMargin,
    ConsistentRanking,
    IdenticalIds,
    MiningFilter,
    MiningLimits,
    NotPositive,
    PseudoPositive,
    RankWindow,
    RelativeMargin,
    ScoreCeiling,
    Scored,
    ScoreFloor,
    SkipFirst,
    percent_of_positive,
)
from .padding import Padding
from .pool import MiningPool, make_pool, pseudo_positives
from .report import MiningReport, MiningTrace, write_trace
from .static import Selection, mine, mine_with

__all__ = [
    "AbsoluteMargin",
    "ConsistentRanking",
    "IdenticalIds",
    "IdenticalTexts",
    "MiningFilter",
    "MiningLimits",
    "MiningPool",
    "MiningReport",
    "MiningTrace",
    "NotPositive",
    "Padding",
    "PseudoPositive",
    "RankWindow",
    "RelativeMargin",
    "ScoreCeiling",
    "ScoreFloor",
    "Scored",
    "Selection",
    "SkipFirst",
    "make_pool",
    "mine",
    "mine_with",
    "percent_of_positive",
    "pseudo_positives",
    "write_trace",
]
