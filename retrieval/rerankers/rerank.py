"""Rerank a run: candidates to the reranker, results to a run, finished queries to disk on the way."""

from __future__ import annotations

import hashlib
import logging
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ...errors import BackendError, ConfigError
from ...eval.files import write_run
from ...eval.run import Run
from ...files import check_output
from ...ids import hash_strings
from ..pairs import one_list_each, positive_pairs
from .base import Reranker, Usage, describe
from .candidates import CandidateFile, CollectionTexts, TextSource
from .job import OnError, RerankJob
from .lists import CandidateLists, candidate_lists
from .part import Finished, open_part, part_path

if TYPE_CHECKING:
    from ...eval.collection import Collection
    from ...eval.judgments import Judgments

__all__ = ["RerankReport", "RerankSettings", "Reranked", "rerank_run", "rerank_with_report"]

log = logging.getLogger(__name__)

Below = Literal["keep", "cut"]


@dataclass(frozen=True)
class RerankSettings:
    """How a run is reranked.

    Attributes:
        depth: how many documents of each query are candidates.
        positive_grade: with judgments given, what counts as a positive to be added.
        below: "keep" leaves documents deeper than `depth` under the reranked ones, in first-stage order; "cut" drops
            them.
        on_error: "stop" at the first query that fails; "count" keeps that query's order and goes on.
        raw: whether the run gets the columns `raw`, `first_rank`, `first_score`, `calibrated`.
        tag: the new run's name; None is the first stage's with "-reranked".
    """

    depth: int = 100
    positive_grade: int = 1
    below: Below = "keep"
    on_error: OnError = "stop"
    raw: bool = True
    tag: str | None = None

    def __post_init__(self) -> None:
        problems = [] if self.depth >= 1 else [f"depth {self.depth}: expected at least 1"]
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
        seconds: how long this call reranked.
        candidates_now: candidates of the queries that this call reranked.
    """

    queries: int
    resumed: int
    candidates: int
    added: int
    failed: tuple[tuple[str, str], ...] = ()
    usage: Usage = field(default_factory=Usage)
    seconds: float = 0.0
    candidates_now: int = 0

    def lines(self) -> list[str]:
        """The report as lines of text."""
        said = [
            f"reranked {self.candidates} candidates of {self.queries} queries"
            + (f", {self.resumed} of them done before" if self.resumed else ""),
            f"model calls: {self.usage.calls}, tokens read: {self.usage.prompt_tokens}"
            + (f", found computed: {self.usage.cached_tokens}" if self.usage.cached_tokens else "")
            + (f", written: {self.usage.generated_tokens}" if self.usage.generated_tokens else ""),
        ]
        if self.seconds > 0 and self.candidates_now:
            speeds = (self.queries - self.resumed) / self.seconds, self.candidates_now / self.seconds
            said.append(f"{self.seconds:.1f} s: {speeds[0]:.2f} queries and {speeds[1]:.1f} candidates a second")
        if self.added:
            said.append(f"judged positives added: {self.added}")
        if self.usage.malformed:
            said.append(f"unreadable outputs: {self.usage.malformed}")
        if self.usage.cut:
            said.append(f"prompts or pairs cut to fit the model: {self.usage.cut}")
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
        on_error: "stop" at the first query that fails; "count" keeps that query's order, goes on and logs how many. If
            every query fails there is nothing to write to `out`, which is an error.
        raw: add the columns `raw` (the model's values, never squashed; NaN for documents not reranked), `first_rank`,
            `first_score` and `calibrated`.
        tag: the new run's name.
        out: where to write the run; finished queries are then kept in a part file beside it, and the same call goes on
            where it was stopped, at most what the reranker was computing being lost.
        overwrite: replace `out`, and a part file of another job.

    Raises:
        DataError: a query or candidate that the texts lack, naming both.
        BackendError: the reranker failed or broke its contract, or failed on every query of a run that was to be
            written.
        ConfigError: settings that cannot be, or a part file of a job with other settings.
        OutputExists: `out` is there.
    """
    settings = RerankSettings(depth, positive_grade, below, on_error, raw, tag)
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
    """As `rerank_run`, with texts from any source, and with a report. Given judgments, their positives are added.

    Raises:
        As `rerank_run`.
    """
    settings = settings or RerankSettings()
    if out is not None and not overwrite:
        check_output(out, overwrite=False)
    one_list_each(run, "reranking")
    positives = None if judgments is None else positive_pairs(run.qids, judgments, settings.positive_grade)
    lists = candidate_lists(run, settings.depth, positives=positives)
    job = RerankJob(lists, source, reranker, settings.on_error)
    began = time.monotonic()
    if out is None:
        return _assemble(lists, settings, list(job.outcomes(set())), set(), began)
    with open_part(part_path(out), _header(job, run, settings), fresh=overwrite) as part:
        finished = [each for each in part.finished if each.error is None]  # what failed is tried again
        before = {each.row for each in finished}
        for each in job.outcomes(before):
            part.add(each)
            finished.append(each)
        done = _assemble(lists, settings, finished, before, began)
        if done.report.failed and len(done.report.failed) == done.report.queries:
            part.remove()  # nothing in it is worth going on with
            raise BackendError(_nothing(done.report, out))
        write_run(done.run, out)
        part.remove()
    return done


def _nothing(report: RerankReport, out: str | Path) -> str:
    """What is said where every query failed: the first stage's order under another name helps nobody."""
    qid, reason = report.failed[0]
    every = "the only query" if report.queries == 1 else f"all {report.queries} queries"
    return f"{every} failed, so {out} was not written; the first, query {qid!r}: {reason}"


def _assemble(
    lists: CandidateLists, settings: RerankSettings, finished: list[Finished], before: set[int], began: float
) -> Reranked:
    """The run and the report; rows `before` were found on disk, the others reranked since `began`."""
    seconds = time.monotonic() - began
    run = lists.to_run(
        finished, keep_below=settings.below == "keep", raw=settings.raw, tag=settings.tag or f"{lists.tag}-reranked"
    )
    failed = sorted((each.row, each.error) for each in finished if each.error is not None)
    report = RerankReport(
        queries=len(lists.qids),
        resumed=len(before),
        candidates=int(lists.counts.sum()),
        added=int(lists.added.sum()),
        failed=tuple((lists.qids[row], str(error)) for row, error in failed),
        usage=sum((each.usage for each in finished), Usage()),
        seconds=seconds,
        candidates_now=int(lists.counts.sum() - sum(int(lists.counts[row]) for row in before)),
    )
    return Reranked(run, report)


def _header(job: RerankJob, run: Run, settings: RerankSettings) -> dict[str, Any]:
    """What makes a job the same job: the candidates, the texts, the reranker."""
    lists = job.lists
    digest = hashlib.sha256()
    for column in (lists.offsets, lists.counts, lists.codes, lists.first_rank, lists.first_score):
        digest.update(np.ascontiguousarray(column).tobytes())
    for ids in (lists.qids, lists.vocabulary):
        digest.update(hash_strings(ids.array).tobytes())
    return {
        "run": run.tag,
        "depth": settings.depth,
        "positives added": int(lists.added.sum()),
        "candidates": digest.hexdigest(),
        "texts": job.source.fingerprint(),
        "reranker": describe(job.reranker),
    }
