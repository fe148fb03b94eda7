"""Anything that scores (query, document) pairs, lifted to a reranker."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from .base import Request, Result, Usage, describe, ranked_result
from .checks import check_counts

__all__ = ["PairScorer", "PredictReranker"]


class PairScorer(Protocol):
    """Scores pairs: one number for each (query, document text), larger is better."""

    def predict(self, pairs: list[tuple[str, str]], /) -> Any:
        """Return (n,) scores."""
        ...


class PredictReranker:
    """Reranks by the scores of `model.predict(pairs)`.

    Args:
        model: anything with `predict(pairs) -> (n,) scores`: a scikit-learn-like model, a client of a service.
        calibrated: whether its scores compare across queries.
        batch_pairs: the most pairs in one call.
    """

    def __init__(self, model: PairScorer, *, calibrated: bool = True, batch_pairs: int = 1024) -> None:
        check_counts(batch_pairs=batch_pairs)
        self.model, self.calibrated, self.batch_pairs = model, calibrated, batch_pairs

    def identity(self) -> dict[str, Any]:
        """The model's own identity where it has one, else its class."""
        return {"reranker": "predict", **describe(self.model), "calibrated": self.calibrated}  # type: ignore[arg-type]

    def rerank(self, requests: Iterable[Request], /) -> Iterator[Result]:
        """Score every request's candidates in calls of at most `batch_pairs`; a call never mixes queries."""
        for request in requests:
            pairs = [(request.query, candidate.text) for candidate in request.candidates]
            parts = [self._scores(pairs[at : at + self.batch_pairs]) for at in range(0, len(pairs), self.batch_pairs)]
            values = np.concatenate(parts) if parts else np.zeros(0, np.float32)
            yield ranked_result(request, values, calibrated=self.calibrated, usage=Usage(calls=len(parts)))

    def _scores(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        return np.asarray(self.model.predict(list(pairs)), dtype=np.float32).reshape(-1)
