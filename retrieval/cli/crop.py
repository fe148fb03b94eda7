"""`rtk crop`: Collection → Collection, the same documents with queries cut out of them.

A verb of its own: it makes a collection, where the others read one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ...errors import ConfigError
from .console import emit, emit_json, session
from .options import CollectionSpec, Json, Out, Overwrite, Quiet, Seed, number_range

__all__ = ["HELP", "NAME", "command"]

NAME = "crop"
HELP = """Cut queries out of documents, for training without judgments (the inverse cloze task).

The result is a folder in BEIR layout: the documents, and queries that are spans of them, judged relevant for the
document that they come from.

[dim]Examples:[/dim]

  rtk crop -c my-collection --out crops

  rtk crop -c my-collection --words 4:12 --each 3 --within 60 --split warm-up --out crops
"""


def command(
    collection: CollectionSpec,
    out: Out,
    words: Annotated[str, typer.Option("--words", metavar="FEWEST:MOST", help="Words of a query.")] = "3:8",
    each: Annotated[int, typer.Option("--each", help="Queries of a document.")] = 1,
    within: Annotated[
        int | None,
        typer.Option("--within", help="Words of a document, from its start, that queries come from (default: all)."),
    ] = None,
    split: Annotated[str, typer.Option("--split", help="What the judgments are called.")] = "train",
    seed: Seed = 0,
    overwrite: Overwrite = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    with session(quiet=quiet):
        from ...eval import Cropping, crop_queries, open_collection, write_beir
        from ...files import check_output

        shortest, longest = number_range("--words", words, "3:8")
        cropping = Cropping(shortest, longest, each, within, seed)
        if not overwrite:
            check_output(out, overwrite=False)
        opened = open_collection(collection)
        if Path(collection).is_dir() and Path(collection).resolve() == out.resolve():
            raise ConfigError(f"--out {out} is the collection itself, which would be replaced; name another folder")
        parts = crop_queries(opened, cropping, split=split)
        write_beir(parts, out, overwrite=overwrite)
        queries = len(parts.judgments[split])
    counted = {"documents": len(opened.documents), "queries": queries,
               "too_short": len(opened.documents) - queries // each}  # fmt: skip
    if json:
        emit_json({"out": str(out), **counted})
    else:
        emit(
            "\n".join(f"{name.replace('_', ' '):<10} {value}" for name, value in counted.items()) + f"\nwritten: {out}"
        )
