"""Which requests and which texts are computed together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from .base import Request

if TYPE_CHECKING:
    import torch

__all__ = ["TokenCounter", "first_tokens", "request_groups", "token_batches"]


def request_groups(requests: Iterable[Request], candidates: int) -> Iterator[list[Request]]:
    """Gather requests until they hold at least so many candidates."""
    group: list[Request] = []
    held = 0
    for request in requests:
        group.append(request)
        held += len(request.candidates)
        if held >= candidates:
            yield group
            group, held = [], 0
    if group:
        yield group


def token_batches(lengths: np.ndarray, tokens: int | None, device: torch.device) -> Iterator[np.ndarray]:
    """Rows of batches of at most so many tokens, padding included, longest first; see `encoders.batching`.

    Args:
        lengths: (n,) tokens of each item.
        tokens: the budget; None takes what suits the device.
        device: where the model is.
    """
    from ..encoders.batching import batches, default_batching

    batching = default_batching(device)
    return batches(lengths, batching if tokens is None else replace(batching, tokens=tokens))


def first_tokens(tokenizer: Any, text: str, tokens: int, **settings: Any) -> str:
    """The longest beginning of `text` of at most so many tokens, special ones not counted.

    Args:
        tokenizer: a fast one, which says where its tokens stand.
        text: what is cut.
        tokens: at most.
        settings: more for the tokenizer.
    """
    # Not verbose: a text longer than the model is what this is for.
    given = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False, **settings)
    found = given["offset_mapping"]
    return text if len(found) <= tokens else text[: found[tokens - 1][1] if tokens > 0 else 0]


class TokenCounter:
    """Counts the tokens of texts without special ones.

    Args:
        tokenizer: of transformers.
        limit: no need to count further.
    """

    def __init__(self, tokenizer: Any, limit: int | None) -> None:
        self._tokenizer, self._limit = tokenizer, limit
        self.special_pair = int(tokenizer.num_special_tokens_to_add(pair=True))

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """(n,) int64."""
        if not texts:
            return np.zeros(0, dtype=np.int64)
        limit = {} if self._limit is None else {"truncation": True, "max_length": self._limit}
        encoded = self._tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, **limit)
        return np.asarray([len(ids) for ids in encoded["input_ids"]], dtype=np.int64)
