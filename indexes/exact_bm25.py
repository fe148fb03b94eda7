"""BM25 in the exact sparse index: the weights of `bm25s_index`, searched with block-max pruning."""

from __future__ import annotations

import importlib.metadata
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csc_matrix, csr_matrix

from ..files import atomic_path
from ..ids import Ids
from ..progress import task
from . import exact_index
from .base import Hits, Options
from .bm25s_index import Collector, check_texts, read_settings, score_postings
from .dense import Exclude
from .english import EnglishAnalyzer
from .exact_index import ExactIndex
from .exact_layout import BLOCK, LAYOUT, write_layout
from .manifest import Manifest
from .ordering import similar_first
from .plan import BuildPlan
from .sparse import SparseShards

__all__ = ["ExactBm25Index"]

_VOCABULARY = "vocabulary.json"


class ExactBm25Index:
    """BM25 over texts by an exact index of the terms' scores: a repeated query term counts as often as it stands.

    Args:
        index: the documents' BM25 scores by term.
        vocabulary: term → number.
        analyzer: text → terms, the one that the documents went through.
    """

    def __init__(self, index: ExactIndex, vocabulary: Mapping[str, int], analyzer: EnglishAnalyzer) -> None:
        self.index, self.vocabulary, self.analyzer = index, vocabulary, analyzer
        self.ids, self.folder = index.ids, index.folder

    def __len__(self) -> int:
        return len(self.ids)

    def search(
        self, queries: Sequence[str], k: int, /, *, options: Options | None = None, exclude: Exclude | None = None
    ) -> Hits:
        """See `Index.search`. The only option is `threads`."""
        check_texts(queries, k)
        return self.index.search(self.vectors_of(queries), k, options=options, exclude=exclude)

    def vectors_of(self, queries: Sequence[str]) -> csr_matrix:
        """How often each query has each term, (n, terms)."""
        counts = [
            Counter(self.vocabulary[term] for term in self.analyzer(text) if term in self.vocabulary)
            for text in queries
        ]
        lengths = np.concatenate([[0], np.cumsum([len(count) for count in counts])]).astype(np.int64)
        terms = np.asarray([term for count in counts for term in count], dtype=np.int32)
        times = np.asarray([number for count in counts for number in count.values()], dtype=np.float32)
        return csr_matrix((times, terms, lengths), shape=(len(queries), len(self.vocabulary)))


def build_lexical(
    folder: Path, ids: Ids, texts: Callable[[int, int], Sequence[str]], plan: BuildPlan
) -> dict[str, Any]:
    """Index documents as they stream by and write INDEX/exact. Settings: `k1`, `b`, `stemmer`."""
    settings = read_settings(plan.settings)
    collector = Collector(EnglishAnalyzer(settings["stemmer"]))
    with task("index", len(ids)) as advance:
        for start in range(0, len(ids), plan.shard_size):
            stop = min(start + plan.shard_size, len(ids))
            collector.add(texts(start, stop))
            advance(stop - start)
    postings = score_postings(*collector.by_term(), k1=settings["k1"], b=settings["b"])
    terms = len(collector.vocabulary)
    matrix = csc_matrix((postings.scores, postings.rows, postings.bounds), shape=(len(ids), terms)).tocsr()
    shards = SparseShards([csr_matrix(matrix)])
    write_layout(folder / "exact", shards, similar_first(shards, BLOCK))
    with atomic_path(folder / "exact" / _VOCABULARY) as temporary:
        temporary.write_text(json.dumps(collector.vocabulary, ensure_ascii=False), encoding="utf-8")
    versions = {name: importlib.metadata.version(name) for name in ("numba", "PyStemmer", "numpy", "scipy")}
    kept = {**settings, "block": BLOCK, "layout": LAYOUT, "terms": terms}
    return {"settings": kept, "versions": versions, "keep_vectors": False}


def open_folder(folder: Path, manifest: Manifest, settings: Mapping[str, Any]) -> ExactBm25Index:
    """Memory-map an index. Settings: `threads`."""
    vocabulary = json.loads((folder / "exact" / _VOCABULARY).read_text(encoding="utf-8"))
    analyzer = EnglishAnalyzer(manifest.settings["stemmer"])
    return ExactBm25Index(exact_index.open_folder(folder, manifest, settings), vocabulary, analyzer)
