"""Rerank a run: candidates to the reranker, results to a run, finished queries to disk on the way."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ...errors import BackendError, ConfigError, RtkError
from ...eval.files import write_run
from ...eval.run import Run
from ...files import check_output
from ...ids import hash_strings
from ...progress import task
from ..pairs import one_list_each, positive_pairs
from .base import Candidate, Request, Reranker, Result, Usage, describe, failed_result, rerank_checked
from .candidates import CandidateFile, CollectionTexts, TextSource
from .lists import CandidateLists, candidate_lists
from .part import Finished, open_part, part_path

if TYPE_CHECKING:
    from ...eval.collection import Collection
    from ...eval.judgments import Judgments

__all__ = ["RerankReport", "RerankSettings", "Reranked", "rerank_run", "rerank_with_report"]

log = logging.getLogger(__name__)

OnError = Literal["stop", "count"]
Below = Literal["keep", "cut"]

# What a model, an engine or a service raises about one input. Anything else is a bug and stops the job.
_FAILURES = (RtkError, RuntimeError, ValueError, OSError)


@dataclass(frozen=True)
class RerankSettings:
    """How a run is reranked.

    Attributes:
        depth: how many documents of each query are candidates.
        positive_grade: with judgments given, what counts as a positive to be added.
        below: "keep" leaves documents deeper than `depth` under the reranked ones, in first-stage order; "cut" drops
            them.
        on_error: "stop" at the first query that fails; "count" keeps that query's order and goes on.
        batch: how many queries go to the reranker at once; what a stop can lose.
        raw: whether the run gets the columns `raw`, `first_rank`, `first_score`, `calibrated`.
        tag: the new run's name; None is the first stage's with "-reranked".
    """

    depth: int = 100
    positive_grade: int = 1
    below: Below = "keep"
    on_error: OnError = "stop"
    batch: int = 16
    raw: bool = True
    tag: str | None = None

    def __post_init__(self) -> None:
        problems = [f"{name} {value}: expected at least 1" for name, value in (("depth", self.depth),
                    ("batch", self.batch)) if value < 1]  # fmt: skip
        problems += [
            f"{name} {value!r}: expected {' or '.join(map(repr, known))}"
            for name, value, known in (
                ("on_error", self.on_error, ("stop", "count")),
                ("below", self.below, ("keep", "cut")),
            )
            if value not in known
        ]
        if problems:
            raise ConfigError("these reranking settings cannot be", problems)


@dataclass(frozen=True)
class RerankReport:
    """What a reranking did.

    Attributes:
        queries: queries of the run.
        resumed: of those, how many were found finished on disk.
        candidates: candidates read.
        added: judged positives among them that the first stage had missed or put below `depth`.
        failed: (query id, reason) of queries that keep their first order.
        usage: the cost, resumed queries included.
    """

    queries: int
    resumed: int
    candidates: int
    added: int
    failed: tuple[tuple[str, str], ...] = ()
    usage: Usage = field(default_factory=Usage)

    def lines(self) -> list[str]:
        """The report as lines of text."""
        said = [
            f"reranked {self.candidates} candidates of {self.queries} queries"
            + (f", {self.resumed} of them done before" if self.resumed else ""),
            f"model calls: {self.usage.calls}, tokens read: {self.usage.prompt_tokens}",
        ]
        if self.added:
            said.append(f"judged positives added: {self.added}")
        if self.usage.malformed:
            said.append(f"unreadable outputs: {self.usage.malformed}")
        if self.failed:
            said.append(f"queries that failed and keep their first order: {len(self.failed)}, first {self.failed[0]}")
        return said


@dataclass(frozen=True, eq=False)
class Reranked:
    """The reranked run and the report on it."""

    run: Run
    report: RerankReport


def rerank_run(
    run: Run,
    collection: Collection | CandidateFile,
    split: str | None,
    reranker: Reranker,
    *,
    depth: int = 100,
    add_positives: bool = False,
    positive_grade: int = 1,
    below: Below = "keep",
    on_error: OnError = "stop",
    batch: int = 16,
    raw: bool = True,
    tag: str | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
) -> Run:
    """Rerank the first `depth` documents of every query of `run`.

    Args:
        run: the first stage's run.
        collection: where texts come from; a `CandidateFile` brings its own (its run is `collection.run`).
        split: the collection's split; None with a `CandidateFile`.
        reranker: what orders the candidates.
        depth: how many documents of each query are candidates.
        add_positives: judged positives that are not among the first `depth` become candidates too (a collection's
            split only), marked in the column `added`.
        positive_grade: what counts as a positive.
        below: "keep" leaves deeper documents under the reranked ones, in first-stage order; "cut" drops them.
        on_error: "stop" at the first query that fails; "count" keeps that query's order, goes on and logs how many.
        batch: how many queries go to the reranker at once; what a stop can lose.
        raw: add the columns `raw` (the model's values, never squashed; NaN for documents not reranked), `first_rank`,
            `first_score` and `calibrated`.
        tag: the new run's name.
        out: where to write the run; finished queries are then kept in a part file beside it, and the same call goes on
            where it was stopped.
        overwrite: replace `out`, and a part file of another job.

    Raises:
        DataError: a query or candidate that the texts lack, naming both.
        BackendError: the reranker failed or broke its contract.
        ConfigError: settings that cannot be, or a part file of a job with other settings.
        OutputExists: `out` is there.
    """
    settings = RerankSettings(depth, positive_grade, below, on_error, batch, raw, tag)
    if isinstance(collection, CandidateFile):
        if add_positives:
            raise ConfigError("add_positives needs a collection: a candidate file has no judgments and no other texts")
        source, judgments = collection, None
    else:
        source = CollectionTexts(collection.documents, collection.queries(split), collection.name)
        judgments = collection.judgments(_split(split)) if add_positives else None
    done = rerank_with_report(run, source, reranker, settings, judgments=judgments, out=out, overwrite=overwrite)
    for line in done.report.lines():
        log.info("%s", line)
    if done.report.failed:
        log.warning("%s", done.report.lines()[-1])
    return done.run


def _split(split: str | None) -> str:
    if split is None:
        raise ConfigError("add_positives needs a split, whose judgments say what is positive")
    return split


def rerank_with_report(
    run: Run,
    source: TextSource,
    reranker: Reranker,
    settings: RerankSettings | None = None,
    *,
    judgments: Judgments | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
) -> Reranked:
    """As `rerank_run`, with texts from any source, and with a report. Given judgments, their positives are added."""
    settings = settings or RerankSettings()
    if out is not None and not overwrite:
        check_output(out, overwrite=False)
    one_list_each(run, "reranking")
    positives = None if judgments is None else positive_pairs(run.qids, judgments, settings.positive_grade)
    job = _Job(candidate_lists(run, settings.depth, positives=positives), source, reranker, settings)
    if out is None:
        return job.finish([each for group in job.groups([]) for each in group], resumed=0)
    with open_part(part_path(out), _header(job, run), fresh=overwrite) as part:
        finished = [each for each in part.finished if each.error is None]  # what failed is tried again
        resumed = len(finished)
        for group in job.groups(finished):
            part.add(group)
            finished.extend(group)
        done = job.finish(finished, resumed=resumed)
        write_run(done.run, out)
        part.remove()
    return done


@dataclass(frozen=True, eq=False)
class _Job:
    """Candidate lists on their way through a reranker."""

    lists: CandidateLists
    source: TextSource
    reranker: Reranker
    settings: RerankSettings

    def groups(self, finished: Sequence[Finished]) -> Iterator[list[Finished]]:
        """Rerank what is not finished, some queries at a time."""
        done = {each.row for each in finished}
        rows = iter([row for row in range(len(self.lists.qids)) if row not in done])
        with task("rerank", len(self.lists.qids)) as advance:
            advance(len(done))
            while group := list(islice(rows, self.settings.batch)):
                requests = [self._request(row) for row in group]
                results = self._results(requests)
                yield [_finished(*each) for each in zip(group, requests, results, strict=True)]
                advance(len(group))

    def _request(self, row: int) -> Request:
        qid = self.lists.qids[row]
        ids, scores = self.lists.candidates(row)
        texts = self.source.texts(qid, ids)
        triples = zip(ids, texts, scores.tolist(), strict=True)
        return Request(qid, self.source.query(qid), tuple(Candidate(*each) for each in triples))

    def _results(self, requests: list[Request]) -> list[Result]:
        """Results, by the policy for failures: with "count", a failing batch is tried query by query."""
        try:
            results = rerank_checked(self.reranker, requests)
        except _FAILURES as error:
            if self.settings.on_error == "stop":
                raise
            if len(requests) > 1:
                return [result for request in requests for result in self._results([request])]
            log.warning("query %r: %s", requests[0].qid, error)
            return [failed_result(requests[0], f"{type(error).__name__}: {error}")]
        failed = next((result for result in results if result.error is not None), None)
        if failed is not None and self.settings.on_error == "stop":
            raise BackendError(f"query {failed.qid!r} could not be reranked: {failed.error}")
        return results

    def finish(self, finished: list[Finished], *, resumed: int) -> Reranked:
        """The run and the report."""
        settings, lists = self.settings, self.lists
        run = lists.to_run(
            finished, keep_below=settings.below == "keep", raw=settings.raw, tag=settings.tag or f"{lists.tag}-reranked"
        )
        failed = sorted((each.row, each.error) for each in finished if each.error is not None)
        report = RerankReport(
            queries=len(lists.qids),
            resumed=resumed,
            candidates=int(lists.counts.sum()),
            added=int(lists.added.sum()),
            failed=tuple((lists.qids[row], str(error)) for row, error in failed),
            usage=sum((each.usage for each in finished), Usage()),
        )
        return Reranked(run, report)


def _finished(row: int, request: Request, result: Result) -> Finished:
    position = {name: at for at, name in enumerate(request.ids)}
    order = np.asarray([position[name] for name in result.ids], dtype=np.int32)
    return Finished(row, order, result.scores, result.raw, result.calibrated, result.usage, result.error)


def _header(job: _Job, run: Run) -> dict[str, Any]:
    """What makes a job the same job: the candidates, the texts, the reranker."""
    lists = job.lists
    digest = hashlib.sha256()
    for column in (lists.offsets, lists.counts, lists.codes, lists.first_rank, lists.first_score):
        digest.update(np.ascontiguousarray(column).tobytes())
    for ids in (lists.qids, lists.vocabulary):
        digest.update(hash_strings(ids.array).tobytes())
    return {
        "run": run.tag,
        "depth": job.settings.depth,
        "positives added": int(lists.added.sum()),
        "candidates": digest.hexdigest(),
        "texts": job.source.fingerprint(),
        "reranker": describe(job.reranker),
    }
