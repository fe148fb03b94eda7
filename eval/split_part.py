"""A share of a split, written `train[:90%]`: development queries for a collection that comes without any."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from ..errors import DataError
from .judgments import Judgments

__all__ = ["SplitPart", "parse_split"]

_WRITTEN = re.compile(r"(?P<split>.+)\[(?:(?P<first>\d+)%)?:(?:(?P<last>\d+)%)?\]")


@dataclass(frozen=True)
class SplitPart:
    """From `first` to `last` per cent of a split's queries, in the order of a hash of their ids.

    The order is the same on every machine and has nothing to do with that of the file, in which neighbours are often
    alike, so that `[:90%]` and `[90%:]` are fair samples and never share a query.
    """

    first: int
    last: int

    def select(self, judgments: Judgments) -> Judgments:
        """The judgments of these queries, in the order of `judgments`."""
        qids = list(judgments.qids)
        order = sorted(range(len(qids)), key=lambda row: (hashlib.sha256(qids[row].encode()).digest(), row))
        bounds = (len(qids) * self.first // 100, len(qids) * self.last // 100)
        return judgments.select([qids[row] for row in sorted(order[slice(*bounds)])])


def parse_split(written: str) -> tuple[str, SplitPart | None]:
    """The split's name, and which part of it is meant; None is all of it.

    Raises:
        DataError: brackets that are no share, or one that is empty whatever the split.
    """
    if not written.endswith("]"):
        return written, None
    match = _WRITTEN.fullmatch(written)
    if match is None:
        raise DataError(f"split {written!r}: a part of a split is written as in 'train[:90%]' or 'train[90%:]'")
    part = SplitPart(int(match["first"] or 0), int(match["last"] or 100))
    if not part.first < part.last <= 100:
        raise DataError(
            f"split {written!r}: from {part.first}% to {part.last}% there is nothing; 0 <= from < to <= 100"
        )
    return match["split"], part
