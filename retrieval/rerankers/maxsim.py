"""MaxSim: token-level late interaction, after ColBERT.

    score(q, d) = Σ_i max_j  e(q_i) · e(d_j) / (|e(q_i)| |e(d_j)|)

over the query's tokens i and the document's tokens j, padding left out. Any transformer's token embeddings will do.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import ConfigError
from .base import Request, Result, Usage, ranked_result
from .batching import TokenCounter, request_groups, token_batches
from .checks import check_counts

if TYPE_CHECKING:
    from sentence_transformers import MultiVectorEncoder, SentenceTransformer

__all__ = ["MaxSimReranker", "maxsim_scores"]

_TOGETHER = 256
"""Candidates whose texts are encoded together, across requests: short lists alone would make small batches."""

Tokens = np.ndarray
"""A text's token vectors: (tokens, dim) float32, each of length 1."""


def maxsim_scores(query: Tokens, documents: Sequence[Tokens]) -> np.ndarray:
    """MaxSim of a query (tokens, dim) with each document (tokens, dim). Returns (documents,) float32.

    A document without any token has the least value that any could have, minus the number of the query's tokens.
    """
    scores = np.full(len(documents), -float(len(query)), dtype=np.float32)
    lengths = np.asarray([len(tokens) for tokens in documents], dtype=np.int64)
    filled = np.flatnonzero(lengths)
    if not len(filled):
        return scores
    flat = np.concatenate([documents[row] for row in filled.tolist()])
    starts = np.concatenate([[0], np.cumsum(lengths[filled])[:-1]])
    scores[filled] = np.maximum.reduceat(query @ flat.T, starts, axis=1).sum(axis=0, dtype=np.float32)
    return scores


class MaxSimReranker:
    """Reranks by MaxSim of token vectors.

    Args:
        model: a MultiVectorEncoder, or a SentenceTransformer, whose token embeddings (before pooling, a prompt's tokens
            included) are taken without the tokenizer's special tokens and normalised; or what `load_encoder` gives.
        query_length, document_length: tokens to read of each; None leaves the model's own.
        batch_tokens: tokens in a batch, padding included; None takes what suits the device.
        cache_megabytes: how much memory the token vectors of documents may take that are kept because candidates come
            again for other queries. The cache lives as long as one call of `rerank`.
        special_tokens: keep special tokens ([CLS], [SEP]) of a SentenceTransformer.
        name: what the model is called in records.

    Raises:
        ConfigError: a length or size that cannot be, or a model without token vectors.
    """

    calibrated = False  # a sum over the query's tokens: longer queries score higher

    def __init__(
        self,
        model: SentenceTransformer | MultiVectorEncoder,
        *,
        query_length: int | None = None,
        document_length: int | None = None,
        batch_tokens: int | None = None,
        cache_megabytes: int = 512,
        special_tokens: bool = False,
        name: str | None = None,
    ) -> None:
        check_counts(query_length=query_length, document_length=document_length, batch_tokens=batch_tokens)
        check_counts(0, cache_megabytes=cache_megabytes)
        model = _wrapped(model)
        self._embed = _embedder(model)
        self.model, self.batch_tokens, self.cache_bytes = model, batch_tokens, cache_megabytes << 20
        self.special_tokens = special_tokens
        self.lengths = {
            task: min(filter(None, (asked, model.max_seq_length)), default=None)
            for task, asked in (("query", query_length), ("document", document_length))
        }
        self.name = name or getattr(model.config, "name_or_path", "") or type(model).__name__
        self._counters = {task: TokenCounter(model.tokenizer, limit) for task, limit in self.lengths.items()}

    def identity(self) -> dict[str, Any]:
        """Model, its weights' fingerprint, lengths and which tokens count."""
        from ..encoders.fingerprint import fingerprint

        return {
            "reranker": "maxsim",
            "model": self.name,
            "fingerprint": fingerprint(self.model.children()),
            **{f"{task}_length": limit for task, limit in self.lengths.items()},
            "special_tokens": self.special_tokens,
            "dtype": str(self.model.dtype).removeprefix("torch."),
        }

    def rerank(self, requests: Iterable[Request], /) -> Iterator[Result]:
        """Encode what is new, score every candidate, order each request's candidates."""
        cache = _Cache(self.cache_bytes)
        for group in request_groups(requests, _TOGETHER):
            yield from self._rerank_group(group, cache)

    def _rerank_group(self, group: Sequence[Request], cache: _Cache) -> Iterator[Result]:
        texts = list(dict.fromkeys(text for request in group for text in request.texts))
        new = [text for text in texts if text not in cache]
        queries, asked = self._encode([request.query for request in group], "query")
        fresh, read = self._encode(new, "document")
        cache.add(zip(new, fresh, strict=True))
        tokens = {text: cache[text] for text in texts}
        cache.shrink()
        unread = dict(zip(new, read.tolist(), strict=True))  # told by the first request that needs them
        for request, query, length in zip(group, queries, asked.tolist(), strict=True):
            wanted = dict.fromkeys(request.texts)
            first = [text for text in wanted if text in unread]
            usage = Usage(
                calls=1 + len(first),
                prompt_tokens=length + sum(map(unread.pop, first)),
                cached_tokens=sum(len(tokens[text]) for text in wanted) - sum(len(tokens[text]) for text in first),
            )
            scores = maxsim_scores(query, [tokens[text] for text in request.texts])
            yield ranked_result(request, scores, calibrated=self.calibrated, usage=usage)

    def _encode(self, texts: list[str], task: str) -> tuple[list[Tokens], np.ndarray]:
        """Normalised token vectors of every text, and how many tokens were read of each."""
        lengths = self._counters[task](texts) + 2  # [CLS] and [SEP], or what stands for them
        found: list[Tokens] = [np.zeros((0, 1), np.float32)] * len(texts)
        for rows in token_batches(lengths, self.batch_tokens, self.model.device):
            part = self._embed([texts[row] for row in rows.tolist()], task, self.lengths[task], self.special_tokens)
            for row, tokens in zip(rows.tolist(), part, strict=True):
                found[row] = _normalised(tokens)
        return found, lengths


