"""Thin modules that carry the pure losses through sentence-transformers' trainers.

One encoding of the batch, any weighted sum of terms over it. A loss that does not fit that stands alone (WHOLE_LOSSES).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import torch
from sentence_transformers.base.losses.gradcache import CachedLossMixin
from sentence_transformers.base.losses.merged_forward import embed_columns
from sentence_transformers.util import batch_to_device
from sentence_transformers.util.distributed import all_gather_with_grad, get_rank, get_world_size
from torch import Tensor, nn

from .batch import CandidateBatch, DenseBatch, Side
from .candidate_terms import CANDIDATE_TERMS
from .context import LossContext
from .dense_terms import DENSE_TERMS
from .options import LOSSES, Family, LossOptions
from .query_weights import CurriculumWeights
from .sparse_watch import ActiveWatch

__all__ = ["WHOLE_LOSSES", "CandidateLoss", "InBatchLoss", "candidate_scores", "make_loss", "own_state", "wants_texts"]

WHOLE_LOSSES: dict[str, str] = {
    "adore": "live:make_adore",
    "cet": "coupled:make_cet",
    "first": "list_losses:make_first",
    "full-rank": "list_losses:make_full_rank",
    "masked-lm": "masked_lm:make_masked_lm_loss",
    "moco": "momentum:make_moco",
    "permutation": "list_losses:make_permutation",
    "yes-no": "yes_no:make_yes_no",
}
"""Losses that stand alone: name → "module:maker" beside this file; maker(model, options, context) gives the module."""


class _TermLoss(nn.Module):
    """Terms with their options; those that are modules are trained, saved and loaded with the loss."""

    def __init__(
        self, options: Sequence[LossOptions], terms: Sequence[Callable[..., Tensor]], context: LossContext
    ) -> None:
        super().__init__()
        self.options = tuple(options)
        curriculum = getattr(context.config, "curriculum", None)
        self.weights = None if curriculum is None else CurriculumWeights(curriculum, context)
        self.terms = tuple(terms)
        self.log = context.log
        self.stateful = nn.ModuleList(term for term in terms if isinstance(term, nn.Module))

    def get_config_dict(self) -> dict[str, Any]:
        """What sentence-transformers' model card asks a loss."""
        return {item.name: item.model_dump(exclude={"name"}) for item in self.options}

    def _weighted(self, batch: Any, suffix: str = "", weight: float = 1.0) -> dict[str, Tensor]:
        """Weighted values by name; the trainer sums and logs them. A name that comes twice gets a number."""
        result: dict[str, Tensor] = {}
        for item, term in zip(self.options, self.terms, strict=True):
            name = item.name + suffix
            name = name if name not in result else f"{item.name}-{len(result)}{suffix}"
            value = term(batch).mean() if self.weights is None else self.weights.value(term, batch)
            result[name] = weight * item.weight * value
            scorer = getattr(term, "scorer", None)
            if scorer is not None and scorer.log_scale is not None:
                self.log(f"{name}-scale", float(scorer.scale.detach()))
        return result


