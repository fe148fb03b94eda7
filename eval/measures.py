"""Evaluating a run: measures by ir-measures' names, one rule for ties, every judged query counted."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from ..errors import ConfigError, DataError, nearest
from ..ids import Ids
from ..progress import task
from .measure_names import Group, canonical, group_measures, parse_measures, totals
from .pairs import PairTable, places_of
from .run import Run

if TYPE_CHECKING:
    from ir_measures import Measure

    from .collection import Conventions
    from .judgments import Judgments

__all__ = ["Evaluation", "evaluate"]

log = logging.getLogger(__name__)

_BLOCK = 1 << 18  # entries that exist as Python dictionaries at any moment


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Per-query values of some measures over the judged queries, and what was counted on the way.

    Attributes:
        name: the run's tag.
        qids: the judged queries, in the judgments' order.
        values: by measure name, (queries,) float64; 0 where the run lacks the query.
        missing: judged queries that the run lacks (or has no document for).
        unjudged: queries of the run without judgments, which are ignored.
        dropped: entries that the conventions removed (identical ids, excluded documents).
    """

    name: str
    qids: Ids
    values: Mapping[str, np.ndarray]
    missing: int = 0
    unjudged: int = 0
    dropped: int = 0
    conventions: Mapping[str, Any] = field(default_factory=dict)

    @property
    def judged(self) -> int:
        """The number of judged queries, over which means are taken."""
        return len(self.qids)

    @property
    def measures(self) -> tuple[str, ...]:
        return tuple(self.values)

    @property
    def means(self) -> dict[str, float]:
        """By measure, the mean over all judged queries (the sum for counts such as NumRet)."""
        return {name: self.mean(name) for name in self.values}

    def __getitem__(self, measure: str) -> np.ndarray:
        """The per-query values of a measure, by any spelling of its name. (queries,) float64."""
        name = measure if measure in self.values else canonical(measure)
        if name not in self.values:
            raise ConfigError(f"{self.name} was not evaluated by {measure!r}{nearest(name, self.values)}; "
                              f"it has {', '.join(self.values)}")  # fmt: skip
        return self.values[name]

    def mean(self, measure: str) -> float:
        """The mean of one measure over all judged queries (the sum for counts)."""
        values = self[measure]
        return float(values.sum() if totals(measure) else values.mean())

    def to_dict(self, *, per_query: bool = False) -> dict[str, Any]:
        """Plain values for JSON."""
        result: dict[str, Any] = {
            "name": self.name,
            "means": self.means,
            "queries": {"judged": self.judged, "missing": self.missing, "unjudged": self.unjudged},
            "dropped_entries": self.dropped,
            "conventions": dict(self.conventions),
        }
        if per_query:
            columns = {name: values.tolist() for name, values in self.values.items()}
            result["per_query"] = {
                qid: {name: values[row] for name, values in columns.items()} for row, qid in enumerate(self.qids)
            }
        return result


def evaluate(
    run: Run,
    judgments: Judgments,
    measures: str | Measure | Sequence[str | Measure],
    *,
    conventions: Conventions | None = None,
    judged_only: bool = False,
) -> Evaluation:
    """Evaluate a run, with pytrec_eval's semantics for every measure alike.

    The order is the run's own (float32 score descending, then document id descending, or by rank), and providers get it
    as strictly falling scores, so that no tie rule of theirs matters. Judged queries that the run lacks count as 0;
    queries without judgments are ignored, and counted; gains are linear.

    Args:
        run: what is evaluated; one list a query (no `list_id`).
        judgments: the grades.
        measures: "nDCG@10 RR@10 R@1000", a list, or ir-measures' objects.
        conventions: the collection's: drop documents whose id is the query's, or that are excluded for the query,
            before anything else.
        judged_only: drop unjudged documents first (trec_eval -J).

    Raises:
        ConfigError: unknown measures, all of them.
        DataError: no judgments at all; a run with several lists a query.
    """
    asked = parse_measures(measures)
    if "list_id" in run.columns:
        raise DataError("the run has several lists a query (column list_id); aggregate it to one before evaluating")
    joined = _Joined(run, judgments, conventions)
    groups = group_measures(asked, {grade: grade for grade in set(joined.grades.tolist())}, judged_only=judged_only)
    values = {str(measure): np.zeros(len(joined.qids)) for measure in asked}
    with task(f"evaluate {run.tag}", len(joined.qids)) as advance:
        for block in joined.blocks():
            for group in groups:
                _compute(group, block, values)
            advance(len(block.queries))
    unjudged = len(run) - int((joined.rows >= 0).sum())
    missing = len(joined.qids) - joined.found
    if missing == len(joined.qids):
        log.warning("%s: none of the %d judged queries is in the run; are its query ids of another collection?",
                    run.tag, missing)  # fmt: skip
    settings = joined.settings | {"order": run.order, "judged_only": judged_only}
    return Evaluation(run.tag, joined.qids, values, missing, unjudged, joined.dropped, settings)


@dataclass(frozen=True)
class _Block:
    """Some judged queries that the run has, their judgments, and where the judged documents stand in the lists.

    Attributes:
        queries: (n,) numbers of the judged queries.
        grades: for each of them, the grades of its judged documents.
        entry_queries: (entries,) which of the n queries an entry belongs to, rising.
        entry_pairs: (entries,) the entry's number among its query's judgments, -1 when unjudged.
        entry_grades: (entries,) its grade, -1 when unjudged.
    """

    queries: np.ndarray
    grades: list[list[int]]
    entry_queries: np.ndarray
    entry_pairs: np.ndarray
    entry_grades: np.ndarray


