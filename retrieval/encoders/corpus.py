"""Encoding a corpus: rows of a range in one pass, shards by one process a device or by the tasks of a job array."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from .base import Encoder, Vectors

__all__ = ["Texts", "encode_range", "shard_encoding"]


class Texts(Protocol):
    """A corpus that gives its texts by rows (`rtk.eval.Documents` is one)."""

    def __len__(self) -> int: ...

    def texts(self, rows: slice, /) -> Sequence[str]: ...


def encode_range(encoder: Encoder, documents: Texts, start: int, stop: int) -> Vectors:
    """Vectors of rows start:stop, (stop - start, dim): a pure function of these texts."""
    return encoder.encode_document(documents.texts(slice(start, stop)))


def shard_encoding(encoder: Encoder, documents: Texts) -> Callable[[int, int], Any]:
    """`encode(start, stop)` as `rtk.indexes.build_dense` calls it for every missing shard."""

    def encode(start: int, stop: int) -> Vectors:
        return encode_range(encoder, documents, start, stop)

    return encode
