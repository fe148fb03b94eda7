"""`rtk train`: Collection × Runs by role × Model → Model, by a configuration file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

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
    alone = os.environ.get("RANK", "0") == "0"  # torchrun runs this in every process: one of them speaks
    with session(quiet=quiet or not alone):
        from ..training.config import load_config, print_config

        resolved = load_config(config, overrides or [])
        if show:
            emit(print_config(resolved).rstrip())
            return
        if dry_run:
            plan = _plan(resolved)
            emit_json(plan) if json else emit(_plan_text(plan))
            return
        from ...files import read_json
        from ..training.trainer import train

        output = train(resolved, overwrite=overwrite)
        record = read_json(output / "rtk-run.json")
    if not alone:
        return
    if json:
        emit_json({"output": str(output), **record})
    else:
        emit(f"written: {output} (what was done and with what: {output / 'rtk-run.json'})")


def _plan(config: Any) -> dict[str, Any]:
    """What would be trained on, from the data themselves."""
    from ..training.kinds import EXAMPLES

    opened = EXAMPLES[config.preset.examples or config.preset.family].open(config)
    return {
        "method": config.method,
        "model": config.model,
        "output": config.output,
        "data": [{"name": table.name, "counts": table.report.lines()} for table in opened],
    }


def _plan_text(plan: dict[str, Any]) -> str:
    lines = [f"{plan['method']}: {plan['model']} → {plan['output']}"]
    for part in plan["data"]:
        lines += [f"{part['name']}: {part['counts'][0]}", *(f"  {line}" for line in part["counts"][1:])]
    return "\n".join(lines)
