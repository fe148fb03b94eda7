"""Does CET help where its reason holds? A synthetic pool with known relevance and known selection.

    python benchmarks/cet_synthetic.py COLLECTION [--pool 5] [--depth 50] [--train-queries 24] [--steps 80]
        [--seeds 5] [--first-seed 0] [--temperature 1] [--layers 3] [--model FOLDER] [--selections pool random]
        [--systems unweighted cet ...] [--work DIR] [--out FILE]

COLLECTION is a folder in BEIR layout with many judgments a query (nfcorpus). Its judgments are the truth. Labelled is
only what a pool of BM25's top documents would have contained; all other candidates, the relevant ones among them, are
negatives for training. Measured is where a cross-encoder puts the relevant documents that nobody labelled, against the
documents that are not relevant:

- accuracy: share of (unlabelled relevant, not relevant) pairs of a query in the right order, mean over queries;
- rank: mean rank of the unlabelled relevant documents among those two kinds, as a share of the list (less is better);

on the training queries, and on queries that training has not seen. The cross-encoder begins as the first layers of
all-MiniLM-L6-v2, warmed up on crops of the documents (`rtk crop`) unless `--model` is one that is trained already.
Systems differ in their loss only: the same pairs unweighted (RankNet), CET with two cross-encoders, CET whose selection
model sees rank and score alone. In the control as many documents are labelled, drawn at random among the relevant
candidates: rank and score then tell nothing about selection, and CET must not help. Differences are paired by seed,
with a 95% t interval over the seeds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from rtk.eval import Cropping, crop_queries, write_beir
from rtk.eval.collection import Collection, open_collection
from rtk.eval.files import write_run
from rtk.eval.run import Run
from rtk.retrieval.encoders.load import load_minilm_path
from rtk.retrieval.indexing import build_index
from rtk.retrieval.search import Retriever
from rtk.retrieval.training.config import load_config
from rtk.retrieval.training.evaluation import rerank_pairs
from rtk.retrieval.training.trainer import train

SYSTEMS = ("unweighted", "cet", "cet-features", "cet-both")
MEASURES = ("accuracy", "rank")


@dataclass(frozen=True)
class Pool:
    """Candidates and what is known of them, as (entries,) bool beside the run."""

    run: Run
    relevant: np.ndarray
    labelled: np.ndarray

    @property
    def unlabelled(self) -> np.ndarray:
        return self.relevant & ~self.labelled

    def queries(self) -> list[str]:
        """Those with a labelled and an unlabelled relevant document, and one that is not relevant."""
        kinds = [_each(self.run, mask) for mask in (self.labelled, self.unlabelled, ~self.relevant)]
        return [qid for qid, counts in zip(self.run.qids, zip(*kinds, strict=True), strict=True) if all(counts)]

    def place(self, scores: np.ndarray) -> dict[str, float]:
        """Accuracy and relative rank of the unlabelled relevant documents, means over queries, by entries' `scores`."""
        accuracies: list[float] = []
        ranks: list[float] = []
        for wanted, others in zip(places(self.run, self.unlabelled), places(self.run, ~self.relevant), strict=True):
            if len(wanted) and len(others):
                accuracies.append(float((scores[wanted][:, None] > scores[others][None, :]).mean()))
                both = np.concatenate([scores[wanted], scores[others]])
                ranks.append(float((stats.rankdata(-both)[: len(wanted)] / len(both)).mean()))
        return {"accuracy": float(np.mean(accuracies)), "rank": float(np.mean(ranks)), "queries": len(accuracies)}

    def select(self, qids: list[str]) -> Pool:
        columns = {"relevant": self.relevant, "labelled": self.labelled}
        chosen = self.run.replace(columns=columns).select(qids)
        return Pool(chosen.replace(columns={}), chosen.columns["relevant"], chosen.columns["labelled"])


def _each(run: Run, mask: np.ndarray) -> np.ndarray:
    return np.add.reduceat(np.append(mask, False), run.offsets[:-1]) * (np.diff(run.offsets) > 0)


def places(run: Run, mask: np.ndarray) -> list[np.ndarray]:
    """Each query's entries for which `mask` holds."""
    return [start + np.flatnonzero(mask[start:stop]) for start, stop in itertools.pairwise(run.offsets.tolist())]


def make_pool(run: Run, collection: Collection, split: str, pool: int, selection: str) -> Pool:
    """Label the relevant documents of the first `pool` ranks, or as many at random among the relevant candidates."""
    judgments = collection.judgments(split)
    relevant = np.array(
        [doc in truth for entry in run for truth in [set(judgments.relevant(entry.qid))] for doc in entry.documents]
    )
    labelled = relevant & (run.ranks <= pool)
    if selection == "random":
        generator = np.random.default_rng(0)
        for row in range(len(run)):
            part = slice(int(run.offsets[row]), int(run.offsets[row + 1]))
            among = part.start + np.flatnonzero(relevant[part])
            chosen = generator.choice(among, size=int(labelled[part].sum()), replace=False)
            labelled[part] = False
            labelled[chosen] = True
    return Pool(run, relevant, labelled)


