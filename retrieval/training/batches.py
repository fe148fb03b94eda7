"""From drawn integers to the texts and side values of a batch, and to a data loader."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from ..sampling import BatchKey, Draw, MixtureSampler, Sampler, ShuffledSampler
from ..sampling.shuffled import Shuffling
from .blocks import Block, CropSampling, QuerySampling, RandomSampling, TokenSampling, TopicSampling
from .examples import TrainingTable
from .list_blocks import ListSampling

_LOG = logging.getLogger(__name__)

__all__ = ["BatchExamples", "CandidateExamples", "DenseExamples", "Row", "allowed_documents", "make_sampler"]


def make_sampler(
    tables: Sequence[TrainingTable], block: Block, *, batch_size: int, seed: int, weights: Sequence[float] | None = None
) -> Sampler:
    """The sampler that a method's `sampling` block asks for.

    Args:
        tables: one a collection.
        block: the configuration's block.
        batch_size: over all processes.
        weights: shares of the collections; None is by size.
    """
    if isinstance(block, CropSampling):
        from .crop_examples import crop_sampler

        return cast("Sampler", crop_sampler(cast("Sequence[Any]", tables), block, batch_size, seed, weights))
    if isinstance(block, TokenSampling):
        whole = CropSampling.model_validate({"ratio_min": 1.0, "ratio_max": 1.0, "augmentation": "none"})
        crops = whole.model_copy(update={name: getattr(block, name) for name in ("chunk_length", "across_documents")})
        return make_sampler(tables, crops, batch_size=batch_size, seed=seed, weights=weights)
    samplers = [_SAMPLERS[type(block)](table, block, batch_size, seed, part) for part, table in enumerate(tables)]
    return samplers[0] if len(samplers) == 1 else MixtureSampler(samplers, weights, seed)


def _shuffled(table: TrainingTable, block: Any, batch_size: int, seed: int, part: int) -> Sampler:
    chosen: RandomSampling = block
    settings = Shuffling(
        batch_size,
        seed,
        negatives=chosen.negatives if chosen.negatives is not None else int(table.report.negatives > 0),
        unit=chosen.unit,
        missing_negatives=chosen.missing_negatives,
        deduplicate=chosen.deduplicate,
        group_by_length=chosen.group_by_length,
    )
    sampler = ShuffledSampler(table, settings, part=part)
    for line in sampler.lines():
        _LOG.warning("%s: %s", table.name, line)
    return sampler


def _queries(table: TrainingTable, block: Any, batch_size: int, seed: int, part: int) -> Sampler:
    return ShuffledSampler(table, Shuffling(batch_size, seed, deduplicate=False), part=part)


def _topics(table: TrainingTable, block: Any, batch_size: int, seed: int, part: int) -> Sampler:
    from .topics import topic_sampler

    return topic_sampler(table, block, batch_size, seed, part)


_SAMPLERS: dict[type[Block], Callable[[TrainingTable, Any, int, int, int], Sampler]] = {
    RandomSampling: _shuffled,
    QuerySampling: _queries,
    ListSampling: _queries,
    TopicSampling: _topics,
}

Row = tuple[dict[str, Any], dict[str, Any]]
"""The text columns of one example, and its side values."""


@dataclass(frozen=True)
class BatchExamples:
    """A map-style dataset whose keys are batches.

    Attributes:
        tables: one a collection.
        sampler: says what is in a batch.
        texts: put the texts themselves beside the batch too, for losses that ask another model about them.
    """

    tables: Sequence[Any]
    sampler: Any
    texts: bool = False

    def __len__(self) -> int:
        return self.sampler.batches_per_epoch * self.sampler.batch_size

    def __getitem__(self, key: BatchKey) -> list[Row]:
        return self.__getitems__(key)

    def __getitems__(self, key: BatchKey) -> list[Row]:
        """The rows of a batch's slots."""
        raise NotImplementedError

    def qids(self, number: int) -> list[str]:
        """Query ids of a batch, for messages."""
        draw = self.sampler.draw(number)
        return self.tables[draw.part].qids(draw.rows)


