"""Searching sparse vectors: the exact index against Lucene's impact search, Seismic and scipy, in one run.

    python benchmarks/sparse_search.py --documents 100000 --engines exact lucene seismic scipy
    python benchmarks/sparse_search.py --documents 1000000 --engines exact lucene --work-folder FOLDER
    python benchmarks/sparse_search.py --index INDEX --collection COLLECTION --engines exact lucene seismic scipy
    python benchmarks/sparse_search.py --documents 100000 --engines exact seismic --trade

Documents and queries come from `sparse_model.py`'s generator, or are the real ones of a sparse index. Weights of both
are whole hundredths, so that Lucene's results must equal the exact index's, scores included. Times of single queries
are of the calling thread (time it spent on a processor), since other work may share the machine; Seismic's are of the
whole process, because it searches in threads of its own. Engines take turns query by query. Memory is what the process
grew by from before an engine was opened until it had searched all queries once: the pages of mapped files that were
read are in it, and Lucene's Java heap, which the JVM fills as it likes. Where indexes are built in the same run, freed
memory is used again and hides some of it: for memory run twice with one --work-folder.
Aim: exact at least 8 times faster than Lucene's impact search on one thread, results equal.

`--trade` has Seismic's curve instead: recall against exact and latency on one thread for every pair of `--query-cuts`
and `--heap-factors`, with exact in the same turns. Its times are of the whole process, in which nothing else runs then.
"""

from __future__ import annotations

import argparse
import gc
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import sparse_model
from scipy.sparse import csr_matrix

from rtk.ids import Ids
from rtk.indexes import BuildPlan, activity, build_sparse, flops_metric, open_index, parse_backend
from rtk.indexes.base import Hits
from rtk.indexes.dense import ordered_hits

SHARD = 50_000
CLOCKS = {"seismic": time.process_time}
WHOLE = {"lucene": {"factor": 1, "query_factor": 1}}


class ScipyIndex:
    """The plain way: one sparse product, then the best of each row."""

    def __init__(self, documents: csr_matrix) -> None:
        self.by_term = csr_matrix(documents.T)

    def search(self, queries: csr_matrix, k: int) -> Hits:
        products = csr_matrix(queries @ self.by_term)
        rows = np.full((queries.shape[0], k), -1, dtype=np.int64)
        scores = np.full((queries.shape[0], k), -np.inf, dtype=np.float32)
        for number in range(queries.shape[0]):
            part = slice(products.indptr[number], products.indptr[number + 1])
            found, values = products.indices[part], products.data[part]
            order = np.lexsort((found, -values))[:k]
            rows[number, : len(order)], scores[number, : len(order)] = found[order], values[order]
        return ordered_hits(rows, scores, k)


def read_real(index: str, collection: str) -> tuple[Callable[[int, int], csr_matrix], csr_matrix, int]:
    documents, queries = sparse_model.of_index(index, collection)
    for part in (documents, queries):
        part.data = np.maximum(1, np.rint(part.data * sparse_model.SCALE)).astype(np.float32)
    return lambda start, stop: documents[start:stop], queries[:500], documents.shape[0]


def generated(count: int, asked: int) -> tuple[Callable[[int, int], csr_matrix], csr_matrix, int]:
    documents, queries = sparse_model.load()
    return lambda start, stop: documents.draw(stop - start, (0, start)), queries.draw(asked, (1, 0)), count


def build(engine: str, folder: Path, encode: Callable[[int, int], csr_matrix], count: int) -> Path:
    """Where the engine's index is; it is built if it is not there yet, and that is reported."""
    out = folder / f"{engine}-{count}"
    if engine != "scipy" and not (out / "manifest.json").exists():
        spent, wall = time.process_time(), time.perf_counter()
        plan = BuildPlan(parse_backend(engine), shard_size=SHARD, settings=WHOLE.get(engine, {}))
        build_sparse(out, Ids(f"d{row}" for row in range(count)), encode, plan=plan)
        size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
        print(f"{engine}: built in {time.process_time() - spent:.0f} s of processor time "
              f"({time.perf_counter() - wall:.0f} s), {size / 1e6:.0f} MB", flush=True)  # fmt: skip
    return out


def opened(make: Callable[[], Any], queries: csr_matrix, k: int) -> tuple[Any, float]:
    """An index that has searched all queries once, and the megabytes that the process grew by meanwhile."""
    gc.collect()
    before = resident()
    index = make()
    index.search(queries, k)
    gc.collect()
    return index, resident() - before


def resident() -> float:
    """Megabytes of this process in memory, mapped files among them."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def encode_all(encode: Callable[[int, int], csr_matrix], count: int) -> csr_matrix:
    from scipy.sparse import vstack

    parts = [encode(start, min(start + SHARD, count)) for start in range(0, count, SHARD)]
    return csr_matrix(vstack(parts, format="csr"))


def single(engine: str, index: Any, queries: csr_matrix, k: int) -> list[Callable[[], object]]:
    """One call a query, with what an engine wants made beforehand: Lucene's is Anserini's own search, without ours."""
    if engine == "lucene":
        from rtk.indexes.lucene_impact import java_map

        maps = [java_map(queries.astype(np.int64), number) for number in range(queries.shape[0])]
        return [lambda query=query: index._searcher.search(query, k) for query in maps]
    parts = [queries[number] for number in range(queries.shape[0])]
    return [lambda part=part: index.search(part, k) for part in parts]


def latencies(
    calls: dict[str, list[Callable[[], object]]], clock: Callable[[], float] | None = None
) -> dict[str, np.ndarray]:
    """Milliseconds of every query by the clock or each engine's own, in turns; the first queries run once before."""
    for of_engine in calls.values():
        for call in of_engine[:20]:
            call()
    taken: dict[str, list[float]] = {engine: [] for engine in calls}
    for number in range(len(next(iter(calls.values())))):
        for engine, of_engine in calls.items():
            now = clock or CLOCKS.get(engine, time.thread_time)
            start = now()
            of_engine[number]()
            taken[engine].append(1000 * (now() - start))
    return {engine: np.asarray(values) for engine, values in taken.items()}


