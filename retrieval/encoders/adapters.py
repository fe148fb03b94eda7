"""Adapters: sentence-transformers' models as encoders, their tensors as numpy and scipy arrays."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from scipy.sparse import csr_matrix, vstack
from sentence_transformers import CrossEncoder, MultiVectorEncoder, SentenceTransformer, SparseEncoder
from sentence_transformers.base.modules import Transformer
from transformers import PreTrainedTokenizerBase

from ...errors import ConfigError
from .base import Encoder, EncoderIdentity, Kind, MultiVectors
from .batching import Batching, batches, default_batching, tokenise
from .fingerprint import fingerprint
from .inference_free import check_vocabularies, static_side, static_vectors
from .sides import Side, Task, side, side_modules

__all__ = ["DenseAdapter", "MultiVectorAdapter", "SparseAdapter", "as_encoder"]

logger = logging.getLogger(__name__)

M = TypeVar("M", SentenceTransformer, SparseEncoder, MultiVectorEncoder)


class _Adapter(Generic[M]):
    """What the three adapters share: the two sides, the batches and the identity.

    Attributes:
        model: the wrapped model, put into evaluation mode.
        query, document: prompt and maximum length of each side.
        batching: how many tokens make a batch.
        identity: who this encoder is, for an index's manifest (hashed on first use).
        source: how it was loaded, None for a model that was handed in.
    """

    kind: Kind

    def __init__(self, model: M, sides: tuple[Side, Side], *, batching: Batching | None = None, name: str) -> None:
        self.model = model.eval()
        self.query, self.document = sides
        self.batching = batching or default_batching(model.device)
        self.name = name
        self.source: Any = None

    @cached_property
    def dimension(self) -> int:
        """Size of a vector: (n, dimension), the vocabulary's for sparse ones, a token's for multi-vectors."""
        return int(self.model.get_embedding_dimension() or 0)

    @property
    def similarity(self) -> str:
        """How two vectors are compared, by the model's own configuration."""
        return str(self.model.similarity_fn_name)

    @cached_property
    def identity(self) -> EncoderIdentity:
        modules = side_modules(self.model, "document")
        return EncoderIdentity(
            name=self.name,
            fingerprint=fingerprint(modules, settings=self._settings()),
            dimension=self.dimension,
            kind=self.kind,
            similarity=self.similarity,
            prompts={"document": self.document.prompt} if self.document.prompt else {},
            pooling=_pooling(modules),
            lengths={"document": self.document.length},
            query_length=self.query.length if self.query.own_length else None,
            dtype=str(self.model.dtype).removeprefix("torch."),
        )

    def _settings(self) -> dict[str, Any]:
        return {}


class DenseAdapter(_Adapter[SentenceTransformer]):
    """A SentenceTransformer as an encoder: float32 (n, dim).

    Texts are tokenised in chunks and batched by token budget. Where the first module is not a plain Transformer over
    a fast tokenizer (static embeddings, chat templates, images), the model's own `encode` does the work.
    """

    kind: Kind = "dense"

    def __init__(
        self,
        model: SentenceTransformer,
        sides: tuple[Side, Side],
        *,
        batching: Batching | None = None,
        name: str,
        normalise: bool = False,
    ) -> None:
        super().__init__(model, sides, batching=batching, name=name)
        self.normalise = normalise

    def encode_query(self, texts: Sequence[str], /) -> np.ndarray:
        return self._encode(texts, self.query)

    def encode_document(self, texts: Sequence[str], /) -> np.ndarray:
        return self._encode(texts, self.document)

    def _settings(self) -> dict[str, Any]:
        return {"normalise": True} if self.normalise else {}

    def _encode(self, texts: Sequence[str], side: Side) -> np.ndarray:
        _check_texts(texts)
        if not len(texts):
            return np.zeros((0, self.dimension), dtype=np.float32)
        transformer = _plain_transformer(self.model, side.task)
        if transformer is None:
            found = self.model.encode(
                list(texts), batch_size=32, show_progress_bar=False, convert_to_tensor=True, **side.arguments()
            )
            return self._finish(found)
        tokenised = tokenise(texts, transformer.tokenizer, side, chunk=self.batching.chunk)
        result: np.ndarray | None = None
        with torch.inference_mode():
            for rows in batches(tokenised.lengths, self.batching):
                features = tokenised.padded(rows, transformer.tokenizer)
                vectors = self._finish(self._forward(features, transformer, side))
                if result is None:
                    result = np.empty((len(texts), vectors.shape[1]), dtype=np.float32)
                result[rows] = vectors
        assert result is not None  # there was a text
        return result

    def _forward(self, features: dict[str, Any], transformer: Transformer, side: Side) -> torch.Tensor:
        """The model's own modules on a padded batch: (rows, dim)."""
        device = self.model.device
        features = {name: values.to(device, non_blocking=True) for name, values in features.items()}
        features["modality"] = "text"
        if side.prompt:
            features["prompt_length"] = _prompt_length(transformer, side)
        return self.model(features, task=side.task)["sentence_embedding"]

    def _finish(self, vectors: torch.Tensor) -> np.ndarray:
        if self.model.truncate_dim is not None:
            vectors = vectors[..., : self.model.truncate_dim]
        vectors = vectors.float()
        if self.normalise:
            vectors = torch.nn.functional.normalize(vectors, dim=-1)
        return vectors.cpu().numpy()


