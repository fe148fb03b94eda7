"""Text to vectors: dense, sparse and multi-vector encoders, and corpus encoding."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...lazy import lazy_names

if TYPE_CHECKING:
    from .adapters import as_encoder
    from .base import Encoder, EncoderIdentity, MultiVectors, Vectors, identity
    from .batching import Batching
    from .corpus import DeviceExecutor, OpenDocuments, encode_range, encode_shards, shard_encoding
    from .echo import make_echo
    from .idf import IdfTable, compute_idf, read_idf
    from .load import EncoderSource, load_encoder, load_minilm_path

_HOMES = {
    "Batching": "batching",
    "DeviceExecutor": "corpus",
    "Encoder": "base",
    "EncoderIdentity": "base",
    "EncoderSource": "load",
    "IdfTable": "idf",
    "MultiVectors": "base",
    "OpenDocuments": "corpus",
    "Vectors": "base",
    "as_encoder": "adapters",
    "compute_idf": "idf",
    "encode_range": "corpus",
    "encode_shards": "corpus",
    "identity": "base",
    "load_encoder": "load",
    "load_minilm_path": "load",
    "make_echo": "echo",
    "read_idf": "idf",
    "shard_encoding": "corpus",
}

__all__ = [
    "Batching",
    "DeviceExecutor",
    "Encoder",
    "EncoderIdentity",
    "EncoderSource",
    "IdfTable",
    "MultiVectors",
    "OpenDocuments",
    "Vectors",
    "as_encoder",
    "compute_idf",
    "encode_range",
    "encode_shards",
    "identity",
    "load_encoder",
    "load_minilm_path",
    "make_echo",
    "read_idf",
    "shard_encoding",
]

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
