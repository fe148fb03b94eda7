"""What reinforcement learning pays rerankers for: published rewards as pure functions of what the model wrote.

Every function takes the completions of one group (one query, or one query with its documents) and returns one reward
for each of them; nothing here knows a trainer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...errors import ConfigError, DataError
from .scores import ScoreFormat

__all__ = [
    "RetroReward",
    "erank_reward",
    "mm_r5_format_reward",
    "mm_r5_reward",
    "prorank_reward",
    "rank_r1_reward",
    "score_rollouts",
]

_RANK_R1 = re.compile(r"<think>.*?</think>\s*<answer>(.*?)</answer>", re.DOTALL)
_MM_R5 = re.compile(r"<think>.*?</think>\s*<answer>\s*\[([0-9,\s]*)\]\s*</answer>", re.DOTALL)


def rank_r1_reward(completions: Sequence[str], labels: Sequence[str]) -> np.ndarray:
    """Rank-R1 (Zhuang et al. 2025): 1 if `<think>…</think> <answer>X</answer>` holds the right label, otherwise 0.

    The first match counts, tags in lower case, X without outer space; nothing is paid for the format alone.

    Args:
        completions: what the model wrote.
        labels: the right answer of each, "[3]".

    Returns:
        (n,) float64.
    """
    rewards = np.zeros(len(completions))
    for at, (text, label) in enumerate(zip(completions, labels, strict=True)):
        found = _RANK_R1.search(text)
        rewards[at] = float(found is not None and found.group(1).strip() == label)
    return rewards


def erank_reward(
    scores: np.ndarray, relevant: np.ndarray, reference: np.ndarray, *, penalty: float = -1.0, most: float = 10.0
) -> np.ndarray:
    """ERank's listwise-derived reward r_RR: all rollouts of all documents of a query are ranked together.

    With φ the rank of a rollout among all (1 is best, ties take the smallest, unreadable ones are no rollouts):

    - unreadable: `penalty`;
    - of a relevant document: 1 / φ;
    - of another document, above some readable rollout of a relevant one: `penalty`;
    - of another document, below all or beside the lowest of them: 1 − ((s − t) / `most`)², t the supervised model's
      score of the pair.

    The constants of the published formula could not be read: the penalty of −1 and the parabola over the range of
    scores are our choice, with the published signs and shape.

    Args:
        scores: (documents, rollouts) written scores, NaN where unreadable.
        relevant: (documents,) bool.
        reference: (documents,) t.
        penalty: see above.
        most: the largest score.

    Returns:
        (documents, rollouts) float64.
    """
    values = np.asarray(scores, dtype=np.float64)
    truth = np.asarray(relevant, dtype=bool)
    if values.ndim != 2 or truth.shape != values.shape[:1] or np.shape(reference) != values.shape[:1]:
        raise DataError(
            f"scores {values.shape}, relevant {truth.shape}, reference {np.shape(reference)}: expected "
            "(documents, rollouts), (documents,) and (documents,)"
        )
    readable = ~np.isnan(values)
    pool = np.sort(values[readable])
    above = len(pool) - np.searchsorted(pool, np.where(readable, values, 0.0), side="right")
    lowest = np.min(values[truth], initial=np.inf, where=readable[truth])
    smooth = 1 - ((values - np.asarray(reference, dtype=np.float64)[:, None]) / most) ** 2
    others = np.where(values > lowest, penalty, smooth)
    return np.where(readable, np.where(truth[:, None], 1.0 / (above + 1), others), penalty)


def prorank_reward(completions: Sequence[str], labels: Sequence[int], *, form: float = 0.5) -> np.ndarray:
    """ProRank's prompt warm-up: `form` for an answer that is exactly "0" or "1", and 1 more if it is the right one.

    The published text names a format and a correctness reward; their weights are not known, `form` is our choice.

    Args:
        completions: what the model wrote; outer space is ignored.
        labels: 0 or 1 for each.
        form: what the format alone earns.

    Returns:
        (n,) float64.
    """
    written = [text.strip() for text in completions]
    return np.asarray(
        [
            form * (text in ("0", "1")) + 1.0 * (text == str(int(label)))
            for text, label in zip(written, labels, strict=True)
        ]
    )


@dataclass(frozen=True)
class RetroReward:
    """Retro*'s composite reward: R = α R_intra + (1 − α) R_inter.

    R_intra, among the rollouts of one document with mean s̄: +1 for the one nearest to s̄, −1 for the farthest, 0 for
    the others; all 0 if the farthest is within τ of s̄. Of equally near or far ones the first counts (not specified).
    R_inter of a rollout of the relevant document: the share of the other's rollouts with a lower score; of a rollout of
    the other document: the share of the relevant one's with a higher score. Rollouts that cannot be read get 0 in
    both, never count as nearest, and lose every comparison (not specified).

    Attributes:
        alpha: α.
        tau: τ, in points of 100.
    """

    alpha: float = 0.75
    tau: float = 20.0

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1 or self.tau < 0:
            raise ConfigError(f"alpha {self.alpha}, tau {self.tau}: expected 0 to 1, and at least 0")

    def intra(self, scores: np.ndarray) -> np.ndarray:
        """R_intra of one document's rollouts (n,), NaN where unreadable."""
        values = np.asarray(scores, dtype=np.float64)
        rewards = np.zeros(len(values))
        readable = ~np.isnan(values)
        if not readable.any():
            return rewards
        distance = np.abs(values - values[readable].mean())
        farthest = int(np.nanargmax(distance))
        if distance[farthest] > self.tau:
            rewards[int(np.nanargmin(distance))] = 1.0
            rewards[farthest] = -1.0
        return rewards

    def inter(self, relevant: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """R_inter of both documents' rollouts, (n,) and (m,)."""
        above, below = np.asarray(relevant, dtype=np.float64), np.asarray(other, dtype=np.float64)
        wins = _beats(above, below)
        return wins.mean(axis=1), np.where(np.isnan(below), 0.0, wins.mean(axis=0))

    def __call__(self, relevant: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """R of the rollouts of the relevant document (n,) and of the other one (m,)."""
        there, here = self.inter(relevant, other)
        mix = self.alpha
        return mix * self.intra(relevant) + (1 - mix) * there, mix * self.intra(other) + (1 - mix) * here


def _beats(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """[i, j] float: above_i > below_j; an unreadable one loses to a readable one, two of them beat nobody."""
    wins = np.nan_to_num(above, nan=-1.0)[:, None] > np.nan_to_num(below, nan=-1.0)[None, :]
    return (wins & ~np.isnan(above)[:, None]).astype(np.float64)


def mm_r5_reward(completions: Sequence[str], positives: Sequence[Sequence[int]], counts: Sequence[int]) -> np.ndarray:
    """MM-R5's ranking reward: Σ over the positives of 1 / rank³, divided by the best that so many can have.

    A ranking that is no permutation of 1 … n earns nothing. (The published code pays a list without the positive 0, and
    "[2, 2, 2]" in full.)

    Args:
        completions: `<think>…</think><answer>[3, 1, 2]</answer>`.
        positives: the numbers of each query's relevant documents.
        counts: n of each.

    Returns:
        (n,) float64.
    """
    rewards = np.zeros(len(completions))
    for at, (text, wanted, count) in enumerate(zip(completions, positives, counts, strict=True)):
        ranking = _mm_r5_ranking(text)
        if sorted(ranking) != list(range(1, count + 1)) or not wanted:
            continue
        gained = sum(1.0 / (ranking.index(number) + 1) ** 3 for number in wanted)
        rewards[at] = gained / sum(1.0 / (rank + 1) ** 3 for rank in range(len(wanted)))
    return rewards


def mm_r5_format_reward(completions: Sequence[str], counts: Sequence[int]) -> np.ndarray:
    """MM-R5's format reward: (1 − |length − n| / n), at least 0, times the share of different numbers from 1 to n.

    Repeated numbers count once (the published code counts each of them).

    Returns:
        (n,) float64.
    """
    rewards = np.zeros(len(completions))
    for at, (text, count) in enumerate(zip(completions, counts, strict=True)):
        ranking = _mm_r5_ranking(text)
        if ranking:
            inside = {number for number in ranking if 1 <= number <= count}
            rewards[at] = max(0.0, 1 - abs(len(ranking) - count) / count) * len(inside) / len(ranking)
    return rewards


def _mm_r5_ranking(text: str) -> list[int]:
    found = _MM_R5.search(text)
    return [] if found is None else [int(each) for each in re.findall(r"\d{1,9}", found.group(1))]


def score_rollouts(completions: Sequence[str], form: ScoreFormat) -> np.ndarray:
    """The scores that completions hold, NaN where none can be read: what the rewards above are given. (n,) float64."""
    read = [form.read(text) for text in completions]
    return np.asarray([np.nan if each is None else float(each.value) for each in read])
