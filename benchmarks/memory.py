"""Memory of encoding and indexing generated short documents with a stub encoder: anonymous pages, and bytes a document.

    python benchmarks/memory.py [--documents 1000000] [--backend torch] [--dimension 384] [--shard-size 50000]

Anonymous memory is RssAnon of /proc/self/status: mapped pages, which the kernel can drop, do not count. Aim for torch:
below 1.2 GB at 1,000,000 documents, growth of at most 100 bytes a document. FAISS Flat and bm25s hold everything while
building and log their need before they start. The ids are made before the watch begins, as a collection maps its own;
made from Python strings they would cost about 70 bytes each for a moment.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rtk.ids import Ids
from rtk.indexes import BuildPlan, build_dense, build_lexical, parse_backend


def anonymous() -> int:
    """RssAnon in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("this kernel's /proc/self/status has no RssAnon")


class Peak:
    """The greatest anonymous memory seen by a thread that looks a hundred times a second."""

    def __enter__(self) -> Peak:
        self.bytes, self._stop = anonymous(), threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.01):
            self.bytes = max(self.bytes, anonymous())

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.bytes = max(self.bytes, anonymous())


def text(row: int) -> str:
    return f"document {row} speaks of w{row % 997} and w{row % 89} and w{row % 7}"


def run(backend: str, ids: Ids, dimension: int, shard_size: int) -> tuple[int, int]:
    """Build and search; return the peak and what is held afterwards, in bytes."""
    plan = BuildPlan(parse_backend(backend), shard_size=shard_size, similarity="cosine")

    def texts(start: int, stop: int) -> Sequence[str]:
        return [text(row) for row in range(start, stop)]

    def encode(start: int, stop: int) -> np.ndarray:
        lengths = np.fromiter(map(len, texts(start, stop)), dtype=np.float32)
        noise = np.random.default_rng(start).standard_normal((stop - start, dimension), dtype=np.float32)
        return noise + lengths[:, None]

    with tempfile.TemporaryDirectory() as folder, Peak() as peak:
        out = Path(folder) / "index"
        if backend in ("bm25s", "lucene"):
            index = build_lexical(out, ids, texts, plan=plan)
            index.search(["document w3"], 100)
        else:
            index = build_dense(out, ids, encode, plan=plan)
            index.search(np.ones((32, dimension), dtype=np.float32), 100)
        held = anonymous()
    return peak.bytes, held


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=1_000_000)
    parser.add_argument("--dimension", type=int, default=384)
    parser.add_argument("--backend", default="torch")
    parser.add_argument("--shard-size", type=int, default=50_000, help="a shard or two are in memory while building")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    ids = Ids(f"doc-{row:09d}" for row in range(options.documents))
    run(options.backend, ids[:60_000], options.dimension, options.shard_size)  # libraries loaded, allocator warm
    before: tuple[int, int] | None = None
    for part in (4, 2, 1):
        count = options.documents // part
        peak, held = run(options.backend, ids[:count], options.dimension, options.shard_size)
        growth = "" if before is None else f", growth {(peak - before[1]) / (count - before[0]):.1f} bytes a document"
        print(
            f"{options.backend} {count:,} documents: peak {peak / 1e9:.3f} GB, after {held / 1e9:.3f} GB{growth}",
            flush=True,
        )
        before = count, peak


if __name__ == "__main__":
    main()
