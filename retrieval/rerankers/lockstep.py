"""Many queries at once: each asks its questions in its own order, and those of one moment share a model call.

How a query is reranked is a generator (a plan): it yields rounds of questions, is sent their answers, and returns a
`Ranking`. Sliding windows are serial within a query and independent between queries; so are sorts. `Lockstep` keeps a
number of plans going, answers the open questions of all of them together, and starts the next query when one ends.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np

from ...errors import BackendError, ConfigError, RtkError
from .base import Request, Result, Usage, failed_result

__all__ = ["Answer", "Effort", "Lockstep", "Plan", "Ranking", "drive"]

log = logging.getLogger(__name__)

Q = TypeVar("Q")
A = TypeVar("A")
R = TypeVar("R")

# What an engine raises when it cannot answer: ours, torch's, and a service's. Anything else is a bug and stops.
_FAILURES = (RtkError, RuntimeError, OSError)


@dataclass(frozen=True)
class Answer(Generic[A]):
    """A model's answer to a question, and what it cost."""

    value: A
    usage: Usage


@dataclass(frozen=True)
class Effort:
    """How many queries are worked on, and how often a failure is tried again.

    Attributes:
        in_flight: queries whose questions share model calls.
        retries: how often a query's questions are asked again, alone, when the model failed on them. Where a call for
            several queries failed each is asked alone once even at 0, so that the others do not fail with the one.
    """

    in_flight: int = 16
    retries: int = 2

    def __post_init__(self) -> None:
        if self.in_flight < 1 or self.retries < 0:
            raise ConfigError(f"in_flight {self.in_flight}, retries {self.retries}: expected at least 1 and at least 0")


@dataclass(frozen=True)
class Ranking:
    """How a query's candidates end up.

    Attributes:
        order: places in the request, best first.
        raw: the model's own value of each candidate by its place in the request, finite; None where it has none.
        calibrated: whether `raw` compares across queries; the scores are then `raw`, otherwise 1 / rank.
        usage: what was found while planning (unreadable outputs), beside the cost of the questions.
    """

    order: Sequence[int]
    raw: np.ndarray | None = None
    calibrated: bool = False
    usage: Usage = field(default_factory=Usage)

    def result(self, request: Request, usage: Usage) -> Result:
        """The result of `request` at that cost.

        Raises:
            BackendError: a value of the model is not finite.
        """
        order = np.asarray(self.order, dtype=np.int64)
        raw = None if self.raw is None else np.asarray(self.raw, dtype=np.float32)[order]
        scores = raw if raw is not None and self.calibrated else (1.0 / np.arange(1, len(order) + 1)).astype(np.float32)
        ids = tuple(request.ids[place] for place in order.tolist())
        bad = np.zeros(0, np.int64) if raw is None else np.flatnonzero(~np.isfinite(raw))
        if raw is not None and len(bad):
            raise BackendError(
                f"the model's value of document {ids[int(bad[0])]!r} is {raw[int(bad[0])]}; values must be finite "
                "(half-precision overflow gives this: try float32)"
            )
        return Result(request.qid, ids, scores, raw, self.calibrated, usage + self.usage)


Plan = Generator[Sequence[Q], Sequence[A], R]


@dataclass(eq=False)
class _Running:
    """A query on its way: its plan, the questions it waits for, what it has cost."""

    request: Request
    plan: Generator[Sequence[Any], Sequence[Any], Ranking]
    asked: Sequence[Any] = ()
    usage: Usage = field(default_factory=Usage)
    result: Result | None = None

    def advance(self, answers: Sequence[Answer[Any]] | None) -> None:
        """Send the answers (None begins) and wait for the next questions, or have the result."""
        try:
            try:
                if answers is None:
                    self.asked = next(self.plan)
                else:
                    self.usage = sum((answer.usage for answer in answers), self.usage)
                    self.asked = self.plan.send([answer.value for answer in answers])
            except StopIteration as stop:
                self.result = stop.value.result(self.request, self.usage)
        except RtkError as error:
            self.fail(error)

    def fail(self, error: Exception) -> None:
        self.plan.close()
        self.result = failed_result(self.request, f"{type(error).__name__}: {error}", usage=self.usage)


@dataclass(frozen=True, eq=False)
class Lockstep(Generic[Q, A]):
    """Runs the plans of many requests.

    An engine's error is answered by asking again: the questions of each query by themselves, `effort.retries` times,
    and once at least if several queries shared the call. A query whose questions still fail keeps its first order, with
    the reason in its result, which whoever called stops at or counts; no other query is touched, and no error's text is
    read as an answer.

    Attributes:
        plan: how one request is reranked.
        ask: answers questions, of any queries, in their order.
        effort: how many queries are on their way at the same time, and how often failures are tried again.
    """

    plan: Callable[[Request], Generator[Sequence[Q], Sequence[A], Ranking]]
    ask: Callable[[Sequence[Q]], Sequence[Answer[A]]]
    effort: Effort = Effort()

    def results(self, requests: Iterable[Request]) -> Iterator[Result]:
        """One result for each request, in order. At most twice `effort.in_flight` requests are held."""
        stream = iter(requests)
        held: deque[_Running] = deque()
        while True:
            self._fill(held, stream)
            if not held:
                return
            while held and (done := held[0].result) is not None:
                held.popleft()
                yield done
            active = [each for each in held if each.result is None]
            if active:
                self._step(active)

    def _fill(self, held: deque[_Running], stream: Iterator[Request]) -> None:
        while (
            len(held) < 2 * self.effort.in_flight and sum(each.result is None for each in held) < self.effort.in_flight
        ):
            request = next(stream, None)
            if request is None:
                return
            running = _Running(request, self.plan(request))
            running.advance(None)
            held.append(running)

    def _step(self, active: Sequence[_Running]) -> None:
        """Answer what all of them ask; on failure each by itself."""
        try:
            answers = self._answers([question for each in active for question in each.asked])
        except _FAILURES as error:
            times = self.effort.retries
            if isinstance(error, ConfigError):  # a prompt that does not fit never will
                times = 0
            if len(active) > 1:
                log.warning("the model failed on a call for %d queries, asking for each alone: %s", len(active), error)
                times = max(1, times)
            for each in active:
                self._alone(each, error, times)
            return
        start = 0
        for each in active:
            stop = start + len(each.asked)
            each.advance(answers[start:stop])
            start = stop

    def _alone(self, running: _Running, error: Exception, times: int) -> None:
        """Ask a query's questions up to so many times more; `error` is why."""
        for _ in range(times):
            try:
                answers = self._answers(running.asked)
            except _FAILURES as again:
                error = again
                if isinstance(again, ConfigError):
                    break
            else:
                running.advance(answers)
                return
        running.fail(error)

    def _answers(self, questions: Sequence[Q]) -> Sequence[Answer[A]]:
        answers = self.ask(questions) if questions else ()
        if len(answers) != len(questions):
            raise BackendError(f"the model gave {len(answers)} answers to {len(questions)} questions; one each")
        return answers


def drive(plan: Plan[Q, A, R], answer: Callable[[Q], A]) -> R:
    """Run one plan to its end, every question answered by `answer`: what it returns."""
    try:
        asked = next(plan)
        while True:
            asked = plan.send([answer(question) for question in asked])
    except StopIteration as stop:
        return stop.value
