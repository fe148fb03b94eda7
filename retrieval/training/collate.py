"""From rows of texts to model inputs, with the side values beside them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sentence_transformers.cross_encoder.data_collator import CrossEncoderDataCollator
from sentence_transformers.sentence_transformer.data_collator import SentenceTransformerDataCollator

from ..encoders.sides import prompt_of
from .batches import Row
from .config import TrainConfig

__all__ = ["SideCollator", "candidate_collator", "dense_collator"]


class SideCollator:
    """Collates texts as sentence-transformers does, and puts the side values under `label` as a dict of tensors.

    Args:
        texts: sentence-transformers' collator of the text columns.
    """

    def __init__(self, texts: Any) -> None:
        self.texts = texts
        self.valid_label_columns: list[str] = []

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        batch = self.texts([columns for columns, _ in rows])
        names = rows[0][1].keys()
        batch["label"] = {name: _stacked([side[name] for _, side in rows]) for name in names}
        return batch


def _stacked(values: Sequence[Any]) -> Any:
    """Arrays become a tensor; texts stay as they are."""
    return torch.from_numpy(np.stack(values)) if isinstance(values[0], np.ndarray | np.generic) else list(values)


def candidate_collator(model: Any, config: TrainConfig) -> SideCollator:
    """For columns query and documents: texts stay texts, the loss makes the pairs."""
    return SideCollator(CrossEncoderDataCollator(preprocess_fn=model.preprocess))


def dense_collator(model: Any, config: TrainConfig) -> SideCollator:
    """For columns query, positive, negative_1 …: prompts, lengths and routes by side."""
    widest = 1 + max(getattr(config.sampling, "negatives", None) or 1, 1)
    documents = ["positive", *(f"negative_{number}" for number in range(1, widest))]
    lengths = {"query": config.lengths.query, "document": config.lengths.document}
    return SideCollator(
        SentenceTransformerDataCollator(
            preprocess_fn=model.preprocess,
            router_mapping={"query": "query", **dict.fromkeys(documents, "document")},
            prompts={
                column: prompt
                for column in ["query", *documents]
                if (prompt := prompt_of(model, "query" if column == "query" else "document"))
            },
            max_length={task: length for task, length in lengths.items() if length},
        )
    )
