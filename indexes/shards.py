"""The shards of each kind of vector: which writer makes them and how they are read again."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypeAlias

from ..errors import ConfigError
from .plan import BuildPlan
from .sparse import SparseShards, SparseShardWriter
from .vectors import ShardWriter, VectorShards, Writer

__all__ = ["Shards", "VectorKind", "open_shards", "writer_for"]

VectorKind = Literal["dense", "sparse"]
Shards: TypeAlias = VectorShards | SparseShards


def writer_for(kind: VectorKind, folder: Path, plan: BuildPlan) -> Writer:
    """What writes the shards of an index that is made in `folder`.

    Raises:
        ConfigError: sparse vectors in another form than float32 weights that are compared by inner product.
    """
    if kind == "dense":
        return ShardWriter(folder / "vectors", plan.dtype, plan.similarity == "cosine")
    problems = [
        f"{name} is {given!r}, expected {expected!r}"
        for name, given, expected in (("similarity", plan.similarity, "dot"), ("dtype", plan.dtype, "float32"))
        if given != expected
    ]
    if problems:
        raise ConfigError("sparse weights are stored in float32 and compared by inner product", problems)
    return SparseShardWriter(folder / "vectors")


def open_shards(kind: VectorKind, folder: Path, plan: BuildPlan) -> Shards:
    """Memory-map the shards that `writer_for` wrote."""
    vectors = folder / "vectors"
    return VectorShards.open(vectors, plan.dtype) if kind == "dense" else SparseShards.open(vectors)
