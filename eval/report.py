"""Reports of evaluations: plain table, Markdown, CSV and JSON from the same rows."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._version import __version__
from ..errors import ConfigError
from ..files import atomic_path
from .measures import Evaluation, evaluate
from .run import Run
from .significance import Comparison, Difference

if TYPE_CHECKING:
    from .collection import Conventions
    from .judgments import Judgments

__all__ = [
    "DEPTHS", "Report", "Table", "markdown_table", "recall_curve", "text_table", "to_csv", "to_json", "to_markdown",
    "to_text", "write_per_query", "write_report",
]  # fmt: skip

DEPTHS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
"""The depths of a recall curve."""


@dataclass(frozen=True)
class Report:
    """What is reported: evaluations of several runs over the same queries, and how they compare.

    Attributes:
        title: a line on top.
        evaluations: one a run, the baseline first where there is one.
        comparison: against a baseline, or None.
        curves: by run, recall at rising depths: ((depth, value), …).
        settings: anything that should stand in the report (collection, split, preset, files).
    """

    title: str
    evaluations: Sequence[Evaluation]
    comparison: Comparison | None = None
    curves: Mapping[str, Sequence[tuple[int, float]]] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def measures(self) -> tuple[str, ...]:
        """The measures, in the first evaluation's order, that any of the runs has."""
        return tuple(dict.fromkeys(name for found in self.evaluations for name in found.measures))

    def tables(self) -> list[Table]:
        """The tables that every form shows: means, then differences where there is a comparison."""
        tables = [_means(self)]
        return [*tables, _differences(self.comparison)] if self.comparison else tables

    def to_dict(self, *, per_query: bool = False) -> dict[str, Any]:
        """Plain values; the form is docs/schema/evaluation.schema.json."""
        return {
            "format": "rtk-evaluation",
            "version": 1,
            "rtk": __version__,
            "title": self.title,
            "settings": dict(self.settings),
            "evaluations": [found.to_dict(per_query=per_query) for found in self.evaluations],
            "comparison": _comparison(self.comparison) if self.comparison else None,
            "curves": {name: [[depth, value] for depth, value in curve] for name, curve in self.curves.items()},
        }


@dataclass(frozen=True)
class Table:
    """Rows of text under a head; `numeric` says which columns are set to the right."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: tuple[bool, ...]
    notes: tuple[str, ...] = ()


def recall_curve(
    run: Run,
    judgments: Judgments,
    *,
    relevance_level: int = 1,
    conventions: Conventions | None = None,
    depths: Sequence[int] = DEPTHS,
) -> list[tuple[int, float]]:
    """Mean recall at rising depths, up to the first depth that holds the run's longest list."""
    longest = int((run.offsets[1:] - run.offsets[:-1]).max(initial=0))
    reached = [depth for at, depth in enumerate(depths) if at == 0 or depths[at - 1] < longest]
    names = [f"R(rel={relevance_level})@{depth}" for depth in reached]
    found = evaluate(run, judgments, names, conventions=conventions)
    return [(depth, found.mean(name)) for depth, name in zip(reached, names, strict=True)]


def _means(report: Report) -> Table:
    measures = report.measures
    best = {name: max(found.mean(name) for found in report.evaluations if name in found.values) for name in measures}
    rows = []
    for found in report.evaluations:
        cells = [_mean_cell(found, name, best[name], len(report.evaluations)) for name in measures]
        rows.append((found.name, *cells, str(found.judged), str(found.missing), str(found.unjudged)))
    notes = ["Means over all judged queries; judged queries that a run lacks count as 0."]
    if len(rows) > 1:
        notes.append("* the highest mean of its column, which says nothing of significance.")
    head = ("run", *measures, "judged", "missing", "unjudged")
    return Table(report.title, head, tuple(rows), (False, *[True] * (len(head) - 1)), tuple(notes))


def _mean_cell(found: Evaluation, name: str, best: float, runs: int) -> str:
    if name not in found.values:
        return "-"
    value = found.mean(name)
    return f"{value:.4f}{'*' if runs > 1 and value == best else ' ' if runs > 1 else ''}"


def _differences(comparison: Comparison) -> Table:
    head = ("run", "measure", "mean", "difference", f"{comparison.confidence:.0%} interval", "verdict", "win/tie/loss",
            "p t", "p t Holm", "p Fisher", "p Fisher Holm")  # fmt: skip
    rows = tuple(
        (
            row.run, row.measure, f"{row.mean:.4f}", f"{row.difference:+.4f}", f"[{row.low:+.4f}, {row.high:+.4f}]",
            row.verdict(comparison.alpha), f"{row.wins}/{row.ties}/{row.losses}",
            _p(row.p_t), _p(row.p_t_holm), _p(row.p_fisher), _p(row.p_fisher_holm),
        )
        for row in comparison.differences
    )  # fmt: skip
    notes = (comparison.note, f"The verdict goes by Holm-corrected Fisher randomisation at {comparison.alpha}.")
    numeric = (False, False, True, True, True, False, *[True] * 5)
    return Table(f"Against {comparison.baseline}", head, rows, numeric, notes)


