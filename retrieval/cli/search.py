"""`rtk search`: Index × queries → Run, or documents on the screen for one text."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import typer

from ...errors import ConfigError, nearest
from .console import emit, emit_json, parse_settings, session
from .options import Device, Json, Overwrite, QueryLength, Quiet, Settings, Split

__all__ = ["HELP", "NAME", "command"]

NAME = "search"
HELP = """Search an index for a split's queries, or for one text.

[dim]Examples:[/dim]

  rtk search bm25 -c my-collection --split test -k 1000 --out bm25.trec

  rtk search dense -q "merge two sorted lists"

  rtk search star.index --model models/adore -c my-collection --out adore.trec

  rtk search dense -c my-collection --feedback reranked.trec --out again.trec
"""

SNIPPET = 300
"""Characters of a document that are shown."""


def command(
    index: Annotated[Path, typer.Argument(help="An index folder.", show_default=False)],
    collection: Annotated[str | None, typer.Option("--collection", "-c", help="Where the queries are.")] = None,
    split: Split = "test",
    query: Annotated[str | None, typer.Option("--query", "-q", help="One text; its documents are printed.")] = None,
    k: Annotated[
        int | None, typer.Option("-k", help="Documents a query (default: 1000 for a run, 10 for one text).")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The run: .trec, .trec.gz or .parquet.")] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", "-m", help="The queries' encoder, with the document side that made the index (default: its own)."
        ),
    ] = None,
    query_length: QueryLength = None,
    settings: Settings = None,
    feedback: Annotated[
        Path | None,
        typer.Option("--feedback", help="A reranked run of the same queries: search with what its order teaches."),
    ] = None,
    feedback_settings: Annotated[
        list[str] | None, typer.Option("--feedback-set", help="NAME=VALUE of the feedback (depth, order_steps, …).")
    ] = None,
    device: Device = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare every file of the index with its hash first.")
    ] = False,
    overwrite: Overwrite = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    if (query is None) == (out is None):
        raise ConfigError("give either -q TEXT, to see its documents, or --collection and --out, to write a run")
    if feedback is None and feedback_settings:
        raise ConfigError("--feedback-set is for --feedback RUN")
    if feedback is not None and out is None:
        raise ConfigError("--feedback needs --collection and --out: a run teaches the queries of a split")
    with session(quiet=quiet):
        from ..search import Retriever

        if verify:
            from ...indexes import open_index

            open_index(index, verify=True)
        options = parse_settings(settings)
        retriever = Retriever.open(index, model, device=device, query_length=query_length, options=options)
        if out is None:
            shown: Any = _show(retriever, query or "", k or 10, collection, json=json)
        else:
            teacher = None if feedback is None else (feedback, parse_settings(feedback_settings))
            shown = _write(
                retriever, _Wanted(collection, split, k or 1000, out, teacher), overwrite=overwrite, json=json
            )
    emit_json(shown) if json else emit(shown)


def _show(retriever: Any, text: str, k: int, collection: str | None, *, json: bool) -> Any:
    import dataclasses

    from ...eval import open_collection
    from ..found import search_documents

    found = search_documents(retriever, text, k, collection=None if collection is None else open_collection(collection))
    if json:
        return dataclasses.asdict(found)
    lines = []
    for document in found.documents:
        lines.append(f"{document.rank:>3}  {document.score:8.4f}  {document.id}  {document.title or ''}".rstrip())
        if document.text:
            text_line = " ".join(document.text.split())
            lines.append(f"     {text_line[:SNIPPET]}{'…' if len(text_line) > SNIPPET else ''}")
    return "\n".join([*(lines or ["nothing found"]), *([f"({found.note})"] if found.note else [])])


@dataclass(frozen=True)
class _Wanted:
    """Which queries are searched, for what; `teacher` is a reranked run and the settings of its feedback."""

    collection: str | None
    split: str
    k: int
    out: Path
    teacher: tuple[Path, dict[str, Any]] | None


def _write(retriever: Any, wanted: _Wanted, *, overwrite: bool, json: bool) -> Any:
    from ...eval import open_collection, write_run
    from ...files import check_output
    from ..query_watch import watch_queries
    from ..search import excluded_documents

    if wanted.collection is None:
        raise ConfigError("the queries are in a collection: give --collection")
    check_output(wanted.out, overwrite=overwrite)
    opened = open_collection(wanted.collection)
    queries = opened.queries(wanted.split)
    watched, watch = watch_queries(retriever)
    run = _search(watched, wanted, queries, excluded_documents(opened, queries))
    write_run(run, wanted.out)
    sparsity = {} if watch is None else watch.report()
    short = int(((run.offsets[1:] - run.offsets[:-1]) == 0).sum())
    if json:
        counts = {"queries": len(run), "entries": len(run.codes), "queries_without_hits": short}
        return {"out": str(wanted.out), **counts, **sparsity}
    note = f"\nqueries without any hit: {short}" if short else ""
    if sparsity:
        note += (
            f"\nactive dimensions: {sparsity['query_active_dimensions']:.1f} a query, "
            f"{sparsity['document_active_dimensions']:.1f} a document; FLOPS metric {sparsity['flops']:.4f}"
        )
    return f"searched {len(run)} queries, {len(run.codes)} hits{note}\nwritten: {wanted.out}"


def _search(retriever: Any, wanted: _Wanted, queries: Any, exclude: Any) -> Any:
    from ...eval import read_run, run_name

    tag = run_name(wanted.out)
    if wanted.teacher is None:
        return retriever.run(queries, wanted.k, tag=tag, exclude=exclude)
    from ..feedback import Feedback, feedback_run

    path, settings = wanted.teacher
    known = [each.name for each in fields(Feedback)]
    wrong = [f"unknown setting {name!r}{nearest(name, known)}" for name in settings if name not in known]
    if wrong:
        raise ConfigError(f"--feedback-set takes {', '.join(known)}", wrong)
    feedback = Feedback(**settings)
    return feedback_run(retriever, queries, read_run(path), wanted.k, feedback=feedback, tag=tag, exclude=exclude)
