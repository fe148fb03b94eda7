"""`rtk train`: Collection × Runs by role × Model → Model, by a configuration file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .console import emit, emit_json, session
from .options import Json, Overwrite, Quiet

__all__ = ["HELP", "NAME", "command"]

NAME = "train"
HELP = """Train a retriever or a reranker by a configuration file.

The same command resumes a training that was stopped. Several GPUs: torchrun --nproc-per-node 4 -m rtk train CONFIG.

[dim]Examples:[/dim]

  rtk train contrastive.yaml trainer.max_steps=200 output=models/first

  rtk train contrastive.yaml --print-config
"""


def command(
    config: Annotated[Path, typer.Argument(help="The YAML of a training configuration.", show_default=False)],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Values that replace the file's.")
    ] = None,
    show: Annotated[bool, typer.Option("--print-config", help="Print the resolved configuration and stop.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Read the data, print what would be trained on, and stop.")
    ] = False,
    overwrite: Overwrite = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    with session(quiet=quiet):
        from ..training import load_config, print_config

        resolved = load_config(config, overrides or [])
        if show:
            emit(print_config(resolved).rstrip())
            return
        from ..training import plan, train

        if dry_run:
            planned = plan(resolved)
            emit_json(planned.to_dict()) if json else emit(planned.text())
            return
        result = train(resolved, overwrite=overwrite)
    if json:
        emit_json(result.to_dict())
    else:
        emit(result.text())
