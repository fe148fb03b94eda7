"""Which examples share a batch. A batch is a pure function of (seed, step)."""

from __future__ import annotations

from .base import BatchKey, BatchSampler, Draw, Sampler
from .mixture import MixtureSampler
from .shuffled import ShuffledSampler

__all__ = ["BatchKey", "BatchSampler", "Draw", "MixtureSampler", "Sampler", "ShuffledSampler"]
