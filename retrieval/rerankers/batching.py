"""Which requests and which texts are computed together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from .base import Request

__all__ = ["TokenCounter", "request_groups", "token_batches"]


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


def token_batches(lengths: np.ndarray, budget: int) -> Iterator[np.ndarray]:
    """Split items of these lengths (n,) into batches of at most `budget` tokens, padding included, longest first.

    An item longer than the budget is a batch of its own. Yields rows, (batch,) int64.
    """
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        width = max(int(lengths[order[start]]), 1)
        size = max(budget // width, 1)
        yield order[start : start + size]
        start += size


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
