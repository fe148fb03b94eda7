"""`rtk mine`: a Run or an Index, and judgments → a Run of hard negatives."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...errors import ConfigError
from .console import emit, emit_json, session
from .options import CollectionSpec, Device, Json, Out, Overwrite, Quiet, Seed, Split

if TYPE_CHECKING:
    from ...eval import Collection, Run

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
    ranks: Annotated[
        str, typer.Option("--ranks", metavar="FIRST:LAST", help="Ranks to take, positives not counted.")
    ] = "1:200",
    depth: Annotated[
        int | None, typer.Option("--depth", help="Documents of each list to look at, positives counted.")
    ] = None,
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
    positive_score: Annotated[
        float | None, typer.Option("--positive-score", help="From this score on a document is held relevant.")
    ] = None,
    positives: Annotated[
        Path | None,
        typer.Option("--positives", help="Write those: judgments (.tsv, .qrels) or a run."),
    ] = None,
    consistency_rank: Annotated[
        int | None,
        typer.Option("--consistency-rank", help="Drop a query whose best positive scores below this place (from 0)."),
    ] = None,
    skip: Annotated[int, typer.Option("--skip", help="Leave out the first so many that are left.")] = 0,
    teacher: Annotated[
        Path | None, typer.Option("--teacher", help="A run whose scores margins and limits use.")
    ] = None,
    reference: Annotated[
        str, typer.Option("--reference", help="Of several positives: min, max, or own (a list for each).")
    ] = "min",
    positive_grade: Annotated[
        int, typer.Option("--positive-grade", help="Judgments of at least this are positives.")
    ] = 1,
    per_query: Annotated[
        int | None, typer.Option("--per-query", help="Negatives a query (default: all that are left).")
    ] = None,
    choice: Annotated[str, typer.Option("--choice", help="top or random, where more are left.")] = "top",
    pad: Annotated[
        str, typer.Option("--pad", help="none, or random: fill short lists, marked in the column `padded`.")
    ] = "none",
    identical_ids: Annotated[
        bool, typer.Option("--drop-identical-ids", help="Never the document with the query's own id.")
    ] = False,
    report: Annotated[Path | None, typer.Option("--report", help="What each rule removed, by query (.tsv).")] = None,
    found: Annotated[Path | None, typer.Option("--found", help="Keep the run that an index gave.")] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="With an index: the queries' encoder.")] = None,
    device: Device = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    _check_outputs(out, positives, positive_score, pad, reference)
    with session(quiet=quiet):
        from ...eval import open_collection, read_run, run_name, write_run
        from ...files import check_output
        from ..mining import mine, write_trace

        outputs = [path for path in (out, positives, report, found) if path is not None]
        for path in outputs:
            check_output(path, overwrite=overwrite)
        opened = open_collection(collection)
        window = _range(ranks)
        depths: dict[str, Any] = {"ranks": window, "depth": depth, "consistency_rank": consistency_rank}
        run = _candidates(source, opened, split, {**depths, "positive_grade": positive_grade}, model, device, found)
        judgments = opened.judgments(split)
        scores = None if teacher is None else read_run(teacher)
        negatives, told = mine(
            run,
            judgments,
            **depths,
            absolute_margin=absolute_margin,
            relative_margin=relative_margin,
            percent_of_positive=percent_of_positive,
            max_score=max_score,
            min_score=min_score,
            positive_score=positive_score,
            skip=skip,
            drop_identical_ids=identical_ids or opened.conventions.drop_identical_ids,
            teacher=scores,
            reference=reference,  # pyright: ignore[reportArgumentType] - checked by mine
            positive_grade=positive_grade,
            per_query=per_query,
            choice=choice,  # pyright: ignore[reportArgumentType] - checked by mine
            pad_from=opened.documents.ids if pad == "random" else None,
            seed=seed,
            tag=run_name(out),
        )
        write_run(negatives, out)
        counts = told.counts()
        if positives is not None:
            found_positive = _positives(run, judgments, depths, positive_score, scores, positive_grade)
            _write_positives(found_positive, positives, positive_grade)
            counts["pseudo_positives"] = len(found_positive.codes)
        if report is not None and told.trace is not None:
            write_trace(told.trace, report)
    if json:
        emit_json({"out": str(out), **counts})
    else:
        more = [f"pseudo-positives: {counts['pseudo_positives']}"] if positives is not None else []
        emit("\n".join([*told.lines(), *more, *(f"written: {path}" for path in outputs)]))


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
    settings: dict[str, Any],
    model: str | None,
    device: str | None,
    found: Path | None,
) -> Run:
    """The run, read or searched for."""
    from ...eval import read_run, run_name, write_run

    if not source.is_dir():
        if model is not None or found is not None:
            raise ConfigError(f"--model and --found go with an index; {source} is no folder, so it is read as a run")
        return read_run(source)
    from ..mining.candidates import search_candidates
    from ..search import Retriever

    retriever = Retriever.open(source, model, device=device)
    run = search_candidates(retriever, collection, split, **settings, tag=run_name(found) if found else None)
    if found is not None:
        write_run(run, found)
    return run


def _positives(
    run: Run, judgments: Any, depths: dict[str, Any], score: float | None, teacher: Run | None, grade: int
) -> Run:
    from ..mining import pseudo_positives

    assert score is not None  # _check_outputs asks for it
    cut = run if depths["depth"] is None else run.top(depths["depth"])
    return pseudo_positives(cut, judgments, score=score, teacher=teacher, ranks=depths["ranks"], positive_grade=grade)


def _write_positives(found: Run, path: Path, grade: int) -> None:
    """Judgments by name's ending, else a run."""
    from ...eval import Judgments, run_name, write_qrels, write_run

    if path.name.removesuffix(".gz").endswith((".tsv", ".qrels")):
        grades = {entry.qid: dict.fromkeys(entry.documents, grade) for entry in found}
        write_qrels(Judgments.from_dict(grades), path)
    else:
        write_run(found.replace(tag=run_name(path)), path)


def _range(text: str) -> tuple[int, int]:
    first, colon, last = text.partition(":")
    if not colon or not first.isdigit() or not last.isdigit():
        raise ConfigError(f"--ranks {text!r}: expected FIRST:LAST, such as 10:200")
    return int(first), int(last)
