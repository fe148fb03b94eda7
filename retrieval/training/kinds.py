"""What a batch of a method is made of: where its examples come from, what they hold, how they become model inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..sampling.curriculum import add_difficulty
from .batches import CandidateExamples, DenseExamples
from .collate import candidate_collator, dense_collator
from .config import TrainConfig
from .crop_examples import CropExamples, crop_collator, open_token_tables
from .data import open_tables
from .list_examples import ListExamples, list_collator, open_lists
from .masked_lm import MaskedExamples, masked_collator
from .query_examples import QueryExamples, open_with_indexes

__all__ = ["EXAMPLES", "ExampleKind"]


@dataclass(frozen=True)
class ExampleKind:
    """A kind of examples.

    Attributes:
        open: configuration → the sources, one a collection, each with `name`, `fingerprint` and `report` (a
            dataclass of counts).
        examples: (sources, sampler, texts=bool) → the dataset whose keys are batches.
        collator: (model, configuration) → what makes model inputs of its rows.
    """

    open: Callable[[TrainConfig], Sequence[Any]]
    examples: Callable[..., Any]
    collator: Callable[[Any, TrainConfig], Callable[[Sequence[Any]], dict[str, Any]]]


def _tables(config: TrainConfig) -> Sequence[Any]:
    tables = open_tables(config.data.parts())
    if config.curriculum is not None:
        from ...eval.files import read_run

        for table, part in zip(tables, config.data.parts(), strict=True):
            add_difficulty(table, read_run(part.runs.first_stage or ""), config.curriculum.difficulty)
    return tables


EXAMPLES: dict[str, ExampleKind] = {
    "bi-encoder": ExampleKind(_tables, DenseExamples, dense_collator),
    "sparse-encoder": ExampleKind(_tables, DenseExamples, dense_collator),
    "crops": ExampleKind(open_token_tables, CropExamples, crop_collator),
    "masked-tokens": ExampleKind(open_token_tables, MaskedExamples, masked_collator),
    "queries": ExampleKind(open_with_indexes, QueryExamples, dense_collator),
    "cross-encoder": ExampleKind(_tables, CandidateExamples, candidate_collator),
    "language-model": ExampleKind(open_lists, ListExamples, list_collator),
    "policy": ExampleKind(open_lists, ListExamples, list_collator),
}
"""By name; a method without one of its own has its family's."""