def warm_up(collection: Collection, given: argparse.Namespace) -> Path:
    """A cross-encoder of a few layers that has learned to match queries cut out of the documents."""
    from transformers import AutoModel, AutoTokenizer

    crops, start, warm = given.work / "crops", given.work / "start", given.work / "warm"
    if warm.exists():
        return warm
    write_beir(crop_queries(collection, Cropping(within=40)), crops, overwrite=True)
    path = load_minilm_path()
    network = AutoModel.from_pretrained(path, num_hidden_layers=given.layers)
    network.save_pretrained(start)
    AutoTokenizer.from_pretrained(path).save_pretrained(start)
    config = {
        "method": "cross-encoder",
        "model": str(start),
        "data": {"collection": str(crops)},
        "lengths": {"query": 24, "document": given.document_length},
        "sampling": {"negatives": 3, "unit": "query"},
        "loss": [{"name": "ranknet"}],
        "trainer": {
            "per_device_train_batch_size": 8, "learning_rate": 1e-4, "max_steps": 150, "warmup_steps": 0.1,
            "save_strategy": "no", "use_cpu": given.cpu,
        },
        "output": str(warm),
        "seed": 1,
    }  # fmt: skip
    return train(load_config(config), overwrite=True)


def write_training_data(pool: Pool, collection: Path, folder: Path) -> None:
    """A collection whose judgments are the labels, the negatives, and the first stage's run."""
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    for path in collection.glob("*.jsonl*"):
        link = folder / path.name
        if not link.exists():
            link.symlink_to(path.resolve())
    qids = [pool.run.qids[row] for row in pool.run.query_rows.tolist()]
    pairs = zip(qids, pool.run.documents.to_pylist(), pool.labelled.tolist(), strict=True)
    lines = ["query-id\tcorpus-id\tscore", *(f"{qid}\t{doc}\t1" for qid, doc, labelled in pairs if labelled)]
    (folder / "qrels" / "train.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    write_run(pool.run, folder / "first-stage.parquet")
    write_run(pool.run.filter(~pool.labelled), folder / "negatives.parquet")


def losses(system: str, given: argparse.Namespace) -> list[dict[str, Any]]:
    """The loss block of a system."""
    cet = {"name": "cet", "temperature": given.temperature, "weight_cap": given.cap}
    cet["self_normalise"] = given.self_normalise
    features = {"selection_features": ["rank", "score"]}
    blocks: dict[str, dict[str, Any]] = {
        "unweighted": {"name": "ranknet"},
        "cet": cet,
        "cet-features": {**cet, **features, "selection_model": "features"},
        "cet-both": {**cet, **features},
    }
    return [blocks[system]]


def train_one(folder: Path, output: Path, system: str, seed: int, given: argparse.Namespace) -> Path:
    config = {
        "method": "cross-encoder",
        "model": str(given.model),
        "data": {
            "collection": str(folder),
            "runs": {
                "negatives": str(folder / "negatives.parquet"), "first_stage": str(folder / "first-stage.parquet")
            },
        },
        "lengths": {"query": 32, "document": given.document_length},
        "sampling": {"negatives": given.negatives, "unit": "pair"},
        "loss": losses(system, given),
        "trainer": {
            "per_device_train_batch_size": given.batch, "learning_rate": given.learning_rate, "max_steps": given.steps,
            "warmup_steps": given.steps // 10, "save_strategy": "no", "use_cpu": given.cpu,
        },
        "output": str(output),
        "seed": seed,
    }  # fmt: skip
    return train(load_config(config), overwrite=True)


def measure(model: str | Path, pool: Pool, collection: Collection, split: str, length: int) -> dict[str, float]:
    """Accuracy and relative rank of the unlabelled relevant documents, means over queries."""
    from sentence_transformers import CrossEncoder

    encoder = CrossEncoder(str(model), max_length=32 + length)
    scored = rerank_pairs(encoder, pool.run, collection.queries(split), collection, 64)
    order = {
        (entry.qid, doc): score for entry in scored for doc, score in zip(entry.documents, entry.scores, strict=True)
    }
    return pool.place(np.array([order[entry.qid, doc] for entry in pool.run for doc in entry.documents]))


def compare(values: dict[str, list[dict[str, float]]], systems: list[str], name: str) -> dict[str, Any]:
    """Each system's mean, and its paired difference from the unweighted one with a 95% t interval over seeds."""
    base = np.array([entry[name] for entry in values["unweighted"]])
    result: dict[str, Any] = {}
    for system in systems:
        found = np.array([entry[name] for entry in values[system]])
        gain = found - base
        entry = {"mean": found.mean(), "difference": gain.mean(), "interval": None}
        if len(gain) > 1 and system != "unweighted":
            half = stats.t.ppf(0.975, len(gain) - 1) * gain.std(ddof=1) / np.sqrt(len(gain))
            entry["interval"] = [gain.mean() - half, gain.mean() + half]
        result[system] = {key: value if value is None else np.round(value, 4).tolist() for key, value in entry.items()}
    return result


def candidates(collection: Collection, split: str, depth: int, work: Path) -> Run:
    """BM25's top documents of a split's queries."""
    index = work / "bm25"
    if not index.exists():
        build_index(collection, index)
    return Retriever.open(index).run(collection.queries(split), depth)


def experiment(
    selection: str, runs: dict[str, Run], collection: Collection, given: argparse.Namespace
) -> dict[str, Any]:
    """All systems and seeds under one kind of selection."""
    pools = {split: make_pool(run, collection, split, given.pool, selection) for split, run in runs.items()}
    sizes = {"train": given.train_queries, given.held_out: given.test_queries}
    for split, pool in pools.items():
        qids = pool.queries()
        chosen = np.random.default_rng(1).permutation(len(qids))[: sizes[split]]
        pools[split] = pool.select([qids[at] for at in sorted(chosen.tolist())])
    folder = given.work / selection
    write_training_data(pools["train"], given.collection, folder)
    trained = pools["train"]
    counts = f"{trained.labelled.sum()} labelled, {trained.unlabelled.sum()} relevant ones unlabelled"
    print(f"{selection}: {counts}, {len(trained.run.codes)} candidates, {len(trained.run)} queries", flush=True)
    values: dict[str, dict[str, list[dict[str, float]]]] = {split: {s: [] for s in given.systems} for split in pools}
    before = {
        split: measure(given.model, pool, collection, split, given.document_length) for split, pool in pools.items()
    }
    print(f"{selection} before training: {before}", flush=True)
    for seed in range(given.first_seed, given.first_seed + given.seeds):
        for system in given.systems:
            began = time.perf_counter()
            model = train_one(folder, given.work / f"{selection}-{system}-{seed}", system, seed, given)
            for split, pool in pools.items():
                found = measure(model, pool, collection, split, given.document_length)
                values[split][system].append(found)
                shown = ", ".join(f"{name} {found[name]:.4f}" for name in MEASURES)
                print(f"{selection} {system} seed {seed} {split}: {shown} ({found['queries']} queries)", flush=True)
            print(f"  {time.perf_counter() - began:.0f} s", flush=True)
    summary = {split: {name: compare(of, given.systems, name) for name in MEASURES} for split, of in values.items()}
    return {"before": before, "values": values, "summary": summary}


def tell(results: dict[str, Any], given: argparse.Namespace) -> None:
    """Print means and differences by selection, split, measure and system; write all values where asked."""
    for selection, result in results.items():
        for split, by_measure in result["summary"].items():
            for name, systems in by_measure.items():
                for system, found in systems.items():
                    print(f"{selection:7} {split:6} {name:9} {system:13} {found['mean']:.4f}  "
                          f"difference {found['difference']:+.4f} {found['interval'] or ''}")  # fmt: skip
    if given.out is not None:
        settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(given).items()}
        given.out.write_text(json.dumps({"settings": settings, **results}, indent=2) + "\n", encoding="utf-8")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("collection", type=Path)
    parser.add_argument("--held-out", default="dev", help="split of the unseen queries")
    parser.add_argument("--pool", type=int, default=5, help="depth that was judged")
    parser.add_argument("--depth", type=int, default=50, help="candidates a query")
    parser.add_argument("--train-queries", type=int, default=24)
    parser.add_argument("--test-queries", type=int, default=12)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=8, help="queries a step")
    parser.add_argument("--negatives", type=int, default=3)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--document-length", type=int, default=40)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--cap", type=float, default=None, help="no weight above this; as published none")
    parser.add_argument("--self-normalise", action="store_true")
    parser.add_argument("--layers", type=int, default=3, help="of the cross-encoder that is made and warmed up")
    parser.add_argument("--model", type=Path, default=None, help="a trained cross-encoder in its place")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=["unweighted", "cet-features"])
    parser.add_argument("--selections", nargs="+", choices=["pool", "random"], default=["pool", "random"])
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--work", type=Path, default=None)
    parser.add_argument("--out", type=Path, default=None, help="JSON of all values")
    given = parser.parse_args()
    if "unweighted" not in given.systems:
        parser.error("--systems must have unweighted, which the others are compared with")
    given.work = given.work or Path(tempfile.mkdtemp())
    return given


def main() -> None:
    given = parse()
    collection = open_collection(str(given.collection))
    given.work.mkdir(parents=True, exist_ok=True)
    given.model = given.model or warm_up(collection, given)
    runs = {split: candidates(collection, split, given.depth, given.work) for split in ("train", given.held_out)}
    results = {selection: experiment(selection, runs, collection, given) for selection in given.selections}
    tell(results, given)


if __name__ == "__main__":
    main()
