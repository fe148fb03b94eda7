"""Token-budget batches: texts tokenised in chunks, sorted by their number of tokens, results put back in order.

A batch holds as many texts as fit a budget of tokens, padding counted. On a CPU small batches win, because one
layer's activations then stay in the cache; on an accelerator large ones do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .sides import Side

__all__ = ["Batching", "TokenisedTexts", "batches", "default_batching", "tokenise"]


@dataclass(frozen=True)
class Batching:
    """How many tokens and texts make a batch.

    Attributes:
        tokens: texts times the longest one's tokens, at most; a single longer text still makes a batch.
        texts: number of texts, at most.
        chunk: texts given to the tokenizer at once.
    """

    tokens: int = 4096
    texts: int = 256
    chunk: int = 2048


def default_batching(device: torch.device) -> Batching:
    """Batches that suit the device."""
    return Batching() if device.type == "cpu" else Batching(tokens=65_536, texts=2048)


@dataclass(frozen=True, eq=False)
class TokenisedTexts:
    """Tokens of n texts in flat arrays, without padding.

    Attributes:
        columns: `input_ids` and what else the tokenizer gives (`token_type_ids`), each (tokens,) int32.
        offsets: (n + 1,) int64.
    """

    columns: Mapping[str, np.ndarray]
    offsets: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """(n,) int64 tokens of each text."""
        return np.diff(self.offsets)

    def padded(self, rows: np.ndarray, tokenizer: Any) -> dict[str, torch.Tensor]:
        """Features of these rows padded to their longest: (len(rows), width) int64, with the attention mask."""
        lengths = self.lengths[rows]
        width = int(lengths.max())
        place = np.arange(width)[None, :]
        if tokenizer.padding_side == "left":
            place = place - (width - lengths)[:, None]
        mask = (place >= 0) & (place < lengths[:, None])
        source = (self.offsets[rows][:, None] + place)[mask]
        features = {"attention_mask": torch.from_numpy(mask.astype(np.int64))}
        for name, flat in self.columns.items():
            values = np.full(mask.shape, _padding(name, tokenizer), dtype=np.int64)
            values[mask] = flat[source]
            features[name] = torch.from_numpy(values)
        return features


def tokenise(texts: Sequence[str], tokenizer: Any, side: Side, *, chunk: int) -> TokenisedTexts:
    """Tokenise with the side's prompt and length, `chunk` texts at a time."""
    parts: dict[str, list[np.ndarray]] = {}
    lengths: list[int] = []
    for start in range(0, len(texts), chunk):
        some = [(side.prompt or "") + text for text in texts[start : start + chunk]]
        found = tokenizer(
            some, truncation="longest_first", max_length=side.length, padding=False, return_attention_mask=False
        )
        lengths.extend(map(len, found["input_ids"]))
        for name, lists in found.items():
            parts.setdefault(name, []).append(
                np.fromiter((token for tokens in lists for token in tokens), dtype=np.int32)
            )
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)
    return TokenisedTexts({name: np.concatenate(arrays) for name, arrays in parts.items()}, offsets)


def batches(lengths: np.ndarray, batching: Batching) -> Iterator[np.ndarray]:
    """Rows of each batch, longest texts first; ties keep their order, so batches are a pure function of the lengths."""
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        longest = max(int(lengths[order[start]]), 1)
        count = max(1, min(batching.texts, batching.tokens // longest))
        yield order[start : start + count]
        start += count


def _padding(name: str, tokenizer: Any) -> int:
    if name == "input_ids":
        return tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    return tokenizer.pad_token_type_id if name == "token_type_ids" else 0