def throughput(index: Any, queries: csr_matrix, k: int, threads: int) -> float:
    """Queries a second of wall time, all given at once."""
    start = time.perf_counter()
    if hasattr(index, "threads"):
        index.threads = threads
    index.search(queries, k)
    return queries.shape[0] / (time.perf_counter() - start)


def trade(exact: Any, seismic: Any, queries: csr_matrix, k: int, settings: list[dict[str, float]]) -> None:
    """A line for exact, then one for each of Seismic's settings."""
    oracle = exact.search(queries, k)
    parts = [queries[number] for number in range(queries.shape[0])]
    calls: dict[str, list[Callable[[], object]]] = {"exact": single("exact", exact, queries, k)}
    shares = {"exact": 1.0}
    for options in settings:
        name = ", ".join(f"{name} {value:g}" for name, value in options.items())
        calls[name] = [partial(seismic.search, part, k, options=options) for part in parts]
        shares[name] = recall(seismic.search(queries, k, options=options), oracle)
    taken = latencies(calls, clock=time.process_time)
    for name, times in taken.items():
        ratio = np.median(times) / np.median(taken["exact"])
        print(f"k = {k:3d}  {name:32s} recall {shares[name]:.4f}  median {np.median(times):7.3f} ms  "
              f"p99 {np.quantile(times, 0.99):7.3f} ms  {ratio:.2f} of exact", flush=True)  # fmt: skip


def recall(found: Hits, exact: Hits) -> float:
    pairs = zip(found.rows, exact.rows, strict=True)
    shares = [len({*one[two >= 0]} & {*two[two >= 0]}) / max(1, (two >= 0).sum()) for one, two in pairs]
    return float(np.mean(shares))


def compare(indexes: dict[str, Any], memory: dict[str, float], queries: csr_matrix, k: int) -> None:
    exact = indexes["exact"].search(queries, k)
    taken = latencies({engine: single(engine, index, queries, k) for engine, index in indexes.items()})
    work = indexes["exact"].search_counted(queries, k)[1]
    print(f"k = {k}: postings read {work.postings.mean():,.0f}, entries {work.entries.mean():,.0f}, "
          f"documents scored {work.documents.mean():.0f} a query")  # fmt: skip
    cores = len(os.sched_getaffinity(0))
    for engine, index in indexes.items():
        found = exact if engine == "exact" else index.search(queries, k)
        equal = np.array_equal(found.rows, exact.rows) and np.array_equal(found.scores, exact.scores)
        rates = [throughput(index, queries, k, threads) for threads in (1, cores)]
        ratio = np.median(taken[engine]) / np.median(taken["exact"])
        print(
            f"  {engine:8s} median {np.median(taken[engine]):8.3f} ms  p99 {np.quantile(taken[engine], 0.99):8.3f} ms  "
            f"{ratio:6.2f} of exact  {rates[0]:7.0f} and {rates[1]:7.0f} queries/s with 1 and {cores} threads  "
            f"recall {recall(found, exact):.4f}  memory {memory[engine]:6.0f} MB{'  equal' if equal else ''}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--index", help="a real sparse index, in place of generated documents")
    parser.add_argument("--collection", help="the collection of its queries")
    parser.add_argument("--engines", nargs="+", default=["exact", "lucene"])
    parser.add_argument("--k", type=int, nargs="+", default=[10, 100])
    parser.add_argument("--trade", action="store_true", help="Seismic's settings against exact, and nothing else")
    parser.add_argument("--query-cuts", type=int, nargs="+", default=[3, 5, 10, 15, 20])
    parser.add_argument("--heap-factors", type=float, nargs="+", default=[0.6, 0.7, 0.8, 0.9, 1.0])
    parser.add_argument("--work-folder", type=Path, help="where indexes are kept between runs")
    options = parser.parse_args()
    real = options.index is not None
    encode, queries, count = (
        read_real(options.index, options.collection) if real else generated(options.documents, options.queries)
    )
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.work_folder or Path(scratch)
        engines = ["exact", *(engine for engine in options.engines if engine != "exact")]
        engines = ["exact", "seismic"] if options.trade else engines
        places = {engine: build(engine, folder, encode, count) for engine in engines}
        made = {
            engine: opened(
                partial(open_index, place, threads=1)
                if engine != "scipy"
                else lambda: ScipyIndex(encode_all(encode, count)),
                queries,
                max(options.k),
            )
            for engine, place in places.items()
        }
        indexes = {engine: index for engine, (index, _) in made.items()}
        memory = {engine: grown for engine, (_, grown) in made.items()}
        documents = activity(encode(0, min(count, SHARD)))
        asked = activity(queries)
        print(f"{count:,} documents of {documents.mean:.1f} terms, {asked.count} queries of {asked.mean:.1f}, "
              f"FLOPS metric {flops_metric(asked, documents):.2f}")  # fmt: skip
        settings: list[dict[str, float]] = [
            {"query_cut": cut, "heap_factor": factor} for cut in options.query_cuts for factor in options.heap_factors
        ]
        for k in options.k:
            if options.trade:
                trade(indexes["exact"], indexes["seismic"], queries, k, settings)
            else:
                compare(indexes, memory, queries, k)


if __name__ == "__main__":
    main()
