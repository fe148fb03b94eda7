"""A generator of learned-sparse documents and queries, and how its parameters are estimated from real ones.

Every document belongs to one of some hundred topics. Within a topic terms occur independently, each with its own
probability, so frequencies are the real ones and terms of one topic occur together; independent draws from one list of
frequencies would make pruning look useless. Terms too rare for a topic's table are drawn from one list for all. Weights
are log-normal around the term's mean, as whole hundredths. Parameters are in `sparse_statistics.npz`.

    python benchmarks/sparse_model.py INDEX COLLECTION [INDEX COLLECTION ...] [--query-terms 25]
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix, diags, vstack

from rtk.eval import open_collection
from rtk.indexes import activity, flops_metric
from rtk.retrieval.search import Retriever

STATISTICS = Path(__file__).parent / "sparse_statistics.npz"
TOPICS = 128
SCALE = 100
_LEVELS = 255


@dataclass(frozen=True)
class Side:
    """Documents or queries. `c` topics, `m` cells of the topics' tables, `v` terms.

    Attributes:
        topics: (c,) share of each topic.
        bounds: (c + 1,) where each topic's terms are.
        terms: (m,) term numbers.
        levels: (m,) probability in 255ths.
        others: (c,) mean number of terms that are not in the table.
        frequency: (v,) how often terms outside the tables occur, up to a factor.
        weight: (v,) mean weight in hundredths.
        spread: standard deviation of the weights' logarithms around their terms' means.
    """

    topics: np.ndarray
    bounds: np.ndarray
    terms: np.ndarray
    levels: np.ndarray
    others: np.ndarray
    frequency: np.ndarray
    weight: np.ndarray
    spread: np.ndarray

    @property
    def vocabulary(self) -> int:
        return len(self.weight)

    def draw(self, count: int, seed: tuple[int, ...]) -> csr_matrix:
        """`count` vectors, (count, vocabulary), whole weights of at least 1; a function of the seed alone."""
        generator = np.random.default_rng(seed)
        topic = generator.choice(len(self.topics), size=count, p=self.topics / self.topics.sum())
        rows, terms = [], []
        for number in np.unique(topic):
            mine = np.flatnonzero(topic == number)
            for part in np.array_split(mine, len(mine) // 2000 + 1):
                row, term = self._topic(generator, int(number), len(part))
                rows.append(part[row])
                terms.append(term)
        row, term = np.concatenate(rows), np.concatenate(terms)
        matrix = csr_matrix((np.ones(len(term), np.float32), (row, term)), shape=(count, self.vocabulary))
        noise = generator.standard_normal(matrix.nnz, dtype=np.float32) * self.spread
        noise = np.exp(noise - self.spread**2 / 2)  # of mean 1
        matrix.data = np.maximum(1, np.rint(self.weight[matrix.indices] * noise)).astype(np.float32)
        return matrix

    def _topic(self, generator: np.random.Generator, number: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        part = slice(self.bounds[number], self.bounds[number + 1])
        chosen = generator.integers(0, _LEVELS, (count, part.stop - part.start), dtype=np.uint8) < self.levels[part]
        row, place = np.nonzero(chosen)
        extra = generator.poisson(self.others[number], count)
        rare = generator.choice(len(self._rare), int(extra.sum()), p=self._rare_share)
        return np.concatenate([row, np.repeat(np.arange(count), extra)]), np.concatenate(
            [self.terms[part][place], self._rare[rare]]
        )

    @property
    def _rare(self) -> np.ndarray:
        return np.flatnonzero(self.frequency)

    @property
    def _rare_share(self) -> np.ndarray:
        share = self.frequency[self._rare].astype(np.float64)
        return share / share.sum()


def estimate(vectors: csr_matrix, topic: np.ndarray) -> Side:
    """The parameters of one side from real vectors and the topic of each."""
    terms, levels, bounds, others = [], [], [0], []
    left = np.asarray((vectors > 0).sum(axis=0)).ravel().astype(np.float64)
    for number in range(TOPICS):
        mine = vectors[topic == number]
        size = max(1, mine.shape[0])
        counts = np.asarray((mine > 0).sum(axis=0)).ravel()
        kept = np.flatnonzero(counts >= max(2, size * 0.01))
        left[kept] -= counts[kept]
        terms.append(kept)
        levels.append(np.clip(np.rint(counts[kept] / size * _LEVELS), 1, _LEVELS))
        others.append((counts.sum() - counts[kept].sum()) / size)
        bounds.append(bounds[-1] + len(kept))
    totals = np.asarray(vectors.sum(axis=0)).ravel()
    mean = totals / np.maximum(np.asarray((vectors > 0).sum(axis=0)).ravel(), 1)
    spread = np.std(np.log(vectors.data) - np.log(mean[vectors.indices]))
    return Side(
        np.bincount(topic, minlength=TOPICS).astype(np.float32), np.asarray(bounds, np.int32),
        np.concatenate(terms).astype(np.uint16), np.concatenate(levels).astype(np.uint8),
        np.asarray(others, np.float32), left.astype(np.uint16), np.rint(mean * SCALE).astype(np.uint16),
        np.float32(spread),
    )  # fmt: skip


def cluster(vectors: csr_matrix, rounds: int = 20, seed: int = 0) -> np.ndarray:
    """Spherical k-means; centres (topics, vocabulary) start from random rows."""
    unit = normalised(vectors)
    centres = unit[np.random.default_rng(seed).choice(unit.shape[0], TOPICS, replace=False)].toarray()
    for _ in range(rounds):
        topic = np.asarray(unit @ centres.T).argmax(axis=1)
        member = csr_matrix((np.ones(len(topic)), (topic, np.arange(len(topic)))), shape=(TOPICS, len(topic)))
        centres = normalised(csr_matrix(member @ unit)).toarray()
    return centres


def normalised(vectors: csr_matrix) -> csr_matrix:
    lengths = np.sqrt(np.asarray(vectors.multiply(vectors).sum(axis=1)).ravel())
    return csr_matrix(diags(1 / np.maximum(lengths, 1e-12)) @ vectors)


def save(path: Path, documents: Side, queries: Side) -> None:
    arrays = {
        f"{name}_{field.name}": getattr(side, field.name)
        for name, side in (("documents", documents), ("queries", queries))
        for field in fields(Side)
    }
    np.savez_compressed(path, **arrays)


def load(path: Path = STATISTICS) -> tuple[Side, Side]:
    """Documents and queries."""
    with np.load(path, allow_pickle=False) as found:
        documents, queries = (
            Side(**{field.name: found[f"{name}_{field.name}"] for field in fields(Side)})
            for name in ("documents", "queries")
        )
    return documents, queries


def of_index(index: str, collection: str) -> tuple[csr_matrix, csr_matrix]:
    """The vectors of a sparse index, and of all queries of its collection by its own encoder."""
    retriever, opened = Retriever.open(index), open_collection(collection)
    texts = [text for split in opened.splits for text in opened.queries(split).texts]
    encoder: Any = retriever.encoder
    return retriever.index.vectors(np.arange(len(retriever.ids))), encoder.encode_query(texts)


def main() -> None:
    """Estimate the parameters and draw from them, to compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "of", nargs="+", metavar="INDEX COLLECTION", help="sparse indexes of one model, each before its collection"
    )
    parser.add_argument("--out", type=Path, default=STATISTICS)
    parser.add_argument("--query-terms", type=int, help="largest weights of a query that are kept (default: all)")
    options = parser.parse_args()
    if len(options.of) % 2:
        parser.error("an index without its collection")
    pairs = [of_index(*pair) for pair in zip(options.of[::2], options.of[1::2], strict=True)]
    vectors, queries = (csr_matrix(vstack(side, format="csr")) for side in zip(*pairs, strict=True))
    queries = queries if options.query_terms is None else strongest(queries, options.query_terms)
    centres = cluster(vectors)
    sides = [estimate(part, np.asarray(normalised(part) @ centres.T).argmax(axis=1)) for part in (vectors, queries)]
    save(options.out, *sides)
    drawn = [side.draw(2000, (1, number)) for number, side in enumerate(sides)]
    for name, real, made in zip(("documents", "queries"), (vectors, queries), drawn, strict=True):
        print(f"{name}: {real.nnz / real.shape[0]:.1f} terms real, {made.nnz / made.shape[0]:.1f} drawn, weights "
              f"{real.data.mean():.2f} and {made.data.mean() / SCALE:.2f}, FLOPS metric with themselves "
              f"{flops(real):.2f} and {flops(made):.2f}")  # fmt: skip


def strongest(vectors: csr_matrix, most: int) -> csr_matrix:
    """The `most` largest weights of each row."""
    rows = np.repeat(np.arange(vectors.shape[0]), np.diff(vectors.indptr))
    order = np.lexsort((-vectors.data, rows))
    place = np.arange(vectors.nnz) - vectors.indptr[rows]
    kept = np.sort(order[place < most])
    return csr_matrix((vectors.data[kept], (rows[kept], vectors.indices[kept])), shape=vectors.shape)


def flops(vectors: csr_matrix) -> float:
    return flops_metric(activity(vectors), activity(vectors))


if __name__ == "__main__":
    main()
