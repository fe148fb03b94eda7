"""Static mining: a run and judgments in, a run of negatives out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ...errors import ConfigError
from ...eval.run import Run
from ...ids import hash_strings
from .filters import MiningFilter, MiningLimits, NotPositive
from .pool import MiningPool, Reference, make_pool, ranks_within

if TYPE_CHECKING:
    from ...eval.judgments import Judgments

__all__ = ["Choice", "MiningReport", "mine", "mine_with"]

Choice = Literal["top", "random"]


@dataclass(frozen=True)
class MiningReport:
    """What mining kept and what each rule took, in the order in which the rules were applied.

    Attributes:
        queries: queries of the run.
        queries_without_positives: of those, how many have no judged positive; they give no negatives.
        queries_without_reference: of the rest, those whose positives nobody scored; margins leave them nothing.
        queries_short: queries that give some negatives, but fewer than asked for. Nothing is padded.
        queries_empty: queries with positives that give none.
        candidates: entries of the run.
        removed: how many entries each rule removed.
        kept: entries of the negatives' run.
    """

    queries: int
    queries_without_positives: int
    queries_without_reference: int
    queries_short: int
    queries_empty: int
    candidates: int
    removed: dict[str, int] = field(default_factory=dict)
    kept: int = 0

    def lines(self) -> list[str]:
        """The report as lines of text, rules with what they removed."""
        rules = [f"removed by {name}: {count}" for name, count in self.removed.items()]
        return [
            f"candidates: {self.candidates} in {self.queries} queries",
            *rules,
            f"negatives kept: {self.kept}",
            f"queries without a judged positive: {self.queries_without_positives}, without a scored one: "
            f"{self.queries_without_reference}, with too few negatives: {self.queries_short}, with none: "
            f"{self.queries_empty}",
        ]


def mine(
    run: Run,
    judgments: Judgments,
    *,
    ranks: tuple[int, int] = (1, 200),
    absolute_margin: float | None = None,
    relative_margin: float | None = None,
    percent_of_positive: float | None = None,
    max_score: float | None = None,
    min_score: float | None = None,
    skip: int = 0,
    drop_identical_ids: bool = False,
    teacher: Run | None = None,
    reference: Reference = "min",
    positive_grade: int = 1,
    per_query: int | None = None,
    choice: Choice = "top",
    seed: int = 0,
    tag: str | None = None,
) -> tuple[Run, MiningReport]:
    """Take hard negatives from a run.

    Args:
        run: what a retriever found for the training queries.
        judgments: what is relevant; a document judged at `positive_grade` or above is never a negative.
        ranks: first and last rank, from 1, counted over the documents that are not positives.
        absolute_margin: negatives score at least this much below the positive.
        relative_margin: the same as a share of the positive's absolute score.
        percent_of_positive: negatives score at most this share of the positive's (0.95 = relative margin 0.05).
        max_score: negatives score at most this (denoising: give a cross-encoder's run as `teacher`).
        min_score: negatives score at least this.
        skip: leave out the first so many of what all other rules left.
        drop_identical_ids: leave out the document that has the query's own id.
        teacher: a run whose scores the margins and limits use in place of `run`'s. Pairs that it lacks are left out and
            counted; it should hold the positives (rerank with `add_positives`).
        reference: which positive's score counts where there are several.
        per_query: how many negatives for a query; None keeps all.
        choice: the first `per_query`, or a random choice among all that are left.
        seed: of the random choice, which for each query depends on nothing but this and its id.
        tag: name of the new run.

    Returns:
        The negatives as a run with the source's scores and the columns `first_rank` (rank in `run`) and, where a
        teacher was given, `teacher` (its scores), so that other limits can be tried without mining again; and the
        report. Queries without negatives are left out.

    Raises:
        ConfigError: settings that contradict each other.
    """
    pool = make_pool(run, judgments, positive_grade=positive_grade, teacher=teacher, reference=reference)
    limits = MiningLimits(
        ranks, absolute_margin, relative_margin, percent_of_positive, max_score, min_score, skip, drop_identical_ids
    )
    rules = limits.filters(with_teacher=teacher is not None)
    mined, report = mine_with(pool, rules, per_query=per_query, choice=choice, seed=seed)
    columns = dict(mined.columns)
    if teacher is None:
        columns.pop("teacher")
    return mined.replace(columns=columns, tag=tag or f"{run.tag}-negatives"), report


def mine_with(
    pool: MiningPool,
    rules: Sequence[MiningFilter],
    *,
    per_query: int | None = None,
    choice: Choice = "top",
    seed: int = 0,
) -> tuple[Run, MiningReport]:
    """Apply `rules` in order to a pool; see `mine`, which makes both. Positives are always removed first."""
    if choice not in ("top", "random"):
        raise ConfigError(f"choice {choice!r}: expected 'top' or 'random'")
    if per_query is not None and per_query < 1:
        raise ConfigError(f"per_query {per_query}: expected at least 1")
    run = pool.run
    alive = np.repeat(pool.judged, np.diff(run.offsets))
    removed = {"query without a positive": int((~alive).sum())}
    for rule in (NotPositive(), *rules):
        kept = alive & rule(pool, alive)
        removed[rule.name] = removed.get(rule.name, 0) + int(alive.sum() - kept.sum())
        alive = kept
    chosen = _choose(pool, alive, per_query, choice, seed)
    removed["more than asked for"] = int(alive.sum() - chosen.sum())
    return _negatives(pool, chosen), _report(pool, chosen, per_query, removed)


def _choose(pool: MiningPool, alive: np.ndarray, per_query: int | None, choice: Choice, seed: int) -> np.ndarray:
    if per_query is None:
        return alive
    if choice == "top":
        return alive & (ranks_within(pool.run, alive) <= per_query)
    chosen = np.zeros_like(alive)
    names = hash_strings(pool.run.qids.array)
    for row in range(len(pool.run)):
        start, stop = int(pool.run.offsets[row]), int(pool.run.offsets[row + 1])
        entries = start + np.flatnonzero(alive[start:stop])
        if len(entries) > per_query:
            generator = np.random.default_rng([seed, int(names[row])])
            entries = generator.choice(entries, size=per_query, replace=False)
        chosen[entries] = True
    return chosen


def _negatives(pool: MiningPool, chosen: np.ndarray) -> Run:
    run = pool.run
    columns: dict[str, Any] = {**run.columns, "first_rank": run.ranks.astype(np.int32), "teacher": pool.scores}
    mined = Run(run.qids, run.offsets, run.vocabulary, run.codes, run.scores, columns, run.order, run.tag).filter(
        chosen
    )
    filled = np.flatnonzero(np.diff(mined.offsets)).astype(np.int64)
    return mined.select(mined.qids.take(filled))


def _report(pool: MiningPool, chosen: np.ndarray, per_query: int | None, removed: dict[str, int]) -> MiningReport:
    counts = np.add.reduceat(np.append(chosen, False), pool.run.offsets[:-1]) if len(pool.run) else np.zeros(0, int)
    counts = np.where(np.diff(pool.run.offsets) > 0, counts, 0)
    return MiningReport(
        queries=len(pool.run),
        queries_without_positives=int((~pool.judged).sum()),
        queries_without_reference=int((pool.judged & np.isnan(pool.reference)).sum()),
        queries_short=int(((counts > 0) & (counts < per_query)).sum()) if per_query is not None else 0,
        queries_empty=int((pool.judged & (counts == 0)).sum()),
        candidates=len(pool.run.codes),
        removed=removed,
        kept=int(chosen.sum()),
    )
