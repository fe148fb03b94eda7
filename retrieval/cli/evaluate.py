"""`rtk eval`: Runs × judgments → report."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from ...errors import ConfigError
from .console import emit, session, table
from .options import Json, Overwrite, Quiet, Seed, Split

__all__ = ["HELP", "NAME", "command"]

NAME = "eval"
HELP = """Evaluate runs, and compare them with a baseline.

Measures are written as in ir-measures; all of them follow trec_eval's rules.

[dim]Examples:[/dim]

  rtk eval bm25.trec dense.trec -c my-collection --split test --baseline bm25.trec --report report.html

  rtk eval run.trec --qrels qrels.txt -m "nDCG@10 RR@10 R@1000" --order rank

  rtk eval seismic.trec --against exact.trec
"""

DEFAULT_MEASURES = "nDCG@10 RR@10 R@100"


def command(
    context: typer.Context,
    runs: Annotated[list[Path], typer.Argument(help="One or more runs.", show_default=False)],
    collection: Annotated[
        str | None, typer.Option("--collection", "-c", help="Where the judgments and conventions are.")
    ] = None,
    split: Split = "test",
    qrels: Annotated[Path | None, typer.Option("--qrels", help="A judgment file, in place of a collection.")] = None,
    measures: Annotated[
        list[str] | None,
        typer.Option("--measures", "-m", help=f"May be repeated. Default: the preset's, else {DEFAULT_MEASURES}."),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option("--preset", help="beir, trec-dl-2019, trec-dl-2020, trec-dl-2021, msmarco-dev, rar-b or bright."),
    ] = None,
    order: Annotated[
        str | None, typer.Option("--order", help="score (trec_eval's way) or rank (by the file's rank column).")
    ] = None,
    baseline: Annotated[
        Path | None, typer.Option("--baseline", help="Which of the runs the others are held against.")
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option("--against", help="An exact search's run: what share of its first 10, 100 and 1000 each run has."),
    ] = None,
    judged_only: Annotated[bool, typer.Option("--judged-only", help="Drop unjudged documents first.")] = False,
    drop_identical_ids: Annotated[
        bool | None, typer.Option("--drop-identical-ids/--keep-identical-ids", help="Default: as the collection says.")
    ] = None,
    per_query: Annotated[
        Path | None, typer.Option("--per-query", help="Write every query's values, tab-separated.")
    ] = None,
    report: Annotated[
        Path | None, typer.Option("--report", help="Write a report: .html, .md, .csv, .json or .txt.")
    ] = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    if against is not None:
        with session(quiet=quiet):
            _refuse_beside_against(context)
            shown = _agreement(runs, against, json=json)
        emit(shown)
        return
    with session(quiet=quiet):
        from ...eval.report import to_json, to_text, write_per_query, write_report
        from ...files import check_output

        for path in (report, per_query):
            if path is not None:
                check_output(path, overwrite=overwrite)
        judgments, conventions, found_preset, settings = _judgments(collection, split, qrels)
        chosen = _preset(preset or found_preset)
        asked = " ".join(measures or []) or (" ".join(chosen.measures) if chosen else DEFAULT_MEASURES)
        if drop_identical_ids is not None:
            conventions = dataclasses.replace(conventions, drop_identical_ids=drop_identical_ids)
        settings |= {"preset": chosen.name} if chosen else {}
        made = _report(
            _read(runs, order or (chosen.order if chosen else None)),
            judgments,
            _Asked(asked, conventions, judged_only, baseline, seed, chosen.relevance_level if chosen else 1),
            settings,
        )
        if per_query is not None:
            write_per_query(made.evaluations, per_query)
        if report is not None:
            write_report(made, report)
    if json:
        emit(to_json(made, per_query=False).rstrip())
    else:
        written = [f"written: {path}" for path in (report, per_query) if path is not None]
        emit("\n".join([to_text(made).rstrip(), *written]))


def _refuse_beside_against(context: typer.Context) -> None:
    """Refuse options that have to do with judgments; one that is left at its default is not meant."""
    fitting = {"runs", "against", "json", "quiet"}
    names = [
        option.opts[0]
        for option in context.command.params
        if option.name not in fitting and _is_typed(context, cast(str, option.name))
    ]
    if names:
        raise ConfigError(
            f"--against compares runs with a run, without judgments; leave {', '.join(names)} out, or evaluate first "
            "without --against"
        )


def _is_typed(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _agreement(runs: list[Path], against: Path, *, json: bool) -> str:
    """Recall of each run against an exact one; judgments play no part."""
    import json as writer

    from ...eval import agreement, read_run

    reference = read_run(against)
    depth = max((len(entry.documents) for entry in reference), default=0)
    cutoffs = [k for k in (10, 100, 1000) if k <= depth] or [max(depth, 1)]
    found = [agreement(read_run(path), reference, cutoffs) for path in runs]
    if json:
        return writer.dumps([{**dataclasses.asdict(one), "against": str(against)} for one in found], indent=2)
    header = ["run", "queries", "missing", *(f"recall@{k}" for k in cutoffs)]
    return table(
        header,
        [[one.tag, one.queries, one.missing, *(f"{one.recall[k]:.4f}" for k in cutoffs)] for one in found],
    )


@dataclasses.dataclass(frozen=True)
class _Asked:
    """What the report is to hold."""

    measures: str
    conventions: Any
    judged_only: bool
    baseline: Path | None
    seed: int
    relevance_level: int


def _judgments(collection: str | None, split: str, qrels: Path | None) -> tuple[Any, Any, str | None, dict[str, Any]]:
    """Judgments, conventions, the collection's own preset, and what the report says of them."""
    from ...eval import Conventions, open_collection, read_qrels

    if (collection is None) == (qrels is None):
        raise ConfigError("give either --collection (with --split), or --qrels FILE")
    if collection is None:
        return read_qrels(str(qrels)), Conventions(), None, {"qrels": str(qrels)}
    opened = open_collection(collection)
    found = opened.judgments(split)
    return found, opened.conventions, opened.conventions.preset, {"collection": opened.name, "split": split}


