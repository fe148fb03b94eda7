"""Pointwise reranking by a language model: each document by itself, all documents of several queries in a call."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ...errors import ConfigError
from .base import Request, Result, Usage
from .language_model import named
from .lockstep import Answer, Effort, Lockstep, Ranking

__all__ = ["DocumentQuestion", "PairModel", "PointwiseReranker"]

Pair = tuple[str, str, str]
"""Query id, query, document."""


@dataclass(frozen=True)
class DocumentQuestion:
    """A candidate of a request, by place."""

    request: Request
    place: int

    @property
    def pair(self) -> Pair:
        return self.request.qid, self.request.query, self.request.candidates[self.place].text

    @property
    def name(self) -> str:
        """What it is about, for messages."""
        return f"query {self.request.qid!r}, document {self.request.candidates[self.place].id!r}"


class PairModel(Protocol):
    """Scores pairs of query and document; larger is better, and scores of different queries compare."""

    def identity(self) -> dict[str, Any]: ...

    def score(self, pairs: Sequence[Pair], /) -> list[Answer[float]]: ...


class PointwiseReranker:
    """Reranks by the score of each pair. Equal texts are read once, and tie.

    Args:
        model: scores pairs.
        effort: how many queries share a call.
        fusion: α of the z-standardised first-stage score in α · first + (1 − α) · score (ERank); None leaves the
            first stage out. Standardised scores are of one query, and no longer calibrated.
        calibrated: whether the model's scores compare across queries.
    """

    def __init__(
        self,
        model: PairModel,
        *,
        effort: Effort | None = None,
        fusion: float | None = None,
        calibrated: bool = True,
    ) -> None:
        if fusion is not None and not 0 <= fusion <= 1:
            raise ConfigError(f"fusion {fusion}: the first stage's share is from 0 to 1")
        self._model, self._effort = model, effort or Effort(in_flight=4)
        self.fusion, self.calibrated = fusion, calibrated and fusion is None

    def identity(self) -> dict[str, Any]:
        """Method, model, prompt."""
        return {**self._model.identity(), **({} if self.fusion is None else {"fusion": self.fusion})}

    def rerank(self, requests: Iterable[Request], /) -> Iterator[Result]:
        """All pairs of the queries in flight are one call of the model."""
        yield from Lockstep(self._ranking, self._scores, self._effort).results(requests)

    def _ranking(self, request: Request) -> Generator[Sequence[DocumentQuestion], Sequence[float], Ranking]:
        scores = yield [DocumentQuestion(request, place) for place in range(len(request.candidates))]
        raw = np.asarray(scores, dtype=np.float32)
        if self.fusion is None:
            return Ranking(np.argsort(-raw, kind="stable").tolist(), raw, calibrated=self.calibrated)
        first = np.asarray([candidate.score for candidate in request.candidates], dtype=np.float64)
        mixed = self.fusion * standardised(first) + (1 - self.fusion) * standardised(raw)
        return Ranking(np.argsort(-mixed, kind="stable").tolist(), raw)

    def _scores(self, questions: Sequence[DocumentQuestion]) -> list[Answer[float]]:
        """Each distinct pair once: equal texts cost nothing more and tie exactly."""
        pairs = [question.pair for question in questions]
        first: dict[tuple[str, str], int] = {}
        for row, pair in enumerate(pairs):
            first.setdefault(pair[1:], row)
        rows = list(first.values())
        with named(lambda prompt: questions[rows[prompt]].name):
            answers = dict(zip(first, self._model.score([pairs[row] for row in rows]), strict=True))
        return [
            answers[pair[1:]] if first[pair[1:]] == row else Answer(answers[pair[1:]].value, Usage())
            for row, pair in enumerate(pairs)
        ]


def standardised(scores: np.ndarray) -> np.ndarray:
    """(n,) float64 with mean 0 and standard deviation 1; zeros where all are equal."""
    values = np.asarray(scores, dtype=np.float64)
    spread = float(values.std()) if len(values) else 0.0
    return (values - values.mean()) / spread if spread > 0 else np.zeros(len(values))
