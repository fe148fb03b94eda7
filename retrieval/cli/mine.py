"""`rtk mine`: a Run and judgments → a Run of hard negatives."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from ...errors import ConfigError
from .console import emit, emit_json, session
from .options import CollectionSpec, Json, Out, Overwrite, Quiet, Seed, Split

__all__ = ["HELP", "NAME", "command"]

NAME = "mine"
HELP = """Take hard negatives from a run: rank ranges and score margins, never a judged positive.

[dim]Examples:[/dim]

  rtk mine bm25.train.trec -c my-collection --split train --ranks 10:200 --per-query 20 --out negatives.trec

  rtk mine dense.parquet -c my-collection --split train --relative-margin 0.05 --choice random --out negatives.parquet
"""


def command(
    run: Annotated[Path, typer.Argument(help="What a retriever found for the training queries.", show_default=False)],
    collection: CollectionSpec,
    out: Out,
    split: Split = "train",
    ranks: Annotated[
        str, typer.Option("--ranks", metavar="FIRST:LAST", help="Ranks to take, positives not counted.")
    ] = "1:200",
    absolute_margin: Annotated[
        float | None, typer.Option("--absolute-margin", help="Score at least this much below the positive.")
    ] = None,
    relative_margin: Annotated[
        float | None, typer.Option("--relative-margin", help="The same as a share of the positive's score.")
    ] = None,
    percent_of_positive: Annotated[
        float | None, typer.Option("--percent-of-positive", help="Score at most this share of the positive's.")
    ] = None,
    max_score: Annotated[float | None, typer.Option("--max-score", help="Score at most this.")] = None,
    min_score: Annotated[float | None, typer.Option("--min-score", help="Score at least this.")] = None,
    teacher: Annotated[
        Path | None, typer.Option("--teacher", help="A run whose scores margins and limits use.")
    ] = None,
    positive_grade: Annotated[
        int, typer.Option("--positive-grade", help="Judgments of at least this are positives.")
    ] = 1,
    per_query: Annotated[
        int | None, typer.Option("--per-query", help="Negatives a query (default: all that are left).")
    ] = None,
    choice: Annotated[str, typer.Option("--choice", help="top or random, where more are left.")] = "top",
    seed: Seed = 0,
    overwrite: Overwrite = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    with session(quiet=quiet):
        from ...eval import open_collection, read_run, run_name, write_run
        from ...files import check_output
        from ..mining import mine

        check_output(out, overwrite=overwrite)
        opened = open_collection(collection)
        negatives, report = mine(
            read_run(run),
            opened.judgments(split),
            ranks=_range(ranks),
            absolute_margin=absolute_margin,
            relative_margin=relative_margin,
            percent_of_positive=percent_of_positive,
            max_score=max_score,
            min_score=min_score,
            drop_identical_ids=opened.conventions.drop_identical_ids,
            teacher=None if teacher is None else read_run(teacher),
            positive_grade=positive_grade,
            per_query=per_query,
            choice=choice,  # pyright: ignore[reportArgumentType] - checked by mine
            seed=seed,
            tag=run_name(out),
        )
        write_run(negatives, out)
    if json:
        emit_json({"out": str(out), **dataclasses.asdict(report)})
    else:
        emit("\n".join([*report.lines(), f"written: {out}"]))


def _range(text: str) -> tuple[int, int]:
    first, colon, last = text.partition(":")
    if not colon or not first.isdigit() or not last.isdigit():
        raise ConfigError(f"--ranks {text!r}: expected FIRST:LAST, such as 10:200")
    return int(first), int(last)
