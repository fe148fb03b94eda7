"""Static mining: a run and judgments in, a run of negatives out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ...errors import ConfigError
from ...eval.run import Run
from ...ids import Ids, hash_strings
from .filters import ConsistentRanking, MiningFilter, MiningLimits, NotPositive
from .padding import Padding, pad
from .pool import MiningPool, OwnPositives, Reference, make_pool, own_positives, ranks_within
from .report import MiningReport, MiningTrace

if TYPE_CHECKING:
    from ...eval.judgments import Judgments

__all__ = ["Choice", "Selection", "mine", "mine_with"]

Choice = Literal["top", "random"]


@dataclass(frozen=True)
class Selection:
    """Which of the negatives that all rules left are taken.

    Attributes:
        per_query: how many for a query (with the reference "own", for each of its positives); None takes all.
        choice: the first ones, or a random choice among all that are left.
        seed: of the random choice, which for each query depends on nothing but this and its id.
    """

    per_query: int | None = None
    choice: Choice = "top"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.choice not in ("top", "random"):
            raise ConfigError(f"choice {self.choice!r}: expected 'top' or 'random'")
        if self.per_query is not None and self.per_query < 1:
            raise ConfigError(f"per_query {self.per_query}: expected at least 1")


def mine(
    run: Run,
    judgments: Judgments,
    limits: MiningLimits | None = None,
    selection: Selection | None = None,
    *,
    depth: int | None = None,
    teacher: Run | None = None,
    reference: Reference = "min",
    positive_grade: int = 1,
    pad_from: Ids | None = None,
    tag: str | None = None,
) -> tuple[Run, MiningReport]:
    """Take hard negatives from a run.

        limits = MiningLimits(ranks=(10, 200), relative_margin=0.05)
        negatives, report = mine(run, judgments, limits, Selection(per_query=8, choice="random"))

    Args:
        run: what a retriever found for the training queries.
        judgments: what is relevant; a document judged at `positive_grade` or above is never a negative.
        limits: ranks, score margins and the other rules against false negatives; ranks 1 to 200 alone by default.
        selection: which of those that are left; all by default.
        depth: look at so many documents of each list only, positives counted.
        teacher: a run whose scores the limits use in place of `run`'s. Pairs that it lacks are left out and counted;
            it should hold the positives (rerank with `add_positives`).
        reference: which positive's score counts where there are several: the lowest, the highest, or each its own
            (NV-Retriever); "own" gives a list for each scored positive, in the columns `list_id` and `reference`.
        pad_from: fill lists shorter than the selection's `per_query` with random ones of these documents, neither found
            by the run nor positives; the column `padded` is 1 for them, and they are counted apart. None never pads.
        tag: name of the new run.

    Returns:
        The negatives as a run with the source's scores and the columns `first_rank` (rank in `run`) and, where a
        teacher was given, `teacher` (its scores), so that other limits can be tried without mining again; and the
        report. Queries without negatives are left out.

    Raises:
        ConfigError: settings that contradict each other, or a run that is not deep enough for `consistency_rank`.
    """
    limits, selection = limits or MiningLimits(), selection or Selection()
    own = _own_or_padding(reference, pad_from, selection.per_query)
    if depth is not None:
        run = run.top(depth)
    pool = make_pool(
        run, judgments, positive_grade=positive_grade, teacher=teacher, reference="max" if own else reference
    )
    rules = limits.filters(with_teacher=teacher is not None)
    if own:
        positives = own_positives(pool, judgments, positive_grade=positive_grade, teacher=teacher)
        mined, report = _mine_own(pool, positives, rules, selection)
    else:
        mined, report = mine_with(pool, rules, selection)
        if pad_from is not None:
            settings = Padding(pad_from, selection.per_query or 0, selection.seed, limits.drop_identical_ids)
            fillable = pool.judged & ~_dropped(pool, rules)
            mined, added = pad(mined, run, fillable, settings, judgments, positive_grade)
            report = _with_padding(report, added, settings.per_query)
    columns = dict(mined.columns)
    if teacher is None:
        columns.pop("teacher")
    return mined.replace(columns=columns, tag=tag or f"{run.tag}-negatives"), report


def _own_or_padding(reference: str, pad_from: Ids | None, per_query: int | None) -> bool:
    """Whether each positive is its own reference; checks what goes with it."""
    if reference not in ("min", "max", "own"):
        raise ConfigError(f"reference {reference!r}: expected 'min', 'max' or 'own'")
    if pad_from is not None and per_query is None:
        raise ConfigError("padding fills lists up to per_query; give per_query")
    if pad_from is not None and reference == "own":
        raise ConfigError("reference 'own' makes a list for each positive, which are not padded; take 'min' or 'max'")
    return reference == "own"


def mine_with(
    pool: MiningPool, rules: Sequence[MiningFilter], selection: Selection | None = None
) -> tuple[Run, MiningReport]:
    """Apply `rules` in order to a pool; see `mine`, which makes both. Positives are always removed first."""
    selection = selection or Selection()
    chosen, removed = _apply(pool, rules, selection)
    entries = np.flatnonzero(chosen)
    return _negatives(pool, entries), _report(pool, rules, entries, removed, selection)


def _apply(
    pool: MiningPool, rules: Sequence[MiningFilter], selection: Selection, stream: tuple[int, ...] = ()
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """(entries,) bool of what is taken, and by rule how many it removed of each query."""
    alive = np.repeat(pool.judged, np.diff(pool.run.offsets))
    removed = {"query without a positive": _by_query(pool.run, ~alive)}

    def note(name: str, kept: np.ndarray) -> np.ndarray:
        gone = _by_query(pool.run, alive & ~kept)
        removed[name] = removed[name] + gone if name in removed else gone
        return alive & kept

    for rule in (NotPositive(), *rules):
        alive = note(rule.name, rule(pool, alive))
    alive = note("more than asked for", _choose(pool, alive, selection, stream))
    return alive, removed


def _by_query(run: Run, mask: np.ndarray) -> np.ndarray:
    """How many True each query has. (queries,) int64."""
    ends = np.concatenate([[0], np.cumsum(mask, dtype=np.int64)])[run.offsets]
    return np.diff(ends)


def _choose(pool: MiningPool, alive: np.ndarray, selection: Selection, stream: tuple[int, ...]) -> np.ndarray:
    if selection.per_query is None:
        return alive
    if selection.choice == "top":
        return alive & (ranks_within(pool.run, alive) <= selection.per_query)
    chosen = np.zeros_like(alive)
    names = hash_strings(pool.run.qids.array)
    for row in range(len(pool.run)):
        start, stop = int(pool.run.offsets[row]), int(pool.run.offsets[row + 1])
        entries = start + np.flatnonzero(alive[start:stop])
        if len(entries) > selection.per_query:
            generator = np.random.default_rng([selection.seed, int(names[row]), *stream])
            entries = generator.choice(entries, size=selection.per_query, replace=False)
        chosen[entries] = True
    return chosen


def _negatives(pool: MiningPool, entries: np.ndarray, more: dict[str, np.ndarray] | None = None) -> Run:
    """A run of these entries of the pool's (query by query), without queries that have none.

    Args:
        more: further columns, (len(entries),) each; with `list_id` an entry may come several times.
    """
    run = pool.run
    counts = np.bincount(run.query_rows[entries], minlength=len(run))
    columns: dict[str, Any] = {name: values[entries] for name, values in run.columns.items()}
    columns |= {"first_rank": run.ranks[entries].astype(np.int32), "teacher": pool.scores[entries], **(more or {})}
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    mined = Run(run.qids, offsets, run.vocabulary, run.codes[entries], run.scores[entries], columns, run.order, run.tag)
    filled = np.flatnonzero(counts).astype(np.int64)
    return mined.select(mined.qids.take(filled))


def _mine_own(
    pool: MiningPool, positives: OwnPositives, rules: Sequence[MiningFilter], selection: Selection
) -> tuple[Run, MiningReport]:
    """A list for each scored positive: the rules see its score as the query's reference."""
    entries: list[np.ndarray] = [np.zeros(0, np.int64)]
    lists: list[np.ndarray] = [np.zeros(0, np.int32)]
    totals: dict[str, np.ndarray] = {}
    for number in range(max(positives.most, 1)):
        reference = positives.numbered(number)
        part = replace(pool, reference=reference)
        if number:  # the first list tells of queries without any; later ones exist where there are more positives
            part = replace(part, judged=pool.judged & ~np.isnan(reference))
        chosen, removed = _apply(part, rules, selection, (number,))
        there = np.ones(len(pool.run), bool) if not number else part.judged
        totals = {name: totals.get(name, 0) + counts * there for name, counts in removed.items()}
        entries.append(np.flatnonzero(chosen))
        lists.append(np.full(len(entries[-1]), number, np.int32))
    at, number = np.concatenate(entries), np.concatenate(lists)
    order = np.lexsort([at, number, pool.run.query_rows[at]])
    at, number = at[order], number[order]
    scores = positives.scores_of(pool.run.query_rows[at], number)
    mined = _negatives(pool, at, {"list_id": number, "reference": scores})
    return mined, _report(pool, rules, at, totals, selection, lists=np.maximum(positives.counts, 1))


