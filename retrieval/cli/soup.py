"""`rtk soup`: Models → one Model, the average of their parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ...errors import ConfigError
from .console import emit, emit_json, session
from .options import Json, Out, Overwrite, Quiet

__all__ = ["HELP", "NAME", "command"]

NAME = "soup"
HELP = """Average the parameters of several models of one architecture.

[dim]Examples:[/dim]

  rtk soup models/seed-1 models/seed-2 models/seed-3 --out models/soup

  rtk soup models/general models/scientific --weights 0.3,0.7 --out models/mixed
"""


def command(
    models: Annotated[list[Path], typer.Argument(help="Two or more model folders.", show_default=False)],
    out: Out,
    weights: Annotated[
        str | None, typer.Option("--weights", metavar="W,W,…", help="One for each model (default: equal).")
    ] = None,
    overwrite: Overwrite = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    with session(quiet=quiet):
        from ...files import read_json
        from ..training.soup import SOUP_FILE, make_soup

        folder = make_soup(models, out, weights=_weights(weights), overwrite=overwrite)
        record = read_json(folder / SOUP_FILE)
    if json:
        emit_json({"out": str(folder), **record})
    else:
        emit(f"averaged {len(models)} models\nwritten: {folder} (what went in: {folder / SOUP_FILE})")


def _weights(text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"--weights {text!r}: expected numbers with commas between them, such as 0.3,0.7") from None
