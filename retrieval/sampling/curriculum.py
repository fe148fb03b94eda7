"""Curricula for ranking (MacAvaney et al., SIGIR 2020): what looks hard to a first stage weighs little at first.

D in [0, 1] says how easily a document is taken for relevant, judged by the query's first-stage list:

- `reciprocal-rank`: 1 / rank; a document that is not in the list has rank 1000;
- `normalised-score`: (s − min) / (max − min) over the list, held within [0, 1], 0.5 in a list of equal scores;
- `kde`: the share of a Gaussian kernel density over the list's scores (Scott's bandwidth) that lies below s.

The published code does not hold the second one within [0, 1] and divides by zero in a list of equal scores.

A sample's weight is easy(D) at first and goes to 1 over `end` epochs; see `curriculum_weights`. An epoch is a number of
batches, so that the weight is a function of the batch's number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from ..pairs import one_list_each, scores_of_pairs

if TYPE_CHECKING:
    from ...eval.run import Run
    from ...ids import Ids
    from ..training.examples import TrainingTable

__all__ = [
    "Difficulty",
    "Schedule",
    "Weighting",
    "add_difficulty",
    "curriculum_weights",
    "easiness",
    "kde_cdf",
    "missing_easiness",
    "score_easiness",
]

Difficulty = Literal["reciprocal-rank", "normalised-score", "kde"]
Weighting = Literal["pairwise", "pointwise"]
UNRANKED = 1000
"""The rank of a document that the first stage did not find."""

_FLOOR = 1e-8


@dataclass(frozen=True)
class Schedule:
    """How weights change while training goes on.

    Attributes:
        end: the epoch from which on every weight is 1; 0 never fades (the published pointwise code has no curriculum
            at all then).
        batches_per_epoch: how many batches are an epoch of the curriculum; the published 32 of 16 are 512 samples.
        anti: the hard ones first: 1 − w in place of w.
    """

    end: int = 20
    batches_per_epoch: int = 32
    anti: bool = False

    def epoch(self, number: int) -> int:
        """The epoch of batch `number`, both from 0."""
        return number // self.batches_per_epoch


def curriculum_weights(
    easiness: np.ndarray, labels: np.ndarray, weighting: Weighting, epoch: int, schedule: Schedule | None = None
) -> np.ndarray:
    """W = w + (i / m)(1 − w) in epoch i < m, 1 from epoch m on.

    - pairwise: w = (D⁺ − D⁻ + 1) / 2, the smallest over the negatives;
    - pointwise: w = D where the document is relevant, 1 − D where it is not.

    1e-8 is added to w, so that nothing is lost altogether.

    Args:
        easiness: (B, 1 + k) D of each query's positive and negatives.
        labels: (B, 1 + k), above 0 for relevant documents; pairwise does not look at them.
        weighting: which of the two.
        epoch: i, from 0.
        schedule: m, and whether to turn it around.

    Returns:
        (B,) for pairwise, (B, 1 + k) for pointwise.
    """
    schedule = schedule or Schedule()
    if weighting == "pairwise":
        weights = (easiness[:, :1] - easiness[:, 1:] + 1) / 2
        weights = weights.min(axis=1, initial=1.0)
    else:
        weights = np.where(labels > 0, easiness, 1 - easiness)
    weights = (1 - weights if schedule.anti else weights) + _FLOOR
    if schedule.end <= 0:
        return weights
    return np.ones_like(weights) if epoch >= schedule.end else weights + epoch / schedule.end * (1 - weights)


def add_difficulty(table: TrainingTable, run: Run, difficulty: Difficulty) -> None:
    """Give a training table the column `difficulty`: D of every entry, in memory only.

    Args:
        table: its queries and documents.
        run: the first stage's lists for them.
        difficulty: which measure.
    """
    queries = run.qids.rows(table.qids(np.arange(len(table))))
    rows = np.repeat(queries, np.diff(table.offsets))
    known = table.documents.rows(run.vocabulary)
    code = np.full(len(table.documents), -1, dtype=np.int64)
    code[known[known >= 0]] = np.flatnonzero(known >= 0)
    table.scores["difficulty"] = _at(run, rows, code[table.entries], difficulty)


def easiness(run: Run, qids: Ids, documents: Ids, difficulty: Difficulty) -> np.ndarray:
    """D of pairs by the first-stage run. A pair that it does not hold has the least: 0.001 or 0.

    Args:
        run: the first stage's lists.
        qids, documents: the pairs, one of each per pair.

    Returns:
        (pairs,) float32.
    """
    return _at(run, run.qids.rows(qids), run.vocabulary.rows(documents), difficulty)


def missing_easiness(difficulty: Difficulty) -> float:
    """D of a document that the first stage did not find."""
    return 1 / UNRANKED if difficulty == "reciprocal-rank" else 0.0


def _at(run: Run, rows: np.ndarray, codes: np.ndarray, difficulty: Difficulty) -> np.ndarray:
    values = _of_entries(one_list_each(run, "a curriculum"), difficulty)
    # `replace` puts the entries into the order of the new scores, document codes with them.
    found = scores_of_pairs(run.replace(scores=values, columns={}), rows, codes)
    return np.where(np.isnan(found), np.float32(missing_easiness(difficulty)), found)


def _of_entries(run: Run, difficulty: Difficulty) -> np.ndarray:
    """D of every entry of the run. (entries,) float32."""
    if difficulty not in get_args(Difficulty):
        raise ValueError(f"difficulty {difficulty!r}: expected one of {', '.join(get_args(Difficulty))}")
    if difficulty == "reciprocal-rank":
        return (1 / np.minimum(run.ranks, UNRANKED)).astype(np.float32)
    values = np.empty(len(run.codes), dtype=np.float32)
    of_list = score_easiness if difficulty == "normalised-score" else kde_cdf
    for start, stop in zip(run.offsets[:-1].tolist(), run.offsets[1:].tolist(), strict=True):
        scores = run.scores[start:stop].astype(np.float64)
        values[start:stop] = of_list(scores, scores)
    return values


def score_easiness(scores: np.ndarray, among: np.ndarray) -> np.ndarray:
    """(s − min) / (max − min), held within [0, 1]; 0.5 where all of `among` are equal.

    Args:
        scores: (n,) s.
        among: (m,) scores of the query's list.
    """
    if not len(among) or among.max() == among.min():
        return np.full(len(scores), 0.5)
    return np.clip((scores - among.min()) / (among.max() - among.min()), 0, 1)


def kde_cdf(scores: np.ndarray, among: np.ndarray) -> np.ndarray:
    """P(S ≤ s), S after a Gaussian kernel density over `among` with Scott's bandwidth σ m^(−1/5).

    0.5 where `among` has fewer than two different scores: there is no density.

    Args:
        scores: (n,) s.
        among: (m,) scores of the query's list.
    """
    from scipy.special import ndtr

    if not len(among) or among.max() == among.min():
        return np.full(len(scores), 0.5)
    width = among.std(ddof=1) * len(among) ** (-1 / 5)
    return ndtr((scores[:, None] - among[None, :]) / width).mean(axis=1)
