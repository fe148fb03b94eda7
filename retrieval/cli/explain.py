"""`rtk explain`: a sparse model (or a BM25 index), a query and a document → the terms that met."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ...errors import ConfigError
from .console import emit, emit_json, session, table
from .options import Device, Json, Quiet

__all__ = ["HELP", "NAME", "command"]

NAME = "explain"
HELP = """Show which terms of a query and a document met, and what each adds to the score.

With one text only: what it was expanded to. Terms that the text itself does not have are marked +.

[dim]Examples:[/dim]

  rtk explain models/splade -q "heart attack" -d "Myocardial infarction is an emergency."

  rtk explain sparse.index --query-id PLAIN-2 --document-id MED-10

  rtk explain models/splade -d "Myocardial infarction is an emergency." -k 30
"""


def command(
    what: Annotated[str, typer.Argument(help="A sparse model, or an index: sparse, or BM25.", show_default=False)],
    query: Annotated[str | None, typer.Option("--query", "-q", help="The query's text.")] = None,
    document: Annotated[str | None, typer.Option("--document", "-d", help="The document's text.")] = None,
    query_id: Annotated[str | None, typer.Option("--query-id", help="A query of the collection.")] = None,
    document_id: Annotated[str | None, typer.Option("--document-id", help="A document of the collection.")] = None,
    collection: Annotated[
        str | None, typer.Option("--collection", "-c", help="Where ids are looked up (default: the index's).")
    ] = None,
    k: Annotated[int, typer.Option("-k", help="Terms that are shown.")] = 20,
    device: Device = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    with session(quiet=quiet):
        from ..explainer import Asked, open_explainer

        if k < 1:
            raise ConfigError(f"-k is {k}; expected at least 1")
        explainer = open_explainer(what, collection, device=device)
        found = explainer.explain(Asked(query, query_id), Asked(document, document_id))
    emit_json(found.to_dict(k)) if json else emit(_shown(found.to_dict(k)))


def _shown(found: dict[str, Any]) -> str:
    if "score" in found:
        rows = [
            [_mark(term["in_query"]) + _mark(term["in_document"]), term["piece"], *_weights(term)]
            for term in found["terms"]
        ]
        body = table(["  ", "term", "query", "document", "contribution"], rows) if rows else "no term in common"
        return f"{body}\n{_more(found)}score {found['score']:.6f}"
    rows = [[_mark(term["in_text"]), term["piece"], f"{term['weight']:.4f}"] for term in found["terms"]]
    return (table([" ", "term", "weight"], rows) if rows else "an empty vector") + f"\n{_more(found)}".rstrip()


def _weights(term: dict[str, Any]) -> list[str]:
    return [f"{term[name]:.4f}" for name in ("query", "document", "contribution")]


def _mark(own: bool) -> str:
    return " " if own else "+"


def _more(found: dict[str, Any]) -> str:
    left = found["count"] - len(found["terms"])
    return f"({left} more terms)\n" if left else ""
