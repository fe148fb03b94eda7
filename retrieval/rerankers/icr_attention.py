"""Attention paid to every key by a few query positions, summed over heads, while a decoder runs as usual.

An attention function is registered with transformers. It computes what SDPA computes and, for the positions that are
watched, softmax weights over all keys in float32, which are summed at once: no map of length squared is made, and what
is kept is one number a key. It gets the queries, keys and scaling that the model's own attention gets, so biases,
normalised queries, rotary embeddings and grouped heads are as they are in the model. Models with soft-capped logits,
which SDPA refuses, have their attention computed here in blocks of query rows.

The mask function is registered too: without one, passes over a cache would lose their causal mask.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ...errors import BackendError, ConfigError

__all__ = ["ATTENTION", "Span", "Watch", "own_attention", "watched_forward"]

ATTENTION = "rtk_icr"
"""The name under which the attention function is registered."""

_BLOCK = 2**22
"""The most attention weights that are held at once, in numbers."""

_FOREIGN = ("s_aux", "position_bias", "sinks")
"""Arguments of attention that change its weights in ways which are not followed here."""


@dataclass(frozen=True)
class Span:
    """The watched positions of one prompt in a forward.

    Attributes:
        rows: half-open range of query positions; the last of them sees all of `keys`.
        keys: half-open ranges of key positions that are the prompt's, in order; padding lies between them.
    """

    rows: tuple[int, int]
    keys: tuple[tuple[int, int], ...]

    @property
    def length(self) -> int:
        return sum(stop - start for start, stop in self.keys)

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """(K, S, d) → (K, length, d): only the prompt's positions."""
        if len(self.keys) == 1:
            return tensor[:, slice(*self.keys[0])]
        return torch.cat([tensor[:, slice(*part)] for part in self.keys], dim=1)


@dataclass(eq=False)
class Watch:
    """What is collected during one forward.

    Attributes:
        spans: the watched positions of each prompt of the batch.
        heads: (layers, heads) float32 weight of each head, 0 to leave it out; None gives every head 1.
        last: the layer after whose weights nothing more is needed; None runs the model to its end.
        sums: for each prompt (keys,) the weights summed over layers, heads and watched positions.
        layers: the layers that were seen, with their numbers of heads.
        window: the shortest stretch of keys that a layer with local attention sees; None when all see everything.
    """

    spans: tuple[Span, ...]
    heads: torch.Tensor | None = None
    last: int | None = None
    sums: list[torch.Tensor] = field(default_factory=list)
    layers: dict[int, int] = field(default_factory=dict)
    window: int | None = None

    def see(self, layer: int, given: _Given, rule: _Rule) -> torch.Tensor | None:
        """Add a layer's weights.

        Args:
            layer: its number.
            given: what the layer attends with.
            rule: how products become logits.

        Returns:
            (B, L, H, d) the layer's output, when every position that matters is watched: the weights are there already,
            and SDPA need not compute them again. None otherwise.
        """
        query, key, value = given.query, given.key, given.value
        self.layers[layer] = query.shape[1]
        if not self.sums:
            self.sums = [torch.zeros(span.length, dtype=torch.float32, device=query.device) for span in self.spans]
        heads = torch.ones(query.shape[1]) if self.heads is None else self.heads[layer]
        last, whole = layer == self.last, all(span.rows[0] == 0 for span in self.spans)
        made = query.new_zeros((query.shape[0], query.shape[2], query.shape[1], value.shape[-1])) if whole else None
        if made is not None or bool((heads != 0).any()):
            heads = heads.to(query.device, torch.float32)
            for row, span in enumerate(self.spans):
                some = _Given(query[row, :, slice(*span.rows)], span.of(key[row]), span.of(value[row]))
                out = None if made is None or last else made[row, slice(*span.rows)]
                self.sums[row] += _attend(some, heads, rule, out).to(self.sums[row].device)
        if last:
            raise _Enough
        return made

    def end(self) -> None:
        """Check that everything asked for was seen.

        Raises:
            BackendError: the model does not compute its attention through transformers' attention interface.
        """
        wanted = set() if self.last is None else set(range(self.last + 1))
        if not self.layers or not wanted <= set(self.layers):
            raise BackendError(
                f"attention of {len(self.layers)} layers was seen, of {len(wanted) or 'all'} expected: ICR needs a "
                "decoder whose every layer goes through transformers' attention interface"
            )


class _Enough(Exception):
    """The last layer that was needed has been seen; the rest of the forward would be thrown away."""


