"""Relevance feedback: a reranker's order distilled into the query's vector, which then searches once more.

The reranker has seen a hundred documents; the vector that agrees with it finds others that it has not seen. Only the
query moves, the index stays as it is (Gangi Reddy et al. 2024, FIRST; Sung et al. 2023).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..errors import ConfigError, DataError
from ..eval.run import Run
from ..indexes.vectors import normalised
from ..progress import task
from .losses.relevance_feedback import Distillation, distil_queries
from .search import hits_to_run

if TYPE_CHECKING:
    from ..eval.collection import Queries
    from .search import Exclude, Retriever

__all__ = ["Feedback", "feedback_queries", "feedback_run"]

_QUERIES = 64


@dataclass(frozen=True)
class Feedback:
    """How queries learn from a reranked run.

    Attributes:
        depth: how many documents of each query teach; published 100.
        score_steps: steps against the run's scores by KL, before those against its order; published 100 for the scores
            of a cross-encoder. The run's scores must then be a model's raw values, not ordinal ones.
        score_rate: their rate.
        order_steps: steps against the run's order by weighted RankNet; published 20.
        order_rate: their rate.
        relative: rates are in units of the query's root mean square coordinate. The published ones are absolute, for
            vectors whose coordinates are about 0.05 (Contriever's).
        ordinal: the scores say an order and no more, so that the student keeps its own range of scores; with False
            the range is that of the run's scores.
    """

    depth: int = 100
    score_steps: int = 0
    score_rate: float = 0.005
    order_steps: int = 20
    order_rate: float = 0.001
    relative: bool = False
    ordinal: bool = True

    def __post_init__(self) -> None:
        numbers = ("depth", "score_steps", "score_rate", "order_steps", "order_rate")
        strange = [name for name in numbers if not isinstance(getattr(self, name), int | float)]
        if strange:
            raise ConfigError(
                "this feedback cannot be", [f"{name} {getattr(self, name)!r}: expected a number" for name in strange]
            )
        checks = {
            f"depth {self.depth}: expected at least 2": self.depth >= 2,
            f"score_steps {self.score_steps}: expected at least 0": self.score_steps >= 0,
            f"order_steps {self.order_steps}: expected at least 0": self.order_steps >= 0,
            f"rates {self.score_rate}, {self.order_rate}: expected above 0": min(self.score_rate, self.order_rate) > 0,
            "no steps at all: give score_steps or order_steps": self.score_steps + self.order_steps > 0,
        }
        problems = [said for said, right in checks.items() if not right]
        if problems:
            raise ConfigError("this feedback cannot be", problems)

    def stages(self) -> list[Distillation]:
        """Scores first, then the order."""
        scores = Distillation("kl", self.score_steps, self.score_rate, self.relative)
        order = Distillation("ranknet", self.order_steps, self.order_rate, self.relative, self.ordinal)
        return [stage for stage in (scores, order) if stage.steps]


def feedback_queries(
    queries: np.ndarray, passages: Sequence[np.ndarray], teachers: Sequence[np.ndarray], *, feedback: Feedback
) -> np.ndarray:
    """Move query vectors towards their teachers. They keep their lengths.

    Args:
        queries: (n, dim) float32.
        passages: for each query (k, dim) float32, k of any size.
        teachers: for each query (k,) scores, larger is better.
        feedback: how.

    Returns:
        (n, dim) float32.
    """
    width = max((len(each) for each in passages), default=0)
    dimension = queries.shape[1]
    stacked = np.zeros((len(queries), width, dimension), dtype=np.float32)
    wanted, valid = np.zeros((len(queries), width), np.float32), np.zeros((len(queries), width), bool)
    for row, (vectors, scores) in enumerate(zip(passages, teachers, strict=True)):
        stacked[row, : len(vectors)] = vectors
        wanted[row, : len(vectors)], valid[row, : len(vectors)] = scores, True
    moved = torch.from_numpy(np.asarray(queries, dtype=np.float32))
    for stage in feedback.stages():
        tensors = (torch.from_numpy(array) for array in (stacked, wanted, valid))
        moved = distil_queries(moved, *tensors, stage=stage)
    norms = np.linalg.norm(queries, axis=1, keepdims=True)
    return normalised(moved.numpy()) * norms


def feedback_run(
    retriever: Retriever,
    queries: Queries,
    teacher: Run,
    k: int,
    *,
    feedback: Feedback | None = None,
    tag: str | None = None,
    exclude: Exclude | None = None,
) -> Run:
    """Search again with queries that have learned from a reranked run.

    Args:
        retriever: a dense encoder over an index that gives the vectors of its rows, of whole documents.
        queries: ids and texts.
        teacher: the reranked run; queries that it lacks are searched as they are.
        k: list length.
        feedback: how queries learn.
        tag: the new run's name.
        exclude: for a query id the documents that must not be found.

    Raises:
        ConfigError: the index gives no vectors, or holds chunks, or its similarity is no inner product.
        DataError: the run has a document that the index lacks.
    """
    feedback = feedback or Feedback()
    _check(retriever)
    encoder: Any = retriever.encoder
    left_out = retriever.excluded_rows(queries, exclude)
    parts = []
    with task("search with feedback", len(queries)) as advance:
        for start in range(0, len(queries), _QUERIES):
            texts, qids = queries.texts[start : start + _QUERIES], list(queries.ids)[start : start + _QUERIES]
            vectors = np.asarray(encoder.encode_query(texts), dtype=np.float32)
            if getattr(retriever.index, "similarity", "dot") == "cosine":
                vectors = normalised(vectors)
            lists = [_teacher(retriever, teacher, qid, feedback.depth) for qid in qids]
            passages, scores = zip(*lists, strict=True)
            moved = feedback_queries(vectors, passages, scores, feedback=feedback)
            rows = None if left_out is None else left_out[start : start + _QUERIES]
            parts.append(retriever.search_encoded(moved, k, exclude=rows))
            advance(len(texts))
    return hits_to_run(queries.ids, parts, retriever.ids, tag=tag or f"{retriever.name}-feedback")


def _teacher(retriever: Retriever, run: Run, qid: str, depth: int) -> tuple[np.ndarray, np.ndarray]:
    """Vectors and scores of the first documents that the run has for a query."""
    index: Any = retriever.index
    if qid not in run:
        return np.zeros((0, index.dimension), np.float32), np.zeros(0, np.float32)
    entry = run[qid]
    documents, scores = list(entry.documents)[:depth], np.asarray(entry.scores, dtype=np.float32)[:depth]
    rows = retriever.ids.rows(documents)
    if (rows < 0).any():
        lost = documents[int(np.flatnonzero(rows < 0)[0])]
        raise DataError(f"query {qid!r}: the run {run.tag!r} has document {lost!r}, the index {retriever.name} has not")
    return index.vectors(rows), scores


def _check(retriever: Retriever) -> None:
    index: Any = retriever.index
    problems: list[str] = []
    if retriever.encoder is None or not hasattr(index, "vectors") or not hasattr(index, "dimension"):
        problems.append(f"{type(index).__name__} gives no vectors of its rows: take a dense index")
    elif getattr(index, "similarity", "dot") not in ("dot", "cosine"):
        problems.append(f"its similarity is {index.similarity!r}: feedback moves inner products")
    if retriever.chunked:
        problems.append("it holds chunks, and the run names documents: index whole documents")
    if problems:
        raise ConfigError(f"the index {retriever.name} cannot take feedback", problems)