class InBatchLoss(_TermLoss, CachedLossMixin):
    """A weighted sum of terms over one encoding of queries and documents, those of other processes included.

    Args:
        model: the sentence-transformers model.
        options: the terms.
        context: see `LossContext`.
        mini_batch_size: with a value, gradients are cached (GradCache) in chunks of so many texts.
        matryoshka: (dimensions, weight) pairs; every term holds for each truncation, and the values are
            summed (Kusupati et al. 2022, eq. 1). A cosine normalises what is left of a vector; a dot product does not.
        watch: shown every batch before the terms; may raise.
    """

    def __init__(
        self,
        model: nn.Module,
        options: Sequence[LossOptions],
        context: LossContext | None = None,
        *,
        mini_batch_size: int | None = None,
        matryoshka: Sequence[tuple[int, float]] = (),
        watch: Callable[[DenseBatch], None] | None = None,
    ) -> None:
        context = context or LossContext(model)
        super().__init__(options, [DENSE_TERMS[item.name](item, context) for item in options], context)
        self.model = model
        self.matryoshka = tuple(matryoshka)
        self.watch = watch
        self.uses_gradient_cache = mini_batch_size is not None
        self.mini_batch_size = mini_batch_size or 0

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Any) -> Any:
        """Columns (query, positive, negatives …) and the batch's `Side` → the terms by name; cached, their sum."""
        if self.uses_gradient_cache:
            return self.forward_cached(sentence_features, labels)
        return self.from_embeddings(embed_columns(self.model, sentence_features), labels or {})

    def from_embeddings(self, columns: Sequence[Tensor], side: Side) -> dict[str, Tensor]:
        """The weighted terms. `columns` are (B, dim): queries, positives, and each hard negative."""
        queries, *documents = columns
        rows_here, width = len(queries), len(documents)
        several = get_world_size() > 1
        gathered = [all_gather_with_grad(column) for column in documents] if several else documents
        everyone = len(gathered[0])
        rows = get_rank() * rows_here + torch.arange(rows_here, device=queries.device)
        own = rows[:, None] + everyone * torch.arange(width, device=queries.device)[None, :]
        everything = torch.cat(gathered)
        if not self.matryoshka:
            batch = DenseBatch(queries, everything, own, side)
            if self.watch is not None:
                self.watch(batch)
            return self._weighted(batch)
        values: dict[str, Tensor] = {}
        for size, weight in self.matryoshka:
            batch = DenseBatch(queries[:, :size], everything[:, :size], own, side)
            values |= self._weighted(batch, f"@{size}", weight)
        return values

    def calculate_loss(self, reps: list[list[Tensor]], labels: Any = None, *, with_backward: bool = False) -> Tensor:
        """The sum over the whole batch from its chunks; called by the gradient cache."""
        total = torch.stack(
            [*self.from_embeddings([torch.cat(chunks) for chunks in reps], labels or {}).values()]
        ).sum()
        if with_backward:
            torch.autograd.backward(total)
            total = total.detach()
        return total


class CandidateLoss(_TermLoss):
    """A weighted sum of terms over a reranker's logits for each query's candidates.

    Args:
        model: the sentence-transformers CrossEncoder with one logit; the loss is on raw logits.
        options: the terms.
        context: see `LossContext`.
    """

    def __init__(self, model: nn.Module, options: Sequence[LossOptions], context: LossContext | None = None) -> None:
        context = context or LossContext(model)
        super().__init__(options, [CANDIDATE_TERMS[item.name](item, context) for item in options], context)
        self.model = model

    def forward(self, inputs: Sequence[Any], labels: Side, **preprocessing: Any) -> dict[str, Tensor]:
        """(queries, documents of each query: N everywhere) and the batch's `Side` → the terms by name."""
        scores = candidate_scores(self.model, inputs, **preprocessing)
        return self._weighted(CandidateBatch(scores, labels["labels"].to(scores.device), labels))


def candidate_scores(model: nn.Module, inputs: Sequence[Any], **preprocessing: Any) -> Tensor:
    """Raw logits (B, N) float32 of a CrossEncoder for (queries, documents of each query: N everywhere)."""
    queries, documents = inputs
    pairs = [(query, document) for query, candidates in zip(queries, documents, strict=True) for document in candidates]
    encoder = cast(Any, model)
    features = batch_to_device(encoder.preprocess(pairs, **preprocessing), next(encoder.parameters()).device)
    # A plain dict: data-parallel training finds no tensors in a BatchEncoding, and takes all parameters for unused.
    return encoder(dict(features))["scores"].float().view(len(queries), -1)


def make_loss(
    family: Family, options: Sequence[LossOptions], context: LossContext, *, mini_batch_size: int | None = None
) -> nn.Module:
    """The module for these losses of a configuration that was checked."""
    first = options[0]
    if LOSSES[first.name].alone:
        module, _, maker = WHOLE_LOSSES[first.name].partition(":")
        return getattr(importlib.import_module(f".{module}", __package__), maker)(context.model, first, context)
    if family == "cross-encoder":
        return CandidateLoss(context.model, options, context)
    if family == "sparse-encoder":
        watch = ActiveWatch(context.config.sparse_block.active, options, context)
        return InBatchLoss(context.model, options, context, mini_batch_size=mini_batch_size, watch=watch)
    block = getattr(context.config, "matryoshka", None)
    dims = [] if block is None else list(zip(block.dims, block.weights or (1.0,) * len(block.dims), strict=True))
    return InBatchLoss(context.model, options, context, mini_batch_size=mini_batch_size, matryoshka=dims)


def own_state(loss: nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers of a loss that are not those of the model in training."""
    return {name: value for name, value in loss.state_dict().items() if not name.startswith("model.")}


def wants_texts(loss: nn.Module) -> bool:
    """Whether the loss, or a term of it, wants the batch's texts in its side values."""
    return any(getattr(part, "wants_texts", False) for part in (loss, *getattr(loss, "terms", ())))
