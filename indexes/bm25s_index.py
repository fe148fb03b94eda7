"""BM25 with scores computed when indexing, in the arrays and file names of bm25s, which can load INDEX/bm25s itself.

Documents stream: each block of texts becomes three integer arrays, and one conversion at the end sorts them by term.
Score of a document: the sum over query terms, with repetition, of ln(1 + (N - df + 0.5) / (df + 0.5)) · tf / (tf + k1
(1 - b + b · length / mean length)), which is Lucene's formula with exact lengths.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from ..errors import ConfigError
from ..files import atomic_path, write_json
from ..ids import Ids, ids_file
from ..progress import task
from .base import Hits, Options
from .bounds import SHARE, Bounds, check_numbers
from .dense import Exclude, check_exclude
from .english import EnglishAnalyzer
from .manifest import Manifest
from .plan import BuildPlan
from .registry import check_names
from .vectors import map_array, save_array

__all__ = ["Bm25sIndex"]

logger = logging.getLogger(__name__)

DEFAULTS: dict[str, Any] = {"k1": 0.9, "b": 0.4, "stemmer": "porter"}
BOUNDS = {"k1": Bounds(0, 10**9), "b": SHARE}
_DATA, _INDICES, _INDPTR = "data.csc.index.npy", "indices.csc.index.npy", "indptr.csc.index.npy"
_BYTES_A_POSTING = 28  # document, term and count while reading; both orders of the matrix while sorting
_SAMPLE = 1000


@dataclass(frozen=True)
class Postings:
    """BM25 scores by term: those of term t are `scores[bounds[t]:bounds[t + 1]]`, for `rows[…]`, ascending."""

    scores: np.ndarray
    rows: np.ndarray
    bounds: np.ndarray
    documents: int


class Bm25sIndex:
    """BM25 over texts. Exact: ties go to the lower row, and documents that share no term with the query are not hits.

    Args:
        postings: scores by term.
        vocabulary: term → number.
        ids: row → document id.
        analyzer: text → terms, the one that the documents went through.
        folder: where they came from.
    """

    def __init__(
        self,
        postings: Postings,
        vocabulary: Mapping[str, int],
        ids: Ids,
        analyzer: EnglishAnalyzer,
        *,
        folder: Path | None = None,
    ) -> None:
        self.postings, self.vocabulary, self.ids, self.analyzer = postings, vocabulary, ids, analyzer
        self.folder = folder

    def __len__(self) -> int:
        return len(self.ids)

    def search(
        self, queries: Sequence[str], k: int, /, *, options: Options | None = None, exclude: Exclude | None = None
    ) -> Hits:
        """See `Index.search`. There are no options."""
        check_names(options or {}, (), "search options of the bm25s back-end")
        check_texts(queries, k)
        check_exclude(exclude, len(queries))
        hits = Hits.empty(len(queries), k)
        totals = np.zeros(self.postings.documents, dtype=np.float32)
        for number, text in enumerate(queries):
            touched = self._add_up(text, totals)
            if exclude is not None:
                left_out = np.asarray(exclude[number], dtype=np.int64)
                totals[left_out[(left_out >= 0) & (left_out < len(totals))]] = 0
            rows = best_rows(totals, touched, k)
            hits.rows[number, : len(rows)] = rows
            hits.scores[number, : len(rows)] = totals[rows]
            totals[touched] = 0
        return hits

    def _add_up(self, text: str, totals: np.ndarray) -> np.ndarray | slice:
        """Add the scores of every query term to `totals`; return which entries may have changed."""
        counts = Counter(self.vocabulary[term] for term in self.analyzer(text) if term in self.vocabulary)
        lists: list[np.ndarray] = []
        for term, times in counts.items():
            part = slice(int(self.postings.bounds[term]), int(self.postings.bounds[term + 1]))
            rows = self.postings.rows[part]
            totals[rows] += np.float32(times) * self.postings.scores[part]
            lists.append(rows)
        if sum(map(len, lists)) > len(totals) // 8:
            return slice(None)
        return np.unique(np.concatenate(lists)) if lists else np.zeros(0, dtype=np.int64)


def best_rows(totals: np.ndarray, touched: np.ndarray | slice, k: int) -> np.ndarray:
    """The k rows with the greatest positive totals, ties by row ascending. `touched` is ascending."""
    rows = np.flatnonzero(totals > 0) if isinstance(touched, slice) else touched[totals[touched] > 0]
    scores = totals[rows]
    if len(rows) > k > 0:
        kept = scores >= np.partition(scores, len(rows) - k)[len(rows) - k]
        rows, scores = rows[kept], scores[kept]
    return rows[np.argsort(-scores, kind="stable")[:k]]


def check_texts(queries: Sequence[str], k: int) -> None:
    """Refuse one string in place of a sequence, and a negative k."""
    values: Sequence[Any] = queries  # callers may not check types
    if isinstance(queries, str) or not all(isinstance(text, str) for text in values):
        raise ConfigError("a lexical index takes a sequence of query texts, for example ['a query']")
    if k < 0:
        raise ConfigError(f"k is {k}, expected at least 0")


@dataclass
class Collector:
    """Term counts of documents as they stream by."""

    analyzer: EnglishAnalyzer
    vocabulary: dict[str, int] = field(default_factory=dict)
    terms: list[np.ndarray] = field(default_factory=list)
    counts: list[np.ndarray] = field(default_factory=list)
    per_document: list[np.ndarray] = field(default_factory=list)
    lengths: list[np.ndarray] = field(default_factory=list)

    def add(self, texts: Sequence[str]) -> None:
        vocabulary = self.vocabulary
        numbers: list[int] = []
        lengths: list[int] = []
        for terms in self.analyzer.batch(texts):
            numbers += [vocabulary.setdefault(term, len(vocabulary)) for term in terms]
            lengths.append(len(terms))
        sizes = np.asarray(lengths, dtype=np.int64)
        keys = np.repeat(np.arange(len(sizes), dtype=np.int64) << 32, sizes) | np.asarray(numbers, dtype=np.int64)
        distinct, counts = np.unique(keys, return_counts=True)
        self.terms.append((distinct & 0xFFFFFFFF).astype(np.int32))
        self.counts.append(counts.astype(np.float32))
        self.per_document.append(np.bincount(distinct >> 32, minlength=len(sizes)))
        self.lengths.append(sizes)

    def by_term(self) -> tuple[sp.csc_array, np.ndarray]:
        """Counts as (documents, terms) by column, and document lengths in terms."""
        per_document = np.concatenate([[0], *self.per_document]).cumsum()
        lengths = np.concatenate([np.zeros(0, np.int64), *self.lengths])
        shape = (len(lengths), len(self.vocabulary))
        terms, counts = _drain(self.terms, np.int32), _drain(self.counts, np.float32)
        return sp.csr_array((counts, terms, per_document), shape=shape).tocsc(), lengths


def _drain(parts: list[np.ndarray], dtype: Any) -> np.ndarray:
    """Concatenate and empty the list."""
    whole = np.concatenate([np.zeros(0, dtype), *parts])
    parts.clear()
    return whole


def score_postings(counts: sp.csc_array, lengths: np.ndarray, k1: float, b: float) -> Postings:
    """Turn counts by term into BM25 scores, in place; float64 inside, float32 kept."""
    documents = len(lengths)
    mean = lengths.mean() if documents and lengths.any() else 1.0
    norms = k1 * (1 - b + b * lengths / mean)
    frequency = np.diff(counts.indptr)
    idf = np.log(1 + (documents - frequency + 0.5) / (frequency + 0.5))
    data: np.ndarray = counts.data
    step = 1 << 24
    for start in range(0, len(data), step):
        part = slice(start, min(start + step, len(data)))
        term = np.searchsorted(counts.indptr, np.arange(part.start, part.stop), side="right") - 1
        times = data[part].astype(np.float64)
        data[part] = idf[term] * times / (times + norms[counts.indices[part]])
    return Postings(data, counts.indices, counts.indptr.astype(np.int64), documents)


def build_lexical(
    folder: Path, ids: Ids, texts: Callable[[int, int], Sequence[str]], plan: BuildPlan
) -> dict[str, Any]:
    """Index documents as they stream by and write INDEX/bm25s."""
    settings = read_settings(plan.settings)
    analyzer = EnglishAnalyzer(settings["stemmer"])
    _say_need(len(ids), texts, analyzer)
    collector = Collector(analyzer)
    with task("index", len(ids)) as advance:
        for start in range(0, len(ids), plan.shard_size):
            stop = min(start + plan.shard_size, len(ids))
            collector.add(texts(start, stop))
            advance(stop - start)
    postings = score_postings(*collector.by_term(), k1=settings["k1"], b=settings["b"])
    save(folder / "bm25s", postings, collector.vocabulary, settings)
    names = ("bm25s", "PyStemmer", "numpy", "scipy")
    versions = {name: importlib.metadata.version(name) for name in names}
    return {"settings": {**settings, "terms": len(collector.vocabulary)}, "versions": versions, "keep_vectors": False}


def read_settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults with `given` over them, checked."""
    what = "settings of a BM25 index"
    check_names(given, tuple(DEFAULTS), what)
    return check_numbers({**DEFAULTS, **given}, BOUNDS, what)


