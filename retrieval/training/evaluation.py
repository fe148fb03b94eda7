"""Evaluation on a dev split while training, by the same measures as `rtk eval`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from scipy.sparse import issparse
from sentence_transformers.base.evaluation import BaseEvaluator

from ... import progress
from ...errors import ConfigError, DataError
from ...eval.collection import Collection, Queries, open_collection
from ...eval.files import read_run
from ...eval.measures import evaluate
from ...eval.run import Run
from ...ids import Ids
from ..encoders.adapters import as_encoder
from ..rerankers.base import Candidate, Request, Reranker, Result
from ..search import hits_to_run
from .blocks import Evaluation

if TYPE_CHECKING:
    from ..mining.live import LiveIndex

__all__ = ["DevEvaluator", "check_measure", "open_evaluator", "rerank_lists", "rerank_pairs", "search_exactly"]

log = logging.getLogger(__name__)

_DOCUMENT_BLOCK = 16_384
_QUERY_BLOCK = 1024


class DevEvaluator(BaseEvaluator):
    """Searches or reranks a dev split with the model being trained.

    Args:
        block: the configuration's `evaluation`.
        family: "bi-encoder", "sparse-encoder", "cross-encoder" or "language-model".

    Attributes:
        indexes: frozen indexes that the model's queries may search (`LiveIndex`); one of this collection saves encoding
            its documents at every evaluation.
        make_reranker: the reranker over a language model in training.

    Raises:
        DataError: the candidates' run has documents that the collection lacks.
    """

    def __init__(self, block: Evaluation, family: str) -> None:
        super().__init__()
        self.block, self.family = block, family
        self.primary_metric = block.measure
        self.collection = open_collection(block.collection)
        self.queries = self.collection.queries(block.split)
        self.indexes: Sequence[LiveIndex] = ()
        self.make_reranker: Callable[[Any], Reranker] | None = None
        self.candidates = None if block.run is None else _candidates(block, self.collection, self.queries)

    def __call__(
        self, model: Any, output_path: str | None = None, epoch: float = -1, steps: int = -1
    ) -> dict[str, float]:
        """{measure: mean over the judged queries}. The model's mode is left as it was."""
        training = model.training
        model.eval()
        try:
            run = self._rank(model)
        finally:
            model.train(training)
        found = evaluate(
            run,
            self.collection.judgments(self.block.split),
            self.block.measure,
            conventions=self.collection.conventions,
        )
        return {self.block.measure: float(next(iter(found.means.values())))}

    def _rank(self, model: Any) -> Run:
        if self.family == "cross-encoder":
            assert self.candidates is not None  # the configuration check asks for a run
            return rerank_pairs(model, self.candidates, self.queries, self.collection, self.block.batch_size)
        if self.family == "language-model":
            assert self.candidates is not None
            assert self.make_reranker is not None
            return rerank_lists(self.make_reranker(model), self.candidates, self.queries, self.collection)
        encoder: Any = as_encoder(model)  # which cuts texts as training does (`keep_length`)
        if self.candidates is not None:
            return _score_candidates(encoder, self.candidates, self.queries, self.collection)
        for index in self.indexes:
            if index.fingerprint == self.collection.documents.fingerprint:
                hits = index.on(model.device).search(encoder.encode_query(self.queries.texts), self.block.depth)
                return hits_to_run(self.queries.ids, hits, index.exact.ids, tag="dev")
        return search_exactly(encoder, self.queries, self.collection, self.block.depth)


def _candidates(block: Evaluation, collection: Collection, queries: Queries) -> Run:
    run = read_run(cast(str, block.run)).select(queries.ids).top(block.depth)
    if not len(run):
        raise DataError(f"none of the queries of split {block.split!r} is in this run", path=block.run)
    rows = collection.documents.rows(run.vocabulary)[run.codes]
    if (rows < 0).any():
        unknown = run.vocabulary[int(run.codes[int(np.flatnonzero(rows < 0)[0])])]
        raise DataError(f"document {unknown!r} is not in {collection.name}", path=block.run)
    return run


def search_exactly(encoder: Any, queries: Queries, collection: Collection, depth: int) -> Run:
    """The exact top `depth` for every query, encoding the documents block by block: they are never all in memory.

    Of sparse vectors, only documents that share a term with the query.
    """
    vectors = _prepared(encoder, encoder.encode_query(queries.texts))
    documents = collection.documents
    depth = min(depth, len(documents))
    scores = torch.full((len(queries), depth), -torch.inf)
    rows = torch.zeros((len(queries), depth), dtype=torch.int64)
    with progress.task("encode the dev collection", len(documents)) as advance:
        for start in range(0, len(documents), _DOCUMENT_BLOCK):
            stop = min(start + _DOCUMENT_BLOCK, len(documents))
            block = _prepared(encoder, encoder.encode_document(documents.texts(slice(start, stop))))
            for first in range(0, len(queries), _QUERY_BLOCK):
                part = slice(first, first + _QUERY_BLOCK)
                found, at = torch.topk(_products(vectors[part], block), min(depth, stop - start), dim=1)
                both = torch.cat([scores[part], found], dim=1)
                places = torch.cat([rows[part], at + start], dim=1)
                scores[part], kept = torch.topk(both, depth, dim=1)
                rows[part] = places.gather(1, kept)
            advance(stop - start)
    kept = ~scores.isneginf()
    offsets = np.concatenate([[0], np.cumsum(kept.sum(dim=1).numpy())]).astype(np.int64)
    return Run.from_codes(queries.ids, offsets, documents.ids, rows[kept].numpy(), scores[kept].numpy(), tag="dev")


