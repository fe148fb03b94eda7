"""`rtk fuse`: Runs → one Run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ...errors import ConfigError
from .console import emit, emit_json, session
from .options import Json, Out, Overwrite, Quiet

__all__ = ["HELP", "NAME", "command"]

NAME = "fuse"
HELP = """Fuse runs into one: reciprocal ranks, weighted scores, or the mean of teachers.

[dim]Examples:[/dim]

  rtk fuse bm25.trec dense.trec --out fused.trec

  rtk fuse bm25.trec dense.trec --method interpolate --weights 0.3,0.7 --normalise min-max --out fused.trec
"""


def command(
    runs: Annotated[list[Path], typer.Argument(help="Two or more runs.", show_default=False)],
    out: Out,
    method: Annotated[str, typer.Option("--method", help="rrf, interpolate, mean, combsum or combmnz.")] = "rrf",
    weights: Annotated[str | None, typer.Option("--weights", metavar="W,W,…", help="One for each run.")] = None,
    normalise: Annotated[
        str | None, typer.Option("--normalise", help="none, min-max or z (default: the method's).")
    ] = None,
    missing: Annotated[
        str | None,
        typer.Option(
            "--missing", help="A document that a run lacks: zero, min, ignore, drop or error (default: the method's)."
        ),
    ] = None,
    k: Annotated[int, typer.Option("--rrf-k", help="The constant of rrf.")] = 60,
    depth: Annotated[int | None, typer.Option("--depth", help="Documents kept a query (default: all).")] = None,
    overwrite: Overwrite = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    with session(quiet=quiet):
        from ...eval import fuse, read_run, run_name, write_run
        from ...files import check_output

        check_output(out, overwrite=overwrite)
        fused = fuse(
            [read_run(path) for path in runs],
            method=method,  # pyright: ignore[reportArgumentType] - names are checked by fuse
            weights=_weights(weights),
            normalise=normalise,  # pyright: ignore[reportArgumentType]
            missing=missing,  # pyright: ignore[reportArgumentType]
            k=k,
            depth=depth,
            tag=run_name(out),
        )
        write_run(fused, out)
    if json:
        emit_json({"out": str(out), "queries": len(fused), "entries": len(fused.codes)})
    else:
        emit(f"fused {len(runs)} runs: {len(fused)} queries, {len(fused.codes)} entries\nwritten: {out}")


def _weights(text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"--weights {text!r}: expected numbers with commas between them, such as 0.3,0.7") from None