def _say_need(count: int, texts: Callable[[int, int], Sequence[str]], analyzer: EnglishAnalyzer) -> None:
    sample = texts(0, min(_SAMPLE, count)) if count else []
    postings = sum(len(set(terms)) for terms in analyzer.batch(sample)) / max(len(sample), 1) * count
    say_need("bm25s", int(postings * _BYTES_A_POSTING), f"about {postings:,.0f} postings, held while building")


def say_need(engine: str, need: int, why: str) -> None:
    """Log how much memory an engine will take, as a warning when the machine does not have it free."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    level = logging.WARNING if need > free else logging.INFO
    logger.log(level, "%s needs about %.2f GB of memory (%s); %.2f GB are free", engine, need / 1e9, why, free / 1e9)


def save(folder: Path, postings: Postings, vocabulary: Mapping[str, int], settings: Mapping[str, Any]) -> None:
    """Write what `bm25s.BM25.load(folder)` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    save_array(folder / _DATA, postings.scores)
    save_array(folder / _INDICES, postings.rows)
    save_array(folder / _INDPTR, postings.bounds)
    with atomic_path(folder / "vocab.index.json") as temporary:
        temporary.write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    write_json(
        folder / "params.index.json",
        {
            "k1": settings["k1"],
            "b": settings["b"],
            "delta": 0.5,
            "method": "lucene",
            "idf_method": "lucene",
            "dtype": "float32",
            "int_dtype": "int32",
            "num_docs": postings.documents,
            "backend": "numpy",
            "version": importlib.metadata.version("bm25s"),
        },
    )


def open_folder(folder: Path, manifest: Manifest, settings: Mapping[str, Any]) -> Bm25sIndex:
    """Memory-map an index. There are no settings."""
    check_names(settings, (), "settings for opening a bm25s index")
    scores, rows, bounds = (map_array(folder / "bm25s" / name) for name in (_DATA, _INDICES, _INDPTR))
    vocabulary = json.loads((folder / "bm25s" / "vocab.index.json").read_text(encoding="utf-8"))
    return Bm25sIndex(
        Postings(scores, rows, bounds, manifest.count),
        vocabulary,
        Ids.load(ids_file(folder)),
        EnglishAnalyzer(manifest.settings["stemmer"]),
        folder=folder,
    )
