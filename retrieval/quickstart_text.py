"""What a quickstart came to, as values and as plain text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["DECIDING", "MEASURES", "Effect", "Quickstart", "Row", "Step", "format_quickstart"]

DECIDING = "nDCG@10"
"""What the runs are compared by."""
MEASURES = ("nDCG@10", "RR@10", "R@10", "R@100")


@dataclass(frozen=True)
class Step:
    """One step as it was done: what, the verb that does the same, and how long it took."""

    name: str
    command: str
    seconds: float


@dataclass(frozen=True)
class Row:
    """One run in the table.

    Attributes:
        name: the run.
        means: by measure.
        difference, low, high, p, verdict: against BM25 by nDCG@10: mean difference, its interval, the Holm-corrected p
            of Fisher's randomisation, and what follows; None for BM25 itself.
        wins, ties, losses: questions better, equal and worse than with BM25.
        kinds: mean nDCG@10 by kind of question, where the collection tells kinds apart.
    """

    name: str
    means: dict[str, float]
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    verdict: str = "baseline"
    wins: int = 0
    ties: int = 0
    losses: int = 0
    kinds: dict[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True)
class Effect:
    """What one step changed: mean difference of nDCG@10 from run `before` to run `after`, its 95% interval, and the
    p of Fisher's randomisation, Holm-corrected over the effects."""

    what: str
    before: str
    after: str
    difference: float
    low: float
    high: float
    p: float

    @property
    def verdict(self) -> str:
        """ "a gain", "a loss" or "no difference shown", at 0.05."""
        return "no difference shown" if self.p >= 0.05 else "a gain" if self.difference > 0 else "a loss"


@dataclass(frozen=True)
class Quickstart:
    """What came out.

    Attributes:
        rows: the table, BM25 first.
        effects: what training and reranking did.
        note: how the differences were tested.
        queries: how many questions were judged.
        steps: what was done, in order.
        files: what was left where: (what, path).
        commands: the verbs for a collection of one's own.
    """

    out: Path
    rows: tuple[Row, ...]
    effects: tuple[Effect, ...]
    note: str
    queries: int
    steps: tuple[Step, ...]
    files: tuple[tuple[str, Path], ...]
    commands: tuple[str, ...]

    @property
    def seconds(self) -> float:
        return sum(step.seconds for step in self.steps)


def format_quickstart(summary: Quickstart) -> str:
    """The summary as plain text: the table, the times, the files, and what to type next."""
    return "\n".join([*_table(summary), "", *_times(summary), "", *_files(summary), "", *_commands(summary)])


def _table(summary: Quickstart) -> Iterator[str]:
    kinds = list(summary.rows[0].kinds)
    head = ["run", *MEASURES, *kinds, "against BM25", "95% interval", "p (Holm)", "win/tie/loss", "verdict"]
    lines = [head, *(_cells(row, kinds) for row in summary.rows)]
    widths = [max(len(line[at]) for line in lines) for at in range(len(head))]
    yield from _aligned(lines, widths)
    yield ""
    yield f"{summary.queries} questions; all to the right of “against” is about {DECIDING}. " + summary.note
    for each in summary.effects:
        yield (
            f"{each.what} ({each.before} → {each.after}): {each.difference:+.4f} [{each.low:+.4f}, {each.high:+.4f}], "
            f"p (Holm) {_p(each.p)}: {each.verdict}"
        )
    if kinds:
        yield f"{' and '.join(kinds)}: mean {DECIDING} of the questions of that kind."


def _aligned(lines: list[list[str]], widths: list[int]) -> Iterator[str]:
    for number, line in enumerate(lines):
        cells = [cell.ljust(width) if at in (0, len(line) - 1) else cell.rjust(width)
                 for at, (cell, width) in enumerate(zip(line, widths, strict=True))]  # fmt: skip
        yield "  ".join(cells).rstrip()
        if number == 0:
            yield "  ".join("-" * width for width in widths)


def _cells(row: Row, kinds: list[str]) -> list[str]:
    values = [*(row.means[name] for name in MEASURES), *(row.kinds[kind] for kind in kinds)]
    shown = [row.name, *(f"{value:.4f}" for value in values)]
    if row.difference is None or row.low is None or row.high is None or row.p is None:
        return [*shown, "", "", "", "", row.verdict]
    interval = f"[{row.low:+.4f}, {row.high:+.4f}]"
    return [*shown, f"{row.difference:+.4f}", interval, _p(row.p), f"{row.wins}/{row.ties}/{row.losses}", row.verdict]


def _p(value: float) -> str:
    return "<.0001" if value < 0.0001 else f"{value:.4f}"


def _times(summary: Quickstart) -> Iterator[str]:
    yield f"What was done, in {summary.seconds:.0f} s:"
    for step in summary.steps:
        yield f"  {step.seconds:6.1f} s  {step.name}"
        if step.command:
            yield f"            {step.command}"


def _files(summary: Quickstart) -> Iterator[str]:
    yield "Files:"
    for what, path in summary.files:
        yield f"  {what:<18}{path}"


def _commands(summary: Quickstart) -> Iterator[str]:
    yield "The same for your own collection (a folder with corpus.jsonl, queries.jsonl and qrels/train.tsv, test.tsv):"
    for command in summary.commands:
        yield f"  {command}"
