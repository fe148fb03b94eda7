"""Does CET help a reranker over features? The synthetic pool of `cet_synthetic.py` with a model that trains in seconds.

    python benchmarks/cet_features.py COLLECTION [--pool 10] [--depth 100] [--steps 2000] [--seeds 5] [--first-seed 1]
        [--temperature 1] [--cap 10] [--work DIR] [--out FILE]

The pool, the labels, the control and what is measured are those of `cet_synthetic.py`, over all queries of the training
split. The reranker is a network of one hidden layer over BM25's score, the cosine of all-MiniLM-L6-v2 and the products
of the two vectors' entries; the encoder stays as it is. Systems:

- unweighted: the pairs as they are, softplus(s⁻ − s⁺);
- cet: the same with the weights of a selection model that sees first-stage rank and score;
- oracle: the same without the negatives that are relevant, which only a benchmark knows: what there is to gain.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cet_synthetic import MEASURES, Pool, candidates, compare, make_pool, places, tell
from torch import nn

from rtk.eval.collection import Collection, open_collection
from rtk.indexes import open_index
from rtk.retrieval.encoders.load import load_encoder
from rtk.retrieval.indexing import build_index
from rtk.retrieval.losses.cet import Debiasing, cet_costs, pair_costs
from rtk.retrieval.losses.selection import FeatureHead

SYSTEMS = ("unweighted", "cet", "oracle")
NEGATIVES = 4


class Data:
    """A split's candidates as arrays, by query: features (n, f), first-stage rank and score, what is known of each."""

    def __init__(self, pool: Pool, collection: Collection, split: str, index: Any, encoder: Any) -> None:
        self.pool = pool.select(pool.queries())
        run = self.pool.run
        texts = collection.queries(split)
        queries = torch.from_numpy(
            np.asarray(encoder.encode_query([texts.texts[row] for row in texts.ids.rows(list(run.qids))]))
        ).float()
        documents = index.gather(torch.from_numpy(index.ids.rows(run.documents))[None])[0].float()
        queries = nn.functional.normalize(queries, dim=1)[torch.from_numpy(run.query_rows)]
        documents = nn.functional.normalize(documents, dim=1)
        self.scores = torch.from_numpy(np.ascontiguousarray(run.scores)).float()
        self.ranks = torch.from_numpy(np.ascontiguousarray(run.ranks)).float()
        products = queries * documents
        scaled = (self.scores - self.scores.mean()) / self.scores.std()
        self.features = torch.cat([products * 20, 5 * products.sum(1, keepdim=True), scaled[:, None]], dim=1)
        relevant = self.pool.relevant
        self.positives = places(run, self.pool.labelled)
        self.negatives = {"all": places(run, ~self.pool.labelled), "irrelevant": places(run, ~relevant)}

    def draw(self, generator: np.random.Generator, count: int, negatives: str) -> torch.Tensor:
        """(count, 1 + NEGATIVES) rows, a labelled document first."""
        chosen = generator.integers(len(self.positives), size=count)
        rows = [
            [generator.choice(self.positives[query]), *generator.choice(self.negatives[negatives][query], NEGATIVES)]
            for query in chosen
        ]
        return torch.tensor(rows)


def train_one(data: Data, system: str, seed: int, given: argparse.Namespace) -> nn.Module:
    torch.manual_seed(seed)
    generator = np.random.default_rng(seed)
    model = nn.Sequential(nn.Linear(data.features.shape[1], 32), nn.Tanh(), nn.Linear(32, 1))
    head = FeatureHead(("rank", "score"), centre=float(data.scores.mean()), spread=float(data.scores.std()))
    optimizer = torch.optim.Adam(
        [{"params": model.parameters(), "lr": 1e-3, "weight_decay": 1e-4}, {"params": head.parameters(), "lr": 1e-2}]
    )
    for _ in range(given.steps):
        rows = data.draw(generator, 64, "irrelevant" if system == "oracle" else "all")
        scores = model(data.features[rows]).squeeze(-1)
        if system == "cet":
            selected = head({"first_rank": data.ranks[rows], "first_stage": data.scores[rows]})
            before = (scores.detach(), selected.detach())  # there is no dropout: as in evaluation mode
            costs = cet_costs((scores, selected), before, Debiasing(given.temperature, given.cap))
            loss = costs.relevance.mean() + costs.selection.mean()
        else:
            loss = pair_costs(scores).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def measure(model: nn.Module, data: Data) -> dict[str, float]:
    """As `cet_synthetic.measure`."""
    with torch.no_grad():
        scores = model(data.features).squeeze(-1).numpy()
    return data.pool.place(scores)


def experiment(
    selection: str, runs: dict[str, Any], parts: tuple[Collection, Any, Any], given: argparse.Namespace
) -> dict[str, Any]:
    collection, index, encoder = parts
    split_data = {
        split: Data(make_pool(run, collection, split, given.pool, selection), collection, split, index, encoder)
        for split, run in runs.items()
    }
    pool = split_data["train"].pool
    print(f"{selection}: {pool.labelled.sum()} labelled, {pool.unlabelled.sum()} relevant ones unlabelled, "
          f"{len(pool.run.codes)} candidates, {len(pool.run)} queries", flush=True)  # fmt: skip
    values: dict[str, dict[str, list[dict[str, float]]]] = {split: {s: [] for s in SYSTEMS} for split in runs}
    for seed in range(given.first_seed, given.first_seed + given.seeds):
        for system in SYSTEMS:
            model = train_one(split_data["train"], system, seed, given)
            for split, data in split_data.items():
                values[split][system].append(measure(model, data))
    summary = {split: {name: compare(of, list(SYSTEMS), name) for name in MEASURES} for split, of in values.items()}
    return {"values": values, "summary": summary}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("collection", type=Path)
    parser.add_argument("--held-out", default="dev", help="split of the unseen queries")
    parser.add_argument("--pool", type=int, default=10, help="depth that was judged")
    parser.add_argument("--depth", type=int, default=100, help="candidates a query")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=1, help="0 is the one that settings were chosen on")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--cap", type=float, default=None, help="no weight above this; as published none")
    parser.add_argument("--work", type=Path, default=None)
    parser.add_argument("--out", type=Path, default=None, help="JSON of all values")
    given = parser.parse_args()
    work = given.work or Path(tempfile.mkdtemp())
    work.mkdir(parents=True, exist_ok=True)
    collection = open_collection(str(given.collection))
    runs = {split: candidates(collection, split, given.depth, work) for split in ("train", given.held_out)}
    if not (work / "dense").exists():
        build_index(collection, work / "dense", retriever="minilm", backend="torch")
    parts = (collection, open_index(work / "dense"), load_encoder("minilm"))
    results = {selection: experiment(selection, runs, parts, given) for selection in ("pool", "random")}
    tell(results, given)


if __name__ == "__main__":
    main()
