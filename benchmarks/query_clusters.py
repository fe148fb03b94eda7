"""Clustering of query vectors by k-means: time, and anonymous memory beyond the vectors, which are memory-mapped.

python benchmarks/query_clusters.py [--queries 400000] [--dimension 768] [--clusters 2000] [--metric l2]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
from memory import Peak, anonymous

from rtk.retrieval.sampling.clustering import KMeans, k_means

BLOCK = 8192


def make_vectors(path: Path, queries: int, dimension: int) -> np.ndarray:
    """Vectors around 5000 points, in a memory-mapped file."""
    generator = np.random.default_rng(0)
    points = generator.standard_normal((5000, dimension), dtype=np.float32)
    vectors = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(queries, dimension))
    for start in range(0, queries, BLOCK):
        rows = len(vectors[start : start + BLOCK])
        noise = generator.standard_normal((rows, dimension), dtype=np.float32)
        vectors[start : start + rows] = points[generator.integers(0, len(points), rows)] + 0.5 * noise
    vectors.flush()
    del vectors
    return np.load(path, mmap_mode="r")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=400_000)
    parser.add_argument("--dimension", type=int, default=768)
    parser.add_argument("--clusters", type=int, default=2000)
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--metric", choices=("l2", "inner-product"), default="l2")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        vectors = make_vectors(Path(folder) / "vectors.npy", given.queries, given.dimension)
        settings = KMeans(given.clusters, metric=given.metric, iterations=given.iterations)
        start = anonymous()
        with Peak() as peak:
            began = time.perf_counter()
            found = k_means(vectors, settings)
            seconds = time.perf_counter() - began
    sizes = np.bincount(found.assignment, minlength=given.clusters)
    told = {
        "seconds": round(seconds, 1),
        "vectors_mb": round(given.queries * given.dimension * 4 / 2**20),
        "anonymous_beyond_them_mb": round((peak.bytes - start) / 2**20),
        "sizes_min_median_max": [int(sizes.min()), float(np.median(sizes)), int(sizes.max())],
        "objective_first_last": [found.objective[0], found.objective[-1]],
    }
    print(json.dumps(told, indent=2))


if __name__ == "__main__":
    main()
