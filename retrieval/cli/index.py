"""`rtk index`: Collection × Model (or BM25) → Index."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ...errors import ConfigError
from .console import emit, emit_json, parse_settings, session
from .options import (
    Device,
    DocumentLength,
    Dtype,
    EncoderBackend,
    Json,
    Out,
    Overwrite,
    Quantise,
    QueryLength,
    Quiet,
    Settings,
    ShardSize,
    Storage,
    encoder_settings,
)

__all__ = ["HELP", "NAME", "command", "describe_index", "multi_device"]

NAME = "index"
HELP = """Build an index over a collection.

The same command resumes a build that was stopped; other arguments are refused.

[dim]Examples:[/dim]

  rtk index my-collection --out bm25

  rtk index my-collection --retriever minilm --backend faiss:HNSW32 --out dense
"""


def command(
    collection: Annotated[
        str, typer.Argument(help="Folder in BEIR layout, ir_datasets id, or `pydocs`.", show_default=False)
    ],
    out: Out,
    retriever: Annotated[
        str, typer.Option("--retriever", "-r", help="`bm25`, or a model: path, hub id, `minilm`.")
    ] = "bm25",
    backend: Annotated[
        str | None,
        typer.Option(
            "--backend",
            "-b",
            help="BM25: bm25s, lucene, exact. Dense: faiss[:FACTORY], torch. Sparse: exact, lucene, seismic. "
            "The first is the default.",
        ),
    ] = None,
    document_length: DocumentLength = None,
    query_length: QueryLength = None,
    chunk: Annotated[
        int | None,
        typer.Option(
            "--chunk",
            help="Cut documents into chunks of so many tokens; a document then scores as its best chunk (MaxP).",
        ),
    ] = None,
    chunk_overlap: Annotated[int, typer.Option("--chunk-overlap", help="Tokens that neighbouring chunks share.")] = 0,
    shard_size: ShardSize = 50_000,
    storage: Storage = "float32",
    encoder_backend: EncoderBackend = "torch",
    quantise: Quantise = None,
    settings: Settings = None,
    device: Device = None,
    dtype: Dtype = "float32",
    overwrite: Overwrite = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    with session(quiet=quiet):
        from ..indexing import BM25, build_index

        first, executor = multi_device(device, collection, retriever, dtype, document_length, encoder_backend, quantise)
        encoder = encoder_settings(first, dtype, query_length, document_length, encoder_backend, quantise)
        if executor is not None and chunk is not None:
            raise ConfigError("--chunk goes with one device only")
        if retriever == BM25 and encoder:
            raise ConfigError(f"--retriever bm25 has no encoder, so it takes none of {', '.join(encoder)}")
        built = build_index(
            collection,
            out,
            retriever=retriever,
            backend=backend,
            chunking=_chunking(chunk, chunk_overlap),
            shard_size=shard_size,
            dtype=storage,  # pyright: ignore[reportArgumentType] - names are checked by the plan
            settings=parse_settings(settings),
            encoder_settings=encoder,
            executor=executor,
            overwrite=overwrite,
        )
    described = describe_index(built, out)
    if json:
        emit_json(described)
    else:
        emit("\n".join(f"{name:<10} {value}" for name, value in described.items()))


def _chunking(size: int | None, overlap: int) -> Any:
    if size is None:
        if overlap:
            raise ConfigError("--chunk-overlap needs --chunk")
        return None
    from ...eval.chunking import Chunking

    return Chunking(size=size, overlap=overlap)


def multi_device(
    device: str | None,
    collection: str,
    retriever: str,
    dtype: str,
    document_length: int | None,
    backend: str,
    quantise: str | None,
) -> tuple[str | None, Any]:
    """The first device, and an executor over all of them when several are named with commas between."""
    devices = [part.strip() for part in device.split(",")] if device else []
    if len(devices) < 2:
        return device, None
    from ..encoders.corpus import DeviceExecutor, OpenDocuments
    from ..encoders.load import EncoderSource

    settings = encoder_settings(None, dtype, None, document_length, backend, quantise)
    return devices[0], DeviceExecutor(EncoderSource(retriever, **settings), OpenDocuments(collection), tuple(devices))


def describe_index(index: Any, out: Path) -> dict[str, Any]:
    """What was built, in a few words."""
    from ...indexes.manifest import read_manifest

    manifest = read_manifest(out)
    described: dict[str, Any] = {
        "index": str(out),
        "kind": manifest.kind,
        "backend": manifest.backend,
        "documents": len(index.ids),
        "megabytes": round(sum(file.size for file in manifest.files.values()) / 1e6, 1),
    }
    if manifest.dimension is not None:
        described["dimension"] = manifest.dimension
    if manifest.encoder is not None:
        described["encoder"] = manifest.encoder.get("name")
    return described
