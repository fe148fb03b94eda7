"""From windows to what a policy is asked, and from what it answers to rewards: one class for each publication."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ...errors import BackendError, DataError
from ..losses.language_options import GrpoOptions
from ..rerankers.rewards import RetroReward, erank_reward, prorank_reward, rank_r1_reward, score_rollouts
from ..rerankers.scores import ScoreFormat
from .list_windows import Window

if TYPE_CHECKING:
    from .config import TrainConfig

__all__ = ["REWARDS", "Asked", "Example", "Reward"]


@dataclass(frozen=True)
class Asked:
    """Documents that are asked about in one call, and what the reward is told about each prompt of it."""

    documents: tuple[str, ...]
    told: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class Example:
    """A prompt: its ids, the number of its query in training, its place among the query's prompts, how many these are,
    and what the reward is told."""

    ids: tuple[int, ...]
    query: int
    place: int
    prompts: int
    told: dict[str, Any] = field(default_factory=dict)


class Reward:
    """Pays completions. Made with the loss's options, called with examples (in groups of rollouts) and completions.

    Attributes:
        reference: the teacher of the lists is a supervised model whose scores the reward is told (`Window.reference`).
    """

    reference: ClassVar[bool] = False

    def __init__(self, options: GrpoOptions) -> None:
        self.options = options

    @classmethod
    def size(cls, config: TrainConfig) -> int:
        """Prompts of a query whose rollouts are paid together; lists with fewer documents are left out."""
        return 1

    @classmethod
    def prompts(cls, window: Window) -> Iterator[Asked]:
        """What is asked about a window."""
        raise NotImplementedError

    def __call__(self, examples: Sequence[Example], completions: Sequence[str]) -> list[float]:
        raise NotImplementedError


class RankR1(Reward):
    """Rank-R1: one prompt with all documents; 1 for naming the best of them in the right form."""

    @classmethod
    def prompts(cls, window: Window) -> Iterator[Asked]:
        yield Asked(window.passages, ({"label": f"[{window.order[0] + 1}]"},))

    def __call__(self, examples: Sequence[Example], completions: Sequence[str]) -> list[float]:
        return rank_r1_reward(completions, [each.told["label"] for each in examples]).tolist()


class ProRank(Reward):
    """ProRank's warm-up: a prompt for each document, answered with exactly 0 or 1."""

    @classmethod
    def prompts(cls, window: Window) -> Iterator[Asked]:
        relevant = _relevant(window)
        yield Asked(window.passages, tuple({"label": int(each)} for each in relevant))

    def __call__(self, examples: Sequence[Example], completions: Sequence[str]) -> list[float]:
        return prorank_reward(completions, [each.told["label"] for each in examples]).tolist()


class _Scored(Reward):
    """Rewards over the written scores of several documents of a query."""

    form: ClassVar[ScoreFormat]

    def _by_query(
        self, examples: Sequence[Example], completions: Sequence[str]
    ) -> Iterator[tuple[np.ndarray, list[Example], np.ndarray]]:
        """For each query: (documents, rollouts) places in the call, its examples, and the scores there.

        Raises:
            BackendError: the call holds a part of a query's rollouts only.
        """
        scores = score_rollouts(completions, self.form)
        queries = np.asarray([each.query for each in examples])
        for query in dict.fromkeys(queries.tolist()):
            inside = np.flatnonzero(queries == query)
            prompts = np.asarray([examples[at].place for at in inside.tolist()])
            rows = [inside[prompts == place] for place in dict.fromkeys(prompts.tolist())]
            wanted = examples[int(inside[0])].prompts
            if len(rows) != wanted or len({len(row) for row in rows}) > 1:
                raise BackendError(
                    f"reward {self.options.reward!r} was called with {len(rows)} of {wanted} prompts of query number "
                    f"{query}, rollouts {[len(row) for row in rows]}; it needs all of them in one call"
                )
            at = np.stack(rows)
            yield at, [examples[int(row[0])] for row in rows], scores[at]


class ERank(_Scored):
    """ERank's r_RR over all rollouts of all documents of the window.

    t, the supervised model's score of a document that is not relevant, is the `raw` value of the one of
    `data.runs.teachers`; without one it is 0.
    """

    form = ScoreFormat("answer", 10)
    reference = True

    @classmethod
    def size(cls, config: TrainConfig) -> int:
        return config.sampling.window  # type: ignore[attr-defined]

    @classmethod
    def prompts(cls, window: Window) -> Iterator[Asked]:
        reference = np.zeros(len(window.passages)) if window.reference is None else window.reference
        wrong = reference[(reference < 0) | (reference > cls.form.most)]
        if len(wrong):
            raise DataError(
                f"data.runs.teachers: query {window.query!r}: a score of {float(wrong[0]):g}; ERank's lie from 0 to "
                f"{cls.form.most}. Give a run of `rtk rerank --reranker erank --raw` with the supervised model"
            )
        told = zip(_relevant(window).tolist(), reference.tolist(), strict=True)
        yield Asked(window.passages, tuple({"relevant": relevant, "reference": score} for relevant, score in told))

    def __call__(self, examples: Sequence[Example], completions: Sequence[str]) -> list[float]:
        paid = np.zeros(len(examples))
        for at, asked, scores in self._by_query(examples, completions):
            relevant = np.asarray([each.told["relevant"] for each in asked])
            reference = np.asarray([each.told["reference"] for each in asked])
            paid[at] = erank_reward(scores, relevant, reference)
        return paid.tolist()


class Retro(_Scored):
    """Retro*'s composite reward over the rollouts of the best document and of the last one in the target order."""

    form = ScoreFormat("score", 100)

    @classmethod
    def size(cls, config: TrainConfig) -> int:
        return 2

    @classmethod
    def prompts(cls, window: Window) -> Iterator[Asked]:
        pair = (window.order[0], window.order[-1])
        yield Asked(tuple(window.passages[place] for place in pair), ({}, {}))

    def __call__(self, examples: Sequence[Example], completions: Sequence[str]) -> list[float]:
        paid, reward = np.zeros(len(examples)), RetroReward(self.options.alpha, self.options.tau)
        for at, _, scores in self._by_query(examples, completions):
            paid[at[0]], paid[at[1]] = reward(scores[0], scores[1])
        return paid.tolist()


def _relevant(window: Window) -> np.ndarray:
    """Which documents are better than the worst: the judged positives, or those above a teacher's last."""
    return window.levels > window.levels.min()


REWARDS: dict[str, type[Reward]] = {"rank-r1": RankR1, "prorank": ProRank, "erank": ERank, "retro": Retro}
"""By the name of the reranker that is trained."""