def _normalised(tokens: np.ndarray) -> Tokens:
    values = np.asarray(tokens, dtype=np.float32)
    length = np.linalg.norm(values, axis=1, keepdims=True)
    return values / np.maximum(length, np.float32(1e-12))


def _wrapped(model: Any) -> Any:
    """The sentence-transformers model inside an encoder of `load_encoder` or `as_encoder`."""
    from ..encoders.adapters import DenseAdapter, MultiVectorAdapter

    return model.model if isinstance(model, DenseAdapter | MultiVectorAdapter) else model


Embed = Callable[[list[str], str, int | None, bool], list[np.ndarray]]


def _embedder(model: Any) -> Embed:
    from sentence_transformers import MultiVectorEncoder, SentenceTransformer

    if isinstance(model, MultiVectorEncoder):
        return lambda texts, task, limit, special: _multi_vectors(model, texts, task, limit)
    if isinstance(model, SentenceTransformer):
        return lambda texts, task, limit, special: _token_embeddings(model, texts, task, limit, special)
    raise ConfigError(
        f"MaxSim needs a SentenceTransformer or a MultiVectorEncoder, whose token vectors it compares; "
        f"got {type(model).__name__}"
    )


def _cut(limit: int | None) -> dict[str, Any]:
    return {} if limit is None else {"processing_kwargs": {"text": {"max_length": limit, "truncation": True}}}


def _multi_vectors(model: Any, texts: list[str], task: str, limit: int | None) -> list[np.ndarray]:
    """The model says itself which tokens count."""
    encode = model.encode_query if task == "query" else model.encode_document
    found = encode(texts, batch_size=len(texts), show_progress_bar=False, convert_to_numpy=False, **_cut(limit))
    return [tokens.float().cpu().numpy() for tokens in found]


def _token_embeddings(model: Any, texts: list[str], task: str, limit: int | None, special: bool) -> list[np.ndarray]:
    """Token embeddings before pooling, by the attention mask (whichever side the padding is on)."""
    import torch

    encode = model.encode_query if task == "query" else model.encode_document
    items = encode(texts, batch_size=len(texts), show_progress_bar=False, output_value=None, **_cut(limit))
    ignored = torch.tensor([] if special else sorted(model.tokenizer.all_special_ids), dtype=torch.long)
    found: list[np.ndarray] = []
    for item in items:
        ids, keep = item["input_ids"].cpu(), item["attention_mask"].bool().cpu()
        keep = keep & ~torch.isin(ids, ignored)
        found.append(item["token_embeddings"].float().cpu().numpy()[keep.numpy()])
    return found


@dataclass
class _Cache:
    """Token vectors by text, the least recently used dropped first when they take too much."""

    limit: int
    held: OrderedDict[str, Tokens] = field(default_factory=OrderedDict)
    size: int = 0

    def __contains__(self, text: str) -> bool:
        return text in self.held

    def __getitem__(self, text: str) -> Tokens:
        self.held.move_to_end(text)
        return self.held[text]

    def add(self, items: Iterable[tuple[str, Tokens]]) -> None:
        for text, tokens in items:
            self.held[text] = tokens
            self.size += tokens.nbytes

    def shrink(self) -> None:
        while self.size > self.limit and self.held:
            self.size -= self.held.popitem(last=False)[1].nbytes
