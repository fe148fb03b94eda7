"""ADORE's live search: exact top 200 of 32 queries, as every training step does it.

    python benchmarks/adore_search.py [--documents 1000000] [--dimension 384] [--threads 1 2]
    python benchmarks/adore_search.py --device cuda [--documents 8841823] [--dimension 768]

On the CPU against FAISS Flat on the same vectors and threads, in turns; aim: at most 0.5 of its time. On a GPU, with
resident float16 vectors, against the time to read the matrix once at the bandwidth that a large copy reaches; aim: at
most 1.5 times that.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from search import compare, report  # the neighbour, found because it lies beside this script

from rtk.ids import Ids
from rtk.indexes import Placement, TorchIndex, VectorShards

_BLOCK = 1 << 18
_COPIED = 4 << 30  # bytes: far beyond any cache


def on_cpu(options: argparse.Namespace) -> None:
    import faiss

    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(options.documents, options.dimension, generator=generator)
    torch.nn.functional.normalize(vectors, out=vectors)
    queries = torch.nn.functional.normalize(torch.randn(options.queries, options.dimension, generator=generator))
    live = TorchIndex(VectorShards([vectors.numpy()]), Ids(map(str, range(len(vectors)))))
    flat = faiss.IndexFlatIP(options.dimension)
    flat.add(vectors.numpy())
    print(f"{'':58s} {'live':>11s} {'FAISS':>11s}")
    for threads in options.threads:
        torch.set_num_threads(threads)
        faiss.omp_set_num_threads(threads)
        taken = compare(
            lambda: live.topk(queries, options.k), lambda: flat.search(queries.numpy(), options.k), options.repeats
        )
        report(
            f"{len(vectors):,} x {options.dimension}, {len(queries)} queries, k {options.k}, {threads} threads", *taken
        )


def on_gpu(options: argparse.Namespace) -> None:
    device = torch.device(options.device)
    live = TorchIndex(
        VectorShards([random_half(options.documents, options.dimension, device)], "float16"),
        Ids(map(str, range(options.documents))),
        similarity="cosine",
        placement=Placement(options.device),
    )
    queries = torch.randn(options.queries, options.dimension, device=device)
    taken = timed(lambda: live.topk(queries, options.k), options.repeats)
    size = 2 * options.documents * options.dimension
    bandwidth = copy_bandwidth(device, options.repeats)
    once = size / bandwidth
    print(torch.cuda.get_device_name(device))
    print(f"{options.documents:,} x {options.dimension} float16, {options.queries} queries, k {options.k}")
    print(f"search {1e3 * taken:.2f} ms; the matrix read once at {bandwidth / 1e9:.0f} GB/s {1e3 * once:.2f} ms")
    print(f"ratio {taken / once:.2f}")


def random_half(documents: int, dimension: int, device: torch.device) -> np.ndarray:
    """Random unit vectors in float16 as an array on the host, drawn on the device."""
    whole = torch.empty((documents, dimension), dtype=torch.float16)
    generator = torch.Generator(device).manual_seed(0)
    for start in range(0, documents, _BLOCK):
        part = torch.randn(min(_BLOCK, documents - start), dimension, generator=generator, device=device)
        whole[start : start + len(part)] = torch.nn.functional.normalize(part).half().cpu()
    return whole.numpy()


def timed(call: Callable[[], object], repeats: int) -> float:
    """Median seconds of a call on the GPU, after two to warm up."""
    taken: list[float] = []
    for number in range(repeats + 2):
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        torch.cuda.synchronize()
        if number > 1:
            taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def copy_bandwidth(device: torch.device, repeats: int) -> float:
    """Bytes read and written a second by a copy on the device."""
    source = torch.zeros(_COPIED, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * _COPIED / timed(lambda: target.copy_(source), repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--documents", type=int)
    parser.add_argument("--dimension", type=int)
    parser.add_argument("--queries", type=int, default=32)
    parser.add_argument("--k", type=int, default=200)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    cpu = options.device == "cpu"
    options.documents = options.documents or (1_000_000 if cpu else 8_841_823)
    options.dimension = options.dimension or (384 if cpu else 768)
    (on_cpu if cpu else on_gpu)(options)


if __name__ == "__main__":
    main()
