"""Prompts through a decoder: shared prefixes once, padding on the right where nobody sees it, the head at one place.

Padding stands after the prompt, and a causal model never looks ahead: a forward over padded prompts needs no mask, so
neither a mask of length squared is made nor a result changed.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ...errors import BackendError
from .base import Usage
from .batching import token_batches
from .chat import Prompt

__all__ = ["Batch", "Decoder", "Prefilled", "head_at", "plan_batches"]

_LEAST_SHARED = 16
_WORTH_SHARING = 0.2


@dataclass(frozen=True, eq=False)
class Batch:
    """Prompts that go through the model together.

    Attributes:
        rows: their numbers among all prompts.
        shared: leading ids that all prompts of the group have, computed once for the group; 0 for none.
        first: whether this batch has to pay for them.
    """

    rows: list[int]
    shared: int = 0
    first: bool = False

    def usages(self, prompts: Sequence[Prompt]) -> dict[int, Usage]:
        """What each row's prompt cost: the shared ids are read for the first row of the group, cached for the rest."""
        paid = self.rows[0] if self.first else None
        return {
            row: Usage(1, len(prompts[row]) - (0 if row == paid else self.shared), 0 if row == paid else self.shared)
            for row in self.rows
        }


@dataclass(frozen=True, eq=False)
class Prefilled:
    """What a forward over a batch left.

    Attributes:
        logits: (B, C, T) float32 at the places asked for.
        cache: keys and values, (B, …, width); None when not kept.
        seen: (B, width) whether a position of the cache is of the prompt, not padding.
        lengths: (B,) tokens of each prompt.
    """

    logits: torch.Tensor
    cache: Any
    seen: torch.Tensor
    lengths: torch.Tensor


