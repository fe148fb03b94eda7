"""What an encoder is: the protocol, the three shapes of vectors, and who made them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np
from scipy.sparse import csr_matrix

__all__ = ["Encoder", "EncoderIdentity", "Kind", "MultiVectors", "Vectors", "identity"]

Kind = Literal["dense", "sparse", "multi-vector"]


@dataclass(frozen=True, eq=False)
class MultiVectors:
    """Several vectors a text, as late interaction wants them.

    Attributes:
        flat: (tokens, dim) float32, all texts' token vectors one after another.
        offsets: (n + 1,) int64; text i owns flat[offsets[i]:offsets[i + 1]].
    """

    flat: np.ndarray
    offsets: np.ndarray

    def __post_init__(self) -> None:
        if self.flat.ndim != 2 or self.offsets.ndim != 1 or int(self.offsets[-1]) != len(self.flat):
            raise ValueError(f"flat {self.flat.shape} and offsets {self.offsets.shape} do not describe token vectors")

    def __len__(self) -> int:
        """The number of texts."""
        return len(self.offsets) - 1

    def __getitem__(self, row: int, /) -> np.ndarray:
        """The vectors of one text, (tokens of it, dim)."""
        if not -len(self) <= row < len(self):
            raise IndexError(row)
        row %= len(self)
        return self.flat[int(self.offsets[row]) : int(self.offsets[row + 1])]

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[row] for row in range(len(self)))

    @classmethod
    def from_list(cls, arrays: Sequence[np.ndarray], dimension: int) -> MultiVectors:
        """Join one (tokens, dim) array a text; `dimension` is needed where there is no text."""
        lengths = np.fromiter((len(array) for array in arrays), dtype=np.int64, count=len(arrays))
        flat = np.concatenate(arrays) if len(arrays) else np.zeros((0, dimension))
        return cls(
            np.ascontiguousarray(flat.reshape(-1, dimension), dtype=np.float32),
            np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        )


Vectors: TypeAlias = np.ndarray | csr_matrix | MultiVectors
"""float32 (n, dim), CSR float32 (n, vocabulary), or `MultiVectors`. No texts give (0, dim)."""


@runtime_checkable
class Encoder(Protocol):
    """Texts in, vectors out. Anything with these two methods is an encoder; no inheritance is needed.

    A class may also have an attribute `identity: EncoderIdentity`; then indexes record who encoded them and refuse
    another encoder's queries. Without one they cannot, and say so.
    """

    def encode_query(self, texts: Sequence[str], /) -> Vectors:
        """Vectors of queries, in the order of `texts`."""
        ...

    def encode_document(self, texts: Sequence[str], /) -> Vectors:
        """Vectors of documents, in the order of `texts`; each depends on its text alone, not on its neighbours."""
        ...


@dataclass(frozen=True)
class EncoderIdentity:
    """Who made an index's vectors, as its manifest says it.

    Two encoders with equal identities give vectors that may be searched with one another. `fingerprint` covers the
    document side only: an encoder trained on its query side alone (ADORE) keeps the identity of the frozen encoder
    that made the documents' vectors.

    Attributes:
        name: path or hub id that the model was loaded from; for people, not compared.
        revision: hub revision, if known; not compared.
        fingerprint: sha256 over the document side's weights, buffers, tokenizer and module configuration.
        prompts: the document prompt under "document", where there is one.
        pooling: how tokens become a vector ("mean", "cls", "max", …), or None.
        lengths: maximum number of tokens of a document under "document".
        query_length: that of a query where one was asked for, None for the model's own; not compared.
        dtype: numeric type of the computation ("float32", "bfloat16", "int8", …); not compared.
        dimension: size of a vector (the vocabulary's for sparse ones).
        similarity: "cosine", "dot", "maxsim", …: how two vectors are compared.
        kind: "dense", "sparse" or "multi-vector".
    """

    name: str
    fingerprint: str
    dimension: int
    kind: Kind = "dense"
    similarity: str = "dot"
    revision: str | None = None
    prompts: Mapping[str, str] = field(default_factory=dict)
    pooling: str | None = None
    lengths: Mapping[str, int | None] = field(default_factory=dict)
    query_length: int | None = None
    dtype: str = "float32"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a manifest."""
        values = asdict(self)
        return {**values, "prompts": dict(self.prompts), "lengths": dict(self.lengths)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EncoderIdentity:
        """What `to_dict` wrote; keys that this version does not know are left out."""
        return cls(**{name: values[name] for name in cls.__dataclass_fields__ if name in values})

    def differences(self, other: EncoderIdentity) -> list[str]:
        """Why vectors of the two must not be mixed, one line a reason; empty when they may.

        Names, revisions and numeric types are not compared: a copy of a model is the model, and bf16 queries may
        search float32 vectors.
        """
        compared = ("fingerprint", "dimension", "kind", "similarity", "prompts", "pooling", "lengths")
        return [
            f"{name}: {getattr(self, name)!r} and {getattr(other, name)!r}"
            for name in compared
            if getattr(self, name) != getattr(other, name)
        ]


def identity(encoder: Encoder) -> EncoderIdentity | None:
    """The encoder's declared identity; None for a class that declares none (nothing can be checked then)."""
    declared = getattr(encoder, "identity", None)
    return declared if isinstance(declared, EncoderIdentity) else None
