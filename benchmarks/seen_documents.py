"""Does training help on documents that it has seen only? Effectiveness by whether a query's documents were in training.

    python benchmarks/seen_documents.py COLLECTION zero-shot.trec adore.trec ... [--train train] [--split test]

The first run is the baseline. "seen" are the queries with a relevant document that is relevant to a query of the
training split too, "unseen" the others. Told beside it: the share of queries with a near copy among the training
queries, of more than .6 and .8 of their words in common (Jaccard). Differences are means over the queries of a group,
with 95% t intervals.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy import stats

from rtk.eval.collection import open_collection
from rtk.eval.files import read_run
from rtk.eval.measures import evaluate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("collection")
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--train", default="train")
    parser.add_argument("--split", default="test")
    parser.add_argument("--measures", default="nDCG@10 R@100")
    given = parser.parse_args()
    collection = open_collection(given.collection)
    training, judgments = collection.judgments(given.train), collection.judgments(given.split)
    known = {document for qid in training for document in training.relevant(qid)}
    seen = np.array([not known.isdisjoint(judgments.relevant(qid)) for qid in judgments])
    groups = {"seen": seen, "unseen": ~seen}
    print(", ".join(f"{int(mask.sum())} {name}" for name, mask in groups.items()))
    nearest = _nearest(collection.queries(given.split).texts, collection.queries(given.train).texts)
    print(
        "near copies of a training query: " + ", ".join(f"{(nearest > at).mean():.2f} above {at}" for at in (0.6, 0.8))
    )
    found = [evaluate(read_run(path), judgments, given.measures) for path in given.runs]
    for measure in given.measures.split():
        rows = [entry.values[measure] for entry in found]
        for path, values in zip(given.runs, rows, strict=True):
            shown = [f"{name} {values[mask].mean():.4f} {_difference((values - rows[0])[mask])}"
                     for name, mask in groups.items() if mask.any()]  # fmt: skip
            print(f"{measure:8} {path.stem:24} {'   '.join(shown)}")


def _nearest(texts: Sequence[str], others: Sequence[str]) -> np.ndarray:
    """For each text the greatest Jaccard similarity of its words with those of another. (n,)."""
    first, second = ([set(re.findall(r"\w+", text.lower())) for text in each] for each in (texts, others))
    return np.array([max(len(one & two) / max(len(one | two), 1) for two in second) for one in first])


def _difference(gains: np.ndarray) -> str:
    half = stats.t.ppf(0.975, len(gains) - 1) * gains.std(ddof=1) / np.sqrt(len(gains)) if len(gains) > 1 else np.nan
    return f"{gains.mean():+.4f} [{gains.mean() - half:+.4f}, {gains.mean() + half:+.4f}]"


if __name__ == "__main__":
    main()
