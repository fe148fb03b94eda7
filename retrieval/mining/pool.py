"""What mining filters see: a run's entries, which of them are positives, and the scores to judge them by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from ...errors import DataError
from ...eval.run import Run
from ...ids import Ids

if TYPE_CHECKING:
    from ...eval.collection import Judgments

__all__ = ["MiningPool", "Reference", "aligned_scores", "make_pool", "ranks_within"]

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
    for given, what in ((run, "the run"), (teacher, "the teacher's run")):
        if given is not None and "list_id" in given.columns:
            raise DataError(
                f"{what} {given.tag!r} holds several lists for a query (column list_id); mine one at a time"
            )
    rows, documents = _positive_pairs(run, judgments, positive_grade)
    positive = np.isin(_pair_keys(run, run.query_rows, run.codes), _known_keys(run, rows, documents))
    source = run if teacher is None else teacher
    found = _scores_of_pairs(
        source, [run.qids[row] for row in np.unique(rows).tolist()], np.unique(rows, return_inverse=True)[1], documents
    )
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


def aligned_scores(run: Run, other: Run) -> np.ndarray:
    """The score that `other` gives to every entry of `run`; NaN where it lacks the pair. (entries,) float32."""
    codes = other.vocabulary.rows(run.vocabulary)[run.codes]
    rows = other.qids.rows(run.qids)[run.query_rows]
    return _lookup(other, rows, codes)


def ranks_within(run: Run, alive: np.ndarray) -> np.ndarray:
    """The rank of each entry among the `alive` (entries,) ones of its query, from 1; meaningless for the others."""
    count = np.concatenate([[0], np.cumsum(alive, dtype=np.int64)])
    return count[1:] - np.repeat(count[run.offsets[:-1]], np.diff(run.offsets))


def _positive_pairs(run: Run, judgments: Judgments, grade: int) -> tuple[np.ndarray, list[str]]:
    """The judged positives of the run's queries: query rows (pairs,) and document ids."""
    rows: list[int] = []
    documents: list[str] = []
    for row, qid in enumerate(run.qids):
        if qid in judgments:
            relevant = judgments.relevant(qid, grade)
            rows.extend([row] * len(relevant))
            documents.extend(relevant)
    return np.asarray(rows, dtype=np.int64), documents


def _pair_keys(run: Run, rows: np.ndarray, codes: np.ndarray) -> np.ndarray:
    return rows * max(len(run.vocabulary), 1) + codes


def _known_keys(run: Run, rows: np.ndarray, documents: list[str]) -> np.ndarray:
    codes = run.vocabulary.rows(documents)
    return _pair_keys(run, rows[codes >= 0], codes[codes >= 0])


def _scores_of_pairs(source: Run, qids: list[str], which: np.ndarray, documents: list[str]) -> np.ndarray:
    """Scores in `source` of pairs (qids[which[i]], documents[i]); NaN where it lacks them."""
    rows = source.qids.rows(Ids(qids))[which] if len(which) else np.zeros(0, np.int64)
    return _lookup(source, rows, source.vocabulary.rows(documents))


def _lookup(source: Run, rows: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Scores of pairs (row, code) of `source`; -1 in either, or no such entry, gives NaN."""
    result = np.full(len(rows), np.nan, dtype=np.float32)
    known = _pair_keys(source, source.query_rows, source.codes)
    order = np.argsort(known, kind="stable")
    known = known[order]
    asked = np.flatnonzero((rows >= 0) & (codes >= 0))
    keys = _pair_keys(source, rows[asked], codes[asked])
    at = np.searchsorted(known, keys)
    hit = (at < len(known)) & (known[np.minimum(at, max(len(known) - 1, 0))] == keys) if len(known) else at < 0
    result[asked[hit]] = source.scores[order[at[hit]]]
    return result


def _reference(queries: int, rows: np.ndarray, scores: np.ndarray, choice: Reference) -> np.ndarray:
    """The lowest or highest score for each query; NaN where there is none. (queries,) float32."""
    scored = ~np.isnan(scores)
    worst = np.inf if choice == "min" else -np.inf
    result = np.full(queries, worst, dtype=np.float32)
    (np.minimum if choice == "min" else np.maximum).at(result, rows[scored], scores[scored])
    result[~np.isfinite(result)] = np.nan
    return result
