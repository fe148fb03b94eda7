"""`rtk mine`: a Run or an Index, and judgments → a Run of hard negatives."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...errors import ConfigError
from .console import emit, emit_json, session
from .mine_options import (
    AbsoluteMargin,
    Choice,
    ConsistencyRank,
    Depth,
    Found,
    IdenticalIds,
    IdenticalTexts,
    MaxScore,
    MinScore,
    Model,
    Pad,
    PercentOfPositive,
    PerQuery,
    PositiveGrade,
    Positives,
    PositiveScore,
    Ranks,
    Reference,
    RelativeMargin,
    Report,
    Skip,
    Teacher,
)
from .options import CollectionSpec, Device, Json, Out, Overwrite, Quiet, Seed, Split, number_range

if TYPE_CHECKING:
    from ...eval import Collection, Judgments, Run
    from ...ids import Ids
    from ..mining import MiningLimits, Selection

__all__ = ["HELP", "NAME", "command"]

NAME = "mine"
HELP = """Take hard negatives from a run, or straight from an index: rank ranges, score margins and filters for false
negatives; never a judged positive, and never padding that is not marked.

[dim]Examples:[/dim]

  rtk mine bm25.train.trec -c my-collection --split train --ranks 10:200 --per-query 20 --out negatives.trec

  rtk mine dense-index -c my-collection --relative-margin 0.05 --choice random --per-query 4 --out negatives.parquet

  rtk mine bm25.train.trec -c my-collection --teacher reranked.parquet --max-score -2 --positive-score 4 --positives
  found.tsv --report removed.tsv --out negatives.parquet
"""


def command(
    source: Annotated[
        Path,
        typer.Argument(metavar="RUN|INDEX", help="A run for the training queries, or an index.", show_default=False),
    ],
    collection: CollectionSpec,
    out: Out,
    split: Split = "train",
    ranks: Ranks = "1:200",
    depth: Depth = None,
    absolute_margin: AbsoluteMargin = None,
    relative_margin: RelativeMargin = None,
    percent_of_positive: PercentOfPositive = None,
    max_score: MaxScore = None,
    min_score: MinScore = None,
    positive_score: PositiveScore = None,
    consistency_rank: ConsistencyRank = None,
    skip: Skip = 0,
    identical_ids: IdenticalIds = False,
    identical_texts: IdenticalTexts = False,
    teacher: Teacher = None,
    reference: Reference = "min",
    positive_grade: PositiveGrade = 1,
    per_query: PerQuery = None,
    choice: Choice = "top",
    pad: Pad = "none",
    positives: Positives = None,
    report: Report = None,
    found: Found = None,
    model: Model = None,
    device: Device = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    _check_outputs(out, positives, positive_score, pad, reference)
    with session(quiet=quiet):
        from ...eval import open_collection, read_run
        from ...files import check_output
        from ..mining import MiningLimits, Selection

        outputs = [path for path in (out, positives, report, found) if path is not None]
        for path in outputs:
            check_output(path, overwrite=overwrite)
        opened = open_collection(collection)
        limits = MiningLimits(
            number_range("--ranks", ranks, "10:200"),
            absolute_margin, relative_margin, percent_of_positive, max_score, min_score, skip,
            identical_ids or opened.conventions.drop_identical_ids, positive_score, consistency_rank,
            (opened.queries(split), opened.documents) if identical_texts else None,
        )  # fmt: skip
        job = _Job(
            run=_candidates(source, opened, split, limits, depth, positive_grade, _Searching(model, device, found)),
            judgments=opened.judgments(split),
            limits=limits,
            depth=depth,
            teacher=None if teacher is None else read_run(teacher),
            positive_grade=positive_grade,
        )
        selection = Selection(per_query, choice, seed)  # pyright: ignore[reportArgumentType] - it checks the name
        pool = opened.documents.ids if pad == "random" else None
        told = job.mine(selection, reference, pool, out, report)
        counts = told.counts()
        if positives is not None:
            counts["pseudo_positives"] = job.write_positives(positives)
    if json:
        emit_json({"out": str(out), **counts})
    else:
        more = [f"pseudo-positives: {counts['pseudo_positives']}"] if positives is not None else []
        emit("\n".join([*told.lines(), *more, *(f"written: {path}" for path in outputs)]))


@dataclass(frozen=True)
class _Searching:
    """How an index is searched for candidates, and where the run that it gives is kept."""

    model: str | None
    device: str | None
    found: Path | None


@dataclass(frozen=True)
class _Job:
    """What is mined, and the rules."""

    run: Run
    judgments: Judgments
    limits: MiningLimits
    depth: int | None
    teacher: Run | None
    positive_grade: int

    def mine(self, selection: Selection, reference: str, pool: Ids | None, out: Path, report: Path | None) -> Any:
        """Write the negatives, and what each rule removed; the report."""
        from ...eval import run_name, write_run
        from ..mining import mine, write_trace

        negatives, told = mine(
            self.run,
            self.judgments,
            self.limits,
            selection,
            depth=self.depth,
            teacher=self.teacher,
            reference=reference,  # pyright: ignore[reportArgumentType] - checked by mine
            positive_grade=self.positive_grade,
            pad_from=pool,
            tag=run_name(out),
        )
        write_run(negatives, out)
        if report is not None and told.trace is not None:
            write_trace(told.trace, report)
        return told

    def write_positives(self, path: Path) -> int:
        """Write what scores like a positive, as judgments by the name's ending, else as a run; how many there are."""
        from ...eval import Judgments, run_name, write_qrels, write_run
        from ..mining import pseudo_positives

        assert self.limits.positive_score is not None  # _check_outputs asks for it
        found = pseudo_positives(
            self.run if self.depth is None else self.run.top(self.depth),
            self.judgments,
            score=self.limits.positive_score,
            teacher=self.teacher,
            ranks=self.limits.ranks,
            positive_grade=self.positive_grade,
        )
        if path.name.removesuffix(".gz").endswith((".tsv", ".qrels")):
            grades = {entry.qid: dict.fromkeys(entry.documents, self.positive_grade) for entry in found}
            write_qrels(Judgments.from_dict(grades), path)
        else:
            write_run(found.replace(tag=run_name(path)), path)
        return len(found.codes)


