"""A recipe's table: runs over seeds, significance against its baselines, and measured beside expected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import stdtrit

from ...errors import DataError
from ...eval.collection import open_collection
from ...eval.files import read_run
from ...eval.measure_names import canonical
from ...eval.measures import Evaluation, evaluate
from ...eval.report import Report, Table, markdown_table, text_table, write_report
from ...eval.significance import compare
from .recipe import Expectation, TableSpec, Variant, uses

__all__ = ["Made", "Outcome", "average", "make_tables"]


@dataclass(frozen=True)
class Outcome:
    """One number that was expected, and what came."""

    row: str
    measure: str
    expected: float
    tolerance: float
    source: str
    measured: float

    @property
    def within(self) -> bool:
        return abs(self.measured - self.expected) <= self.tolerance

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "within": self.within}

    def line(self) -> str:
        verdict = "as expected" if self.within else "OUTSIDE"
        return (
            f"{self.row}, {self.measure}: {self.measured:.4f}, expected {self.expected:.4f} ± {self.tolerance:.4f} "
            f"({self.source}): {verdict}"
        )


@dataclass(frozen=True)
class Made:
    """The tables as text, and the outcomes."""

    text: str
    outcomes: tuple[Outcome, ...]


def make_tables(title: str, variant: Variant, names: Mapping[str, str], seeds: Sequence[int], out: Path) -> Made:
    """Evaluate all rows and write OUT/table.md, and OUT/table-1.json and so on (table-1-SET.json for each set).

    A row with seeds is the mean over them, query by query, which is what significance is tested on; how far the seeds
    lie apart stands in a table of its own. Expected numbers are of the variant's own values: with another one, by the
    last part of a path, there are none, which is said.

    Raises:
        DataError: a run is missing.
    """
    tables: list[Table] = []
    outcomes: list[Outcome] = []
    elsewhere: list[str] = []
    other = _other_values(variant, names)
    for number, written in enumerate(variant.tables, start=1):
        spec = written.with_rows_of(variant.sets)
        collection = _last(spec.collection.format_map({"set": "{set}", **names}))
        if spec.expect and other:
            elsewhere.append(f"- nothing for {collection}: what the recipe expects was measured with {other}")
            spec = spec.model_copy(update={"expect": ()})
        if spec.over_sets:
            by_set = _of_sets(spec, variant.sets, names, seeds)
            for chosen, each in by_set.items():
                report = Report(f"{title}: {chosen}, {spec.split}", list(each.values()))
                write_report(report, out / f"table-{number}-{chosen.replace('/', '-')}.json")
            table, means = _mean_of_sets(title, spec, by_set)
            tables.append(table)
            outcomes += [_outcome(means[item.row, canonical(item.measure)], item) for item in spec.expect]
            continue
        rows = _evaluate(spec, names, seeds)
        averaged = {name: average(name, found) for name, found in rows.items()}
        head = f"{title}: {collection}, {spec.split}"
        reports = [_report(head, averaged, baseline, spec.measures) for baseline in spec.baselines or (None,)]
        tables += dict.fromkeys(table for report in reports for table in report.tables())  # the means only once
        tables += [table] if (table := _spread(rows, spec.measures)) else []
        outcomes += [_outcome(averaged[item.row].mean(canonical(item.measure)), item) for item in spec.expect]
        write_report(reports[0], out / f"table-{number}.json")
    compared = [*(f"- {outcome.line()}" for outcome in outcomes), *elsewhere]
    told = ["Measured beside expected:", "", *compared] if compared else []
    markdown = "\n\n".join([*map(markdown_table, tables), "\n".join(told)])
    (out / "table.md").write_text(markdown.rstrip() + "\n", encoding="utf-8")
    return Made("\n\n".join([*map(text_table, tables), "\n".join(told)]).rstrip(), tuple(outcomes))


def _other_values(variant: Variant, names: Mapping[str, str]) -> str:
    """The variant's own values in whose place others stand, as text; empty where there are none."""
    other = [name for name, own in variant.values.items() if _last(names[name]) != _last(own)]
    return ", ".join(f"{name}={variant.values[name]} (here {_last(names[name])})" for name in other)


def _last(value: str) -> str:
    """The same wherever a collection or a model lies."""
    return Path(value).name or value