@dataclass(frozen=True)
class _Rule:
    scaling: float
    softcap: float | None

    def logits(self, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        """(…, rows, keys) of (…, rows, d) and (…, keys, d)."""
        logits = torch.matmul(query, key.transpose(-1, -2)).mul_(self.scaling)
        return logits if self.softcap is None else logits.div_(self.softcap).tanh_().mul_(self.softcap)


_WATCH: ContextVar[Watch | None] = ContextVar("rtk_icr_watch", default=None)


@dataclass(frozen=True, eq=False)
class _Given:
    """Queries (…, H, m, d), keys and values (…, K, n, d), K dividing H."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor


def _attend(given: _Given, heads: torch.Tensor, rule: _Rule, out: torch.Tensor | None) -> torch.Tensor:
    """Σ_h heads_h Σ_m softmax(q_m · kᵀ) over the last m rows of a causal sequence of n, in float32.

    Args:
        given: of one prompt.
        heads: (H,).
        rule: how products become logits.
        out: (m, H, d) receives the attention's output, unless it is None.

    Returns:
        (n,) float32.
    """
    few, keys = given.key.shape[:2]
    groups, rows = given.query.shape[0] // few, given.query.shape[1]
    query = given.query.float().reshape(few, groups * rows, -1)
    ahead = torch.ones((rows, rows), dtype=torch.bool, device=query.device).triu_(1)
    total = torch.zeros(keys, dtype=torch.float32, device=query.device)
    step = max(1, _BLOCK // (groups * rows * keys))
    for start in range(0, few, step):
        some = slice(start, start + step)
        logits = rule.logits(query[some], given.key[some].float())
        logits.view(-1, groups, rows, keys)[..., keys - rows :].masked_fill_(ahead, -torch.inf)
        weights = logits.softmax(-1)
        share = heads[start * groups : (start + step) * groups].repeat_interleave(rows)
        total += share @ weights.view(-1, keys)
        if out is not None:
            made = torch.matmul(weights, given.value[some].float()).view(-1, rows, given.value.shape[-1])
            out[:, start * groups : start * groups + len(made)] = made.transpose(0, 1)
    return total


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    **more: Any,
) -> tuple[torch.Tensor, None]:
    """The registered attention function; shapes as in transformers."""
    foreign = [name for name in _FOREIGN if more.get(name) is not None]
    if foreign:
        raise ConfigError(f"{type(module).__name__} attends with {foreign[0]!r}, which ICR does not follow")
    rule = _Rule(query.shape[-1] ** -0.5 if scaling is None else float(scaling), softcap)
    watch = _WATCH.get()
    if watch is not None:
        layer = int(module.layer_idx)  # pyright: ignore[reportArgumentType] - a plain number
        done = watch.see(layer, _Given(query, key, value), rule)
        if done is not None:
            return done, None
    if softcap is not None:
        return _capped(query, key, value, attention_mask, rule), None
    made, _ = sdpa_attention_forward(
        module, query, key, value, attention_mask, dropout=dropout, scaling=rule.scaling, **more
    )
    return made, None


def _capped(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, rule: _Rule
) -> torch.Tensor:
    """Attention with capped logits in blocks of query rows: memory linear in the length.

    Args:
        query: (B, H, L, d).
        key, value: (B, K, S, d).
        mask: (B, 1, L, S) bool, True where attended; None is causal.
        rule: scaling and cap.

    Returns:
        (B, L, H, d).
    """
    batch, heads, length, width = query.shape
    few, keys = key.shape[1], key.shape[2]
    grouped = query.view(batch, few, heads // few, length, width)
    made = torch.empty((batch, length, heads, value.shape[-1]), dtype=query.dtype, device=query.device)
    step = max(1, _BLOCK // (batch * heads * keys))
    place = torch.arange(keys, device=query.device)
    for start in range(0, length, step):
        stop = min(length, start + step)
        reach = keys if mask is not None else keys - length + stop
        logits = rule.logits(grouped[:, :, :, start:stop].float(), key[:, :, None, :reach].float())
        if mask is None:
            rows = torch.arange(start, stop, device=query.device)[:, None] + (keys - length)
            logits.masked_fill_(place[None, :reach] > rows, -torch.inf)
        else:
            logits.masked_fill_(~mask[:, :, None, start:stop, :reach], -torch.inf)
        some = torch.matmul(logits.softmax(-1).to(value.dtype), value[:, :, None, :reach])
        made[:, start:stop] = some.permute(0, 3, 1, 2, 4).reshape(batch, stop - start, heads, -1)
    return made


def _mask(*args: Any, local_size: int | None = None, **more: Any) -> torch.Tensor | None:
    """The registered mask function: SDPA's, which notes how far layers with local attention see."""
    watch = _WATCH.get()
    if watch is not None and local_size is not None:
        watch.window = min(local_size, local_size if watch.window is None else watch.window)
    return sdpa_mask(*args, local_size=local_size, **more)


ALL_ATTENTION_FUNCTIONS.register(ATTENTION, _attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(ATTENTION, _mask)


@contextmanager
def own_attention(model: Any) -> Iterator[None]:
    """Inside, the model attends through our function, which `watched_forward` needs.

    Raises:
        BackendError: the model does not take its attention from transformers' attention interface.
    """
    before = model.config._attn_implementation
    model.set_attn_implementation(ATTENTION)
    if model.config._attn_implementation != ATTENTION:
        raise BackendError(f"{type(model).__name__} does not take its attention from transformers' attention interface")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def watched_forward(model: Any, watch: Watch, **inputs: Any) -> None:
    """Run the decoder body of `model` (never its head) under `watch`, inside `own_attention`.

    Raises:
        BackendError: not every layer that was expected was seen.
    """
    token = _WATCH.set(watch)
    try:
        with torch.inference_mode():
            model.get_decoder()(**inputs)
    except _Enough:
        pass
    finally:
        _WATCH.reset(token)
    watch.end()
