"""Random documents for lists that mining left short: asked for, marked and counted, never taken for mined ones.

The published code of KaLM pads in silence, and its random texts may be the positive itself or repeat a mined negative.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ...eval.run import Run
from ...ids import Ids, hash_strings
from ..pairs import positive_pairs

if TYPE_CHECKING:
    from ...eval.judgments import Judgments

__all__ = ["Padding", "pad"]

_STREAM = 1  # of random numbers, apart from the random choice


@dataclass(frozen=True)
class Padding:
    """How lists are filled.

    Attributes:
        documents: what is drawn from.
        per_query: how long lists become.
        seed: a query's draws depend on nothing but this, its id, and what was found for it.
        drop_identical_ids: never the document that has the query's own id.
    """

    documents: Ids
    per_query: int
    seed: int = 0
    drop_identical_ids: bool = False


def pad(
    mined: Run, found: Run, fillable: np.ndarray, padding: Padding, judgments: Judgments, positive_grade: int = 1
) -> tuple[Run, np.ndarray]:
    """Fill the lists of `mined` with documents that are neither in `found` for the query nor its positives.

    Args:
        mined: the negatives.
        found: the run that they were taken from.
        fillable: (queries of `found`,) bool, which queries may get any.
        padding: from what, and how many.

    Returns:
        The run with a column `padded` (int8), in which random documents stand below all mined ones, have `first_rank` 0
        and no teacher score; and how many each query of `found` got, (queries,) int64. A collection too small leaves
        lists short.
    """
    taken = _Taken(found, padding, judgments, positive_grade)
    counts = np.zeros(len(found), np.int64)
    rows = found.qids.rows(mined.qids)
    counts[rows] = np.diff(mined.offsets)
    lowest = np.zeros(len(found), np.float64)
    ends = found.offsets[1:] - 1
    filled = np.diff(found.offsets) > 0
    lowest[filled] = found.scores[ends[filled]] if found.order == "score" else _lowest(found)[filled]
    added, of = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for row in np.flatnonzero(fillable & (counts < padding.per_query)).tolist():
        drawn = taken.draw(row, padding.per_query - int(counts[row]))
        added.append(drawn)
        of.append(np.full(len(drawn), row, np.int64))
    return _joined(mined, found, padding.documents, (np.concatenate(of), np.concatenate(added)), lowest)


class _Taken:
    """Which rows of the documents a query may not get."""

    def __init__(self, found: Run, padding: Padding, judgments: Judgments, positive_grade: int) -> None:
        self.found, self.padding = found, padding
        self._of_codes = padding.documents.rows(found.vocabulary)
        owners, documents = positive_pairs(found.qids, judgments, positive_grade)
        order = np.argsort(owners, kind="stable")
        self._owners, self._positives = owners[order], padding.documents.rows(documents)[order]
        self._own = padding.documents.rows(found.qids) if padding.drop_identical_ids else None
        self._names = hash_strings(found.qids.array)

    def draw(self, row: int, wanted: int) -> np.ndarray:
        """Document rows, up to `wanted` of them."""
        first, last = np.searchsorted(self._owners, [row, row + 1])
        part = slice(int(self.found.offsets[row]), int(self.found.offsets[row + 1]))
        forbidden = np.concatenate([self._of_codes[self.found.codes[part]], self._positives[first:last]])
        if self._own is not None:
            forbidden = np.append(forbidden, self._own[row])
        forbidden = np.unique(forbidden[forbidden >= 0])
        size = len(self.padding.documents)
        free = size - len(forbidden)
        generator = np.random.default_rng([self.padding.seed, int(self._names[row]), _STREAM])
        places = generator.choice(free, size=min(wanted, free), replace=False)
        return places + np.searchsorted(forbidden - np.arange(len(forbidden)), places, side="right")


def _lowest(run: Run) -> np.ndarray:
    """The lowest score of each list; 0 for an empty one. (queries,) float64."""
    lowest = np.full(len(run), np.inf)
    np.minimum.at(lowest, run.query_rows, run.scores)
    return np.where(np.isfinite(lowest), lowest, 0.0)


def _joined(
    mined: Run, found: Run, documents: Ids, added: tuple[np.ndarray, np.ndarray], lowest: np.ndarray
) -> tuple[Run, np.ndarray]:
    """`mined` and the added (query rows of `found`, document rows), as one run."""
    owners, rows = added
    place = np.arange(len(owners)) - np.searchsorted(owners, owners)
    used, codes = np.unique(rows, return_inverse=True)
    names = Ids(documents.take(used))
    new = np.flatnonzero(mined.vocabulary.rows(names) < 0)
    vocabulary = Ids([*mined.vocabulary, *names.take(new)])
    queries = np.concatenate([found.qids.rows(mined.qids)[mined.query_rows], owners])
    entries = np.concatenate([mined.codes, vocabulary.rows(names)[codes]])
    step = np.maximum(np.abs(lowest[owners]) * 1e-3, 1.0)  # so large that float32 keeps the places apart
    scores = np.concatenate([mined.scores, (lowest[owners] - (place + 1) * step).astype(np.float32)])
    missing = {"first_rank": 0, "teacher": np.nan}
    columns = {
        name: np.concatenate([values, np.full(len(owners), missing.get(name, 0), values.dtype)])
        for name, values in mined.columns.items()
    }
    columns["padded"] = np.repeat(np.array([0, 1], np.int8), [len(mined.codes), len(owners)])
    order = np.lexsort([np.arange(len(queries)), queries])
    counts = np.bincount(queries, minlength=len(found))
    kept = np.flatnonzero(counts).astype(np.int64)
    run = Run.from_codes(
        Ids(found.qids.take(kept)), np.concatenate([[0], np.cumsum(counts[kept])]), vocabulary, entries[order],
        scores[order], columns={name: values[order] for name, values in columns.items()}, order=mined.order,
        tag=mined.tag,
    )  # fmt: skip
    return run, np.bincount(owners, minlength=len(found))
