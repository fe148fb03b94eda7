"""Evaluation against raw pytrec_eval: 6,980 queries x 1,000 documents, three measures.

    OMP_NUM_THREADS=1 python benchmarks/evaluation.py [--queries 6980] [--depth 1000] [--repeats 3] [--out FILE.json]

Both sides get the same generated run with the scores of one random ranking a query and one or two relevant documents.
pytrec_eval gets ready-made dictionaries, and only `RelevanceEvaluator.evaluate` is timed; rtk gets a `Run` and is timed
from there to means. Each side runs in processes of its own, in turn, so that peaks of memory are its own; "added" is
the peak less what the process held with its input ready.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import resource
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

MEASURES = "nDCG@10 RR@10 R@1000"
CORPUS = 8_841_823


def make(queries: int, depth: int) -> tuple[np.ndarray, np.ndarray, dict[str, dict[str, int]]]:
    """(queries, depth) document numbers and falling scores, and judgments of documents in or outside the lists."""
    rng = np.random.default_rng(0)
    documents = np.stack([rng.choice(CORPUS, depth, replace=False) for _ in range(queries)])
    scores = -np.sort(-rng.normal(10, 2, (queries, depth)).astype(np.float32), axis=1)
    judged: dict[str, dict[str, int]] = {}
    for query in range(queries):
        places = rng.geometric(0.05, 2) - 1
        picks = [documents[query, place] if place < depth else rng.integers(CORPUS) for place in places]
        judged[str(query)] = {str(pick): 1 for pick in picks[: 1 + (query % 16 == 0)]}
    return documents, scores, judged


def raw(queries: int, depth: int) -> dict[str, Any]:
    """pytrec_eval on ready-made dictionaries."""
    import pytrec_eval

    documents, scores, judged = make(queries, depth)
    names, values = documents.astype(str), scores.astype(float)
    run = {
        str(query): dict(zip(names[query].tolist(), values[query].tolist(), strict=True)) for query in range(queries)
    }
    del documents, scores, names, values
    evaluator = pytrec_eval.RelevanceEvaluator(judged, {"ndcg_cut.10", "recip_rank", "recall.1000"})
    held = resident()
    start = time.perf_counter()
    found = evaluator.evaluate(run)
    seconds = time.perf_counter() - start
    means = {name: float(np.mean([row[name] for row in found.values()])) for name in ("ndcg_cut_10", "recall_1000")}
    return {"seconds": seconds, "held_mb": held, "peak_mb": peak_since_reset(), "means": list(means.values())}


def ours(queries: int, depth: int) -> dict[str, Any]:
    """rtk on a run."""
    from rtk.eval import Judgments, Run, evaluate
    from rtk.ids import Ids

    documents, scores, judged = make(queries, depth)
    run = Run.from_columns(
        Ids(map(str, range(queries))), np.arange(queries + 1) * depth,
        pa.compute.cast(pa.array(documents.ravel()), pa.large_string()), scores.ravel(),
    )  # fmt: skip
    judgments = Judgments.from_dict(judged)
    del documents, scores
    held = resident()
    start = time.perf_counter()
    found = evaluate(run, judgments, MEASURES)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "held_mb": held, "peak_mb": peak_since_reset(),
            "means": [found.mean("nDCG@10"), found.mean("R@1000")]}  # fmt: skip


def resident() -> float:
    """Resident memory now, in MB; the kernel's peak is reset to it where that is allowed."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return round(pages * resource.getpagesize() / 1e6, 1)


def peak_since_reset() -> float:
    """Highest resident memory since `resident`, in MB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return round(int(line.split()[1]) * 1024 / 1e6, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=6980)
    parser.add_argument("--depth", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    results: dict[str, list[dict[str, Any]]] = {"pytrec_eval": [], "rtk": []}
    context = multiprocessing.get_context("spawn")
    for _ in range(options.repeats):
        for name, side in (("pytrec_eval", raw), ("rtk", ours)):
            with context.Pool(1) as pool:
                results[name].append(pool.apply(side, (options.queries, options.depth)))
    summary: dict[str, Any] = {"queries": options.queries, "depth": options.depth, "measures": MEASURES}
    for name, found in results.items():
        summary[name] = {
            "median_seconds": round(statistics.median(row["seconds"] for row in found), 2),
            "seconds": [round(row["seconds"], 2) for row in found],
            "input_held_mb": found[-1]["held_mb"],
            "added_mb": round(max(row["peak_mb"] - row["held_mb"] for row in found), 1),
        }
    summary["ratio"] = round(summary["rtk"]["median_seconds"] / summary["pytrec_eval"]["median_seconds"], 2)
    summary["largest_difference_of_means"] = max(
        abs(a - b) for a, b in zip(results["rtk"][0]["means"], results["pytrec_eval"][0]["means"], strict=True)
    )
    text = json.dumps(summary, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
