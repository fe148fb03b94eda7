"""How much of one run another one finds: recall of an approximate search against the exact one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import ConfigError
from .run import Run

__all__ = ["Agreement", "agreement"]


@dataclass(frozen=True)
class Agreement:
    """Recall against a reference.

    Attributes:
        tag: the run's name.
        queries: of the reference that have hits.
        missing: of those, how many the run does not have.
        recall: for each cutoff k, the mean over queries of the share of the reference's first k documents that are
            among the run's first k.
    """

    tag: str
    queries: int
    missing: int
    recall: dict[int, float]


def agreement(run: Run, reference: Run, cutoffs: Sequence[int] = (10, 100, 1000)) -> Agreement:
    """Compare a run with a reference over the reference's queries; one that the run lacks counts as zero.

    Lists of the reference shorter than k count whole. Scores play no part.

    Raises:
        ConfigError: a cutoff below 1, or a reference without hits.
    """
    if not cutoffs or min(cutoffs) < 1:
        raise ConfigError(f"the cutoffs are {list(cutoffs)}, expected numbers of at least 1")
    shares: list[list[float]] = []
    missing = 0
    for entry in reference:
        if not len(entry.documents):
            continue
        found = run[entry.qid].documents if entry.qid in run else []
        missing += entry.qid not in run
        shares.append(
            [len({*found[:k]} & {*entry.documents[:k]}) / len(entry.documents[:k]) for k in cutoffs],
        )
    if not shares:
        raise ConfigError(f"the run {reference.tag!r} has no hits, so nothing can be held against it")
    means = np.mean(shares, axis=0).tolist()
    return Agreement(run.tag, len(shares), missing, dict(zip(cutoffs, means, strict=True)))
