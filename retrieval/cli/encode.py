"""`rtk encode`: Collection × Model → vectors, in one go or by many tasks that share a disk."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ...errors import ConfigError
from .console import emit, emit_json, session
from .index import describe_index, multi_device
from .options import (
    Device,
    DocumentLength,
    Dtype,
    EncoderBackend,
    Json,
    Out,
    Overwrite,
    Quantise,
    Quiet,
    ShardSize,
    Storage,
    encoder_settings,
)

__all__ = ["HELP", "NAME", "command"]

NAME = "encode"
HELP = """Encode a collection's documents into vector shards (an exact index, back-end torch).

The tasks of a job array each take a part of the shards; afterwards the same command without --part completes the index.

[dim]Examples:[/dim]

  rtk encode my-collection --retriever minilm --storage float16 --out vectors

  rtk encode my-collection --retriever minilm --shard-size 10000 --part 3/8 --out vectors
"""


def command(
    collection: Annotated[
        str, typer.Argument(help="Folder in BEIR layout, ir_datasets id, or `pydocs`.", show_default=False)
    ],
    out: Out,
    retriever: Annotated[
        str, typer.Option("--retriever", "-r", help="A model: path, hub id, `minilm`.", show_default=False)
    ],
    part: Annotated[
        str | None,
        typer.Option("--part", metavar="I/N", help="Task I of N, from 0; `auto` asks torchrun or the SLURM job array."),
    ] = None,
    document_length: DocumentLength = None,
    shard_size: ShardSize = 50_000,
    storage: Storage = "float32",
    encoder_backend: EncoderBackend = "torch",
    quantise: Quantise = None,
    device: Device = None,
    dtype: Dtype = "float32",
    overwrite: Overwrite = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    with session(quiet=quiet):
        from ..indexing import build_index, encode_part

        first, executor = multi_device(device, collection, retriever, dtype, document_length, encoder_backend, quantise)
        encoder = encoder_settings(first, dtype, None, document_length, encoder_backend, quantise)
        if part is not None:
            if overwrite or executor is not None:
                raise ConfigError("--part goes with neither --overwrite nor several devices")
            left = encode_part(
                collection,
                out,
                part=_part(part),
                retriever=retriever,
                backend="torch",
                shard_size=shard_size,
                dtype=storage,  # pyright: ignore[reportArgumentType] - names are checked by the plan
                encoder_settings=encoder,
            )
            emit_json({"out": str(out), "shards_missing": left}) if json else emit(
                f"this part is done; shards missing in {out}: {left}"
                + ("" if left else "; complete it with the same command without --part")
            )
            return
        built = build_index(
            collection,
            out,
            retriever=retriever,
            backend="torch",
            shard_size=shard_size,
            dtype=storage,  # pyright: ignore[reportArgumentType]
            encoder_settings=encoder,
            executor=executor,
            overwrite=overwrite,
        )
    described = describe_index(built, out)
    emit_json(described) if json else emit("\n".join(f"{name:<10} {value}" for name, value in described.items()))


def _part(text: str) -> Any:
    from ..encoders.corpus import Part, array_part

    if text == "auto":
        found = array_part()
        if found is None:
            raise ConfigError("--part auto: this is neither a torchrun process nor a task of a SLURM job array")
        return found
    number, slash, count = text.partition("/")
    if not slash or not number.isdigit() or not count.isdigit():
        raise ConfigError(f"--part {text!r}: expected I/N, such as 3/8, or auto")
    return Part(int(number), int(count))
