"""Does contrastive training learn? MiniLM on nfcorpus, dev nDCG@10 before and after, beside shuffled judgments.

    python benchmarks/train_contrastive.py DATA [--steps 60] [--seeds 1] [--document-length 64] [--only …] [--work DIR]

DATA is a folder that holds `nfcorpus` in BEIR layout. The control trains on the same texts with the documents of the
train judgments permuted, so that whatever it gains is not relevance.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from rtk.retrieval.training.config import load_config
from rtk.retrieval.training.trainer import train


def shuffled(collection: Path, folder: Path, seed: int) -> Path:
    """The collection with its train judgments' documents permuted over all judgments."""
    (folder / "qrels").mkdir(parents=True)
    for path in collection.glob("*.jsonl*"):
        (folder / path.name).symlink_to(path.resolve())
    header, *rows = (collection / "qrels" / "train.tsv").read_text().splitlines()
    cells = [row.split("\t") for row in rows]
    order = np.random.default_rng(seed).permutation(len(cells))
    pairs = dict.fromkeys((cells[n][0], cells[order[n]][1]) for n in range(len(cells)))
    lines = [header, *(f"{query}\t{document}\t1" for query, document in pairs)]
    (folder / "qrels" / "train.tsv").write_text("\n".join(lines) + "\n")
    return folder


def run(collection: Path, dev: Path, output: Path, *, seed: int, steps: int, length: int) -> dict[str, Any]:
    """Train once; return what the run recorded and its seconds."""
    config = {
        "method": "contrastive",
        "model": "minilm",
        "data": {"collection": str(collection)},
        "lengths": {"query": 32, "document": length},
        "evaluation": {"collection": str(dev), "split": "dev", "measure": "nDCG@10", "every": steps},
        "trainer": {"max_steps": steps, "learning_rate": 2e-5, "warmup_steps": steps // 10, "use_cpu": True},
        "output": str(output),
        "seed": seed,
    }
    began = time.perf_counter()
    train(load_config(config))
    return json.loads((output / "rtk-run.json").read_text()) | {"seconds": time.perf_counter() - began}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--document-length", type=int, default=64)
    parser.add_argument("--only", choices=["judgments", "shuffled judgments"], default=None)
    parser.add_argument("--work", type=Path, default=None)
    given = parser.parse_args()
    work = given.work or Path(tempfile.mkdtemp())
    real = given.data / "nfcorpus"
    for seed in range(given.seeds):
        control = shuffled(real, work / f"shuffled-{seed}", seed)
        for name, collection in (("judgments", real), ("shuffled judgments", control)):
            if given.only not in (None, name):
                continue
            output = work / f"{name.split()[0]}-{seed}-model"
            found = run(collection, real, output, seed=seed, steps=given.steps, length=given.document_length)
            before, after = (entry["nDCG@10"] for entry in found["evaluations"])
            print(
                f"seed {seed}, {name}: dev nDCG@10 {before:.4f} -> {after:.4f} ({found['seconds']:.0f} s)", flush=True
            )


if __name__ == "__main__":
    main()
