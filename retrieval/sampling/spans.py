"""Spans of different lengths in flat arrays."""

from __future__ import annotations

import numpy as np

__all__ = ["flat_spans", "owners_of"]


def flat_spans(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """starts[0], starts[0] + 1, … (counts[0] of them), starts[1], … (Σ counts,) int64."""
    before = np.cumsum(counts) - counts
    return np.repeat(starts - before, counts) + np.arange(int(counts.sum()))


def owners_of(counts: np.ndarray) -> np.ndarray:
    """0 counts[0] times, then 1 counts[1] times, … (Σ counts,) int64."""
    return np.repeat(np.arange(len(counts)), counts)