def _evaluate(spec: TableSpec, names: Mapping[str, str], seeds: Sequence[int]) -> dict[str, list[Evaluation]]:
    """Each row's evaluations, one a seed where its runs have one."""
    collection = open_collection(spec.collection.format_map(names))
    judgments, conventions = collection.judgments(spec.split), collection.conventions
    rows: dict[str, list[Evaluation]] = {}
    for name, place in spec.rows.items():
        each = [{**names, "seed": str(seed)} for seed in seeds] if uses("seed", place) else [dict(names)]
        runs = [_run(place.format_map(filled)) for filled in each]
        rows[name] = [evaluate(run, judgments, list(spec.measures), conventions=conventions) for run in runs]
    return rows


def average(name: str, found: Sequence[Evaluation]) -> Evaluation:
    """The mean over seeds of every query's value; of what was counted on the way, the largest count.

    Raises:
        DataError: evaluations over different queries.
    """
    first = found[0]
    if any(other.qids != first.qids for other in found):
        raise DataError(f"the runs of {name!r} were evaluated over different queries")
    values = {measure: np.mean([each[measure] for each in found], axis=0) for measure in first.measures}
    counts = {field: max(getattr(each, field) for each in found) for field in ("missing", "unjudged", "dropped")}
    return replace(first, name=name, values=values, **counts)


def _run(path: str) -> Any:
    if not Path(path).is_file():
        raise DataError("the recipe's table needs this run, and no step has made it", path=path)
    return read_run(path)


def _report(title: str, rows: Mapping[str, Evaluation], baseline: str | None, measures: Sequence[str]) -> Report:
    found = list(rows.values())
    if baseline is None:
        return Report(title, found)
    others = [row for name, row in rows.items() if name != baseline]
    return Report(title, found, compare(rows[baseline], others, measures=list(measures)) if others else None)


def _spread(rows: Mapping[str, Sequence[Evaluation]], measures: Sequence[str]) -> Table | None:
    """Mean, standard deviation and t interval over the seeds, where there are several."""
    lines = []
    for name, found in rows.items():
        if len(found) < 2:
            continue
        for measure in measures:
            values = np.asarray([each.mean(measure) for each in found])
            error = values.std(ddof=1) / np.sqrt(len(values))
            half = float(stdtrit(len(values) - 1, 0.975)) * error
            seeds = " ".join(f"{value:.4f}" for value in values)
            mean = f"{values.mean():.4f}"
            interval = f"[{values.mean() - half:.4f}, {values.mean() + half:.4f}]"
            lines.append((name, measure, mean, f"{values.std(ddof=1):.4f}", interval, seeds))
    if not lines:
        return None
    head = ("run", "measure", "mean", "std", "95% interval over seeds", "each seed")
    return Table("Over seeds", head, tuple(lines), (False, False, True, True, True, False))


def _of_sets(
    spec: TableSpec, sets: Sequence[str], names: Mapping[str, str], seeds: Sequence[int]
) -> dict[str, dict[str, Evaluation]]:
    """Each row over each set, averaged over the seeds."""
    found: dict[str, dict[str, Evaluation]] = {}
    for chosen in sets:
        rows = _evaluate(spec, {**names, "set": chosen}, seeds)
        found[chosen] = {name: average(name, each) for name, each in rows.items()}
    return found


def _mean_of_sets(
    title: str, spec: TableSpec, found: Mapping[str, Mapping[str, Evaluation]]
) -> tuple[Table, dict[tuple[str, str], float]]:
    """A line for each set and one with their mean, in which all weigh the same; the means by (row, measure)."""
    columns = [(row, canonical(measure)) for row in spec.rows for measure in spec.measures]
    values = np.asarray([[rows[row].mean(measure) for row, measure in columns] for rows in found.values()])
    means = values.mean(axis=0)
    named = zip((*found, "mean"), (*values, means), strict=True)
    lines = tuple((name, *(f"{value:.4f}" for value in line)) for name, line in named)
    head = ("set", *(f"{row}, {measure}" for row, measure in columns))
    table = Table(f"{title}: {len(found)} sets, {spec.split}", head, lines, (False, *[True] * len(columns)))
    return table, dict(zip(columns, means.tolist(), strict=True))


def _outcome(measured: float, item: Expectation) -> Outcome:
    return Outcome(item.row, item.measure, item.value, item.tolerance, item.source, measured)