def _p(value: float) -> str:
    return "<.0001" if value < 0.0001 else f"{value:.4f}".lstrip("0") if value < 1 else "1"


def _comparison(comparison: Comparison) -> dict[str, Any]:
    return {
        "baseline": comparison.baseline,
        "queries": len(comparison.qids),
        "permutations": comparison.permutations,
        "seed": comparison.seed,
        "confidence": comparison.confidence,
        "interval": "t",
        "correction": "holm",
        "alpha": comparison.alpha,
        "differences": [
            row.to_dict() | {"verdict": row.verdict(comparison.alpha)} for row in comparison.differences
        ],
    }  # fmt: skip


def to_text(report: Report) -> str:
    """Aligned plain text."""
    return "\n\n".join(text_table(table) for table in report.tables()) + "\n"


def text_table(table: Table) -> str:
    """One table as aligned plain text."""
    widths = [max(len(row[at]) for row in (table.head, *table.rows)) for at in range(len(table.head))]

    def line(cells: Sequence[str]) -> str:
        set_out = (cell.rjust(width) if right else cell.ljust(width)
                   for cell, width, right in zip(cells, widths, table.numeric, strict=True))  # fmt: skip
        return "  ".join(set_out).rstrip()

    rule = "  ".join("-" * width for width in widths)
    return "\n".join([table.title, "", line(table.head), rule, *map(line, table.rows), "", *table.notes])


def to_markdown(report: Report) -> str:
    """Markdown tables."""
    return "\n\n".join(markdown_table(table) for table in report.tables()) + "\n"


def markdown_table(table: Table) -> str:
    """One table as Markdown under a heading."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.strip().replace("|", "\\|").replace("*", "\\*") for cell in cells) + " |"

    rule = "|" + "|".join("---:" if right else "---" for right in table.numeric) + "|"
    notes = "  \n".join(note.replace("*", "\\*") for note in table.notes)
    return "\n".join([f"## {table.title}", "", line(table.head), rule, *map(line, table.rows), "", notes])


_CSV: tuple[str, ...] = (
    "run", "measure", "mean", "judged", "missing", "unjudged", "baseline", "baseline_mean", "difference", "low", "high",
    "t", "p_t", "p_t_holm", "p_fisher", "p_fisher_holm", "wins", "ties", "losses", "verdict",
)  # fmt: skip


def to_csv(report: Report) -> str:
    """One line for each run and measure; the columns of the comparison are empty where there is none."""
    out = io.StringIO()
    writer = csv.DictWriter(out, _CSV, lineterminator="\n", restval="")
    writer.writeheader()
    for found in report.evaluations:
        for name in found.measures:
            row: dict[str, Any] = {
                "run": found.name, "measure": name, "mean": repr(found.mean(name)), "judged": found.judged,
                "missing": found.missing, "unjudged": found.unjudged,
            }  # fmt: skip
            difference = _find(report.comparison, found.name, name)
            if report.comparison and difference:
                plain = difference.to_dict()
                row |= {key: plain[key] for key in _CSV if key in plain and key not in row}
                row |= {"baseline": report.comparison.baseline, "verdict": difference.verdict(report.comparison.alpha)}
            writer.writerow(row)
    return out.getvalue()


def _find(comparison: Comparison | None, run: str, measure: str) -> Difference | None:
    found = [row for row in comparison.differences if (row.run, row.measure) == (run, measure)] if comparison else []
    return found[0] if found else None


def to_json(report: Report, *, per_query: bool = False) -> str:
    """JSON by docs/schema/evaluation.schema.json."""
    return json.dumps(report.to_dict(per_query=per_query), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write_report(report: Report, path: str | Path, *, per_query: bool = False) -> None:
    """Write the report, atomically, in the form that the file's name asks for: .html, .json, .csv, .md or .txt.

    Args:
        report: what to write.
        path: the file.
        per_query: put every query's values into JSON (HTML shows them anyway).

    Raises:
        ConfigError: another suffix.
    """
    from .html import to_html

    forms = {".html": to_html, ".csv": to_csv, ".md": to_markdown, ".txt": to_text,
             ".json": lambda report: to_json(report, per_query=per_query)}  # fmt: skip
    suffix = Path(path).suffix
    if suffix not in forms:
        raise ConfigError(f"{path}: a report is one of {', '.join(forms)}, not {suffix or 'a name without suffix'}")
    with atomic_path(path) as temporary:
        temporary.write_text(forms[suffix](report), encoding="utf-8")


def write_per_query(evaluations: Sequence[Evaluation], path: str | Path) -> None:
    """Write tab-separated lines (run, query id, measure, value), a header first; values are exact."""
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as out:
        out.write("run\tquery-id\tmeasure\tvalue\n")
        for found in evaluations:
            for name in found.measures:
                for qid, value in zip(found.qids, found[name].tolist(), strict=True):
                    out.write(f"{found.name}\t{qid}\t{name}\t{value!r}\n")
