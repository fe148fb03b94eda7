"""What mining filters see: a run's entries, which of them are positives, and the scores to judge them by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from ...eval.run import Run
from ..pairs import aligned_scores, one_list_each, pair_keys, positive_pairs, scores_of_pairs

if TYPE_CHECKING:
    from ...eval.judgments import Judgments

__all__ = ["MiningPool", "OwnPositives", "Reference", "make_pool", "own_positives", "pseudo_positives", "ranks_within"]

Reference = Literal["min", "max", "own"]


@dataclass(frozen=True, eq=False)
class MiningPool:
    """The entries of a run, flat over queries, with what filters decide by.

    Attributes:
        run: where candidates come from.
        positive: (entries,) bool, judged at or above the positive grade for the entry's query.
        judged: (queries,) bool, whether the query has a positive in the judgments at all.
        scores: (entries,) float32, the scores to filter by: the teacher's where there is one (NaN where it did not
            score the pair), else the run's.
        reference: (queries,) float32, the score of the query's positives (lowest or highest of those that were scored);
            NaN where none was.
        ranks: (entries,) int64 from 1, counted over the query's entries that are not positives; 0 for positives.
        best: (queries,) float32, the highest score of the query's positives; NaN where none was scored.
    """

    run: Run
    positive: np.ndarray
    judged: np.ndarray
    scores: np.ndarray
    reference: np.ndarray
    ranks: np.ndarray
    best: np.ndarray

    @property
    def entry_reference(self) -> np.ndarray:
        """`reference` repeated for every entry. (entries,) float32."""
        return np.repeat(self.reference, np.diff(self.run.offsets))


@dataclass(frozen=True, eq=False)
class OwnPositives:
    """The scored positives of every query, in the order of the judgments.

    Attributes:
        counts: (queries,) int64, how many.
        scores: (positives,) float32, query by query.
    """

    counts: np.ndarray
    scores: np.ndarray

    @property
    def most(self) -> int:
        return int(self.counts.max(initial=0))

    def numbered(self, number: int) -> np.ndarray:
        """The score of each query's positive `number` (from 0); NaN where it has not so many. (queries,) float32."""
        return self.scores_of(np.arange(len(self.counts)), np.full(len(self.counts), number))

    def scores_of(self, rows: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """The same for pairs of query row and number. (pairs,) float32."""
        starts = np.cumsum(self.counts) - self.counts
        there = numbers < self.counts[rows]
        result = np.full(len(rows), np.nan, np.float32)
        result[there] = self.scores[(starts[rows] + numbers)[there]]
        return result


def own_positives(
    pool: MiningPool, judgments: Judgments, *, positive_grade: int = 1, teacher: Run | None = None
) -> OwnPositives:
    """The score of each positive by itself, where the pool's `reference` has one a query."""
    source = pool.run if teacher is None else raw_scores(teacher)
    rows, documents = positive_pairs(pool.run.qids, judgments, positive_grade)
    found = scores_of_pairs(source, source.qids.rows(pool.run.qids)[rows], source.vocabulary.rows(documents))
    order = np.argsort(rows, kind="stable")
    scored = order[~np.isnan(found[order])]
    return OwnPositives(np.bincount(rows[scored], minlength=len(pool.run)), found[scored])


def pseudo_positives(
    run: Run,
    judgments: Judgments,
    *,
    score: float,
    teacher: Run | None = None,
    ranks: tuple[int, int] = (1, 200),
    positive_grade: int = 1,
    tag: str | None = None,
) -> Run:
    """What a teacher holds relevant though nobody judged it so: the upper threshold of RocketQA's denoising.

    Args:
        run: what a retriever found.
        judgments: what is relevant; judged documents of any grade are left out, their grade is known.
        score: pseudo-positives score at least this.
        teacher: a run whose scores count in place of `run`'s.
        ranks: first and last rank, counted over the documents that are not positives.
        tag: name of the new run.

    Returns:
        A run of the pseudo-positives, with the scores that were held against `score`, for queries that have any.
    """
    pool = make_pool(run, judgments, positive_grade=positive_grade, teacher=teacher)
    rows, documents = positive_pairs(run.qids, judgments, np.iinfo(np.int32).min)
    codes = run.vocabulary.rows(documents)
    judged = np.isin(pair_keys(run, run.query_rows, run.codes), pair_keys(run, rows[codes >= 0], codes[codes >= 0]))
    keep = (pool.scores >= np.float32(score)) & ~judged & (pool.ranks >= ranks[0]) & (pool.ranks <= ranks[1])
    columns = {**run.columns, "first_rank": run.ranks.astype(np.int32)}
    chosen = Run(run.qids, run.offsets, run.vocabulary, run.codes, pool.scores, columns, "rank", run.tag).filter(keep)
    filled = chosen.select(chosen.qids.take(np.flatnonzero(np.diff(chosen.offsets)).astype(np.int64)))
    return Run.from_codes(
        filled.qids, filled.offsets, filled.vocabulary, filled.codes, filled.scores, columns=filled.columns,
        tag=tag or f"{run.tag}-positives",
    )  # fmt: skip


def make_pool(
    run: Run,
    judgments: Judgments,
    *,
    positive_grade: int = 1,
    teacher: Run | None = None,
    reference: Reference = "min",
) -> MiningPool:
    """Mark the positives of `run` and find the score that negatives are held against.

    With several positives the lowest found is the reference by default, as sentence-transformers takes it; the highest
    is the laxer choice. A positive that was not scored counts for nothing here.
    """
    teacher = None if teacher is None else raw_scores(teacher)
    source = one_list_each(run if teacher is None else teacher, "mining")
    rows, documents = positive_pairs(one_list_each(run, "mining").qids, judgments, positive_grade)
    codes = run.vocabulary.rows(documents)
    known = pair_keys(run, rows[codes >= 0], codes[codes >= 0])
    positive = np.isin(pair_keys(run, run.query_rows, run.codes), known)
    found = scores_of_pairs(source, source.qids.rows(run.qids)[rows], source.vocabulary.rows(documents))
    judged = np.zeros(len(run), dtype=bool)
    judged[rows] = True
    return MiningPool(
        run,
        positive,
        judged,
        run.scores if teacher is None else aligned_scores(run, teacher),
        _reference(len(run), rows, found, reference),
        np.where(positive, 0, ranks_within(run, ~positive)),
        _reference(len(run), rows, found, "max"),
    )


def raw_scores(teacher: Run) -> Run:
    """A teacher's run by its column `raw`, where a reranker's order needed other scores; without what has none."""
    if "raw" not in teacher.columns:
        return teacher
    known = teacher.filter(~np.isnan(np.asarray(teacher.columns["raw"], np.float32)))
    return known.replace(scores=np.asarray(known.columns["raw"], np.float32), columns={})


def ranks_within(run: Run, alive: np.ndarray) -> np.ndarray:
    """The rank of each entry among the `alive` (entries,) ones of its query, from 1; meaningless for the others."""
    count = np.concatenate([[0], np.cumsum(alive, dtype=np.int64)])
    return count[1:] - np.repeat(count[run.offsets[:-1]], np.diff(run.offsets))


def _reference(queries: int, rows: np.ndarray, scores: np.ndarray, choice: Reference) -> np.ndarray:
    """The lowest or highest score for each query; NaN where there is none. (queries,) float32."""
    scored = ~np.isnan(scores)
    worst = np.inf if choice == "min" else -np.inf
    result = np.full(queries, worst, dtype=np.float32)
    (np.minimum if choice == "min" else np.maximum).at(result, rows[scored], scores[scored])
    result[~np.isfinite(result)] = np.nan
    return result