def _preset(name: str | None) -> Any:
    if name is None:
        return None
    from ...eval.presets import get_preset

    return get_preset(name)


def _read(paths: list[Path], order: str | None) -> dict[Path, Any]:
    """The runs by path, each under a name of its own: the file's, with as much of its path as tells it apart."""
    from ...eval import read_run, run_name

    if order not in (None, "score", "rank"):
        raise ConfigError(f"--order {order!r}: expected score or rank")
    if len(set(paths)) != len(paths):
        raise ConfigError("a run is given twice")
    short = {path: run_name(path) for path in paths}
    twice = {name for name, count in Counter(short.values()).items() if count > 1}
    names = {path: str(path) if name in twice else name for path, name in short.items()}
    return {path: read_run(path, order=order).replace(tag=names[path]) for path in paths}  # pyright: ignore[reportArgumentType]


def _report(runs: dict[Path, Any], judgments: Any, asked: _Asked, settings: dict[str, Any]) -> Any:
    from ...eval import evaluate
    from ...eval.report import Report, recall_curve
    from ...eval.significance import compare

    if asked.baseline is not None and asked.baseline not in runs:
        raise ConfigError(f"--baseline {asked.baseline} is not among the runs: {', '.join(map(str, runs))}")
    first = asked.baseline or next(iter(runs))
    ordered = [runs[first], *(run for path, run in runs.items() if path != first)]
    found = [
        evaluate(run, judgments, asked.measures, conventions=asked.conventions, judged_only=asked.judged_only)
        for run in ordered
    ]
    comparison = (
        compare(found[0], found[1:], seed=asked.seed) if asked.baseline is not None and len(found) > 1 else None
    )
    curves = {
        run.tag: recall_curve(run, judgments, relevance_level=asked.relevance_level, conventions=asked.conventions)
        for run in ordered
    }
    title = f"{settings.get('collection', settings.get('qrels'))} {settings.get('split', '')}".strip()
    return Report(title, found, comparison, curves, settings)
