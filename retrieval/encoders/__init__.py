"""Text to vectors: dense, sparse and multi-vector encoders, and corpus encoding."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...lazy import lazy_names

if TYPE_CHECKING:
    from .adapters import as_encoder
    from .base import Encoder, EncoderIdentity, MultiVectors, Vectors, identity
    from .batching import Batching
    from .corpus import DeviceExecutor, OpenDocuments, encode_range, encode_shards, shard_encoding
    from .load import EncoderSource, load_encoder, load_minilm_path

_HOMES = {
    "Batching": "batching",
    "DeviceExecutor": "corpus",
    "Encoder": "base",
    "EncoderIdentity": "base",
    "EncoderSource": "load",
    "MultiVectors": "base",
    "OpenDocuments": "corpus",
    "Vectors": "base",
    "as_encoder": "adapters",
    "encode_range": "corpus",
    "encode_shards": "corpus",
    "identity": "base",
    "load_encoder": "load",
    "load_minilm_path": "load",
    "shard_encoding": "corpus",
}

__all__ = [
    "Batching",
    "DeviceExecutor",
    "Encoder",
    "EncoderIdentity",
    "EncoderSource",
    "MultiVectors",
    "OpenDocuments",
    "Vectors",
    "as_encoder",
    "encode_range",
    "encode_shards",
    "identity",
    "load_encoder",
    "load_minilm_path",
    "shard_encoding",
]

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
