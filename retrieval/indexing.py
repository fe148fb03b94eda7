"""From a collection to an index: BM25 over its texts, or its vectors by an encoder."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from ..eval.chunking import ChunkedDocuments, Chunking, TokenOffsets, chunk_documents, token_offsets
from ..eval.collection import Collection, Documents, open_collection
from ..indexes.base import Index
from ..indexes.building import build_dense, build_lexical, build_sparse
from ..indexes.manifest import Kind
from ..indexes.parts import write_part
from ..indexes.plan import BuildPlan, Executor
from ..indexes.registry import BACKENDS, fitting, parse_backend
from .encoders.base import Encoder, EncoderIdentity, identity

if TYPE_CHECKING:
    from ..indexes.plan import Similarity
    from ..indexes.vectors import Dtype
    from .encoders.corpus import Part

__all__ = ["BM25", "build_index", "collection_record", "encode_part"]

BM25 = "bm25"
_DEFAULT: dict[str, str] = {"bm25": "bm25s", "dense": "faiss", "sparse": "exact"}
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class _Storage:
    """How the index is stored: what goes from the arguments into the plan unseen."""

    shard_size: int
    dtype: Dtype
    settings: Mapping[str, Any] = field(default_factory=dict)
    overwrite: bool = False
    executor: Executor | None = None


def build_index(
    collection: Collection | str | Path,
    out: str | Path,
    *,
    retriever: str | Path | Encoder = BM25,
    backend: str | None = None,
    chunking: Chunking | None = None,
    tokenizer: Any = None,
    shard_size: int = 50_000,
    dtype: Dtype = "float32",
    settings: Mapping[str, Any] | None = None,
    encoder_settings: Mapping[str, Any] | None = None,
    executor: Executor | None = None,
    overwrite: bool = False,
) -> Index:
    """Build an index of a collection's documents and open it. Run again after a stop, it goes on where it was.

    Args:
        collection: a collection, or what `open_collection` takes.
        out: the index folder.
        retriever: "bm25", an encoder, or what `load_encoder` takes (a path, a hub id, "minilm").
        backend: "bm25s" (default), "lucene" or "exact" for BM25; "faiss" (default; Flat), "faiss:FACTORY" or "torch"
            for dense vectors; "exact" (default), "lucene" or "seismic" for sparse ones. FAISS comes with the extra
            `cpu` or `gpu`, exact with `sparse`; without them this says so and names the command.
        chunking: cut long documents into chunks, which are searched with MaxP; None indexes whole documents.
        tokenizer: what chunks are counted by: a fast tokenizer, its name, or `TokenOffsets`. The default is the
            encoder's own, and words for BM25 and for encoders without one.
        shard_size: documents (or chunks) in a shard of vectors; what a stop can lose.
        dtype: how vectors are stored; scores are float32 whatever it is.
        settings: the engine's own build settings (`k1`, `b`, …).
        encoder_settings: for `load_encoder` (`device`, `dtype`, `document_length`, …), with a path or name.
        executor: runs the shards, for several devices or machines.
        overwrite: replace an index that is there.

    Raises:
        OutputExists, ConfigError, DataError, BackendError: as `indexes.build_dense`.
        MissingExtra: the back-end is not installed.
    """
    storage = _Storage(shard_size, dtype, dict(settings or {}), overwrite, executor)
    job = _job(collection, retriever, encoder_settings or {}, backend, storage, _Chunks(chunking, tokenizer))
    if job.encoder is None:
        return build_lexical(out, job.documents.ids, _texts(job.documents), plan=job.plan)
    from .encoders.corpus import shard_encoding

    build = build_sparse if BACKENDS[job.plan.backend.name].vectors == "sparse" else build_dense
    return build(out, job.documents.ids, shard_encoding(job.encoder, job.documents), plan=job.plan)


def encode_part(
    collection: Collection | str | Path,
    out: str | Path,
    *,
    part: Part,
    retriever: str | Path | Encoder,
    backend: str | None = None,
    shard_size: int = 50_000,
    dtype: Dtype = "float32",
    settings: Mapping[str, Any] | None = None,
    encoder_settings: Mapping[str, Any] | None = None,
) -> int:
    """Encode one task's share of an index's vectors; any number of tasks run at once, on machines that share a disk.

    Afterwards `build_index` with the same arguments completes the index.

    Args:
        part: which task of how many (`encoders.corpus.array_part` reads it from torchrun's or SLURM's environment).
        collection, out, retriever, backend, shard_size, dtype, settings, encoder_settings: as for `build_index`.

    Returns:
        How many shards of the whole index are still missing.
    """
    storage = _Storage(shard_size, dtype, dict(settings or {}))
    job = _job(collection, retriever, encoder_settings or {}, backend, storage, _Chunks())
    if job.encoder is None:
        raise ConfigError("BM25 has no vectors to encode; build its index with build_index (rtk index)")
    from .encoders.corpus import shard_encoding

    encode = shard_encoding(job.encoder, job.documents)
    return write_part(out, job.documents.ids, encode, plan=job.plan, number=part.number, count=part.count)


@dataclass(frozen=True)
class _Chunks:
    """Whether documents are cut into chunks, and what counts their tokens."""

    chunking: Chunking | None = None
    tokenizer: Any = None


@dataclass(frozen=True)
class _Job:
    """What is indexed, by what, and how."""

    documents: Documents
    encoder: Encoder | None
    plan: BuildPlan


def _job(
    collection: Collection | str | Path,
    retriever: str | Path | Encoder,
    encoder_settings: Mapping[str, Any],
    backend: str | None,
    storage: _Storage,
    chunks: _Chunks,
) -> _Job:
    opened = open_collection(collection) if isinstance(collection, str | Path) else collection
    encoder = _encoder(retriever, encoder_settings)
    kind: Kind = "bm25" if encoder is None else _kind(encoder)
    spec = parse_backend(backend or _DEFAULT[kind])
    if kind not in BACKENDS[spec.name].modules:
        raise ConfigError(
            f"retriever {_shown(retriever)} makes {kind} indexes, back-end {spec.name!r} does not; take {fitting(kind)}"
        )
    documents = opened.documents
    if chunks.chunking is not None:
        documents = _chunks(documents, chunks.chunking, chunks.tokenizer, encoder)
    record = collection_record(opened, chunks.chunking)
    if encoder is None:
        plan = BuildPlan(
            spec, shard_size=storage.shard_size, collection=record, settings=storage.settings,
            overwrite=storage.overwrite,
        )  # fmt: skip
    else:
        plan = _vector_plan(spec, storage, record, encoder)
    return _Job(documents, encoder, plan)


def _vector_plan(spec: Any, storage: _Storage, record: dict[str, Any], encoder: Encoder) -> BuildPlan:
    declared = identity(encoder)
    return BuildPlan(
        spec, shard_size=storage.shard_size, similarity=_similarity(declared), dtype=storage.dtype,
        encoder=None if declared is None else declared.to_dict(), collection=record, settings=storage.settings,
        overwrite=storage.overwrite, executor=storage.executor,
    )  # fmt: skip


def _encoder(retriever: str | Path | Encoder, settings: Mapping[str, Any]) -> Encoder | None:
    if isinstance(retriever, str | Path):
        if retriever == BM25:
            if settings:
                raise ConfigError(f"BM25 has no encoder, so it takes no encoder settings ({', '.join(settings)})")
            return None
        from .encoders.load import load_encoder

        return load_encoder(retriever, **settings)
    if settings:
        raise ConfigError(f"the encoder is loaded already; these settings come too late: {', '.join(settings)}")
    return retriever


def _kind(encoder: Encoder) -> Kind:
    """The kind of index that an encoder's vectors want; a class that declares nothing is held to be dense."""
    declared = identity(encoder)
    kind = "dense" if declared is None else declared.kind
    if kind not in _DEFAULT:
        raise ConfigError(
            f"{_shown(encoder)} gives {kind} vectors, and there is no back-end for {kind} indexes; there are "
            f"{', '.join(_with_kinds(name) for name in BACKENDS)}"
        )
    return kind


