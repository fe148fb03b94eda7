"""Looking over teachers' scores before anything is trained on them."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np

from ...errors import DataError
from ..sampling.margin_balanced import teacher_names

if TYPE_CHECKING:
    from .examples import TrainingTable

__all__ = ["check_teachers", "missing_examples"]

_LOG = logging.getLogger(__name__)
_EXAMPLES = 3


def check_teachers(table: TrainingTable, *, most_missing: float = 0.05) -> None:
    """Refuse a teacher that left too many documents unscored, and warn of scores that were squashed.

    Args:
        most_missing: the largest share of the table's (query, document) entries that may be unscored.

    Raises:
        DataError: more are; with examples.
    """
    for name in teacher_names(table):
        scores = table.scores[name]
        missing = int(np.isnan(scores).sum())
        if missing > most_missing * len(scores):
            raise DataError(
                f"{table.name}: teacher {name!r} has no score for {missing} of {len(scores)} documents "
                f"({missing / len(scores):.1%}), such as {missing_examples(table, name)}. Score the positives and the "
                "negatives that are trained on, or allow more by data.max_missing_scores (unscored ones leave the loss)"
            )
        if missing < len(scores) and _squashed(scores):
            _LOG.warning(
                "%s: all scores of teacher %r lie within 0 and 1, as if a sigmoid had squashed them: margins between "
                "good and very good documents are lost. Give raw logits where the teacher has them",
                table.name,
                name,
            )


def _squashed(scores: np.ndarray) -> bool:
    return bool(np.nanmin(scores) >= 0) and bool(np.nanmax(scores) <= 1)


def missing_examples(table: TrainingTable, teacher: str) -> str:
    """The first unscored entries, by id."""
    places = np.flatnonzero(np.isnan(table.scores[teacher]))[:_EXAMPLES]
    rows = np.searchsorted(table.offsets, places, side="right") - 1
    documents = table.documents.ids.take(table.entries[places])
    return ", ".join(
        f"query {qid!r} document {document!r}" for qid, document in zip(table.qids(rows), documents, strict=True)
    )
