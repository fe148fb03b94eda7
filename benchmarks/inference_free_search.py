"""Inference-free search from text to hits against BM25, both in the `exact` index, at equal postings.

    rtk index COLLECTION --retriever MODEL --backend exact --out INDEX      # MODEL of method inference-free
    python benchmarks/inference_free_search.py INDEX COLLECTION [--split test] [--queries 300] [--k 10 100]

Both sides start from a query's text, and their index is of the same engine. Inference-free tokenises, looks weights up
and searches; BM25 analyses, counts and searches its stored scores. A query's time depends on the documents that its
terms are in, so the side that has more of them loses its smallest document weights, by one threshold over all
documents, until the terms of an average query are in as many documents on both sides. Times are of the calling thread
(time it spent on a processor), the two taking turns query by query. Aim: at most 1.1 times BM25's latency.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix

from rtk.eval import open_collection
from rtk.ids import Ids
from rtk.indexes import BuildPlan, build_lexical, build_sparse, open_index, parse_backend
from rtk.indexes.exact_bm25 import ExactBm25Index
from rtk.retrieval.search import Retriever

Search = Callable[[str, int], object]


def postings(documents: csr_matrix, queries: csr_matrix) -> np.ndarray:
    """Documents that each query's terms are in, summed over its terms. (n,)"""
    frequency = np.bincount(documents.indices, minlength=documents.shape[1])
    return np.asarray((queries > 0) @ frequency).ravel()


def pruned(documents: csr_matrix, queries: csr_matrix, wanted: float) -> csr_matrix:
    """`documents` without their smallest weights, so that queries meet `wanted` postings on average.

    Each posting counts as often as queries have its term; the largest weights whose counts make up the sum stay.
    """
    asked = np.bincount(queries.indices, minlength=documents.shape[1])
    order = np.argsort(-documents.data, kind="stable")
    met = np.cumsum(asked[documents.indices[order]]) <= wanted * queries.shape[0]
    kept = np.zeros(documents.nnz, dtype=bool)
    kept[order[met]] = True
    rows = np.repeat(np.arange(documents.shape[0]), np.diff(documents.indptr))[kept]
    return csr_matrix((documents.data[kept], (rows, documents.indices[kept])), shape=documents.shape)


def in_exact(documents: csr_matrix, ids: Ids, folder: Path) -> Any:
    """An exact index of the vectors, searched with one thread."""
    build_sparse(folder, ids, lambda start, stop: documents[start:stop], plan=BuildPlan(parse_backend("exact")))
    return open_index(folder, threads=1)


def take_turns(sides: dict[str, Search], texts: Sequence[str], k: int) -> dict[str, np.ndarray]:
    """Milliseconds of every query of each side, in turns; the first queries are run once before."""
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for text in texts[:20]:
        for search in sides.values():
            search(text, k)
    for text in texts:
        for name, search in sides.items():
            start = time.thread_time()
            search(text, k)
            taken[name].append(1000 * (time.thread_time() - start))
    return {name: np.asarray(times) for name, times in taken.items()}


def main() -> None:
    """Build both sides at equal postings, time them and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("index", type=Path, help="an exact index of an inference-free model")
    parser.add_argument("collection")
    parser.add_argument("--split", default="test")
    parser.add_argument("--queries", type=int, default=300)
    parser.add_argument("--k", type=int, nargs="+", default=[10, 100])
    options = parser.parse_args()
    collection = open_collection(options.collection)
    texts = list(collection.queries(options.split).texts)[: options.queries]
    retriever = Retriever.open(options.index)
    encoder: Any = retriever.encoder
    ids = retriever.ids
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        stored = collection.documents
        build_lexical(
            folder / "bm25", stored.ids, lambda start, stop: list(stored.texts(slice(start, stop))),
            plan=BuildPlan(parse_backend("exact")),
        )  # fmt: skip
        bm25: Any = open_index(folder / "bm25")
        vectors = {"inference-free": retriever.index.vectors(np.arange(len(ids))),
                   "BM25": bm25.index.vectors(np.arange(len(bm25)))}  # fmt: skip
        queries = {"inference-free": encoder.encode_query(texts), "BM25": bm25.vectors_of(texts)}
        met = {name: float(postings(vectors[name], queries[name]).mean()) for name in vectors}
        engines: dict[str, Any] = {}
        for name, wanted in ((name, min(met.values())) for name in vectors):
            equal = pruned(vectors[name], queries[name], wanted) if met[name] > wanted else vectors[name]
            engines[name] = in_exact(equal, ids, folder / name)
            found = float(postings(equal, queries[name]).mean())
            asked, each = np.diff(queries[name].indptr).mean(), equal.nnz / equal.shape[0]
            print(f"{name}: {asked:.1f} terms a query, {each:.1f} a document, of {met[name]:,.0f} postings of its "
                  f"query terms {found:,.0f} kept")  # fmt: skip
        lexical = ExactBm25Index(engines["BM25"], bm25.vocabulary, bm25.analyzer)
        sides: dict[str, Search] = {
            "inference-free": lambda text, k: engines["inference-free"].search(encoder.encode_query([text]), k),
            "BM25": lambda text, k: lexical.search([text], k),
        }
        for k in options.k:
            report(take_turns(sides, texts, k), engines, queries, k)
        ways: dict[str, Search] = {
            "inference-free": lambda text, k: encoder.encode_query([text]),
            "BM25": lambda text, k: lexical.vectors_of([text]),
        }
        alone = take_turns(ways, texts, 0)
        print("from text to vector alone: " + ", ".join(f"{name} {np.median(alone[name]):.3f} ms" for name in alone))


def report(taken: dict[str, np.ndarray], engines: dict[str, Any], queries: dict[str, csr_matrix], k: int) -> None:
    """A line for each side, and the ratio of the medians."""
    for name, times in taken.items():
        work = engines[name].search_counted(queries[name], k)[1]
        print(f"k = {k}, {name:14s} median {np.median(times):7.3f} ms  p99 {np.quantile(times, 0.99):7.3f} ms  "
              f"postings read {work.postings.mean():,.0f}")  # fmt: skip
    ratio = np.median(taken["inference-free"]) / np.median(taken["BM25"])
    print(f"k = {k}, ratio of medians {ratio:.2f} (aim 1.1)", flush=True)


if __name__ == "__main__":
    main()
