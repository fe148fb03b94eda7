"""Documents that say what the query says: no answers to it, and no negatives of it either."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ...ids import Ids, hash_strings

if TYPE_CHECKING:
    from ...eval.collection import Queries
    from ...eval.documents import Documents
    from ...eval.run import Run
    from .pool import MiningPool

__all__ = ["IdenticalTexts"]

_BLOCK = 8192


class IdenticalTexts:
    """Not a document whose text is the query's own, blanks around it apart (KaLM; collections of paraphrases).

    Args:
        queries: the run's queries among others.
        documents: the collection's. A document's text is its title and text joined.
    """

    name = "identical text"

    def __init__(self, queries: Queries, documents: Documents) -> None:
        self._queries, self._documents = queries, documents
        self._last: tuple[Run, np.ndarray] | None = None

    def __call__(self, pool: MiningPool, alive: np.ndarray, /) -> np.ndarray:
        if self._last is None or self._last[0] is not pool.run:  # several references ask about one run
            self._last = pool.run, self._copies(pool.run)
        return ~self._last[1]

    def _copies(self, run: Run) -> np.ndarray:
        """(entries,) bool."""
        places = self._queries.ids.rows(run.qids)
        asked = [self._queries.texts[place].strip() if place >= 0 else "" for place in places.tolist()]
        used, codes = np.unique(run.codes, return_inverse=True)
        rows = self._documents.rows(Ids(run.vocabulary.take(used)))
        hashes = np.zeros(len(used), np.uint64)
        known = np.flatnonzero(rows >= 0)
        for start in range(0, len(known), _BLOCK):
            block = known[start : start + _BLOCK]
            hashes[block] = hash_strings(Ids(text.strip() for text in self._documents.texts(rows[block])).array)
        owners = run.query_rows
        alike = (places[owners] >= 0) & (rows[codes] >= 0)
        alike &= hashes[codes] == hash_strings(Ids(asked).array)[owners]
        for entry in np.flatnonzero(alike).tolist():  # few; a hash is no proof
            text = self._documents.texts([int(rows[codes[entry]])])[0]
            alike[entry] = text.strip() == asked[int(owners[entry])]
        return alike