def _with_kinds(name: str) -> str:
    return f"{name} ({', '.join(BACKENDS[name].modules)})"


def _similarity(declared: EncoderIdentity | None) -> Similarity:
    """Vectors of a class that declares nothing are compared by inner product, as they come."""
    if declared is None or declared.similarity == "dot":
        return "dot"
    if declared.similarity == "cosine":
        return "cosine"
    raise ConfigError(
        f"{declared.name!r} compares vectors by {declared.similarity!r}; indexes search by 'dot' or 'cosine'"
    )


def _shown(retriever: Any) -> str:
    if isinstance(retriever, str | Path):
        return repr(str(retriever))
    declared = identity(retriever)
    return repr(declared.name) if declared is not None else type(retriever).__name__


def _texts(documents: Documents) -> Any:
    def read(start: int, stop: int) -> Sequence[str]:
        return documents.texts(slice(start, stop))

    return read


def _chunks(documents: Documents, chunking: Chunking, tokenizer: Any, encoder: Encoder | None) -> ChunkedDocuments:
    own = getattr(getattr(encoder, "model", None), "tokenizer", None)
    chosen = tokenizer if tokenizer is not None else own if own is not None else words
    return chunk_documents(documents, token_offsets(chosen), chunking)


def _word_spans(texts: Sequence[str]) -> list[list[tuple[int, int]]]:
    return [[match.span() for match in _WORD.finditer(text)] for text in texts]


words = TokenOffsets("words: runs of letters, digits and underscores", _word_spans)
"""Chunks counted in words, where no tokenizer says otherwise."""


def collection_record(collection: Collection, chunking: Chunking | None = None) -> dict[str, Any]:
    """What a manifest says of the collection: name, fingerprint, count, how to open it again, and the chunks' sizes."""
    documents = collection.documents
    folder = getattr(collection, "folder", None)
    return {
        "name": collection.name,
        "spec": collection.name if folder is None else str(Path(folder).resolve()),
        "fingerprint": documents.fingerprint,
        "count": len(documents),
        "chunking": None if chunking is None else asdict(chunking),
    }
