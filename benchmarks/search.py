"""Search speed: torch exact against FAISS Flat, and what our layer adds to raw FAISS.

    python benchmarks/search.py [--documents 1000000] [--threads 1 2] [--repeats 5]

Both sides of every ratio alternate within one run, on the same vectors and threads; medians and their ratio are
printed.
Aims: torch at most 0.5 of FAISS Flat for 32 queries, k = 200, 1,000,000 × 384; the layer at most 1.05 of raw FAISS for
1,000 queries over 500,000 × 384.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import faiss
import torch

from rtk.ids import Ids
from rtk.indexes import FaissIndex, TorchIndex, VectorShards


def compare(first: Callable[[], object], second: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Median seconds of each, taken in turns after one call to warm up."""
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(repeats + 1):
        for calls, taken in zip((first, second), times, strict=True):
            start = time.perf_counter()
            calls()
            if number:
                taken.append(time.perf_counter() - start)
    return statistics.median(times[0]), statistics.median(times[1])


def report(name: str, ours: float, theirs: float) -> None:
    print(f"{name:58s} {ours:9.3f} s {theirs:9.3f} s   ratio {ours / theirs:.3f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=1_000_000)
    parser.add_argument("--dimension", type=int, default=384)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--overhead-queries", type=int, default=1000)
    options = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    vectors = torch.nn.functional.normalize(
        torch.randn(options.documents, options.dimension, generator=generator)
    ).numpy()
    queries = torch.randn(max(32, options.overhead_queries), options.dimension, generator=generator).numpy()
    ids = Ids(map(str, range(options.documents)))
    shards = VectorShards([vectors])
    flat = faiss.IndexFlatIP(options.dimension)
    flat.add(vectors)
    exact = TorchIndex(shards, ids)
    print(f"{'':58s} {'ours':>11s} {'FAISS':>11s}")
    for threads in options.threads:
        torch.set_num_threads(threads)
        faiss.omp_set_num_threads(threads)
        ours, theirs = compare(
            lambda: exact.search(queries[:32], 200), lambda: flat.search(queries[:32], 200), options.repeats
        )
        report(f"torch / Flat, {len(vectors):,}, 32 queries, k 200, {threads} threads", ours, theirs)
    half = options.documents // 2
    flat.reset()
    flat.add(vectors[:half])
    layer = FaissIndex(flat, ids[:half])
    many = queries[: options.overhead_queries]
    for threads in options.threads[-1:]:
        faiss.omp_set_num_threads(threads)
        for k in (10, 100):
            ours, theirs = compare(
                lambda k=k: layer.search(many, k), lambda k=k: flat.search(many, k), max(2, options.repeats // 2)
            )
            report(f"layer / raw Flat, {half:,}, {len(many)} queries, k {k}, {threads} threads", ours, theirs)


if __name__ == "__main__":
    main()
