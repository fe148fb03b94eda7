"""Joining runs and judgments by (query, document), in arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from ..errors import DataError
from ..eval.run import Run
from ..ids import Ids

if TYPE_CHECKING:
    from ..eval.judgments import Judgments

__all__ = ["aligned_scores", "one_list_each", "pair_keys", "positive_pairs", "scores_of_pairs"]


def one_list_each(run: Run, purpose: str) -> Run:
    """Return `run`; refuse one that holds several lists for a query."""
    if "list_id" in run.columns:
        raise DataError(
            f"run {run.tag!r} holds several lists for a query (column list_id); {purpose} takes one at a time"
        )
    return run


def pair_keys(run: Run, rows: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """One int64 for each (query row, document code) of `run`; equal keys are equal pairs."""
    return np.asarray(rows, np.int64) * max(len(run.vocabulary), 1) + codes


def positive_pairs(qids: Ids, judgments: Judgments, grade: int = 1) -> tuple[np.ndarray, Ids]:
    """The documents judged at `grade` or above for these queries: query rows (pairs,) int64, and document ids."""
    rows = qids.rows(judgments.qids)[judgments.query_rows]
    wanted = np.flatnonzero((rows >= 0) & (judgments.grades >= grade))
    return rows[wanted], Ids(judgments.documents.take(pa.array(wanted)))


def aligned_scores(run: Run, other: Run) -> np.ndarray:
    """The score that `other` gives to every entry of `run`; NaN where it lacks the pair. (entries,) float32."""
    codes = other.vocabulary.rows(run.vocabulary)[run.codes]
    rows = other.qids.rows(run.qids)[run.query_rows]
    return scores_of_pairs(other, rows, codes)


def scores_of_pairs(source: Run, rows: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Scores of pairs (query row, document code) of `source`; NaN where a part is -1 or the pair is not there."""
    result = np.full(len(rows), np.nan, dtype=np.float32)
    known = pair_keys(source, source.query_rows, source.codes)
    if not len(known):
        return result
    order = np.argsort(known, kind="stable")
    known = known[order]
    asked = np.flatnonzero((rows >= 0) & (codes >= 0))
    keys = pair_keys(source, rows[asked], codes[asked])
    at = np.searchsorted(known, keys)
    hit = (at < len(known)) & (known[np.minimum(at, len(known) - 1)] == keys)
    result[asked[hit]] = source.scores[order[at[hit]]]
    return result
