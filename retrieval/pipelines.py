"""Searchers in a row: retrievers side by side, fused, then reranked.

hybrid = Hybrid([Retriever.open("bm25"), Retriever.open("dense")])
pipeline = hybrid >> Rerank(load_reranker("cross-encoder", MODEL), collection.documents, depth=50)
run = pipeline.run(collection.queries("test"), k=100)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import ConfigError
from ..eval.run import Run

if TYPE_CHECKING:
    from ..eval.collection import Documents, Queries
    from .rerankers.base import Reranker
    from .rerankers.rerank import RerankSettings

__all__ = ["Composable", "Hybrid", "Pipeline", "Rerank", "Searcher", "Step"]


class Searcher(Protocol):
    """Finds documents for queries: a `Retriever`, a `Hybrid`, a `Pipeline`, or anything with this method."""

    def run(
        self, queries: Queries, k: int, *, tag: str | None = None, exclude: Mapping[str, Sequence[str]] | None = None
    ) -> Run:
        """The k best documents for each query."""
        ...


class Step(Protocol):
    """Makes a run of a run: a reranker, a filter."""

    @property
    def depth(self) -> int:
        """How many documents of each query it wants to see; 0 when it does not matter."""
        ...

    def __call__(self, run: Run, queries: Queries, /) -> Run: ...


class Composable:
    """`searcher >> step` is a pipeline."""

    def __rshift__(self: Any, step: Step) -> Pipeline:
        return Pipeline(self, (step,))


@dataclass(frozen=True)
class Hybrid(Composable):
    """Several searchers asked the same, their runs fused.

    Attributes:
        searchers: two or more.
        method, weights, normalise: as `fuse` takes them.
        constant: of reciprocal rank fusion (its k).
        depth: how many documents each searcher gives; None asks each for as many as are wanted.
    """

    searchers: Sequence[Searcher]
    method: str = "rrf"
    weights: Sequence[float] | None = None
    normalise: str | None = None
    constant: int = 60
    depth: int | None = None

    def __post_init__(self) -> None:
        if len(self.searchers) < 2:
            raise ConfigError(f"a hybrid of {len(self.searchers)} searchers; expected two or more")

    def run(
        self, queries: Queries, k: int, *, tag: str | None = None, exclude: Mapping[str, Sequence[str]] | None = None
    ) -> Run:
        """Ask every searcher and fuse what they find."""
        from ..eval.fusion import fuse

        depth = max(k, self.depth or 0)
        runs = [searcher.run(queries, depth, exclude=exclude) for searcher in self.searchers]
        return fuse(
            runs, method=self.method, weights=self.weights, normalise=self.normalise,  # pyright: ignore[reportArgumentType] - checked by fuse
            k=self.constant, depth=k, tag=tag,
        )  # fmt: skip


@dataclass(frozen=True)
class Pipeline(Composable):
    """A searcher and what is done with its run, in order.

    Attributes:
        searcher: the first stage.
        steps: what follows.
    """

    searcher: Searcher
    steps: tuple[Step, ...] = ()

    def __rshift__(self, step: Step) -> Pipeline:
        return Pipeline(self.searcher, (*self.steps, step))

    def run(
        self, queries: Queries, k: int, *, tag: str | None = None, exclude: Mapping[str, Sequence[str]] | None = None
    ) -> Run:
        """Search as deep as the steps want it, then take the steps, then cut to k."""
        depth = max([k, *(step.depth for step in self.steps)])
        run = self.searcher.run(queries, depth, exclude=exclude)
        for step in self.steps:
            run = step(run, queries)
        run = run.top(k)
        return run if tag is None else run.replace(tag=tag)


@dataclass(frozen=True)
class Rerank:
    """A reranker as a step.

    Attributes:
        reranker: orders the candidates.
        documents: where their texts come from.
        depth: how many documents of each query it reads; deeper ones stay below.
        settings: how, but for the depth; the default stops at the first failure.
    """

    reranker: Reranker
    documents: Documents
    depth: int = 100
    settings: RerankSettings | None = None

    def __call__(self, run: Run, queries: Queries, /) -> Run:
        from dataclasses import replace

        from .rerankers.candidates import CollectionTexts
        from .rerankers.rerank import RerankSettings, rerank_with_report

        settings = replace(self.settings or RerankSettings(), depth=self.depth)
        return rerank_with_report(run, CollectionTexts(self.documents, queries), self.reranker, settings).run