@dataclass(frozen=True)
class _Joined(BatchExamples):
    """Queries with their documents, from training tables."""

    tables: Sequence[TrainingTable]
    sampler: Sampler

    def __getitems__(self, key: BatchKey) -> list[Row]:
        draw = self.sampler.draw(key.number)
        table = self.tables[draw.part]
        mine = slice(key.start, key.stop)
        side: dict[str, Any] = {"labels": _labels(table, draw)[mine], "number": np.full(len(key), key.number)}
        side |= {"rows": draw.rows[mine], "part": np.full(len(key), draw.part), "document_rows": draw.documents[mine]}
        side |= {name: _at_entries(values, draw)[mine] for name, values in table.scores.items() if name != "labels"}
        queries = [table.query_texts[row] for row in table.queries[draw.rows[mine]].tolist()]
        shape = draw.documents[mine].shape
        flat = table.documents.texts(draw.documents[mine].ravel())
        texts = [flat[start : start + shape[1]] for start in range(0, len(flat), shape[1])]
        if self.texts:
            side |= {"query_texts": queries, "document_texts": texts}
        side |= self._more(table, draw, mine)
        return [
            (self._columns(query, documents), {name: values[at] for name, values in side.items()})
            for at, (query, documents) in enumerate(zip(queries, texts, strict=True))
        ]

    def _columns(self, query: str, documents: list[str]) -> dict[str, Any]:
        """What the collator makes model inputs of, for one example."""
        raise NotImplementedError

    def _more(self, table: TrainingTable, draw: Draw, mine: slice) -> dict[str, np.ndarray]:
        """Side values that only some examples have."""
        return {}


class DenseExamples(_Joined):
    """Columns query, positive, negative_1 …, and which documents of the batch may count as a query's negatives."""

    def _columns(self, query: str, documents: list[str]) -> dict[str, Any]:
        names = ["positive", *(f"negative_{number}" for number in range(1, len(documents)))]
        return {"query": query, **dict(zip(names, documents, strict=True))}

    def _more(self, table: TrainingTable, draw: Draw, mine: slice) -> dict[str, np.ndarray]:
        return {"allowed": allowed_documents(table, draw, mine)}


class CandidateExamples(_Joined):
    """Columns query and documents (a list, the positive first)."""

    def _columns(self, query: str, documents: list[str]) -> dict[str, Any]:
        return {"query": query, "documents": documents}


def _at_entries(values: np.ndarray, draw: Draw) -> np.ndarray:
    """Values of the drawn documents, NaN where a document is no entry. (B, 1 + k) float32."""
    return np.where(draw.entries >= 0, values[np.maximum(draw.entries, 0)], np.float32(np.nan)).astype(np.float32)


def _labels(table: TrainingTable, draw: Draw) -> np.ndarray:
    """The label of each drawn document: from the labels' run, else its grade, else 0. (B, 1 + k) float32."""
    grades = np.nan_to_num(_at_entries(table.grades, draw))
    if "labels" not in table.scores:
        return grades
    given = _at_entries(table.scores["labels"], draw)
    return np.where(np.isnan(given), grades, given)


def allowed_documents(table: TrainingTable, draw: Draw, mine: slice) -> np.ndarray:
    """Which documents of the whole batch may count against a query: not what is judged relevant for it, not copies of
    that by text, not the positives of another query of the same text. Its own positive is allowed.

    Returns:
        (slots, B · (1 + k)) bool; columns are all positives, then all first negatives, and so on.
    """
    documents = table.document_keys(draw.documents.T.ravel())
    rows = draw.rows[mine]
    allowed = np.ones((len(rows), len(documents)), dtype=bool)
    relevant, owners = table.relevant_of(rows)
    order = np.argsort(documents, kind="stable")
    wanted = table.document_keys(relevant)
    left = np.searchsorted(documents[order], wanted, side="left")
    counts = np.searchsorted(documents[order], wanted, side="right") - left
    starts = np.repeat(left - np.concatenate([[0], np.cumsum(counts)[:-1]]), counts)
    allowed[np.repeat(owners, counts), order[starts + np.arange(counts.sum())]] = False
    keys = table.query_keys(draw.rows)
    allowed[:, : len(draw)] &= keys[mine][:, None] != keys[None, :]
    allowed[np.arange(len(rows)), np.arange(len(draw))[mine]] = True
    return allowed
