"""ICR's two passes: the prompt with the content-free query, then only what asks, on the same cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ...errors import ConfigError
from .icr_attention import Span, Watch, own_attention, watched_forward
from .icr_prompt import IcrPrompt

__all__ = ["AttentionReader"]

Pair = tuple[np.ndarray, np.ndarray | None]


class AttentionReader:
    """Reads how much attention the asking positions of prompts pay to every position.

    Args:
        model: a causal language model of transformers.
        pad: the id that fills up a batch.

    Attributes:
        layers: of the model.
        heads: of every layer.
        window: how far the model's shortest-sighted layer sees; None when all see everything.

    Raises:
        ConfigError, BackendError: the model's attention cannot be followed.
    """

    def __init__(self, model: Any, pad: int) -> None:
        self.model, self.pad = model, pad
        self.layers = int(model.config.get_text_config().num_hidden_layers)
        probe = Watch((Span((0, 2), ((0, 2),)),), last=self.layers - 1)
        with own_attention(model):
            self._forward(probe, torch.tensor([[pad, pad]]))
        if len(set(probe.layers.values())) > 1:
            raise ConfigError("the model's layers have different numbers of heads, which ICR does not follow")
        self.heads, self.window = next(iter(probe.layers.values())), probe.window
        self._weights: torch.Tensor | None = None
        self._last = self.layers - 1

    @property
    def device(self) -> torch.device:
        return self.model.device

    def choose(self, weights: np.ndarray) -> None:
        """Count heads by `weights` (layers, heads); layers after the last that counts are not run."""
        self._weights = None if (weights == 1).all() else torch.from_numpy(weights)
        self._last = int(np.flatnonzero(weights.any(axis=1))[-1])

    def check(self, qid: str, length: int) -> None:
        """Refuse a prompt that a layer with sliding-window or chunked attention cannot see whole.

        Raises:
            ConfigError: with both lengths.
        """
        if self.window is not None and length > self.window:
            raise ConfigError(
                f"query {qid!r}: the prompt has {length} tokens, but layers of the model see only {self.window} "
                "(sliding-window attention): their attention to earlier documents does not exist. Take a model with "
                "full attention, fewer candidates, or windows"
            )

    def read(self, prompts: Sequence[IcrPrompt], *, calibrate: bool) -> list[Pair]:
        """For each prompt the attention of its query, and of the content-free one, to every position.

        Both are means over the asking positions of sums over layers and heads, float64, (length of the prompt,); the
        second is None without calibration. Equal prompts are read once, and their attention is equal.
        """
        with own_attention(self.model):
            if not calibrate:
                found, _ = self._whole([(prompt.real, prompt.start) for prompt in prompts])
                return [(each, None) for each in found]
            free, cache = self._whole([(prompt.free, prompt.start) for prompt in prompts])
            real = dict(enumerate(free))
            asking = [row for row, prompt in enumerate(prompts) if prompt.real != prompt.free]
            if asking:
                if len(asking) < len(prompts):
                    cache.batch_select_indices(torch.tensor(asking, device=self.device))
                real |= zip(asking, self._rest([prompts[row] for row in asking], cache), strict=True)
        return [(real[row], each) for row, each in enumerate(free)]

    def _whole(self, prompts: Sequence[tuple[tuple[int, ...], int]]) -> tuple[list[np.ndarray], Any]:
        """One pass over whole prompts (ids, start of what asks), padded at the end, where no position looks; the cache
        of what comes before the last one's asking part."""
        from transformers.cache_utils import DynamicCache

        given = self._padded([ids for ids, _ in prompts])
        watch = self._watch([Span((start, len(ids)), ((0, len(ids)),)) for ids, start in prompts])
        cache = DynamicCache()  # not made for the configuration: a sliding layer would drop what lies behind
        self._forward(watch, given, past_key_values=cache, use_cache=True)
        cache.crop(max(start for _, start in prompts) - given.shape[1])
        return _means(watch), cache

    def _rest(self, prompts: Sequence[IcrPrompt], cache: Any) -> list[np.ndarray]:
        """One pass over what asks, on top of the cache of what comes before. Prompts with a shorter beginning have
        padding between the two, which spans leave out; the mask is for models that count positions by it."""
        starts = torch.tensor([prompt.start for prompt in prompts])
        width = int(cache.get_seq_length())
        given = self._padded([prompt.real[prompt.start :] for prompt in prompts])
        asking = [len(prompt.real) - prompt.start for prompt in prompts]
        watch = self._watch(
            [
                Span((0, length), _joined((0, prompt.start), (width, width + length)))
                for prompt, length in zip(prompts, asking, strict=True)
            ]
        )
        more: dict[str, Any] = {"position_ids": starts[:, None] + torch.arange(given.shape[1])[None, :]}
        if int(starts.min()) < width:
            seen = torch.ones((len(prompts), width + given.shape[1]), dtype=torch.long)
            seen[:, :width] = torch.arange(width)[None, :] < starts[:, None]
            more["attention_mask"] = seen
        self._forward(watch, given, past_key_values=cache, use_cache=True, **more)
        return _means(watch)

    def _watch(self, spans: Sequence[Span]) -> Watch:
        return Watch(tuple(spans), self._weights, self._last)

    def _padded(self, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        width = max(len(ids) for ids in rows)
        return torch.tensor([[*ids, *[self.pad] * (width - len(ids))] for ids in rows])

    def _forward(self, watch: Watch, given: torch.Tensor, **more: Any) -> None:
        placed = {
            name: value.to(self.device) if isinstance(value, torch.Tensor) else value for name, value in more.items()
        }
        watched_forward(self.model, watch, input_ids=given.to(self.device), **placed)


def _joined(first: tuple[int, int], second: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    """Two ranges, as one where they touch."""
    return ((first[0], second[1]),) if first[1] == second[0] else (first, second)


def _means(watch: Watch) -> list[np.ndarray]:
    """The sums as means over the watched positions, float64."""
    return [
        total.cpu().numpy().astype(np.float64) / (span.rows[1] - span.rows[0])
        for total, span in zip(watch.sums, watch.spans, strict=True)
    ]
