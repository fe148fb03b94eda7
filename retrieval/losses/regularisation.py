"""What keeps sparse vectors sparse: FLOPS, L1, the term against all-zero vectors, and how their weight grows.

Everywhere `rows` (N, V) are weights of N texts over a vocabulary of V terms, and sums are taken in float32 at least. A
weight λ carries over from one publication to another only with its grouping and a batch of like size.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from .masking import wide

__all__ = [
    "Convention",
    "Shape",
    "active_terms",
    "anti_collapse",
    "expected_flops",
    "flops",
    "l1",
    "schedule",
]

Shape = Literal["quadratic", "linear", "constant"]
Convention = Literal["naver-iteration", "naver-hf", "opensearch", "tevatron", "sentence-transformers"]


def flops(
    rows: Tensor, *, threshold: int | None = None, term_weights: Tensor | None = None, absolute: bool = True
) -> Tensor:
    """FLOPS = Σ_j c_j ((1/N) Σ_i |w_ij|)² (Paria et al. 2020, eq. 5; Formal et al. 2021, eq. 4). A scalar.

    It is not additive over sub-batches: the value depends on which rows share the mean. With (B, n, V), the documents
    of B queries, the mean goes over the B documents of a place, and the square is summed over places and terms
    (OpenSearch's program), which multiplies the penalty by about n.

    Args:
        rows: (N, V), or (B, n, V).
        threshold: texts with at most so many active terms count as zero, but stay in the divisor (Geng et al. 2025).
        term_weights: c (V,); None is 1 everywhere.
        absolute: |w|; sentence-transformers takes w itself, which is the same for weights that are never negative.
    """
    values = _over(wide(rows), threshold)
    squares = (values.abs() if absolute else values).mean(dim=0).square()
    return (squares if term_weights is None else squares * wide(term_weights)).sum()


def l1(rows: Tensor, *, threshold: int | None = None, term_weights: Tensor | None = None) -> Tensor:
    """L1 = (1/N) Σ_i Σ_j c_j |w_ij|. A scalar; arguments as for `flops`."""
    values = _over(wide(rows), threshold).abs()
    return (values if term_weights is None else values * wide(term_weights)).sum(dim=-1).mean()


def anti_collapse(queries: Tensor, documents: Tensor) -> Tensor:
    """1 / (Σ query weights)² + 1 / (Σ document weights)²: grows without bound as a side goes to zero.

    The sums go over the whole batch, as in the trainer of Lassance and Clinchant (2023), so it fades with larger
    batches.

    Args:
        queries: (B, V).
        documents: (D, V).
    """
    return wide(queries).sum().pow(-2) + wide(documents).sum().pow(-2)


def schedule(step: int, *, steps: int, shape: Shape = "quadratic", convention: Convention = "naver-iteration") -> float:
    """The share of λ in force at an optimiser step: min(1, t/T)², or its linear or constant form. In [0, 1].

    What the published programs disagree on is t at the first step, and with it the step that reaches λ:

        naver-iteration         t = step + 1, over T         λ at the T-th step
        naver-hf                t = step + 1, over T + 1     one step later
        opensearch              t = step + 1, over T         the same values, by the trainer's step counted from 0
        tevatron                t = step, over T             the first step runs with 0
        sentence-transformers   t = step, over T             the same; its T is a third of the run by default

    The first of them counted every micro-batch, so that accumulating gradients shortened T; here a step is one of the
    optimiser in all of them.

    Args:
        step: optimiser steps taken before, from 0.
        steps: T; 0 is the full weight from the start.
    """
    if shape == "constant" or steps == 0:
        return 1.0
    reached = step if convention in ("tevatron", "sentence-transformers") else step + 1
    share = min(1.0, reached / (steps + 1 if convention == "naver-hf" else steps))
    return share**2 if shape == "quadratic" else share


def active_terms(rows: Tensor) -> Tensor:
    """How many weights of each row are not zero: L0. (N, V) → (N,) int64, (B, n, V) → (B, n)."""
    return (rows.detach() != 0).sum(dim=-1)


def expected_flops(queries: Tensor, documents: Tensor) -> Tensor:
    """Σ_j p_q(j) p_d(j), p the share of rows where term j is active: multiplications per scored pair. A scalar.

    It is what is reported as FLOPS beside a sparse model's quality, not the regulariser, and blind to the weights.

    Args:
        queries: (B, V).
        documents: (D, V).
    """
    with torch.no_grad():
        return ((queries != 0).float().mean(dim=0) * (documents != 0).float().mean(dim=0)).sum()


def _over(rows: Tensor, threshold: int | None) -> Tensor:
    """The rows, zero where they have at most `threshold` active terms."""
    return rows if threshold is None else rows * (active_terms(rows) > threshold)[..., None]
