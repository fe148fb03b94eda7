"""`rtk quickstart`: the whole way once, on a collection that is already on the machine."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from .console import emit, emit_json, session
from .options import Json, Overwrite, Quiet

__all__ = ["HELP", "NAME", "command"]

NAME = "quickstart"
HELP = """Go the whole way once on the embedded collection: index, search, fuse, train, rerank, evaluate.

Takes a few minutes on two cores and needs the extras cpu and minilm; no Java, no GPU, no hub.

[dim]Examples:[/dim]

  rtk quickstart

  rtk quickstart --out first --overwrite --json
"""


def command(
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder that everything goes to.")] = Path("quickstart"),
    overwrite: Overwrite = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    with session(quiet=quiet):
        from ..quickstart import quickstart
        from ..quickstart_text import format_quickstart

        done = quickstart(out, overwrite=overwrite)
    emit_json(dataclasses.asdict(done)) if json else emit(format_quickstart(done))
