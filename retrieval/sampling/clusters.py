"""Clusters of queries: the value, and its file of one cluster a line.

The file is the one that TAS-B's authors publish: the ids of a cluster's queries on one line, separated by white space;
the line's number is the cluster's. An empty line is an empty cluster. Files that end in .csv or .csv.gz separate their
ids by commas.
"""

from __future__ import annotations

import gzip
import logging
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

import numpy as np

from ...errors import DataError
from ...files import atomic_path
from ...ids import Ids

__all__ = ["ClusterSizes", "Clusters", "read_clusters", "write_clusters"]

_LOG = logging.getLogger(__name__)
_EXAMPLES = 5

Unknown = Literal["error", "count"]


@dataclass(frozen=True)
class ClusterSizes:
    """How queries spread over clusters. `smallest` and `median` are over the clusters that are not empty."""

    clusters: int
    queries: int
    empty: int
    smallest: int
    median: float
    largest: int

    def __str__(self) -> str:
        return (
            f"{self.queries} queries in {self.clusters} clusters of {self.smallest} to {self.largest} queries "
            f"(median {self.median:g}), {self.empty} empty"
        )


@dataclass(frozen=True)
class Clusters:
    """Queries by cluster.

    Attributes:
        ids: (n,) query ids, cluster after cluster.
        offsets: (k + 1,) int64; cluster c holds ids[offsets[c]:offsets[c + 1]].
        unknown: ids that the file had and the queries did not; they are left out.
    """

    ids: Ids
    offsets: np.ndarray
    unknown: int = 0

    @classmethod
    def from_assignment(cls, ids: Ids, assignment: np.ndarray, clusters: int, *, unknown: int = 0) -> Clusters:
        """Clusters from the number of each query's cluster; members keep the order of `ids`.

        Args:
            ids: (n,) query ids.
            assignment: (n,) int, each in [0, clusters).
        """
        order = np.argsort(assignment, kind="stable")
        counts = np.bincount(assignment, minlength=clusters)
        return cls(Ids(ids.take(order)), np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), unknown)

    def __len__(self) -> int:
        """The number of clusters, empty ones included."""
        return len(self.offsets) - 1

    def __getitem__(self, number: int, /) -> list[str]:
        """The query ids of one cluster."""
        if not 0 <= number < len(self):
            raise IndexError(number)
        return list(self.ids[int(self.offsets[number]) : int(self.offsets[number + 1])])

    def __iter__(self) -> Iterator[list[str]]:
        return (self[number] for number in range(len(self)))

    def numbers(self) -> np.ndarray:
        """The cluster of each of `ids`. (n,) int64."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    def assignment(self, ids: Ids) -> np.ndarray:
        """The cluster of each query, -1 for one that is in none. (len(ids),) int64."""
        rows = self.ids.rows(ids)
        return np.where(rows >= 0, self.numbers()[np.maximum(rows, 0)], -1) if len(self.ids) else rows

    def sizes(self) -> ClusterSizes:
        """The report that a user should see."""
        counts = np.diff(self.offsets)
        there = counts[counts > 0]
        return ClusterSizes(
            clusters=len(self),
            queries=len(self.ids),
            empty=int((counts == 0).sum()),
            smallest=int(there.min()) if len(there) else 0,
            median=float(np.median(there)) if len(there) else 0.0,
            largest=int(counts.max(initial=0)),
        )


def write_clusters(clusters: Clusters, path: str | Path) -> None:
    """Write the published format, atomically; compressed where the name ends in .gz.

    Raises:
        DataError: an id with white space (or, in a .csv, a comma), which the format cannot hold.
    """
    separator = "," if _by_commas(path) else None
    with atomic_path(path) as temporary, ExitStack() as stack:
        handle: IO[bytes] = stack.enter_context(open(temporary, "wb"))
        if temporary.suffix == ".gz":  # no name and no time: equal clusters give equal files
            handle = stack.enter_context(gzip.GzipFile(filename="", mode="wb", fileobj=handle, mtime=0))  # type: ignore[assignment]
        for ids in clusters:
            line = (separator or " ").join(ids)
            if (line.split(separator) if line else []) != ids:
                bad = next(name for name in ids if name.split(separator) != [name])
                raise DataError(f"query id {bad!r} cannot stand in a file of clusters: it holds a separator")
            handle.write(line.encode() + b"\n")


def read_clusters(path: str | Path, known: Ids | None = None, *, unknown: Unknown = "error") -> Clusters:
    """Read one cluster a line.

    Args:
        path: the file; .gz is decompressed.
        known: the ids of the queries to be clustered; None takes whatever the file has.
        unknown: an id that is not among `known` is an error, or is left out and counted.

    Raises:
        DataError: no UTF-8, no id at all, an id that stands twice, an unknown id; with the line.
    """
    path = Path(path)
    separator = "," if _by_commas(path) else None
    names: list[str] = []
    counts: list[int] = []
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else open(path, encoding="utf-8") as lines:
            for line in lines:
                ids = [name.strip() for name in line.strip().split(separator)] if line.strip() else []
                names += ids
                counts.append(len(ids))
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError) as error:
        raise DataError(f"not readable as clusters, one line of query ids each: {error}", path=path) from error
    if not names:
        raise DataError("holds no query id; expected one cluster of query ids a line", path=path)
    found = Clusters(Ids(names), np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))
    _refuse_twice(found, path)
    return found if known is None else _restrict(found, known, unknown, path)


def _by_commas(path: str | Path) -> bool:
    return Path(path).name.removesuffix(".gz").endswith(".csv")


def _refuse_twice(clusters: Clusters, path: Path) -> None:
    found = clusters.ids.first_duplicate()
    if found is not None:
        first, again = (int(clusters.numbers()[row]) + 1 for row in found)
        raise DataError(
            f"query {clusters.ids[found[1]]!r} stands here and in line {first}; a query belongs to one cluster",
            path=path,
            line=again,
        )


def _restrict(clusters: Clusters, known: Ids, unknown: Unknown, path: Path) -> Clusters:
    """Only the known queries; cluster numbers stay."""
    rows = known.rows(clusters.ids)
    strange = np.flatnonzero(rows < 0)
    if not len(strange):
        return clusters
    numbers = clusters.numbers()
    named = ", ".join(repr(clusters.ids[int(row)]) for row in strange[:_EXAMPLES])
    if unknown == "error" or len(strange) == len(rows):
        raise DataError(
            f"{len(strange)} of {len(rows)} query ids are unknown "
            f"({named}{', …' if len(strange) > _EXAMPLES else ''}); the clusters must be of "
            "these queries. Where the file covers more queries than the split, "
            "sampling.unknown_queries: count leaves the others out.",
            path=path,
            line=int(numbers[strange[0]]) + 1,
        )
    _LOG.warning("%s: %d of %d query ids are unknown and left out (%s …)", path, len(strange), len(rows), named)
    kept = np.flatnonzero(rows >= 0)
    counts = np.bincount(numbers[kept], minlength=len(clusters))
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return Clusters(Ids(clusters.ids.take(kept)), offsets, unknown=len(strange))
