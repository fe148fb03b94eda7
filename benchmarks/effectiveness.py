"""BM25 and MiniLM on scifact and nfcorpus by the program itself, beside the published figures.

    python benchmarks/effectiveness.py DATA [--work DIR]

DATA is a folder that holds `scifact` and `nfcorpus` in BEIR layout. Every step is a command of `rtk`, which is printed.
Published: Anserini's reproduction tables (BM25 flat, k1 0.9, b 0.4), MTEB (all-MiniLM-L6-v2, 256 tokens).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

SYSTEMS = {
    "lucene": ["--backend", "lucene"],
    "bm25s": [],
    "minilm": ["--retriever", "minilm", "--document-length", "256", "--query-length", "256", "--backend", "torch"],
    "minilm-int8": [
        *("--retriever", "minilm", "--document-length", "256", "--query-length", "256"),
        *("--backend", "torch", "--quantise", "int8"),
    ],
    "minilm-onnx": [
        *("--retriever", "minilm", "--document-length", "256", "--query-length", "256"),
        *("--backend", "torch", "--encoder-backend", "onnx"),
    ],
}
PUBLISHED = {
    ("scifact", "lucene"): {"nDCG@10": 0.6789, "R@100": 0.9253},
    ("nfcorpus", "lucene"): {"nDCG@10": 0.3218, "R@100": 0.2457},
    ("scifact", "bm25s"): {"nDCG@10": 0.6789, "R@100": 0.9253},
    ("nfcorpus", "bm25s"): {"nDCG@10": 0.3218, "R@100": 0.2457},
    ("scifact", "minilm"): {"nDCG@10": 0.6451},
    ("nfcorpus", "minilm"): {"nDCG@10": 0.3159},
    ("scifact", "minilm-int8"): {"nDCG@10": 0.6451},
    ("nfcorpus", "minilm-int8"): {"nDCG@10": 0.3159},
}


def rtk(*arguments: str) -> str:
    """Run the program; return what it printed."""
    print("$ rtk", *arguments, flush=True)
    return subprocess.run(
        [sys.executable, "-m", "rtk", *arguments], check=True, stdout=subprocess.PIPE, text=True
    ).stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--work", type=Path, default=None)
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=["lucene", "bm25s", "minilm"])
    parser.add_argument("--collections", nargs="+", default=["scifact", "nfcorpus"])
    args = parser.parse_args()
    work = args.work or Path(tempfile.mkdtemp())
    lines = []
    for name in args.collections:
        folder = str(args.data / name)
        for system in args.systems:
            index, run = str(work / f"{name}.{system}"), str(work / f"{name}.{system}.trec")
            rtk("index", folder, *SYSTEMS[system], "--out", index, "--quiet")
            rtk("search", index, "-c", folder, "-k", "1000", "--out", run, "--quiet")
            report = json.loads(rtk("eval", run, "-c", folder, "-m", "nDCG@10 R@100", "--json", "--quiet"))
            means = report["evaluations"][0]["means"]
            for measure, published in PUBLISHED.get((name, system), {}).items():
                lines.append((name, system, measure, means[measure], published))
    print(f"{'collection':<10} {'system':<12} {'measure':<8} {'measured':>8} {'published':>9} {'difference':>10}")
    for name, system, measure, value, published in lines:
        print(f"{name:<10} {system:<12} {measure:<8} {value:>8.4f} {published:>9.4f} {value - published:>+10.4f}")


if __name__ == "__main__":
    main()
