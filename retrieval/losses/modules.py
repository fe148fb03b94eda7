"""Thin modules that carry the pure losses through sentence-transformers' trainers.

One encoding of the batch, any weighted sum of terms over it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
from sentence_transformers.base.losses.gradcache import CachedLossMixin
from sentence_transformers.base.losses.merged_forward import embed_columns
from sentence_transformers.util import batch_to_device
from sentence_transformers.util.distributed import all_gather_with_grad, get_rank, get_world_size
from torch import Tensor, nn

from .contrastive import in_batch_scores, info_nce
from .options import BinaryOptions, InfoNCEOptions, LambdaOptions, LossOptions, RankNetOptions
from .ranking import Lambda, binary_cross_entropy, lambda_loss, list_net, listwise_softmax, rank_net

__all__ = ["CandidateBatch", "CandidateLoss", "DenseBatch", "InBatchLoss", "Side", "make_loss"]

Side = Mapping[str, Tensor]
"""What a batch carries beside its texts, by name: `allowed` (B, D) bool, `labels` and one teacher a name (B, 1 + k)."""


@dataclass(frozen=True)
class DenseBatch:
    """What a bi-encoder's loss term sees.

    Attributes:
        queries: (B, dim), this process's.
        documents: (D, dim) of all processes: every positive, then every first negative, and so on.
        own: (B, 1 + k) columns of each query's positive and negatives in `documents`.
        side: see `Side`.
    """

    queries: Tensor
    documents: Tensor
    own: Tensor
    side: Side = field(default_factory=dict[str, Tensor])


@dataclass(frozen=True)
class CandidateBatch:
    """What a reranker's loss term sees: `scores` and `labels` (B, N), and `side`."""

    scores: Tensor
    labels: Tensor
    side: Side = field(default_factory=dict[str, Tensor])


DenseTerm = Callable[[DenseBatch], Tensor]
CandidateTerm = Callable[[CandidateBatch], Tensor]


def _info_nce(options: LossOptions) -> DenseTerm:
    chosen = cast(InfoNCEOptions, options)

    def term(batch: DenseBatch) -> Tensor:
        scores = in_batch_scores(
            batch.queries, batch.documents, similarity=chosen.similarity, scale=chosen.resolved_scale
        )
        allowed = batch.side.get("allowed") if chosen.mask_false_negatives else None
        return info_nce(scores, batch.own[:, 0], allowed)

    return term


def _listwise(function: Callable[..., Tensor], **settings: Any) -> CandidateTerm:
    call = partial(function, **settings)
    return lambda batch: call(batch.scores, batch.labels)


def _binary(options: LossOptions) -> CandidateTerm:
    return _listwise(binary_cross_entropy, positive_weight=cast(BinaryOptions, options).positive_weight)


def _rank_net(options: LossOptions) -> CandidateTerm:
    return _listwise(rank_net, pair_weight=cast(RankNetOptions, options).pair_weight)


def _lambda(options: LossOptions) -> CandidateTerm:
    chosen = cast(LambdaOptions, options)
    settings = Lambda(chosen.scheme, chosen.k, chosen.mu, chosen.sigma)
    return _listwise(lambda_loss, settings=settings)


DENSE_TERMS: dict[str, Callable[[LossOptions], DenseTerm]] = {"infonce": _info_nce}
CANDIDATE_TERMS: dict[str, Callable[[LossOptions], CandidateTerm]] = {
    "binary-cross-entropy": _binary,
    "listnet": lambda options: _listwise(list_net),
    "listwise-softmax": lambda options: _listwise(listwise_softmax),
    "ranknet": _rank_net,
    "lambda": _lambda,
}


class _Described(nn.Module):
    """What sentence-transformers' model card asks a loss."""

    options: Sequence[LossOptions]

    def get_config_dict(self) -> dict[str, Any]:
        return {item.name: item.model_dump(exclude={"name"}) for item in self.options}

    def _named(self, values: Iterable[Tensor]) -> dict[str, Tensor]:
        """Weighted values by name; the trainer sums and logs them. A name that comes twice gets a number."""
        result: dict[str, Tensor] = {}
        for item, value in zip(self.options, values, strict=True):
            name = item.name if item.name not in result else f"{item.name}-{len(result)}"
            result[name] = item.weight * value
        return result


class InBatchLoss(_Described, CachedLossMixin):
    """A weighted sum of terms over one encoding of queries and documents, those of other processes included.

    Args:
        model: the sentence-transformers model.
        options: the terms.
        mini_batch_size: with a value, gradients are cached (GradCache) in chunks of so many texts.
    """

    def __init__(self, model: nn.Module, options: Sequence[LossOptions], mini_batch_size: int | None = None) -> None:
        super().__init__()
        self.model = model
        self.options = tuple(options)
        self.terms = [DENSE_TERMS[item.name](item) for item in options]
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
        size, width = len(queries), len(documents)
        several = get_world_size() > 1
        gathered = [all_gather_with_grad(column) for column in documents] if several else documents
        everyone = len(gathered[0])
        rows = get_rank() * size + torch.arange(size, device=queries.device)
        own = rows[:, None] + everyone * torch.arange(width, device=queries.device)[None, :]
        batch = DenseBatch(queries, torch.cat(gathered), own, side)
        return self._named(term(batch) for term in self.terms)

    def calculate_loss(self, reps: list[list[Tensor]], labels: Any = None, *, with_backward: bool = False) -> Tensor:
        """The sum over the whole batch from its chunks; called by the gradient cache."""
        total = torch.stack(
            [*self.from_embeddings([torch.cat(chunks) for chunks in reps], labels or {}).values()]
        ).sum()
        if with_backward:
            torch.autograd.backward(total)
            total = total.detach()
        return total


class CandidateLoss(_Described):
    """A weighted sum of terms over a reranker's logits for each query's candidates.

    Args:
        model: the sentence-transformers CrossEncoder with one logit; the loss is on raw logits.
        options: the terms.
    """

    def __init__(self, model: nn.Module, options: Sequence[LossOptions]) -> None:
        super().__init__()
        self.model = model
        self.options = tuple(options)
        self.terms = [CANDIDATE_TERMS[item.name](item) for item in options]

    def forward(self, inputs: Sequence[Any], labels: Side, **preprocessing: Any) -> dict[str, Tensor]:
        """(queries, documents of each query: N everywhere) and the batch's `Side` → the terms by name."""
        queries, documents = inputs
        pairs = [
            (query, document) for query, candidates in zip(queries, documents, strict=True) for document in candidates
        ]
        model = cast(Any, self.model)
        device = next(model.parameters()).device
        features = batch_to_device(model.preprocess(pairs, **preprocessing), device)
        scores = model(features)["scores"].float().view(len(queries), -1)
        batch = CandidateBatch(scores, labels["labels"].to(device), labels)
        return self._named(term(batch) for term in self.terms)


def make_loss(model: nn.Module, options: Sequence[LossOptions], *, mini_batch_size: int | None = None) -> nn.Module:
    """The module for these terms, which are all of one family."""
    if all(item.name in DENSE_TERMS for item in options):
        return InBatchLoss(model, options, mini_batch_size)
    return CandidateLoss(model, options)
