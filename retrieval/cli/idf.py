"""`rtk idf`: Collection × a model's tokenizer → a table of weights, for queries without a network.

A verb of its own: it makes a file that `rtk train` reads, where `encode` and `index` make an index of vectors.
"""

from __future__ import annotations

from typing import Annotated

import typer

from .console import emit, emit_json, session
from .options import CollectionSpec, Json, Out, Overwrite, Quiet

__all__ = ["HELP", "NAME", "command"]

NAME = "idf"
HELP = """Count in how many documents each word piece is, and write its IDF.

The file is JSON (plain or .gz) of piece: weight, with an entry for every piece of the model's tokenizer.

[dim]Examples:[/dim]

  rtk idf -c my-collection --model bert-base-uncased --out idf.json.gz

  rtk idf -c pydocs --model minilm --out pydocs.idf.json
"""


def command(
    collection: CollectionSpec,
    model: Annotated[str, typer.Option("--model", "-m", help="Whose tokenizer: a path, hub id, `minilm`.")],
    out: Out,
    overwrite: Overwrite = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    with session(quiet=quiet):
        from ...eval import open_collection
        from ...files import check_output
        from ..encoders.idf import compute_idf
        from ..encoders.load import load_tokenizer

        check_output(out, overwrite=overwrite)
        tokenizer = load_tokenizer(model)
        opened = open_collection(collection)
        texts = (document.full_text for document in opened.documents)
        table = compute_idf(texts, tokenizer, source=opened.name, total=len(opened.documents))
        table.save(out)
    counted = {"passages": table.passages, "pieces": len(table), "occurring": len(table) - table.unseen}
    if json:
        emit_json({"out": str(out), **counted, "tokenizer": table.tokenizer})
    else:
        emit("\n".join(f"{name:<10} {value}" for name, value in counted.items()) + f"\nwritten: {out}")
