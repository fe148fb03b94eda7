"""The contract of every reranker: a query with its candidates goes in, exactly those candidates come back in order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np

from ...errors import BackendError, DataError

__all__ = [
    "Candidate",
    "Request",
    "Reranker",
    "Result",
    "Usage",
    "check_result",
    "describe",
    "failed_result",
    "ranked_result",
    "rerank_checked",
]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A document proposed for a query, with the score that the stage before gave it."""

    id: str
    text: str
    score: float = 0.0


@dataclass(frozen=True, slots=True)
class Request:
    """One query and its candidates, in the order of the stage before.

    Raises:
        DataError: a candidate id occurs twice, or a candidate has no text. Equal texts under different ids are fine and
            both stay, and so is an empty text.
    """

    qid: str
    query: str
    candidates: tuple[Candidate, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "candidates", tuple(self.candidates))
        if len(set(self.ids)) < len(self.candidates):
            seen: set[str] = set()
            twice = next(name for name in self.ids if name in seen or seen.add(name))  # type: ignore[func-returns-value]
            raise DataError(f"query {self.qid!r} has candidate {twice!r} twice; candidate ids must be unique")
        for candidate in self.candidates:
            if not isinstance(candidate.text, str):  # pyright: ignore[reportUnnecessaryIsInstance] - callers' data
                raise DataError(
                    f"query {self.qid!r}: the text of candidate {candidate.id!r} is {candidate.text!r}, not a text"
                )

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(candidate.id for candidate in self.candidates)

    @property
    def texts(self) -> list[str]:
        return [candidate.text for candidate in self.candidates]


@dataclass(frozen=True, slots=True)
class Usage:
    """What a reranking cost.

    Attributes:
        calls: prompts or pairs put to a model.
        prompt_tokens: tokens that the model read.
        cached_tokens: tokens of prompts that it did not have to read again, because a cache held them; not among
            `prompt_tokens`.
        generated_tokens: tokens written.
        malformed: outputs that could not be read.
        cut: prompts or pairs of which something was left out so that they fit the model. What a method shows of a
            document anyway (its first words, its first tokens) is no cut; MaxSim's documents are not counted.
    """

    calls: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    malformed: int = 0
    cut: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.calls + other.calls,
            self.prompt_tokens + other.prompt_tokens,
            self.cached_tokens + other.cached_tokens,
            self.generated_tokens + other.generated_tokens,
            self.malformed + other.malformed,
            self.cut + other.cut,
        )


@dataclass(frozen=True, eq=False)
class Result:
    """The candidates of one request in their new order.

    Attributes:
        qid: the request's query id.
        ids: exactly the request's candidate ids, best first.
        scores: (n,) float32, never rising along `ids`.
        raw: (n,) float32 along `ids`: the model's own values (logits), before anything was done to them; None when the
            method has none.
        calibrated: whether scores of different queries compare; False for ordinal scores.
        usage: what it cost.
        error: why the query could not be reranked; the ids then stand in their first order.
    """

    qid: str
    ids: tuple[str, ...]
    scores: np.ndarray
    raw: np.ndarray | None = None
    calibrated: bool = False
    usage: Usage = field(default_factory=Usage)
    error: str | None = None


@runtime_checkable
class Reranker(Protocol):
    """Orders candidates. Anything with this method is a reranker.

    One result for every request, in the order of the requests. How requests are batched is the reranker's business and
    does not show in the results: they depend on the request alone. Requests come as a stream whose texts may not fit in
    memory, and what has been yielded is kept when a job is stopped: read as many as make a batch, yield their results,
    read on.
    """

    def rerank(self, requests: Iterable[Request], /) -> Iterator[Result]:
        """Yield the result of each request."""
        ...


