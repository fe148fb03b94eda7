"""The options of `rtk mine` alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Ranks = Annotated[str, typer.Option("--ranks", metavar="FIRST:LAST", help="Ranks to take, positives not counted.")]
Depth = Annotated[int | None, typer.Option("--depth", help="Documents of each list to look at, positives counted.")]
AbsoluteMargin = Annotated[
    float | None, typer.Option("--absolute-margin", help="Score at least this much below the positive.")
]
RelativeMargin = Annotated[
    float | None, typer.Option("--relative-margin", help="The same as a share of the positive's score.")
]
PercentOfPositive = Annotated[
    float | None, typer.Option("--percent-of-positive", help="Score at most this share of the positive's.")
]
MaxScore = Annotated[float | None, typer.Option("--max-score", help="Score at most this.")]
MinScore = Annotated[float | None, typer.Option("--min-score", help="Score at least this.")]
PositiveScore = Annotated[
    float | None, typer.Option("--positive-score", help="From this score on a document is held relevant.")
]
Positives = Annotated[Path | None, typer.Option("--positives", help="Write those: judgments (.tsv, .qrels) or a run.")]
ConsistencyRank = Annotated[
    int | None,
    typer.Option("--consistency-rank", help="Drop a query whose best positive scores below this place (from 0)."),
]
Skip = Annotated[int, typer.Option("--skip", help="Leave out the first so many that are left.")]
IdenticalIds = Annotated[bool, typer.Option("--drop-identical-ids", help="Never the document with the query's own id.")]
IdenticalTexts = Annotated[
    bool, typer.Option("--drop-identical-texts", help="Never a document that says just what the query says.")
]
Teacher = Annotated[Path | None, typer.Option("--teacher", help="A run whose scores margins and limits use.")]
Reference = Annotated[
    str, typer.Option("--reference", help="Of several positives: min, max, or own (a list for each).")
]
PositiveGrade = Annotated[int, typer.Option("--positive-grade", help="Judgments of at least this are positives.")]
PerQuery = Annotated[int | None, typer.Option("--per-query", help="Negatives a query (default: all that are left).")]
Choice = Annotated[str, typer.Option("--choice", help="top or random, where more are left.")]
Pad = Annotated[str, typer.Option("--pad", help="none, or random: fill short lists, marked in the column `padded`.")]
Report = Annotated[Path | None, typer.Option("--report", help="What each rule removed, by query (.tsv).")]
Found = Annotated[Path | None, typer.Option("--found", help="Keep the run that an index gave.")]
Model = Annotated[str | None, typer.Option("--model", "-m", help="With an index: the queries' encoder.")]
