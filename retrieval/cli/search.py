"""`rtk search`: Index × queries → Run, or documents on the screen for one text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ...errors import ConfigError
from .console import emit, emit_json, parse_settings, session
from .options import Device, Json, Overwrite, Quiet, Settings

__all__ = ["HELP", "NAME", "command"]

NAME = "search"
HELP = """Search an index for a split's queries, or for one text.

[dim]Examples:[/dim]

  rtk search bm25 -c my-collection --split test -k 1000 --out bm25.trec

  rtk search dense -q "merge two sorted lists"

  rtk search star.index --model models/adore -c my-collection --out adore.trec
"""

SNIPPET = 300
"""Characters of a document that are shown."""


def command(
    index: Annotated[Path, typer.Argument(help="An index folder.", show_default=False)],
    collection: Annotated[str | None, typer.Option("--collection", "-c", help="Where the queries are.")] = None,
    split: Annotated[str, typer.Option("--split", help="Which queries.")] = "test",
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
    settings: Settings = None,
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
    with session(quiet=quiet):
        from ..search import Retriever

        if verify:
            from ...indexes import open_index

            open_index(index, verify=True)
        retriever = Retriever.open(index, model, device=device, options=parse_settings(settings))
        if out is None:
            shown: Any = _show(retriever, query or "", k or 10, collection, json=json)
        else:
            shown = _write(retriever, collection, split, k or 1000, out, overwrite=overwrite, json=json)
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


def _write(
    retriever: Any, collection: str | None, split: str, k: int, out: Path, *, overwrite: bool, json: bool
) -> Any:
    from ...eval import open_collection, run_name, write_run
    from ...files import check_output
    from ..search import excluded_documents

    if collection is None:
        raise ConfigError("the queries are in a collection: give --collection")
    check_output(out, overwrite=overwrite)
    opened = open_collection(collection)
    queries = opened.queries(split)
    run = retriever.run(queries, k, tag=run_name(out), exclude=excluded_documents(opened, queries))
    write_run(run, out)
    short = int(((run.offsets[1:] - run.offsets[:-1]) == 0).sum())
    if json:
        return {"out": str(out), "queries": len(run), "entries": len(run.codes), "queries_without_hits": short}
    note = f"\nqueries without any hit: {short}" if short else ""
    return f"searched {len(run)} queries, {len(run.codes)} hits{note}\nwritten: {out}"