def plan_batches(
    prompts: Sequence[Prompt], more: np.ndarray, budget: int | None, device: torch.device, *, share: bool
) -> Iterator[list[Batch]]:
    """Groups of batches; the batches of a group have their leading ids in common. Longest first.

    Args:
        prompts: what is to be read.
        more: (n,) tokens that each row costs beyond its prompt, as the budget counts.
        budget: tokens of a batch, padding included.
        device: where the model is.
        share: whether prefixes may be computed once.
    """
    alone, groups = [], dict[tuple[int, ...], list[int]]()
    for row, prompt in enumerate(prompts):
        if share and prompt.shared >= _LEAST_SHARED:
            groups.setdefault(prompt.ids[: min(prompt.shared, len(prompt) - 1)], []).append(row)
        else:
            alone.append(row)
    for prefix, rows in groups.items():
        tokens = sum(len(prompts[row]) for row in rows)
        if (len(rows) - 1) * len(prefix) < _WORTH_SHARING * tokens:
            alone.extend(rows)
            continue
        # Attending to a cached token costs a part of computing it.
        lengths = np.asarray([len(prompts[row]) - len(prefix) + len(prefix) // 4 for row in rows]) + more[rows]
        parts = [[rows[at] for at in part.tolist()] for part in token_batches(lengths, budget, device)]
        yield [Batch(part, len(prefix), first=at == 0) for at, part in enumerate(parts)]
    alone.sort()
    lengths = np.asarray([len(prompts[row]) for row in alone], dtype=np.int64) + more[alone]
    for part in token_batches(lengths, budget, device):
        yield [Batch([alone[at] for at in part.tolist()])]


@contextmanager
def head_at(model: Any, places: torch.Tensor, tokens: torch.Tensor | None) -> Iterator[None]:
    """Inside, the model's head sees only these places, so that no logits of vocabulary × length are made.

    Args:
        model: with a linear head over hidden states (B, L, H).
        places: (B, C) positions.
        tokens: (T,) the only rows of the head, then computed in float32; None for the whole vocabulary.
    """
    head = model.get_output_embeddings()
    if head is None:
        raise BackendError(f"{type(model).__name__} has no output embeddings: it predicts no tokens")

    def pick(_: Any, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        hidden = given[0]
        at = places.to(hidden.device)[:, :, None].expand(-1, -1, hidden.shape[-1])
        return (hidden.gather(1, at), *given[1:])

    def choose(module: Any, given: tuple[torch.Tensor, ...], made: torch.Tensor) -> torch.Tensor:
        if tokens is None:
            return made.float()
        rows = tokens.to(made.device)
        if type(module) is not torch.nn.Linear:  # an adapted head: what it made itself
            return made[..., rows].float()
        bias = None if module.bias is None else module.bias[rows].float()
        return torch.nn.functional.linear(given[0].float(), module.weight[rows].float(), bias)

    hooks = head.register_forward_pre_hook(pick), head.register_forward_hook(choose)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class Decoder:
    """Forwards of a causal language model of transformers.

    Attributes:
        gaps: whether padding inside a cache can be masked out: true when every layer attends to everything before it.
        shares: whether a cache can be copied for several continuations.
    """

    def __init__(self, model: Any, pad: int) -> None:
        from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

        self.model, self.pad = model, pad
        kinds = {type(layer) for layer in DynamicCache(config=model.config).layers}
        self.gaps = kinds <= {DynamicLayer}
        self.shares = kinds <= {DynamicLayer, DynamicSlidingWindowLayer}
        self._positions = "position_ids" in inspect.signature(model.forward).parameters

    @property
    def device(self) -> torch.device:
        return self.model.device

    def prefix(self, ids: Sequence[int]) -> Any:
        """The cache of these leading ids, for `prefill` to continue any number of times."""
        given = torch.tensor([list(ids)], device=self.device)
        with head_at(self.model, torch.zeros((1, 1), dtype=torch.long), torch.zeros(1, dtype=torch.long)):
            return self.model(input_ids=given, use_cache=True).past_key_values

    def prefill(
        self, prompts: Sequence[Sequence[int]], places: torch.Tensor, tokens: torch.Tensor | None, prefix: Any = None,
        *, keep: bool = False,
    ) -> Prefilled:  # fmt: skip
        """One forward over prompts.

        Args:
            prompts: B lists of ids, the prefix's included.
            places: (B, C) positions of the prompts at which the head is wanted.
            tokens: (T,) which logits; None for all.
            prefix: what `prefix` gave, if the prompts begin with it.
            keep: whether the cache is needed afterwards.
        """
        start = 0 if prefix is None else prefix.get_seq_length()
        lengths = torch.tensor([len(ids) for ids in prompts])
        width = int(lengths.max())
        given = torch.full((len(prompts), width - start), self.pad)
        for row, ids in enumerate(prompts):
            given[row, : len(ids) - start] = torch.tensor(ids[start:])
        cache = None if prefix is None else _spread(prefix, len(prompts))
        with head_at(self.model, places - start, tokens):
            made = self.model(
                input_ids=given.to(self.device), past_key_values=cache, use_cache=keep or cache is not None
            )
        if made.logits.shape[:2] != places.shape:
            raise BackendError(f"{type(self.model).__name__} does not pass through its output embeddings")
        seen = torch.arange(width)[None, :] < lengths[:, None]
        return Prefilled(made.logits, made.past_key_values if keep else None, seen, lengths)

    def step(self, tokens: torch.Tensor, cache: Any, seen: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """(B, V) float32 logits after one more token of each row.

        Args:
            tokens: (B,) the tokens.
            cache: grows by them.
            seen: (B, width) with them.
            positions: (B,) theirs.
        """
        more = {"position_ids": positions[:, None].to(self.device)} if self._positions else {}
        if self.gaps and not bool(seen.all()):
            more["attention_mask"] = seen.to(self.device, torch.long)
        with head_at(self.model, torch.zeros((len(tokens), 1), dtype=torch.long), None):
            made = self.model(input_ids=tokens[:, None].to(self.device), past_key_values=cache, use_cache=True, **more)
        return made.logits[:, 0]


def _spread(cache: Any, rows: int) -> Any:
    """A cache of one row as one of many that share its memory until they grow; the given one stays as it is."""
    spread = copy.copy(cache)
    spread.layers = [copy.copy(layer) for layer in cache.layers]
    for layer in spread.layers:
        if layer.is_initialized:
            layer.keys = layer.keys.expand(rows, -1, -1, -1)
            layer.values = layer.values.expand(rows, -1, -1, -1)
    return spread
