"""ADORE as a loss: each step searches a frozen index with the query vectors that it is about to improve."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from sentence_transformers.util import batch_to_device
from torch import Tensor, nn

from ...errors import ConfigError
from ..encoders.sides import normalises
from ..mining.live import LiveIndex, open_live_index
from .adore import RankedLists, adore_loss, append_unfound, ideal_dcg
from .batch import Side
from .context import LossContext
from .options import AdoreOptions, LossOptions

__all__ = ["AdoreLoss", "make_adore"]


class AdoreLoss(nn.Module):
    """Encodes queries in train mode, searches with those same vectors, and differentiates through q · d only.

    Args:
        model: the sentence-transformers model in training, whose document side is never called.
        options: see `AdoreOptions`.
        indexes: one a collection, in the order of the training tables.
        context: where values are logged.

    Attributes:
        indexes: the frozen indexes; an evaluation may search them in place of encoding documents.
        score: what the scores are, for the record of the run.
    """

    def __init__(
        self, model: nn.Module, options: AdoreOptions, indexes: Sequence[LiveIndex], context: LossContext
    ) -> None:
        super().__init__()
        self.model, self.options, self.context = model, options, context
        self.indexes = tuple(indexes)
        self.metric_cut = options.metric_cut or options.k
        self.truncate_dim: int | None = getattr(model, "truncate_dim", None)
        similarities = {index.similarity for index in indexes}
        if len(similarities) != 1:
            raise ConfigError("the indexes of a mixture must have one similarity; these have cosine and dot")
        similarity = similarities.pop()
        flat = similarity == "cosine" or normalises(model, "query")
        self.scale = options.scale if options.scale is not None else 20.0 if flat else 1.0
        self.score = {"similarity": similarity, "scale": self.scale, "what": "scale times similarity, in the loss"}

    def get_config_dict(self) -> dict[str, Any]:
        """What sentence-transformers' model card asks a loss."""
        return {self.options.name: {**self.options.model_dump(exclude={"name"}), "scale": self.scale}}

    def forward(self, sentence_features: Sequence[dict[str, Tensor]], labels: Side) -> dict[str, Tensor]:
        """The query column and the batch's `Side` (`rows`, `part`) → {"adore": loss}."""
        (features,) = sentence_features
        queries = self.model(batch_to_device(dict(features), labels["rows"].device))["sentence_embedding"]
        queries = queries[:, : self.truncate_dim]
        index = self.indexes[int(labels["part"][0])]
        found = index.search(queries.detach(), self.options.k)
        rows = labels["rows"].cpu().numpy()
        relevant = index.relevant(rows, queries.device)
        lists = index.without_unsettled(append_unfound(found, relevant.rows, relevant.grades), rows)
        self._log(found, lists)
        loss = adore_loss(
            self.scale * index.scores(queries, lists.rows),
            lists,
            metric_cut=self.metric_cut,
            metric=self.options.metric,
            ideal=ideal_dcg(relevant.grades, self.metric_cut),
        )
        return {self.options.name: self.options.weight * loss}

    def _log(self, found: Tensor, lists: RankedLists) -> None:
        """What the live lists look like: share with a relevant document, and RR@10, both before this step."""
        hit = lists.grades[:, : found.shape[1]] > 0
        first = torch.where(hit, torch.arange(1, found.shape[1] + 1, device=found.device), found.shape[1] + 1)
        rank = first.min(dim=1).values
        reciprocal = torch.where(rank <= min(10, found.shape[1]), 1 / rank, 0.0)
        told = torch.stack([hit.any(dim=1).float().mean(), reciprocal.mean()]).tolist()
        self.context.log("found", told[0])
        self.context.log("live RR@10", told[1])


def make_adore(model: nn.Module, options: LossOptions, context: LossContext) -> AdoreLoss:
    """Open the index of every collection, check it against model and data, and make the loss."""
    chosen, config = cast(AdoreOptions, options), context.config
    indexes = [
        open_live_index(part.index, table, model, name=config.model, precision=chosen.precision)
        for part, table in zip(config.data.parts(), context.tables, strict=True)
    ]
    return AdoreLoss(model, chosen, indexes, context)