def ranked_result(
    request: Request, values: Sequence[float] | np.ndarray, *, calibrated: bool = True, usage: Usage | None = None
) -> Result:
    """Order the candidates by `values` (n,), larger first; ties keep the first order.

    Raises:
        BackendError: a value is not finite.
    """
    raw = np.asarray(values, dtype=np.float32).reshape(-1)
    if len(raw) != len(request.candidates):
        raise BackendError(
            f"query {request.qid!r}: {len(request.candidates)} candidates, but the model gave {len(raw)} scores"
        )
    bad = np.flatnonzero(~np.isfinite(raw))
    if len(bad):
        raise BackendError(
            f"query {request.qid!r}: the model scored document {request.ids[int(bad[0])]!r} as {raw[int(bad[0])]}; "
            "scores must be finite (half-precision overflow gives this: try float32)"
        )
    order = np.argsort(-raw, kind="stable")
    ids = request.ids
    return Result(
        request.qid, tuple(ids[row] for row in order.tolist()), raw[order], raw[order], calibrated, usage or Usage()
    )


def failed_result(request: Request, error: str, *, usage: Usage | None = None) -> Result:
    """The candidates in their first order, with ordinal scores 1/rank and the reason."""
    scores = (1.0 / np.arange(1, len(request.candidates) + 1)).astype(np.float32)
    return Result(request.qid, request.ids, scores, None, False, usage or Usage(), error)


def check_result(request: Request, result: Result) -> Result:
    """Return `result` with float32 arrays if it answers `request` by the contract.

    Raises:
        BackendError: another query, ids lost, invented or repeated, a score that is not finite or rises, wrong lengths.
    """
    where = f"query {request.qid!r}"
    if result.qid != request.qid:
        raise BackendError(f"{where}: the reranker answered for query {result.qid!r}; results keep the requests' order")
    _check_ids(where, request.ids, tuple(result.ids))
    scores = _column(where, "scores", result.scores, len(result.ids))
    if not np.isfinite(scores).all():
        at = int(np.flatnonzero(~np.isfinite(scores))[0])
        raise BackendError(f"{where}: document {result.ids[at]!r} has score {scores[at]}; scores must be finite")
    rise = np.flatnonzero(np.diff(scores) > 0)
    if len(rise):
        at = int(rise[0])
        raise BackendError(
            f"{where}: the score rises from {scores[at]} to {scores[at + 1]} at rank {at + 2} "
            f"({result.ids[at + 1]!r}); scores must fall along the returned order"
        )
    raw = None if result.raw is None else _column(where, "raw values", result.raw, len(result.ids))
    if raw is not None and np.isnan(raw).any():
        raise BackendError(f"{where}: the raw value of {result.ids[int(np.flatnonzero(np.isnan(raw))[0])]!r} is NaN")
    return Result(result.qid, tuple(result.ids), scores, raw, bool(result.calibrated), result.usage, result.error)


def _check_ids(where: str, expected: tuple[str, ...], given: tuple[str, ...]) -> None:
    if len(expected) == len(given) and set(expected) == set(given):
        return
    lost, invented = sorted(set(expected) - set(given)), sorted(set(given) - set(expected))
    said = [
        f"{len(ids)} {what} ({', '.join(map(repr, ids[:3]))}{', …' if len(ids) > 3 else ''})"
        for what, ids in (("lost", lost), ("invented", invented))
        if ids
    ]
    if len(given) > len(set(given)):
        said.append(f"{len(given) - len(set(given))} repeated")
    raise BackendError(f"{where}: the reranker must return exactly the candidates it was given: {', '.join(said)}")


def _column(where: str, what: str, values: np.ndarray, length: int) -> np.ndarray:
    column = np.asarray(values, dtype=np.float32)
    if column.shape != (length,):
        raise BackendError(f"{where}: {what} have shape {column.shape}, expected ({length},)")
    return column


def rerank_checked(reranker: Reranker, requests: Sequence[Request]) -> list[Result]:
    """Rerank `requests` and hold every result to the contract.

    Raises:
        BackendError: see `check_result`; too few or too many results.
    """
    results = list(reranker.rerank(requests))
    if len(results) != len(requests):
        raise BackendError(
            f"{type(reranker).__name__} gave {len(results)} results for {len(requests)} requests; one each is expected"
        )
    return [check_result(request, result) for request, result in zip(requests, results, strict=True)]


def describe(reranker: Reranker) -> dict[str, Any]:
    """What makes this reranker's scores what they are: its `identity()` if it has one, else its class."""
    given = getattr(reranker, "identity", None)
    if callable(given):
        return dict(given())  # type: ignore[call-overload]
    return {"class": f"{type(reranker).__module__}.{type(reranker).__qualname__}"}
