"""What mining filters see: a run's entries, which of them are positives, and the scores to judge them by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from ...eval.run import Run
from ..pairs import aligned_scores, one_list_each, pair_keys, positive_pairs, scores_of_pairs

if TYPE_CHECKING:
    from ...eval.judgments import Judgments

__all__ = ["MiningPool", "Reference", "make_pool", "ranks_within"]

Reference = Literal["min", "max"]


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
    """

    run: Run
    positive: np.ndarray
    judged: np.ndarray
    scores: np.ndarray
    reference: np.ndarray
    ranks: np.ndarray

    @property
    def entry_reference(self) -> np.ndarray:
        """`reference` repeated for every entry. (entries,) float32."""
        return np.repeat(self.reference, np.diff(self.run.offsets))


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
    )


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