class SparseAdapter(_Adapter[SparseEncoder]):
    """A SparseEncoder as an encoder: CSR float32 (n, vocabulary)."""

    kind: Kind = "sparse"

    @cached_property
    def dimension(self) -> int:
        """The vocabulary's size, read off one vector: models configure the hidden size, or nothing."""
        return int(self.model.encode_document(["a"], show_progress_bar=False, save_to_cpu=True).shape[-1])

    def encode_query(self, texts: Sequence[str], /) -> csr_matrix:
        return self._encode(texts, self.query)

    def encode_document(self, texts: Sequence[str], /) -> csr_matrix:
        return self._encode(texts, self.document)

    def _settings(self) -> dict[str, Any]:
        top = self.model.max_active_dims
        return {} if top is None else {"max_active_dims": top}

    @cached_property
    def _tables(self) -> dict[str, Any]:
        """The sides without a network, by name; their vocabulary is the document side's."""
        found = {side.task: static_side(self.model, side.task) for side in (self.query, self.document)}
        tables = {task: table for task, table in found.items() if table is not None}
        for table in tables.values():
            check_vocabularies(self.model, table, self.dimension)
        return tables

    def _encode(self, texts: Sequence[str], side: Side) -> csr_matrix:
        _check_texts(texts)
        if side.task in self._tables:
            top = self.model.max_active_dims
            return static_vectors(self._tables[side.task], texts, prompt=side.prompt, top=top)
        parts = [csr_matrix((0, self.dimension), dtype=np.float32)]
        for start in range(0, len(texts), self.batching.chunk):  # bounds the tensors that are alive at once
            some = list(texts[start : start + self.batching.chunk])
            found = self.model.encode(
                some,
                batch_size=_batch_size(self.batching, side),
                show_progress_bar=False,
                save_to_cpu=True,
                **side.arguments(),
            )
            parts.append(coo_to_csr(found, self.dimension))
        return csr_matrix(vstack(parts, format="csr", dtype=np.float32))


class MultiVectorAdapter(_Adapter[MultiVectorEncoder]):
    """A MultiVectorEncoder as an encoder: `MultiVectors`, one vector for each token that is scored."""

    kind: Kind = "multi-vector"

    def encode_query(self, texts: Sequence[str], /) -> MultiVectors:
        return self._encode(texts, self.query)

    def encode_document(self, texts: Sequence[str], /) -> MultiVectors:
        return self._encode(texts, self.document)

    def _encode(self, texts: Sequence[str], side: Side) -> MultiVectors:
        _check_texts(texts)
        arrays: list[np.ndarray] = []
        if len(texts):
            found = self.model.encode(
                list(texts),
                batch_size=_batch_size(self.batching, side),
                show_progress_bar=False,
                **side.arguments(),
            )
            arrays = [vectors.float().cpu().numpy() for vectors in found]
        return MultiVectors.from_list(arrays, self.dimension)


