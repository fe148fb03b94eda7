"""FLOPS on contributions, weighted by IDF: the IDF-aware penalty of inference-free retrieval, written out.

With queries of idf · {0, 1} the gradient on a document weight is idf_t · (ranking) + λ · 2 mean_t / N, so
that terms of low idf are pruned first, although FLOPS has no IDF in it (arXiv 2411.04403, eq. 7, and its program). The
contributions u = idf · w see the same objective with queries of {0, 1} and FLOPS(w) = Σ_t idf_t^-2 (mean u_t)².
"""

from __future__ import annotations

from typing import cast

import torch
from sentence_transformers import SparseEncoder
from torch import Tensor

from ...errors import ConfigError
from ..encoders.inference_free import static_side
from .batch import DenseTerm
from .context import LossContext
from .options import LossOptions
from .regularisation import flops
from .sparse_options import IdfFlopsOptions
from .sparse_terms import Regulariser

__all__ = ["idf_penalties", "make_idf_flops"]


def idf_penalties(idf: Tensor, *, power: float = 2.0) -> Tensor:
    """c_t = idf_t^-p, `flops`' weights of terms. (V,) → (V,).

    Raises:
        ConfigError: a weight is not above 0, so that its term could not be kept at any price.
    """
    if bool((idf <= 0).any()):
        raise ConfigError(f"{int((idf <= 0).sum())} pieces have an idf of 0 in the table; idf-flops needs it above 0")
    return idf.to(torch.promote_types(torch.float32, idf.dtype)).pow(-power)


def make_idf_flops(options: LossOptions, context: LossContext) -> DenseTerm:
    """See `regularisation.flops`, with `idf_penalties` of the table that the model's queries came with."""
    chosen = cast(IdfFlopsOptions, options)
    queries = static_side(cast(SparseEncoder, context.model), "query")
    idf = getattr(queries, "idf", None)
    if not isinstance(idf, Tensor):
        raise ConfigError("loss idf-flops: the model has no table of idf; it goes with method inference-free")
    penalties = idf_penalties(idf, power=chosen.power)

    def cost(rows: Tensor, *, threshold: int | None = None) -> Tensor:
        return flops(rows, threshold=threshold, term_weights=penalties.to(rows.device))

    return Regulariser(chosen, context, cost)