def _report(
    pool: MiningPool,
    rules: Sequence[MiningFilter],
    entries: np.ndarray,
    removed: dict[str, np.ndarray],
    selection: Selection,
    *,
    lists: np.ndarray | int = 1,
) -> MiningReport:
    """`lists`: how many lists each query has."""
    counts = np.bincount(pool.run.query_rows[entries], minlength=len(pool.run))
    wanted = None if selection.per_query is None else selection.per_query * lists
    return MiningReport(
        queries=len(pool.run),
        queries_without_positives=int((~pool.judged).sum()),
        queries_without_reference=int((pool.judged & np.isnan(pool.reference)).sum()),
        queries_short=int(((counts > 0) & (counts < wanted)).sum()) if wanted is not None else 0,
        queries_empty=int((pool.judged & (counts == 0)).sum()),
        candidates=int((np.diff(pool.run.offsets) * lists).sum()),
        removed={name: int(values.sum()) for name, values in removed.items()},
        kept=len(entries),
        queries_inconsistent=int(_dropped(pool, rules).sum()),
        trace=MiningTrace(pool.run.qids, pool.reference, removed, counts, np.zeros_like(counts)),
    )


def _dropped(pool: MiningPool, rules: Sequence[MiningFilter]) -> np.ndarray:
    """Queries with positives that the ranking-consistency rule leaves nothing. (queries,) bool."""
    rule = next((rule for rule in rules if isinstance(rule, ConsistentRanking)), None)
    return np.zeros(len(pool.run), bool) if rule is None else pool.judged & ~rule.kept_queries(pool)


def _with_padding(report: MiningReport, added: np.ndarray, per_query: int) -> MiningReport:
    """The report after padding: how many each query got, and which lists are short nevertheless."""
    assert report.trace is not None  # every report of ours has one
    had, filled = report.trace.kept, report.trace.kept + added
    return replace(
        report,
        padded=int(added.sum()),
        queries_short=int(((filled > 0) & (filled < per_query)).sum()),
        queries_empty=report.queries_empty - int(((had == 0) & (filled > 0)).sum()),
        trace=replace(report.trace, padded=added),
    )
