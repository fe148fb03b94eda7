"""The sampler of TAS-Balanced on a generated table of scored pairs: time a batch, anonymous memory, time to prepare.

    python benchmarks/tas_sampler.py [--queries 400000] [--negatives 100] [--clusters 2000] [--batch-size 32]

Every query has one positive (every tenth two) and so many negatives, scored as by a cross-encoder. The table is written
by another process, so that the memory is that of training: RssAnon of /proc/self/status, at its peak while the margins
are sorted, and while batches are drawn. Mapped pages, which the kernel can drop, do not count. Aims at 40 million
pairs: at most 0.2 ms a batch of 32 (median), at most 1.5 GB.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc
from memory import Peak, anonymous  # the neighbour, found because it lies beside this script

from rtk.ids import Ids
from rtk.retrieval.sampling import Clusters, TopicAwareSampler
from rtk.retrieval.sampling.margin_balanced import pairs_of
from rtk.retrieval.sampling.topic_draws import TopicAware
from rtk.retrieval.training.examples import TableReport, TrainingTable

DOCUMENTS = 8_841_823


def make_table(folder: Path, queries: int, negatives: int) -> None:
    """Write a training table's files as `write_table` does."""
    generator = np.random.default_rng(0)
    positives = np.where(np.arange(queries) % 10 == 0, 2, 1).astype(np.int32)
    offsets = np.concatenate([[0], np.cumsum(positives + negatives, dtype=np.int64)])
    entries = int(offsets[-1])
    place = np.arange(entries) - np.repeat(offsets[:-1], np.diff(offsets))
    positive = place < np.repeat(positives, np.diff(offsets))
    scores = np.where(positive, 8, 1) + generator.standard_normal(entries, dtype=np.float32) * np.float32(3)
    documents = generator.integers(0, DOCUMENTS, entries, dtype=np.int32)

    def lists(values: np.ndarray) -> pa.LargeListArray:
        return pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(values))

    columns = {
        "query": pa.array(np.arange(queries, dtype=np.int32)),
        "positives": pa.array(positives),
        "documents": lists(documents),
        "grade": lists(positive.astype(np.float32)),
        "cat": lists(scores.astype(np.float32)),
    }
    table = pa.table(columns)
    with pa.OSFile(str(folder / "table.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    for kind in ("query", "document"):
        np.save(folder / f"{kind}_twins.npy", np.zeros((0, 2), np.int64))
    total = int(positives.sum())
    report = TableReport(queries, total, entries - total, 0, 0, 0, 0, 0)
    (folder / "meta.json").write_text(json.dumps({"fingerprint": "generated", "report": vars(report)}))


def open_table(folder: Path, queries: int) -> TrainingTable:
    ids = Ids([str(number) for number in range(queries)])
    asked = SimpleNamespace(ids=ids, texts=[f"what is {number}" for number in range(queries)])
    collection: Any = SimpleNamespace(name="generated", documents=range(DOCUMENTS), queries=lambda split: asked)
    return TrainingTable(folder, collection, "train")


def clusters_of(table: TrainingTable, count: int) -> Clusters:
    """Very unequal clusters, as real ones are."""
    generator = np.random.default_rng(1)
    share = generator.lognormal(0, 1, count)
    return Clusters.from_assignment(table.query_ids, generator.choice(count, len(table), p=share / share.sum()), count)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=400_000)
    parser.add_argument("--negatives", type=int, default=100)
    parser.add_argument("--clusters", type=int, default=2000)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--batches", type=int, default=5000)
    parser.add_argument("--folder", type=Path, help="where to write the table; by default a temporary folder")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder = Path(name)
        maker = multiprocessing.get_context("spawn").Process(
            target=make_table, args=(folder, given.queries, given.negatives)
        )
        maker.start()
        maker.join()
        if maker.exitcode:
            raise RuntimeError(f"writing the table failed with exit code {maker.exitcode}")
        print(json.dumps(measure(folder, given), indent=2))


def measure(folder: Path, given: argparse.Namespace) -> dict[str, float]:
    """Prepare the margins, then draw batches far apart, as a resumed run would, and in order."""
    start = anonymous()
    with Peak() as opening:
        table = open_table(folder, given.queries)
        began = time.perf_counter()
        pairs = pairs_of(table, "bins")
        prepared = time.perf_counter() - began
    with Peak() as drawing:
        settings = TopicAware(given.batch_size, seed=7)
        sampler = TopicAwareSampler(table, clusters_of(table, given.clusters), pairs, settings)
        times = np.empty(given.batches)
        for number in range(given.batches):
            began = time.perf_counter()
            draw = sampler.draw(number)
            times[number] = time.perf_counter() - began
            if len(draw) != given.batch_size:
                raise RuntimeError(f"batch {number} has {len(draw)} examples")
    return {
        "pairs": int(len(table.entries) - table.positives.sum()),
        "median_ms": round(float(np.median(times)) * 1000, 4),
        "p95_ms": round(float(np.quantile(times, 0.95)) * 1000, 4),
        "first_ms": round(float(times[0]) * 1000, 4),
        "prepare_s": round(prepared, 2),
        "anonymous_at_start_mb": round(start / 2**20, 1),
        "anonymous_preparing_mb": round(opening.bytes / 2**20, 1),
        "anonymous_drawing_mb": round(drawing.bytes / 2**20, 1),
    }


if __name__ == "__main__":
    main()
