"""The candidate lists of a reranking: what goes to the reranker, what stays below it, and the run that comes of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from ...eval.run import Run
from ...ids import Ids
from ..pairs import pair_keys, scores_of_pairs
from .part import Finished

__all__ = ["CandidateLists", "candidate_lists", "strictly_falling"]

_TOP, _ADDED, _BELOW = 0, 1, 2


@dataclass(frozen=True, eq=False)
class CandidateLists:
    """Every query's documents in first-stage order: the candidates, added positives behind them, then the rest.

    Attributes:
        qids: the queries.
        offsets: (queries + 1,) int64 bounds of each query's entries.
        counts: (queries,) int64, how many of a query's entries are candidates; they come first.
        vocabulary: document ids.
        codes: (entries,) int32 into `vocabulary`.
        first_rank: (entries,) int32, the rank in the first stage's run; 0 where it lacks the document.
        first_score: (entries,) float32, NaN where it lacks the document.
        added: (entries,) bool, a judged positive that was not among the first `depth`.
        tag: the first stage's tag.
    """

    qids: Ids
    offsets: np.ndarray
    counts: np.ndarray
    vocabulary: Ids
    codes: np.ndarray
    first_rank: np.ndarray
    first_score: np.ndarray
    added: np.ndarray
    tag: str

    def candidates(self, row: int) -> tuple[list[str], np.ndarray]:
        """Ids and first-stage scores of a query's candidates.

        A positive that the first stage lacks has no score; it gets the lowest of the list.
        """
        part = slice(int(self.offsets[row]), int(self.offsets[row] + self.counts[row]))
        scores = self.first_score[part]
        known = scores[~np.isnan(scores)]
        return self.vocabulary.take(self.codes[part]), np.where(
            np.isnan(scores), known.min() if len(known) else np.float32(0), scores
        )

    def to_run(self, finished: list[Finished], *, keep_below: bool, raw: bool, tag: str) -> Run:
        """The reranked run.

        Scores are the reranker's, with ties (and the documents below) moved down by the smallest steps of float32, so
        that every reader finds the order that the reranker gave; `raw` keeps the values themselves.
        """
        permutation = np.arange(len(self.codes), dtype=np.int64)
        scores = np.full(len(self.codes), np.nan, dtype=np.float32)
        values = np.full(len(self.codes), np.nan, dtype=np.float32)
        calibrated = np.zeros(len(self.codes), dtype=bool)
        for each in finished:
            start, count = int(self.offsets[each.row]), int(self.counts[each.row])
            part = slice(start, start + count)
            permutation[part] = start + each.order
            values[part] = np.nan if each.raw is None else each.raw
            calibrated[part] = each.calibrated
            whole = slice(start, int(self.offsets[each.row + 1]))
            scores[whole] = _with_tail(each.scores, int(self.offsets[each.row + 1]) - start - count)
        columns: dict[str, np.ndarray] = {}
        if raw:
            columns = {"raw": values, "first_rank": self.first_rank[permutation],
                       "first_score": self.first_score[permutation], "calibrated": calibrated}  # fmt: skip
        if self.added.any():
            columns["added"] = self.added[permutation]
        run = Run.from_codes(self.qids, self.offsets, self.vocabulary, self.codes[permutation], scores,
                             columns=columns, order="score", tag=tag)  # fmt: skip
        return run if keep_below else run.filter(run.ranks <= np.repeat(self.counts, np.diff(self.offsets)))


def candidate_lists(run: Run, depth: int, *, positives: tuple[np.ndarray, Ids] | None = None) -> CandidateLists:
    """Cut a run into candidates and the rest.

    Args:
        run: the first stage's.
        depth: how many documents of each query are candidates.
        positives: query rows (pairs,) and document ids that must be candidates too (`positive_pairs`).
    """
    rows, codes, ranks, scores = run.query_rows, run.codes, run.ranks, run.scores
    group = np.where(ranks <= depth, _TOP, _BELOW)
    vocabulary = run.vocabulary
    if positives is not None:
        vocabulary, wanted = _extended(vocabulary, positives[1])
        wide = Run(run.qids, run.offsets, vocabulary, codes, scores)
        keys = pair_keys(wide, positives[0], wanted)
        group[(group == _BELOW) & np.isin(pair_keys(wide, rows, codes), keys)] = _ADDED
        missed = np.isnan(scores_of_pairs(wide, positives[0], wanted))
        new = int(missed.sum())
        rows, codes = np.append(rows, positives[0][missed]), np.append(codes, wanted[missed].astype(np.int32))
        ranks, scores = np.append(ranks, np.zeros(new, np.int64)), np.append(scores, np.full(new, np.nan, np.float32))
        group = np.append(group, np.full(new, _ADDED))
    order = np.lexsort([np.where(ranks == 0, np.iinfo(np.int64).max, ranks), group, rows])
    group, rows = group[order], rows[order]
    lengths = np.bincount(rows, minlength=len(run))
    return CandidateLists(
        run.qids, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        np.bincount(rows[group != _BELOW], minlength=len(run)).astype(np.int64), vocabulary, codes[order],
        ranks[order].astype(np.int32), scores[order].astype(np.float32), group == _ADDED, run.tag,
    )  # fmt: skip


def strictly_falling(scores: np.ndarray) -> np.ndarray:
    """The scores (n,) float32, finite, with each that is not below its predecessor lowered to the next float32 below.

    Worked on the integers that order float32 numbers as the numbers themselves are ordered.
    """
    bits = (np.asarray(scores, dtype=np.float32) + np.float32(0)).view(np.int32).astype(np.int64)  # + 0: -0.0 is 0.0
    keys = np.where(bits >= 0, bits, -(bits & 0x7FFFFFFF))
    steps = np.arange(len(keys))
    keys = np.minimum.accumulate(keys + steps) - steps
    bits = np.where(keys >= 0, keys, -keys | 0x80000000).astype(np.uint32)
    return bits.view(np.float32)


def _with_tail(scores: np.ndarray, below: int) -> np.ndarray:
    """`scores` followed by `below` ever lower ones, strictly falling."""
    lowest = scores[-1] if len(scores) else np.float32(0)
    tail = (lowest - np.arange(1, below + 1)).astype(np.float32)
    return strictly_falling(np.concatenate([scores, tail]))


def _extended(vocabulary: Ids, documents: Ids) -> tuple[Ids, np.ndarray]:
    """The vocabulary with the documents it lacks, and the code of each document."""
    codes = vocabulary.rows(documents)
    new = documents.array.take(pa.array(np.flatnonzero(codes < 0))).unique()
    if len(new):
        vocabulary = Ids(pa.concat_arrays([vocabulary.array, new]))
        codes = vocabulary.rows(documents)
    return vocabulary, codes
