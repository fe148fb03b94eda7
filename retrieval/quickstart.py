"""The quickstart: the whole way once, on a collection that is already on the machine.

Index with BM25 and with vectors, search both, fuse, train the encoder on pairs made from the documentation, rerank the
fused list by token-level MaxSim of the trained encoder, search with it, evaluate all against BM25. Every step calls
what the verb of the same name calls and leaves the same files. How it trains was chosen on the dev split of the
training pairs; the test questions had no part in it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from .. import progress
from ..errors import ConfigError
from ..eval.collection import Collection, open_collection
from ..eval.files import write_run
from ..eval.fusion import fuse
from ..eval.measures import Evaluation, evaluate
from ..eval.report import Report, recall_curve, write_report
from ..eval.run import Run
from ..eval.significance import Comparison, compare, holm
from ..files import check_output, write_json
from .indexing import BM25, build_index
from .quickstart_text import DECIDING, MEASURES, Effect, Quickstart, Row, Step
from .rerankers.registry import load_reranker
from .rerankers.rerank import rerank_run
from .search import Retriever, excluded_documents

__all__ = ["Plan", "quickstart"]

_LOG = logging.getLogger(__name__)
T = TypeVar("T")

_STEPS = 11
_RECORD = "quickstart.json"
"""In the output folder: plan and results; what --overwrite knows an earlier output by."""
_MARK = "quickstart.json"


@dataclass(frozen=True)
class Plan:
    """What the quickstart does, and how much of it.

    Attributes:
        collection, split: what is indexed and tested on.
        pairs: the collection of training pairs.
        model: the encoder.
        query_length, document_length: most tokens read of each.
        training_length: most tokens of a document in training.
        k: documents a query in every run.
        depth: how many documents of the fused run are reranked.
        steps, batch_size, learning_rate, seed: of the training.
    """

    collection: str = "pydocs"
    split: str = "test"
    pairs: str = "pydocs-train"
    model: str = "minilm"
    query_length: int = 32
    document_length: int = 128
    training_length: int = 64
    k: int = 100
    depth: int = 10
    steps: int = 30
    batch_size: int = 32
    learning_rate: float = 1e-4
    seed: int = 42

    def training(self, output: Path) -> dict[str, Any]:
        """The training configuration, as `rtk train` reads it."""
        return {
            "method": "contrastive",
            "model": self.model,
            "data": {"collection": self.pairs, "split": "train"},
            "lengths": {"query": self.query_length, "document": self.training_length},
            "loss": [{"name": "infonce", "scale": 20.0}],
            "trainer": {
                "per_device_train_batch_size": self.batch_size,
                "learning_rate": self.learning_rate,
                "max_steps": self.steps,
                "warmup_steps": 0.1,
                "logging_steps": max(self.steps // 5, 1),
            },
            "output": str(output),
            "seed": self.seed,
        }

    @property
    def lengths(self) -> dict[str, int]:
        """As encoders and rerankers take them."""
        return {"query_length": self.query_length, "document_length": self.document_length}


class _Diary:
    """Does steps, tells them, and remembers how long each took."""

    def __init__(self, advance: progress.Advance) -> None:
        self.steps: list[Step] = []
        self._advance = advance

    def do(self, name: str, command: str, work: Callable[[], T]) -> T:
        _LOG.info("[%d/%d] %s", len(self.steps) + 1, _STEPS, name)
        started = time.monotonic()
        result = work()
        self.steps.append(Step(name, command, time.monotonic() - started))
        self._advance(1)
        return result


def quickstart(out: str | Path, *, plan: Plan | None = None, overwrite: bool = False) -> Quickstart:
    """Go the whole way once and leave every file under `out`.

    Args:
        out: a folder to make.
        plan: what to do; the default is what the quickstart promises.
        overwrite: replace `out`.

    Raises:
        OutputExists: `out` is there.
        MissingExtra: the encoder's package (`minilm`) or FAISS (`cpu`) is not installed.
    """
    plan = plan or Plan()
    out = check_output(out, overwrite=overwrite, folder_with=_MARK)
    out.mkdir(parents=True)
    write_json(out / _MARK, asdict(plan))  # first, so that a stopped quickstart can be replaced
    with progress.task("quickstart", _STEPS) as advance:
        return _Way(plan, out, _Diary(advance)).go()


@dataclass(frozen=True)
class _Way:
    """The steps, each with the verb that does the same."""

    plan: Plan
    out: Path
    diary: _Diary

    def go(self) -> Quickstart:
        plan = self.plan
        opened = self.diary.do(
            f"read the collection {plan.collection}", "", lambda: _read(plan.collection, plan.pairs)
        )  # fmt: skip
        bm25 = self._search(self._index(opened, "bm25", BM25), opened, "bm25")
        dense = self._search(self._index(opened, "dense", plan.model), opened, "dense")
        fused = self.diary.do(
            "fuse both by reciprocal ranks",
            f"rtk fuse {self._run('bm25')} {self._run('dense')} --out {self._run('fused')}",
            lambda: self._written(fuse([bm25, dense], depth=plan.k, tag="fused"), "fused"),
        )  # fmt: skip
        model = self._train()
        reranked = self._rerank(fused, opened, model)
        trained = self._search(self._index(opened, "trained", str(model)), opened, "trained")
        runs = [bm25, dense, fused, reranked, trained]
        report = self.diary.do("evaluate against BM25", self._evaluation(), lambda: self._report(opened, runs))
        return self._summary(report, _kinds(opened))

    # --- one step each ---

    def _index(self, collection: Collection, name: str, retriever: str) -> Retriever:
        plan, lexical = self.plan, retriever == BM25
        lengths = f" --query-length {plan.query_length} --document-length {plan.document_length}"
        given = "" if lexical else f" --retriever {retriever}{lengths}"

        def build() -> Retriever:
            from .encoders.load import load_encoder

            encoder = (
                None
                if lexical
                else load_encoder(retriever, query_length=plan.query_length, document_length=plan.document_length)
            )
            index = build_index(collection, self.out / name, retriever=encoder or BM25)
            return Retriever(encoder, index, name=name)

        what = "index for BM25" if lexical else f"encode and index with {retriever}"
        return self.diary.do(what, f"rtk index {collection.name}{given} --out {self.out / name}", build)

    def _search(self, retriever: Retriever, collection: Collection, name: str) -> Run:
        queries = collection.queries(self.plan.split)
        left_out = excluded_documents(collection, queries)
        return self.diary.do(
            f"search {name}",
            f"rtk search {self.out / name} {self._split} -k {self.plan.k} --out {self._run(name)}",
            lambda: self._written(retriever.run(queries, self.plan.k, tag=name, exclude=left_out), name),
        )

    def _train(self) -> Path:
        from .training.config import load_config, print_config
        from .training.trainer import train

        path = self.out / "train.yaml"
        config = load_config(self.plan.training(self.out / "model"))
        path.write_text(print_config(config), encoding="utf-8")
        what = f"train on pairs of {self.plan.pairs}, {self.plan.steps} steps"
        return self.diary.do(what, f"rtk train {path}", lambda: train(config))

    def _rerank(self, fused: Run, collection: Collection, model: Path) -> Run:
        plan, path = self.plan, self._run("reranked")

        def work() -> Run:
            reranker = load_reranker("maxsim", str(model), **plan.lengths)
            return rerank_run(
                fused, collection, plan.split, reranker, depth=plan.depth, raw=False, tag="reranked", out=path
            )

        return self.diary.do(
            f"rerank the first {plan.depth} of the fused run by MaxSim of the trained encoder",
            f"rtk rerank {self._run('fused')} {self._split} --reranker maxsim --model {model} --depth {plan.depth} "
            f"--out {path}",
            work,
        )  # fmt: skip

    def _report(self, collection: Collection, runs: list[Run]) -> Report:
        judgments, conventions = collection.judgments(self.plan.split), collection.conventions
        found = [evaluate(run, judgments, MEASURES, conventions=conventions) for run in runs]
        report = Report(
            f"Quickstart on {collection.name}",
            found,
            compare(found[0], found[1:], measures=[DECIDING], seed=self.plan.seed),
            {run.tag: recall_curve(run, judgments, conventions=conventions) for run in runs},
            {"collection": collection.name, "split": self.plan.split},
        )
        for suffix in ("html", "json"):
            write_report(report, self.out / f"report.{suffix}")
        return report

    def _summary(self, report: Report, kinds: dict[str, np.ndarray]) -> Quickstart:
        comparison = report.comparison
        if comparison is None:
            raise ConfigError("a quickstart compares with BM25; the report has no comparison")
        out, plan = self.out, self.plan
        files = (
            ("report", out / "report.html"), ("runs", out / "runs"), ("model", out / "model"),
            ("its configuration", out / "train.yaml"),
            ("indexes", out / "bm25"), ("", out / "dense"), ("", out / "trained"),
        )  # fmt: skip
        rows = tuple(_row(found, comparison, kinds) for found in report.evaluations)
        effects = _effects({found.name: found for found in report.evaluations}, plan.seed)
        done = Quickstart(
            out, rows, effects, comparison.note, len(comparison.qids), tuple(self.diary.steps), files, _next(plan, out)
        )  # fmt: skip
        parts = {"rows": done.rows, "effects": done.effects, "steps": done.steps}
        plain = {name: [asdict(each) for each in part] for name, part in parts.items()}
        write_json(out / _RECORD, {"plan": asdict(plan), "finished": True, **plain})
        return done

    # --- names ---

    def _run(self, name: str) -> Path:
        return self.out / "runs" / f"{name}.trec"

    @property
    def _split(self) -> str:
        return f"--collection {self.plan.collection} --split {self.plan.split}"

    def _evaluation(self) -> str:
        runs = " ".join(str(self._run(name)) for name in ("bm25", "dense", "fused", "reranked", "trained"))
        return f"rtk eval {runs} {self._split} --baseline {self._run('bm25')} --report {self.out / 'report.html'}"

    def _written(self, run: Run, name: str) -> Run:
        write_run(run, self._run(name))
        return run


def _read(collection: str, pairs: str) -> Collection:
    """Both collections, so that the time of making them is not hidden in a later step."""
    opened = open_collection(collection)
    for each in (opened, open_collection(pairs)):
        _LOG.info("%s: %d documents", each.name, len(each.documents))
    return opened


def _kinds(collection: Collection) -> dict[str, np.ndarray]:
    """For each kind of question the ids of its questions; only `pydocs` tells kinds apart."""
    if collection.name != "pydocs":
        return {}
    from ..eval.pydocs import test_questions

    kinds = sorted({question.kind for question in test_questions()}, reverse=True)
    return {kind: np.asarray([q.id for q in test_questions() if q.kind == kind]) for kind in kinds}


def _row(found: Evaluation, comparison: Comparison, kinds: dict[str, np.ndarray]) -> Row:
    means = {name: found.mean(name) for name in MEASURES}
    values, asked = found[DECIDING], np.asarray(list(found.qids))
    by_kind = {kind: float(values[np.isin(asked, ids)].mean()) for kind, ids in kinds.items()}
    if found.name == comparison.baseline:
        return Row(found.name, means, kinds=by_kind)
    other = comparison.find(found.name, DECIDING)
    return Row(
        found.name, means, other.difference, other.low, other.high, other.p_fisher_holm,
        other.verdict(comparison.alpha), other.wins, other.ties, other.losses, by_kind,
    )  # fmt: skip


def _effects(found: dict[str, Evaluation], seed: int) -> tuple[Effect, ...]:
    """What training did to the encoder, and what MaxSim did to the fused run."""
    asked = (("training", "dense", "trained"), ("reranking", "fused", "reranked"))
    compared = [
        compare(found[before], [found[after]], measures=[DECIDING], seed=seed).differences[0]
        for _, before, after in asked
    ]
    corrected = holm(np.asarray([each.p_fisher for each in compared]))
    return tuple(
        Effect(what, before, after, each.difference, each.low, each.high, float(p))
        for (what, before, after), each, p in zip(asked, compared, corrected, strict=True)
    )


def _next(plan: Plan, out: Path) -> tuple[str, ...]:
    """The verbs for a collection of one's own (a folder with corpus.jsonl, queries.jsonl and qrels/)."""
    data = "--collection my-collection --split test"
    return (
        "rtk index my-collection --out bm25",
        f"rtk index my-collection --retriever {plan.model} --out dense",
        f"rtk search bm25 {data} -k 100 --out bm25.trec",
        f"rtk search dense {data} -k 100 --out dense.trec",
        "rtk fuse bm25.trec dense.trec --method rrf --out fused.trec",
        f"rtk train {out / 'train.yaml'} data.collection=my-collection output=my-model",
        f"rtk rerank fused.trec {data} --reranker maxsim --model my-model --depth {plan.depth} --out reranked.trec",
        f"rtk eval bm25.trec dense.trec fused.trec reranked.trec {data} --baseline bm25.trec --report report.html",
        'rtk search dense -q "any text"',
    )
