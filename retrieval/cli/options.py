"""Options that several verbs share, declared once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ...errors import ConfigError

CollectionSpec = Annotated[
    str,
    typer.Option("--collection", "-c", help="Folder in BEIR layout, ir_datasets id, or `pydocs`.", show_default=False),
]
Split = Annotated[str, typer.Option("--split", help="Which queries and judgments; a part of them as 'train[:90%]'.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Where the result goes.", show_default=False)]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an output that exists.")]
Device = Annotated[
    str | None,
    typer.Option("--device", help="cpu, cuda, …; cuda:0,cuda:1 encodes on several (default: the best there is)."),
]
Dtype = Annotated[str, typer.Option("--dtype", help="What models compute in: float32, float16 or bfloat16.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of every random choice.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress and no notes; errors only.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="A setting of the method or engine by its own name (repeatable)."),
]
DocumentLength = Annotated[
    int | None, typer.Option("--document-length", help="Tokens that a document is cut to (default: the model's).")
]
QueryLength = Annotated[
    int | None,
    typer.Option(
        "--query-length", help="Tokens that a query is cut to in searches (default: the index's, the model's)."
    ),
]
EncoderBackend = Annotated[str, typer.Option("--encoder-backend", help="torch, or onnx (extra onnx, CPU).")]
Quantise = Annotated[str | None, typer.Option("--quantise", help="int8: 8-bit computation on the CPU.")]
ShardSize = Annotated[int, typer.Option("--shard-size", help="Documents a shard: what a stop can lose.")]
Storage = Annotated[str, typer.Option("--storage", help="How vectors are stored: float32, float16 or bfloat16.")]


def encoder_settings(
    device: str | None,
    dtype: str,
    query_length: int | None,
    document_length: int | None,
    backend: str,
    quantise: str | None,
) -> dict[str, Any]:
    """What was said about the encoder, in `load_encoder`'s names; nothing that was left at its default."""
    given = {
        "device": device,
        "dtype": None if dtype == "float32" else dtype,
        "query_length": query_length,
        "document_length": document_length,
        "backend": None if backend == "torch" else backend,
        "quantise": quantise,
    }
    return {name: value for name, value in given.items() if value is not None}


def number_range(option: str, text: str, example: str) -> tuple[int, int]:
    """FIRST:LAST as two numbers.

    Raises:
        ConfigError: it is something else.
    """
    first, colon, last = text.partition(":")
    if not colon or not first.isdigit() or not last.isdigit():
        raise ConfigError(f"{option} {text!r}: expected two whole numbers, such as {example}")
    return int(first), int(last)
