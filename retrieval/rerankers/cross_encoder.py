"""Cross-encoders: query and document read together by one network, one logit for the pair."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import ConfigError
from .base import Request, Result, Usage, ranked_result
from .batching import TokenCounter, first_tokens, request_groups, token_batches
from .checks import check_counts

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder

__all__ = ["CrossEncoderReranker"]


class CrossEncoderReranker:
    """Reranks by a sentence-transformers `CrossEncoder`: raw logits, never a sigmoid, which flattens their margins.

    A model with two labels (monoBERT) scores by the difference of its logits, z₁ - z₀; one with more needs `label`.
    Pairs of several queries share batches, sorted by length and filled up to a number of tokens.
    A pair that is too long has its document cut. A query takes three quarters of the room at most: of a longer one that
    much is left, beside documents with which it does not fit whole. `Usage.cut` counts these pairs.

    Args:
        model: the cross-encoder.
        max_length: tokens of a pair, at most the model's own, which None leaves.
        batch_tokens: tokens in a batch, padding included; None takes what suits the device.
        group_pairs: pairs that are sorted together; more waste less padding, and a stop loses as many.
        label: which label's logit scores, for a model with more than two.
        name: what the model is called in records; its own path by default.

    Raises:
        ConfigError: more than two labels and no `label`, a label that the model does not have, a count below 1, or a
            length that leaves no room for query and document.
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
        check_counts(max_length=max_length, batch_tokens=batch_tokens, group_pairs=group_pairs)
        if label is not None and not 0 <= label < model.num_labels:
            raise ConfigError(f"label {label}: the cross-encoder's labels are 0 to {model.num_labels - 1}")
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
        self._fit = _Fit(model, self.max_length)

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
            fitted = [self._fit(request.query, request.texts) for request in group]
            pairs = [pair for each in fitted for pair in each.pairs]
            scores = self._scores(pairs, np.concatenate([each.lengths for each in fitted]))
            start = 0
            for request, each in zip(group, fitted, strict=True):
                part = slice(start, start + len(each.pairs))
                usage = Usage(len(each.pairs), prompt_tokens=int(each.lengths.sum()), cut=int(each.cut.sum()))
                yield ranked_result(request, scores[part], usage=usage)
                start = part.stop

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
            cut = {"processing_kwargs": {"text": {"max_length": self.max_length, "truncation": self._fit.truncation}}}
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


@dataclass(frozen=True, eq=False)
class _Fitted:
    """The pairs of a query as the model gets them.

    Attributes:
        pairs: query and document, the document to be cut by the tokenizer where both are not one text.
        lengths: (n,) int64 tokens of each pair as it is read.
        cut: (n,) bool, whether something of it is left out.
    """

    pairs: list[tuple[str, str]]
    lengths: np.ndarray
    cut: np.ndarray


class _Fit:
    """Makes the pairs of a query fit.

    Models with a chat template read a pair as one text, at whose end a tokenizer would cut whatever stands there: their
    documents are cut before they are put into it.

    Attributes:
        truncation: what the tokenizer is told about pairs that are too long.
    """

    def __init__(self, model: CrossEncoder, limit: int | None) -> None:
        self._tokenizer, self._limit = model.tokenizer, limit
        self._count = TokenCounter(model.tokenizer, None if limit is None else limit + 1)
        self._one_text = "message" in getattr(model[0], "modality_config", ())
        self._frame = self._template(model) if self._one_text else self._count.special_pair
        self.truncation = "longest_first" if self._one_text else "only_second"
        if limit is not None and limit < self._frame + 2:
            raise ConfigError(
                f"max_length {limit}: a pair has {self._frame} tokens without query and document; "
                f"expected at least {self._frame + 2}"
            )

    @staticmethod
    def _template(model: CrossEncoder) -> int:
        try:
            return int(model.preprocess([("", "")])["input_ids"].shape[1])
        except ValueError as error:
            raise ConfigError(f"the model's chat template does not take pairs: {error}") from error

    def __call__(self, query: str, texts: Sequence[str]) -> _Fitted:
        asked = int(self._count([query])[0])
        lengths = self._frame + asked + self._count(texts)
        pairs = [(query, text) for text in texts]
        if self._limit is None:
            return _Fitted(pairs, lengths, np.zeros(len(texts), dtype=bool))
        cut = lengths > self._limit
        if cut.any():
            room = self._limit - self._frame
            kept = min(asked, room * 3 // 4)
            lengths = np.minimum(np.where(cut, lengths - asked + kept, lengths), self._limit)
            short = query if kept == asked else self._first(query, kept)
            for row in np.flatnonzero(cut).tolist():
                text = self._first(texts[row], room - kept) if self._one_text else texts[row]
                pairs[row] = (short, text)
        return _Fitted(pairs, lengths, cut)

    def _first(self, text: str, tokens: int) -> str:
        if not self._tokenizer.is_fast:
            raise ConfigError(
                f"{type(self._tokenizer).__name__} cannot say where its tokens stand, so nothing can be cut to "
                f"{tokens} of them; load the fast tokenizer"
            )
        return first_tokens(self._tokenizer, text, tokens)
