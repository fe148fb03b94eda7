"""Contriever's loss with a momentum key encoder and a queue of keys, as a module."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, cast

import torch
from sentence_transformers.util import batch_to_device
from sentence_transformers.util.distributed import all_gather, get_world_size
from torch import Tensor, nn

from ...errors import ConfigError
from .batch import Side
from .context import LossContext
from .moco import momentum_update, queue_loss, queue_scores, random_queue, write_queue
from .options import LossOptions, MocoOptions

__all__ = ["MocoLoss", "make_moco"]


class MocoLoss(nn.Module):
    """Queries against their own keys and a queue of earlier ones; keys come from a slowly following copy of the model.

    Key encoder, queue and pointer are part of the loss's state, so that a resumed training goes on bit for bit. With
    several processes the keys of all of them enter the queue in the order of ranks: the queues stay equal.

    Args:
        model: the sentence-transformers model in training.
        options: see `MocoOptions`.
        context: where values are logged.

    Attributes:
        key_encoder: the copy; no gradient reaches it.
        queue: (queue_size, dim) float32, oldest keys at `pointer`.
        pointer: () int64.
    """

    queue: Tensor
    pointer: Tensor

    def __init__(self, model: nn.Module, options: MocoOptions, context: LossContext | None = None) -> None:
        super().__init__()
        self.model, self.options, self.context = model, options, context
        self.key_encoder = copy.deepcopy(model).requires_grad_(False)
        for parameter in self.key_encoder.parameters():
            if parameter.dtype in (torch.float16, torch.bfloat16):  # steps of 1 − m would be rounded away
                parameter.data = parameter.data.float()
        dimension = cast(Any, model).get_embedding_dimension()
        generator = torch.Generator().manual_seed(options.queue_seed)
        self.register_buffer("queue", random_queue(options.queue_size, dimension, generator))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))

    def get_config_dict(self) -> dict[str, Any]:
        """What sentence-transformers' model card asks a loss."""
        return {self.options.name: self.options.model_dump(exclude={"name"})}

    def forward(self, sentence_features: Sequence[dict[str, Tensor]], labels: Side) -> dict[str, Tensor]:
        """Columns query and positive → {"moco": loss}; every call is a step of the key encoder and the queue."""
        query_features, key_features = sentence_features
        queries = self._encode(self.model, query_features)
        with torch.no_grad():
            self._follow()
            with self.context.autocast() if self.context is not None else nullcontext():
                keys = self._encode(self.key_encoder, key_features)
        # The backward pass needs the queue as it is now.
        scores = queue_scores(queries, keys, self.queue.clone(), temperature=1 / self.options.resolved_scale)
        loss = queue_loss(scores, label_smoothing=self.options.label_smoothing)
        everyone = all_gather(keys) if get_world_size() > 1 else keys
        self.pointer.fill_(write_queue(self.queue, everyone, int(self.pointer)))
        if self.context is not None:
            self.context.log("accuracy", float((scores.argmax(dim=1) == 0).float().mean()))
        return {self.options.name: self.options.weight * loss}

    def _encode(self, encoder: nn.Module, features: dict[str, Tensor]) -> Tensor:
        vectors = encoder(batch_to_device(dict(features), self.queue.device))["sentence_embedding"]
        vectors = vectors.to(torch.promote_types(torch.float32, vectors.dtype))
        return nn.functional.normalize(vectors, dim=1) if self.options.similarity == "cosine" else vectors

    def _follow(self) -> None:
        pairs = zip(self.key_encoder.parameters(), self.model.parameters(), strict=True)
        moving = [(key, query) for key, query in pairs if query.requires_grad]  # what is frozen stays bit for bit
        momentum_update([key for key, _ in moving], [query for _, query in moving], self.options.momentum)
        self.key_encoder.train(self.options.key_encoder_train)


def make_moco(model: nn.Module, options: LossOptions, context: LossContext) -> MocoLoss:
    """Check the queue against the batch over all processes, and make the loss.

    Raises:
        ConfigError: the queue does not hold whole batches.
    """
    chosen = cast(MocoOptions, options)
    batch = context.config.trainer.get("per_device_train_batch_size", 8) * get_world_size()
    if chosen.queue_size % batch:
        fitting = max(chosen.queue_size // batch, 1) * batch
        raise ConfigError(
            f"loss.0.queue_size: {chosen.queue_size} is no multiple of the batch over all processes, {batch}; "
            f"{fitting} would be"
        )
    return MocoLoss(model, chosen, context)
