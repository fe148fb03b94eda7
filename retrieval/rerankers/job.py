"""Candidate lists on their way through a reranker, one stream of requests, failures by policy."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from ...errors import BackendError, RtkError
from ...progress import task
from .base import Candidate, Request, Reranker, Result, check_result, failed_result, rerank_checked
from .candidates import TextSource
from .lists import CandidateLists
from .part import Finished

__all__ = ["OnError", "RerankJob"]

log = logging.getLogger(__name__)

OnError = Literal["stop", "count"]

# What a model, an engine or a service raises about one input. Anything else is a bug and stops the job.
_FAILURES = (RtkError, RuntimeError, ValueError, OSError)


@dataclass(frozen=True, eq=False)
class RerankJob:
    """What is to be reranked, from which texts, by what.

    Attributes:
        lists: the candidates of every query.
        source: their texts.
        reranker: orders them.
        on_error: "stop" at the first failure, or "count" and go on.
    """

    lists: CandidateLists
    source: TextSource
    reranker: Reranker
    on_error: OnError = "stop"

    def outcomes(self, done: set[int]) -> Iterator[Finished]:
        """Rerank the queries whose rows are not `done`; yields each as soon as the reranker has it."""
        rows = iter([row for row in range(len(self.lists.qids)) if row not in done])
        with task("rerank", len(self.lists.qids)) as advance:
            advance(len(done))
            for finished in self._stream(rows):
                yield finished
                advance(1)

    def _stream(self, rows: Iterator[int]) -> Iterator[Finished]:
        """One call of the reranker for all queries, so that it can batch and cache across them.

        A failure ends the call: its unanswered queries are then tried one by one, and a new call takes the rest.
        """
        while True:
            call = _Call(self, rows)
            try:
                yield from call.answers()
            except _FAILURES:
                if call.refused is not None or self.on_error == "stop" or not call.waiting:
                    raise
                yield from (self._alone(row, request) for row, request in call.waiting)
            else:
                return

    def request(self, row: int) -> Request:
        """The request of a query's row."""
        qid = self.lists.qids[row]
        ids, scores = self.lists.candidates(row)
        triples = zip(ids, self.source.texts(qid, ids), scores.tolist(), strict=True)
        return Request(qid, self.source.query(qid), tuple(Candidate(*each) for each in triples))

    def outcome(self, row: int, request: Request, result: Result) -> Finished:
        """Bring a result that keeps the contract into the part file's form.

        Raises:
            BackendError: the reranker says that it failed, and failures stop.
        """
        if result.error is not None and self.on_error == "stop":
            raise BackendError(f"query {result.qid!r} could not be reranked: {result.error}")
        if result.error is not None:
            log.warning("query %r keeps its first order: %s", result.qid, result.error)
        position = {name: at for at, name in enumerate(request.ids)}
        order = np.asarray([position[name] for name in result.ids], dtype=np.int32)
        return Finished(row, order, result.scores, result.raw, result.calibrated, result.usage, result.error)

    def _alone(self, row: int, request: Request) -> Finished:
        try:
            result = rerank_checked(self.reranker, [request])[0]
        except _FAILURES as error:
            result = failed_result(request, f"{type(error).__name__}: {error}")
        return self.outcome(row, request, result)


@dataclass(eq=False)
class _Call:
    """One call of the reranker.

    Attributes:
        job: whose.
        rows: the rows that are left; the call takes them as the reranker asks for requests.
        waiting: requests that were given and have no answer yet.
        refused: an error of our own in making a request (a document that is not there): never the reranker's failure.
    """

    job: RerankJob
    rows: Iterator[int]
    waiting: deque[tuple[int, Request]] = field(default_factory=deque)
    refused: RtkError | None = None

    def answers(self) -> Iterator[Finished]:
        for result in self.job.reranker.rerank(self._requests()):
            if not self.waiting:
                raise BackendError(f"{type(self.job.reranker).__name__} gave a result that no request asked for")
            row, request = self.waiting[0]
            finished = self.job.outcome(row, request, check_result(request, result))
            self.waiting.popleft()
            yield finished
        if self.waiting:
            raise BackendError(
                f"{type(self.job.reranker).__name__} gave no result for {len(self.waiting)} requests "
                f"(first: query {self.waiting[0][1].qid!r}); one each is expected"
            )

    def _requests(self) -> Iterator[Request]:
        for row in self.rows:
            try:
                request = self.job.request(row)
            except RtkError as error:
                self.refused = error
                raise
            self.waiting.append((row, request))
            yield request