def _prepared(encoder: Any, vectors: Any) -> Any:
    """A tensor, of unit length for cosine; a sparse matrix as it is."""
    if issparse(vectors):
        return vectors
    tensor = torch.from_numpy(np.ascontiguousarray(vectors))
    return torch.nn.functional.normalize(tensor, dim=-1) if encoder.similarity == "cosine" else tensor


def _products(queries: Any, documents: Any) -> torch.Tensor:
    """(B, D) inner products; −inf for sparse vectors without a common term."""
    if not issparse(queries):
        return queries @ documents.T
    scores = torch.from_numpy((queries @ documents.T).toarray())
    return scores.masked_fill(scores == 0, -torch.inf)


def _paired(queries: Any, documents: Any) -> torch.Tensor:
    """(n,) inner products, row by row."""
    if not issparse(queries):
        return (queries * documents).sum(dim=1)
    return torch.from_numpy(np.asarray(queries.multiply(documents).sum(axis=1)).ravel())


def _score_candidates(encoder: Any, candidates: Run, queries: Queries, collection: Collection) -> Run:
    """Each candidate's score; only documents that are candidates are encoded."""
    vectors = _prepared(encoder, encoder.encode_query(queries.select(candidates.qids).texts))
    used, codes = np.unique(candidates.codes, return_inverse=True)
    rows = collection.documents.rows(Ids(candidates.vocabulary.take(used)))
    documents = _prepared(encoder, encoder.encode_document(collection.documents.texts(rows)))
    scores = torch.empty(len(codes))
    for start in range(0, len(codes), _DOCUMENT_BLOCK):
        part = slice(start, start + _DOCUMENT_BLOCK)
        scores[part] = _paired(vectors[candidates.query_rows[part]], documents[codes[part]])
    return candidates.replace(scores=scores.numpy(), columns={}, tag="dev")


def rerank_pairs(model: Any, candidates: Run, queries: Queries, collection: Collection, batch_size: int) -> Run:
    """Each candidate's raw logit."""
    rows = collection.documents.rows(candidates.vocabulary)
    texts = queries.select(candidates.qids).texts
    scores = np.empty(len(candidates.codes), dtype=np.float32)
    for entry in progress.track(range(len(candidates)), "rerank the dev queries", len(candidates)):
        part = slice(int(candidates.offsets[entry]), int(candidates.offsets[entry + 1]))
        pairs = [(texts[entry], text) for text in collection.documents.texts(rows[candidates.codes[part]])]
        if pairs:
            identity = torch.nn.Identity()
            scores[part] = model.predict(
                pairs, batch_size=batch_size, activation_fn=identity, show_progress_bar=False, convert_to_numpy=True
            )
    return candidates.replace(scores=scores, columns={}, tag="dev")


def rerank_lists(reranker: Reranker, candidates: Run, queries: Queries, collection: Collection) -> Run:
    """Each query's candidates in the reranker's order."""
    rows = collection.documents.rows(candidates.vocabulary)

    def requests() -> Iterator[Request]:
        for entry, text in enumerate(queries.select(candidates.qids).texts):
            codes = candidates.codes[int(candidates.offsets[entry]) : int(candidates.offsets[entry + 1])]
            texts = collection.documents.texts(rows[codes])
            found = zip(candidates.vocabulary.take(codes), texts, strict=True)
            yield Request(candidates.qids[entry], text, tuple(Candidate(*each) for each in found))

    results: list[Result] = []
    for result in progress.track(reranker.rerank(requests()), "rerank the dev queries", len(candidates)):
        if result.error is not None:
            log.warning("query %r keeps its first order: %s", result.qid, result.error)
        results.append(result)
    return Run.from_lists((each.qid, list(each.ids), each.scores) for each in results)


def check_measure(measure: str) -> None:
    """Raise `ConfigError` unless `measure` is one measure that `rtk eval` knows."""
    from ...eval.measure_names import parse_measures

    if len(parse_measures(measure)) != 1:
        raise ConfigError(f"evaluation.measure: {measure!r} names several measures; give the one that decides")


def open_evaluator(block: Evaluation | None, family: str) -> DevEvaluator | None:
    """The evaluator of a configuration, if it has one."""
    if block is None:
        return None
    check_measure(block.measure)
    return DevEvaluator(block, family)