def _check_outputs(out: Path, positives: Path | None, positive_score: float | None, pad: str, reference: str) -> None:
    """What can be refused before anything is read."""
    if pad not in ("none", "random"):
        raise ConfigError(f"--pad {pad!r}: expected none or random")
    if pad == "random" and out.suffix != ".parquet":
        raise ConfigError("--pad random marks what it adds in the column `padded`, which a TREC run has not: "
                          "give an --out that ends in .parquet")  # fmt: skip
    if reference == "own" and out.suffix != ".parquet":
        raise ConfigError("--reference own gives several lists a query (column `list_id`), which a TREC run has not: "
                          "give an --out that ends in .parquet")  # fmt: skip
    if positives is not None and positive_score is None:
        raise ConfigError("--positives writes what scores at least --positive-score: give it")


def _candidates(
    source: Path,
    collection: Collection,
    split: str,
    limits: MiningLimits,
    depth: int | None,
    positive_grade: int,
    searching: _Searching,
) -> Run:
    """The run, read or searched for."""
    from ...eval import read_run, run_name, write_run

    found = searching.found
    if not source.is_dir():
        if searching.model is not None or found is not None:
            raise ConfigError(f"--model and --found go with an index; {source} is no folder, so it is read as a run")
        return read_run(source)
    from ..mining.candidates import search_candidates
    from ..search import Retriever

    run = search_candidates(
        Retriever.open(source, searching.model, device=searching.device),
        collection,
        split,
        ranks=limits.ranks,
        depth=depth,
        consistency_rank=limits.consistency_rank,
        positive_grade=positive_grade,
        tag=run_name(found) if found else None,
    )
    if found is not None:
        write_run(run, found)
    return run