class _Joined:
    """A run's entries matched with the judgments, block by block. After `blocks`, `dropped` and `found` are counted."""

    def __init__(self, run: Run, judgments: Judgments, conventions: Conventions | None) -> None:
        self.run = run
        if not len(judgments):
            raise DataError("there are no judgments to evaluate by")
        self.qids, self.offsets, self.grades = judgments.qids, judgments.offsets, judgments.grades
        self._judged = PairTable(run.vocabulary, judgments.query_rows, judgments.documents)
        self.rows = run.qids.rows(self.qids)
        self.dropped = self.found = 0
        self._identical: np.ndarray | None = None
        self._excluded: PairTable | None = None
        self.settings: dict[str, Any] = {"drop_identical_ids": False, "excluded_documents": 0}
        if conventions is not None:
            self._apply(conventions)

    def _apply(self, conventions: Conventions) -> None:
        if conventions.drop_identical_ids:
            self._identical = places_of(self.run.vocabulary, self.qids.array)
        listed = [(row, document) for row, qid in enumerate(self.qids)
                  for document in set(conventions.excluded.get(qid, ()))]  # fmt: skip
        if listed:
            owners = np.asarray([row for row, _ in listed], dtype=np.int64)
            documents = pa.array([document for _, document in listed], type=pa.large_string())
            self._excluded = PairTable(self.run.vocabulary, owners, documents)
        self.settings = {"drop_identical_ids": conventions.drop_identical_ids, "excluded_documents": len(listed)}

    def blocks(self) -> Iterator[_Block]:
        present = np.flatnonzero(self.rows >= 0)
        lengths = np.diff(self.run.offsets)[self.rows[present]]
        bounds = np.concatenate([[0], np.cumsum(lengths)])
        first = 0
        while first < len(present):
            last = max(int(np.searchsorted(bounds, bounds[first] + _BLOCK, side="right")) - 1, first + 1)
            yield self._block(present[first:last], lengths[first:last])
            first = last

    def _block(self, queries: np.ndarray, lengths: np.ndarray) -> _Block:
        starts = np.cumsum(lengths) - lengths
        local = np.repeat(np.arange(len(queries)), lengths)
        entries = np.arange(len(local)) + (self.run.offsets[self.rows[queries]] - starts)[local]
        codes = self.run.codes[entries]
        kept = np.ones(len(codes), dtype=bool)
        if self._identical is not None:
            kept &= self._identical[codes] != queries[local]
        if self._excluded is not None:
            kept &= self._excluded.find(queries[local], codes) < 0
        if not kept.all():
            self.dropped += int((~kept).sum())
            local, codes = local[kept], codes[kept]
        self.found += len(np.unique(local))
        pairs = self._judged.find(queries[local], codes)
        return _Block(
            queries,
            [self.grades[self.offsets[query] : self.offsets[query + 1]].tolist() for query in queries],
            local,
            np.where(pairs >= 0, pairs - self.offsets[queries[local]], -1),
            np.where(pairs >= 0, self.grades[pairs], -1),
        )


def _compute(group: Group, block: _Block, values: dict[str, np.ndarray]) -> None:
    """Hand a block to the group's provider and put what it returns into `values`.

    The provider sees numbers instead of ids and falling scores: only which judged document stands where, and how many
    documents there are, can matter to a measure.
    """
    local, pairs = block.entry_queries, block.entry_pairs
    if group.judged_only:  # as trec_eval -J: a negative grade is no judgment
        kept = block.entry_grades >= 0
        local, pairs = local[kept], pairs[kept]
    counts = np.bincount(local, minlength=len(block.queries))
    places = np.arange(len(local)) - np.repeat(np.cumsum(counts) - counts, counts)
    if group.depth is not None:
        counts = np.minimum(counts, group.depth)
        pairs = np.where(places < group.depth, pairs, -1)
    hits = np.flatnonzero(pairs >= 0)
    hit_bounds = np.searchsorted(local[hits], np.arange(len(block.queries) + 1))
    hit_list = list(zip(places[hits].tolist(), pairs[hits].tolist(), strict=True))
    lists: dict[str, dict[str, float]] = {}
    judgments: dict[str, dict[str, int]] = {}
    for number, count in enumerate(counts.tolist()):
        if count:
            ranking = _unjudged(count).copy()
            for place, pair in hit_list[hit_bounds[number] : hit_bounds[number + 1]]:
                del ranking[f"u{place}"]
                ranking[f"j{pair}"] = float(count - place)
            lists[str(number)] = ranking
            judgments[str(number)] = _judgments(group, block.grades[number])
    names = {handed: str(measure) for measure, handed in group.measures}
    if lists:
        for metric in group.evaluator(judgments).iter_calc(lists):
            value = metric.value if metric.value == metric.value else 0.0  # IPrec divides by no relevant documents
            values[names[metric.measure]][block.queries[int(metric.query_id)]] = value


def _judgments(group: Group, grades: list[int]) -> dict[str, int]:
    """A query's judgments as the provider gets them.

    To trec_eval a negative grade is no judgment, and pytrec_eval may crash on one (it counts grades in an array), so
    it never sees them; Judged counts them as its own definition says.
    """
    judged = {f"j{pair}": grade for pair, grade in enumerate(grades)}
    if group.provider == "judged":
        return judged
    gains = group.gains
    kept = {name: grade for name, grade in judged.items() if gains.get(grade, grade) >= 0}
    return kept or {"none": 0}  # a query whose judgments are all negative is still judged


@lru_cache(maxsize=8)
def _unjudged(count: int) -> dict[str, float]:
    """A list of `count` unjudged documents with falling scores."""
    return dict(zip(islice(_names(), count), map(float, range(count, 0, -1)), strict=True))


def _names() -> Iterator[str]:
    return (f"u{place}" for place in range(1 << 62))
