"""Vectors or terms in, hits out: one layer over FAISS, torch, bm25s, Lucene, Seismic and our own.

    plan = BuildPlan(parse_backend("faiss:IVF256,Flat"), similarity="cosine")
    index = build_dense("out", ids, encode, plan=plan)
    hits = open_index("out").search(queries, 10)

Names load on first use, so that importing this package costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from .base import Hits, Index, Options, pad_hits
    from .bm25s_index import Bm25sIndex
    from .building import build_dense, build_lexical, build_sparse
    from .faiss_index import FaissIndex
    from .lucene_index import LuceneIndex
    from .manifest import FileRecord, Manifest, read_manifest
    from .parts import write_part
    from .plan import BackendSpec, BuildPlan, Executor
    from .registry import BACKENDS, Backend, open_index, parse_backend
    from .sparse import SparseShards, SparseShardWriter
    from .sparsity import Activity, activity, flops_metric, read_activity
    from .torch_index import Placement, TorchIndex
    from .updating import append, delete
    from .vectors import Shard, ShardWriter, VectorShards, Writer, fixed_shards

_HOMES = {
    "base": ("Hits", "Index", "Options", "pad_hits"),
    "bm25s_index": ("Bm25sIndex",),
    "building": ("build_dense", "build_lexical", "build_sparse"),
    "faiss_index": ("FaissIndex",),
    "lucene_index": ("LuceneIndex",),
    "manifest": ("FileRecord", "Manifest", "read_manifest"),
    "parts": ("write_part",),
    "plan": ("BackendSpec", "BuildPlan", "Executor"),
    "registry": ("BACKENDS", "Backend", "open_index", "parse_backend"),
    "sparse": ("SparseShardWriter", "SparseShards"),
    "sparsity": ("Activity", "activity", "flops_metric", "read_activity"),
    "torch_index": ("Placement", "TorchIndex"),
    "updating": ("append", "delete"),
    "vectors": ("Shard", "ShardWriter", "VectorShards", "Writer", "fixed_shards"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "BACKENDS",
    "Activity",
    "Backend",
    "BackendSpec",
    "Bm25sIndex",
    "BuildPlan",
    "Executor",
    "FaissIndex",
    "FileRecord",
    "Hits",
    "Index",
    "LuceneIndex",
    "Manifest",
    "Options",
    "Placement",
    "Shard",
    "ShardWriter",
    "SparseShardWriter",
    "SparseShards",
    "TorchIndex",
    "VectorShards",
    "Writer",
    "activity",
    "append",
    "build_dense",
    "build_lexical",
    "build_sparse",
    "delete",
    "fixed_shards",
    "flops_metric",
    "open_index",
    "pad_hits",
    "parse_backend",
    "read_activity",
    "read_manifest",
    "write_part",
]

__getattr__, __dir__ = lazy_names(__name__, _HOME_OF)
