"""The report as one HTML file with its plots inside: nothing is loaded from anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from .._version import __version__
from .report import Report, Table
from .significance import Comparison, Difference
from .svg import COLOURS, difference_bars, line_plot

__all__ = ["to_html"]

_STYLE = """
:root { color-scheme: light; --ink: #1c1917; --soft: #57534e; --line: #e7e5e4; --gain: #15803d; --loss: #c2410c; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.5rem 4rem; max-width: 84rem; color: var(--ink); background: #fff;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .25rem; } h2 { font-size: 1.15rem; margin: 2.25rem 0 .5rem; }
h3 { font-size: .95rem; margin: 0 0 .25rem; font-weight: 600; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { padding: .35rem .5rem; border-bottom: 1px solid var(--line); text-align: left; white-space: nowrap; }
th { color: var(--soft); font-weight: 600; border-bottom: 2px solid #d6d3d1; white-space: normal;
  vertical-align: bottom; }
.n { text-align: right; } tbody tr:hover { background: #fafaf9; }
.better { color: var(--gain); font-weight: 600; } .worse { color: var(--loss); font-weight: 600; }
.note, .foot { color: var(--soft); font-size: .85rem; margin: .4rem 0 0; max-width: 60rem; }
.settings { color: var(--soft); margin: 0; font-size: .9rem; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 600px), 1fr)); gap: 1.5rem; }
.plots > div { min-width: 0; }
svg { max-width: 100%; height: auto; display: block; font-family: inherit; }
.grid { stroke: var(--line); } .zero { stroke: #78716c; } .tick { font-size: 12px; fill: var(--soft); }
.label { font-size: 12.5px; fill: var(--ink); }
.gain { fill: var(--gain); } .loss { fill: var(--loss); } .tie { fill: #a8a29e; }
rect:hover, circle:hover { opacity: .6; }
.legend { display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; font-size: .88rem; margin: .3rem 0 .5rem; }
.legend i { display: inline-block; width: .8rem; height: .8rem; border-radius: 2px; margin-right: .4rem; }
details { margin-top: .5rem; } summary { cursor: pointer; color: var(--soft); }
@media print { details { display: none; } }
"""


def to_html(report: Report) -> str:
    """One page: the tables, recall against depth, per-query differences against the baseline, per-query values."""
    settings = " · ".join(f"{escape(str(name))}: {escape(str(value))}" for name, value in report.settings.items())
    means, *rest = report.tables()
    parts = [
        f"<h1>{escape(report.title)}</h1>",
        f'<p class="settings">{settings}</p>' if settings else "",
        "<h2>Means</h2>",
        _table(means),
    ]
    if report.comparison:
        parts += [f"<h2>{escape(rest[0].title)}</h2>", _table(rest[0])]
    if report.curves:
        parts += ["<h2>Recall against depth</h2>", _legend(list(report.curves)),
                  line_plot(report.curves, x_label="depth", y_label="recall")]  # fmt: skip
    if report.comparison:
        parts += ["<h2>Differences by query</h2>", _bars(report.comparison)]
    parts += ["<h2>Values by query</h2>", _values(report)]
    parts.append(f'<p class="foot">Written by rtk {escape(__version__)}. Hover over a point or bar for its value.</p>')
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(report.title)}</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(part for part in parts if part)
        + "\n</body></html>\n"
    )


def _table(table: Table) -> str:
    head = "".join(f"<th{_right(at, table)}>{escape(cell)}</th>" for at, cell in enumerate(table.head))
    rows = "".join(
        "<tr>" + "".join(_cell(at, cell, table) for at, cell in enumerate(row)) + "</tr>" for row in table.rows
    )
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in table.notes)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>{notes}'


def _right(at: int, table: Table) -> str:
    return ' class="n"' if table.numeric[at] else ""


def _cell(at: int, cell: str, table: Table) -> str:
    kind = cell if cell in ("better", "worse") else ""
    return f'<td class="{kind}">{cell}</td>' if kind else f"<td{_right(at, table)}>{escape(cell)}</td>"


def _legend(names: Sequence[str]) -> str:
    entries = "".join(
        f'<span><i style="background:{COLOURS[at % len(COLOURS)]}"></i>{escape(name)}</span>'
        for at, name in enumerate(names)
    )
    return f'<div class="legend">{entries}</div>'


def _bars(comparison: Comparison) -> str:
    """A plot for each run and measure; those of one measure share their axis, so that heights compare."""
    limits: dict[str, float] = {}
    for row in comparison.differences:
        limits[row.measure] = max(limits.get(row.measure, 0.0), float(abs(row.values).max(initial=0)))
    plots = "".join(_bar_plot(row, comparison, limits[row.measure]) for row in comparison.differences)
    return f'<div class="plots">{plots}</div>'


def _bar_plot(row: Difference, comparison: Comparison, limit: float) -> str:
    title = f"{row.run} less {comparison.baseline}, {row.measure}"
    tally = f"{row.wins} better, {row.ties} equal, {row.losses} worse; mean {row.difference:+.4f}"
    plot = difference_bars(comparison.qids, row.values.tolist(), label=f"difference in {row.measure}", limit=limit)
    return f'<div><h3>{escape(title)}</h3><p class="note">{tally}</p>{plot}</div>'


def _values(report: Report) -> str:
    """A folded table of every query's values, one column a run and measure."""
    first = report.evaluations[0]
    alike = [found for found in report.evaluations if found.qids == first.qids]
    columns = [(found, name) for found in alike for name in found.measures]
    head = "<th>query</th>" + "".join(
        f'<th class="n">{escape(found.name)}<br>{escape(name)}</th>' for found, name in columns
    )
    values = [found[name].tolist() for found, name in columns]
    rows = "".join(
        f"<tr><td>{escape(qid)}</td>" + "".join(f'<td class="n">{column[at]:.4f}</td>' for column in values) + "</tr>"
        for at, qid in enumerate(first.qids)
    )
    return (
        f"<details><summary>{first.judged} queries</summary>"
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div></details>'
    )
