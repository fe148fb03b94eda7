"""Cross-encoders: query and document read together by one network, one logit for the pair."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import ConfigError
from .base import Request, Result, Usage, ranked_result
from .batching import TokenCounter, request_groups, token_batches

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder

__all__ = ["CrossEncoderReranker"]


class CrossEncoderReranker:
    """Reranks by a sentence-transformers `CrossEncoder`: raw logits, never a sigmoid, which flattens their margins.

    A model with two labels (monoBERT) scores by the difference of its logits, z₁ - z₀; one with more needs `label`.
    Pairs of several queries share batches, sorted by length and filled up to a number of tokens.

    Args:
        model: the cross-encoder.
        max_length: tokens of a pair; the longer side (the document) is cut. None leaves the model's own.
        batch_tokens: tokens in a batch, padding included; None takes what suits the device.
        group_pairs: pairs that are sorted together; more waste less padding, and a stop loses as many.
        label: which label's logit scores, for a model with more than two.
        name: what the model is called in records; its own path by default.
    """

    calibrated = True

    def __init__(
        self,
        model: CrossEncoder,
        *,
        max_length: int | None = None,
        batch_tokens: int | None = None,
        group_pairs: int = 1024,
        label: int | None = None,
        name: str | None = None,
    ) -> None:
        if model.num_labels > 2 and label is None:
            raise ConfigError(
                f"the cross-encoder has {model.num_labels} labels; say which one scores relevance by `label` "
                f"(0 to {model.num_labels - 1})"
            )
        own = model.max_seq_length
        self.model = model
        self.max_length = min(filter(None, (max_length, own)), default=None)
        self.batch_tokens, self.group_pairs, self.label = batch_tokens, group_pairs, label
        self.name = name or getattr(model.config, "name_or_path", "") or type(model).__name__
        self._count = TokenCounter(model.tokenizer, self.max_length)

    def identity(self) -> dict[str, Any]:
        """Model, its weights' fingerprint, length and precision."""
        from ..encoders.fingerprint import fingerprint

        return {
            "reranker": "cross-encoder",
            "model": self.name,
            "fingerprint": fingerprint(self.model.children()),
            "max_length": self.max_length,
            "label": self.label,
            "dtype": str(self.model.dtype).removeprefix("torch."),
        }

    def rerank(self, requests: Iterable[Request], /) -> Iterator[Result]:
        """Score every pair and order each request's candidates by the logits."""
        for group in request_groups(requests, self.group_pairs):
            pairs = [(request.query, each.text) for request in group for each in request.candidates]
            lengths = self._lengths(group)
            scores = self._scores(pairs, lengths)
            start = 0
            for request in group:
                part = slice(start, start + len(request.candidates))
                usage = Usage(calls=len(request.candidates), prompt_tokens=int(lengths[part].sum()))
                yield ranked_result(request, scores[part], usage=usage)
                start = part.stop

    def _lengths(self, group: Sequence[Request]) -> np.ndarray:
        """Tokens of every pair, cut as the model will cut it. (pairs,) int64."""
        parts = [
            self._count([request.query]) + self._count(request.texts) + self._count.special_pair for request in group
        ]
        lengths = np.concatenate(parts) if parts else np.zeros(0, np.int64)
        return lengths if self.max_length is None else np.minimum(lengths, self.max_length)

    def _scores(self, pairs: list[tuple[str, str]], lengths: np.ndarray) -> np.ndarray:
        """Every distinct pair is scored once, so that equal texts tie exactly, whichever batches they would fall in."""
        first: dict[tuple[str, str], int] = {}
        slots = np.asarray([first.setdefault(pair, len(first)) for pair in pairs], dtype=np.int64)
        distinct = list(first)
        _, where = np.unique(slots, return_index=True)
        scores = np.zeros(len(distinct), dtype=np.float32)
        for rows in token_batches(lengths[where], self.batch_tokens, self.model.device):
            scores[rows] = self._logits([distinct[row] for row in rows.tolist()])
        return scores[slots]

    def _logits(self, pairs: list[tuple[str, str]]) -> np.ndarray:
        import torch

        cut: dict[str, Any] = {}
        if self.max_length is not None:
            cut = {"processing_kwargs": {"text": {"max_length": self.max_length, "truncation": True}}}
        logits = np.asarray(
            self.model.predict(
                pairs, batch_size=len(pairs), show_progress_bar=False, activation_fn=torch.nn.Identity(), **cut
            ),
            dtype=np.float32,
        )
        if logits.ndim == 1:
            return logits
        if self.label is not None:
            return logits[:, self.label]
        return logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 else logits[:, 0]
