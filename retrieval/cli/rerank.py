"""`rtk rerank`: Run × Collection × Model → Run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ...errors import ConfigError
from .console import emit, emit_json, parse_settings, session
from .options import Device, Json, Out, Overwrite, Quiet, Settings, Split

__all__ = ["HELP", "NAME", "command"]

NAME = "rerank"
HELP = """Rerank the top of a run.

Finished queries are kept beside the output: the same command goes on where it was stopped.
If every query fails, nothing is written and the exit code is 1, with --on-error count too.

[dim]Rerankers:[/dim]

  cross-encoder; maxsim (an encoder's token vectors); and of language models

  all documents together: icr, first, rank-gpt, full-rank

  each document by itself: yes-no, graded, prorank, mono-t5, query-likelihood, erank, retro

  documents compared: prp, duo-t5, setwise, rank-r1

[dim]Examples:[/dim]

  rtk rerank bm25.trec -c my-collection --split test --reranker cross-encoder --model models/ce --out ce.parquet

  rtk rerank candidates.jsonl --reranker maxsim --model minilm --depth 50 --out maxsim.trec
"""


def command(
    run: Annotated[Path, typer.Argument(help="A run, or candidates with their texts (.jsonl).", show_default=False)],
    out: Out,
    model: Annotated[
        str, typer.Option("--model", "-m", help="A path or hub id; `minilm` for maxsim.", show_default=False)
    ],
    reranker: Annotated[
        str, typer.Option("--reranker", "-r", help="A reranker by name; all are listed above.")
    ] = "cross-encoder",
    collection: Annotated[
        str | None, typer.Option("--collection", "-c", help="Where the texts are (not for candidates with texts).")
    ] = None,
    split: Split = "test",
    depth: Annotated[int, typer.Option("--depth", "-k", help="Documents reranked a query.")] = 100,
    cut: Annotated[
        bool, typer.Option("--cut", help="Leave out documents below the depth; otherwise they stay, below.")
    ] = False,
    add_positives: Annotated[
        bool, typer.Option("--add-positives", help="Judged positives that the run lacks become candidates.")
    ] = False,
    raw: Annotated[
        bool, typer.Option("--raw", help="Keep columns raw, first_rank, first_score, calibrated (.parquet).")
    ] = False,
    on_error: Annotated[
        str, typer.Option("--on-error", help="stop, or count: keep that query's order and go on, unless all fail.")
    ] = "stop",
    order: Annotated[str, typer.Option("--order", help="The run's order: score or rank.")] = "score",
    settings: Settings = None,
    device: Device = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            "--dtype",
            help="float32, float16 or bfloat16 (default: float32; on vLLM the checkpoint's).",
            show_default=False,
        ),
    ] = None,
    overwrite: Overwrite = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    if raw and out.suffix != ".parquet":
        raise ConfigError(f"--raw keeps more columns than a TREC file has: give --out NAME.parquet, not {out.name}")
    with session(quiet=quiet):
        from ...files import check_output
        from ..rerankers import load_reranker, rerank_with_report

        if not overwrite:
            check_output(out, overwrite=False)
        first, source, judgments = _sources(run, collection, split, order, positives=add_positives)
        done = rerank_with_report(
            first,
            source,
            load_reranker(reranker, model, device=device, dtype=dtype, **parse_settings(settings)),
            _settings(depth, cut, on_error, raw, out),
            judgments=judgments,
            out=out,
            overwrite=overwrite,
        )
    emit_json({"out": str(out), **_counts(done.report)}) if json else emit(
        "\n".join([*done.report.lines(), f"written: {out}"])
    )


def _counts(report: Any) -> dict[str, Any]:
    return {
        "queries": report.queries,
        "resumed": report.resumed,
        "candidates": report.candidates,
        "added": report.added,
        "failed": report.failed,
        "calls": report.usage.calls,
        "prompt_tokens": report.usage.prompt_tokens,
        "cached_tokens": report.usage.cached_tokens,
        "generated_tokens": report.usage.generated_tokens,
        "malformed": report.usage.malformed,
        "cut": report.usage.cut,
        "seconds": round(report.seconds, 3),
        "candidates_now": report.candidates_now,
    }


def _settings(depth: int, cut: bool, on_error: str, raw: bool, out: Path) -> Any:
    from ...eval import run_name
    from ..rerankers import RerankSettings

    return RerankSettings(
        depth=depth,
        below="cut" if cut else "keep",
        on_error=on_error,  # pyright: ignore[reportArgumentType] - checked by RerankSettings
        raw=raw,
        tag=run_name(out),
    )


def _sources(run: Path, collection: str | None, split: str, order: str, *, positives: bool) -> tuple[Any, Any, Any]:
    """The first stage's run, where its texts come from, and the judgments whose positives are added."""
    from ...eval import open_collection, read_run
    from ..rerankers import read_candidates
    from ..rerankers.candidates import CollectionTexts

    if run.name.endswith((".jsonl", ".jsonl.gz")):
        if collection is not None or positives:
            raise ConfigError(f"{run} brings its own texts: leave out --collection and --add-positives")
        source = read_candidates(run)
        return source.run, source, None
    if collection is None:
        raise ConfigError(f"the texts of {run} are in a collection: give --collection")
    opened = open_collection(collection)
    texts = CollectionTexts(opened.documents, opened.queries(split), opened.name)
    checked_order = "rank" if order == "rank" else "score"
    if order not in ("rank", "score"):
        raise ConfigError(f"--order {order!r}: expected score or rank")
    return read_run(run, order=checked_order), texts, opened.judgments(split) if positives else None
