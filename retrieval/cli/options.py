"""Options that several verbs share, declared once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

CollectionSpec = Annotated[
    str,
    typer.Option("--collection", "-c", help="Folder in BEIR layout, ir_datasets id, or `pydocs`.", show_default=False),
]
Split = Annotated[str, typer.Option("--split", help="Which queries and judgments.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Where the result goes.", show_default=False)]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an output that exists.")]
Device = Annotated[
    str | None, typer.Option("--device", help="cpu, cuda, cuda:1, mps, … (default: the best there is).")
]
Dtype = Annotated[str, typer.Option("--dtype", help="Computation: float32, float16 or bfloat16.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of every random choice.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress and no notes; errors only.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="A setting of the engine by its own name (repeatable)."),
]
