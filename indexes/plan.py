"""What to build: the back-end, how vectors are stored, what is written into the manifest, and the shards."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ..errors import ConfigError
from ..ids import Ids, hash_strings
from .vectors import DTYPES, Dtype, Shard, Writer

__all__ = ["BackendSpec", "BuildPlan", "Executor", "Similarity", "sequential"]

Similarity = Literal["dot", "cosine"]

Executor = Callable[[Writer, Sequence[Shard]], None]
"""Runs the missing shards: for each one it computes the vectors and calls `writer.write(shard, vectors)`.

The writer is picklable and writes each shard atomically, so shards may be made in any order by threads, one process a
device, or the tasks of a cluster's job array. It returns when all of them are written.
"""


@dataclass(frozen=True)
class BackendSpec:
    """A back-end by its registry name and, for faiss, the factory string after the colon (`faiss:IVF64,Flat`)."""

    name: str
    factory: str | None = None

    def __str__(self) -> str:
        return self.name if self.factory is None else f"{self.name}:{self.factory}"


@dataclass(frozen=True)
class BuildPlan:
    """Everything that decides what an index will contain, apart from the documents themselves.

    Attributes:
        backend: from `parse_backend`.
        shard_size: rows in a vector shard. Boundaries are fixed by it, so a resumed build meets the same shards.
        similarity: "dot", or "cosine", which normalises documents when stored and queries when searched.
        dtype: how vectors are stored; scores are float32 whatever it is.
        encoder: the document encoder's identity for the manifest, None for lexical indexes or vectors from elsewhere.
        collection: at least `name` and `fingerprint` of what is indexed; decides with the rest whether a build resumes.
        settings: the back-end's own build settings (`k1`, `train_size`, …); unknown ones are refused.
        overwrite: replace an index or an interrupted build of another plan.
        keep_vectors: keep the vector shards beside the engine's files. None lets the engine say: they are dropped where
            its file holds the same float32 values (faiss Flat), kept otherwise.
        executor: runs the missing shards; None encodes them one after another in this process.
    """

    backend: BackendSpec
    shard_size: int = 50_000
    similarity: Similarity = "dot"
    dtype: Dtype = "float32"
    encoder: Mapping[str, Any] | None = None
    collection: Mapping[str, Any] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    overwrite: bool = False
    keep_vectors: bool | None = None
    executor: Executor | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        problems: list[str] = []
        if self.shard_size < 1:
            problems.append(f"shard_size is {self.shard_size}, expected at least 1")
        if self.similarity not in ("dot", "cosine"):
            problems.append(f"similarity is {self.similarity!r}, expected 'dot' or 'cosine'")
        if self.dtype not in DTYPES:
            problems.append(f"dtype is {self.dtype!r}, expected one of {', '.join(DTYPES)}")
        if problems:
            raise ConfigError("the build plan cannot be used", problems)

    def identity(self, ids: Ids) -> dict[str, Any]:
        """The plan as JSON: what an interrupted build must have in common with the one that resumes it."""
        return {
            "backend": str(self.backend),
            "settings": dict(self.settings),
            "similarity": self.similarity,
            "dtype": self.dtype,
            "shard_size": self.shard_size,
            "keep_vectors": self.keep_vectors,
            "encoder": None if self.encoder is None else {**self.encoder, "query_length": None},  # documents' alone
            "collection": None if self.collection is None else dict(self.collection),
            "documents": len(ids),
            "ids": ids_fingerprint(ids),
        }


def sequential(encode: Callable[[int, int], Any], advance: Callable[[int], object]) -> Executor:
    """The default executor: encode shard by shard in this process, telling `advance` how many rows are done."""

    def run(writer: Writer, missing: Sequence[Shard]) -> None:
        for shard in missing:
            writer.write(shard, encode(shard.start, shard.stop))
            advance(len(shard))

    return run


def ids_fingerprint(ids: Ids) -> str:
    """Hex digest over all ids in order, independent of how the Arrow array is sliced. The first 16 digits of sha256."""
    digest = hashlib.sha256()
    for start in range(0, len(ids), 1 << 20):
        digest.update(hash_strings(ids[start : start + (1 << 20)].array).tobytes())
    return digest.hexdigest()[:16]
