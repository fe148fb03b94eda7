"""Candidates straight from an index: the training queries searched as deep as mining will look."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..pairs import positive_pairs
from ..search import excluded_documents

if TYPE_CHECKING:
    from ...eval.collection import Collection
    from ...eval.judgments import Judgments
    from ...eval.run import Run
    from ...ids import Ids
    from ..search import Retriever

__all__ = ["needed_depth", "search_candidates"]


def needed_depth(
    qids: Ids, judgments: Judgments, *, ranks: tuple[int, int], consistency_rank: int | None, positive_grade: int = 1
) -> int:
    """How deep lists must be so that the rank window is full: positives stand in them too, and are not counted."""
    rows, _ = positive_pairs(qids, judgments, positive_grade)
    most = int(np.bincount(rows, minlength=1).max())
    return max(ranks[1] + most, (consistency_rank or 0) + 1)


def search_candidates(
    retriever: Retriever,
    collection: Collection,
    split: str,
    *,
    ranks: tuple[int, int] = (1, 200),
    depth: int | None = None,
    consistency_rank: int | None = None,
    positive_grade: int = 1,
    tag: str | None = None,
) -> Run:
    """Search a split's queries for `mine`.

    Args:
        retriever: what is searched.
        collection, split: the queries; documents that the collection's conventions exclude are not found.
        ranks, consistency_rank, positive_grade: as for `mine`; they decide the depth.
        depth: search to here in place of that.
        tag: the run's name.
    """
    queries, judgments = collection.queries(split), collection.judgments(split)
    if depth is None:
        depth = needed_depth(
            queries.ids, judgments, ranks=ranks, consistency_rank=consistency_rank, positive_grade=positive_grade
        )
    depth = min(depth, len(retriever.ids))
    return retriever.run(queries, depth, tag=tag, exclude=excluded_documents(collection, queries))