def as_encoder(
    model: Any,
    *,
    query_length: int | None = None,
    document_length: int | None = None,
    normalise: bool = False,
    prompts: Mapping[str, str] | None = None,
    batching: Batching | None = None,
    name: str | None = None,
) -> Encoder:
    """Make an encoder of a SentenceTransformer, SparseEncoder or MultiVectorEncoder; return other encoders unchanged.

    Args:
        model: one of those models, or any object with `encode_query` and `encode_document`.
        query_length, document_length: maximum tokens of each side, special tokens included; None keeps the model's.
        normalise: scale dense vectors to unit length (a model whose last module does so already needs nothing).
        prompts: replaces the model's own prompts ({"query": "query: ", "document": ""}).
        batching: tokens and texts in a batch.
        name: what manifests and messages call the encoder; the model's own id by default.

    Raises:
        ConfigError: not an encoder; options for an object that is one already; impossible lengths.
    """
    options = {
        "query_length": query_length,
        "document_length": document_length,
        "normalise": normalise or None,
        "prompts": prompts,
        "batching": batching,
        "name": name,
    }
    if not isinstance(model, SentenceTransformer | SparseEncoder | MultiVectorEncoder):
        return _own_encoder(model, [option for option, value in options.items() if value is not None])
    sides = (
        side(model, "query", length=query_length, prompts=prompts),
        side(model, "document", length=document_length, prompts=prompts),
    )
    name = name or _model_name(model)
    if isinstance(model, SentenceTransformer):
        return DenseAdapter(model, sides, batching=batching, name=name, normalise=normalise)
    if normalise:
        raise ConfigError(f"normalise is for dense encoders, and {name} is a {type(model).__name__}")
    if isinstance(model, SparseEncoder):
        return SparseAdapter(model, sides, batching=batching, name=name)
    return MultiVectorAdapter(model, sides, batching=batching, name=name)


def coo_to_csr(found: torch.Tensor, dimension: int) -> csr_matrix:
    """A model's sparse (or dense) tensor (n, vocabulary) as CSR float32; stored zeros are dropped."""
    sparse = (found if found.is_sparse else found.to_sparse()).coalesce().cpu()
    rows, columns = sparse.indices().numpy()
    values = sparse.values().float().numpy()
    matrix = csr_matrix((values, (rows, columns)), shape=(found.shape[0], dimension), dtype=np.float32)
    matrix.eliminate_zeros()
    return matrix


def _own_encoder(model: Any, options: list[str]) -> Encoder:
    """An object that is an encoder by its methods; anything else is refused with what it lacks."""
    methods = ("encode_query", "encode_document")
    lacking = [method for method in methods if not callable(getattr(model, method, None))]
    if isinstance(model, type) or lacking:
        shown = f"the class {model.__name__} itself" if isinstance(model, type) else f"a {type(model).__name__}"
        hint = ""
        if isinstance(model, str):
            hint = " For a path or hub id use load_encoder."
        elif isinstance(model, CrossEncoder):
            hint = " A CrossEncoder scores pairs: use it as a reranker."
        raise ConfigError(
            f"{shown} is not an encoder: expected a SentenceTransformer, SparseEncoder, MultiVectorEncoder, or an "
            f"object with the methods {' and '.join(methods)}"
            + (f" (lacks {', '.join(lacking)})." if lacking else ".")
            + hint
        )
    if options:
        raise ConfigError(
            f"{', '.join(options)} cannot be set on a {type(model).__name__}, which encodes by itself; set them there"
        )
    return model


def _plain_transformer(model: SentenceTransformer, task: Task) -> Transformer | None:
    """The side's Transformer, if tokenising by ourselves gives exactly what its own `preprocess` gives."""
    modules = side_modules(model, task)
    transformer = modules[0] if modules else None
    if not isinstance(transformer, Transformer) or not isinstance(transformer.processor, PreTrainedTokenizerBase):
        return None
    plain = (
        transformer.processor.is_fast
        and "text" in transformer.modality_config
        and "message" not in transformer.modality_config
        and not transformer.can_flatten_inputs  # flash attention without padding: the model's own path is the fast one
        and not (task == "query" and transformer.query_expansion is not None)
        and set((transformer.processing_kwargs or {}).get("text", {})) <= {"max_length"}
        and not (transformer.processing_kwargs or {}).get("common")
    )
    return transformer if plain else None


def _prompt_length(transformer: Transformer, side: Side) -> int | None:
    """Tokens of the prompt, for poolings that leave it out."""
    return transformer._get_prompt_length(side.prompt or "", task=side.task)


def _pooling(modules: Sequence[torch.nn.Module]) -> str | None:
    for module in modules:
        for attribute in ("pooling_mode", "pooling_strategy"):
            mode = getattr(module, attribute, None)
            if mode:
                return "+".join(mode) if isinstance(mode, list | tuple) else str(mode)
    return None


def _batch_size(batching: Batching, side: Side) -> int:
    """Texts in a batch where the model batches by itself: the budget filled with texts of full length."""
    return max(1, min(batching.texts, batching.tokens // min(side.length or 512, 512)))


def _model_name(model: Any) -> str:
    card = getattr(model, "model_card_data", None)
    transformer = getattr(model, "transformers_model", None)
    known = getattr(card, "base_model", None) or getattr(transformer, "name_or_path", None)
    return str(known or type(model).__name__)


def _check_texts(texts: Sequence[str]) -> None:
    if isinstance(texts, str):
        raise ConfigError("texts is one string, expected a sequence of strings; put it into a list")
