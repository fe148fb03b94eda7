"""A generator of learned-sparse documents and queries, and how its parameters are estimated from real ones.

Every document belongs to one of some hundred topics. Within a topic terms occur independently, each with its own
probability, so frequencies are the real ones and terms of one topic occur together; independent draws from one list of
frequencies would make pruning look useless. Terms too rare for a topic's table are drawn from one list for all. Weights
are log-normal around the term's mean, as whole hundredths. Parameters are in `sparse_statistics.npz`.

    python benchmarks/sparse_model.py INDEX COLLECTION       # from a sparse index and its collection's queries
    python benchmarks/sparse_model.py stand-in DATA          # without a model: stemmed words, expanded by co-occurrence
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from scipy.sparse import csr_matrix, diags, vstack

from rtk.eval import open_collection
from rtk.indexes import open_index
from rtk.indexes.english import EnglishAnalyzer

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
        noise = np.exp(self.spread * generator.standard_normal(matrix.nnz, dtype=np.float32))
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


def stand_in(data: Path, names: Iterable[str] = ("nfcorpus", "scifact")) -> tuple[csr_matrix, csr_matrix]:
    """Documents and queries of real collections as vectors of about 120 and 25 terms, without a model.

    Weight of a stem: log(1 + count) · idf; then a share of what co-occurs with the text's stems in the documents, as
    expansion; of everything the strongest are kept, by one threshold for all documents and one for all queries.
    """
    analyzer, vocabulary = EnglishAnalyzer("porter"), {}
    opened = [open_collection(data / name) for name in names]
    texts = [text for one in opened for text in one.documents.texts(slice(0, len(one.documents)))]
    asked = [text for one in opened for text in one.queries("test").texts]
    asked += [text for one in opened for text in one.queries("train").texts]
    for terms in analyzer.batch(texts):
        for term in terms:
            vocabulary.setdefault(term, len(vocabulary))
    documents, queries = (_counts(analyzer, vocabulary, part) for part in (texts, asked))
    frequency = np.asarray((documents > 0).sum(axis=0)).ravel()
    idf = np.log1p(documents.shape[0] / np.maximum(frequency, 1))
    documents, queries = (csr_matrix(part.log1p() @ diags(idf)) for part in (documents, queries))
    by_term = normalised(csr_matrix(documents.T))
    together = csr_matrix(by_term @ by_term.T)  # cosines, so that frequent terms are not everybody's neighbours
    together.data[together.data < 0.1] = 0
    together.eliminate_zeros()
    return _strongest(documents, together, 120), _strongest(queries, together, 25)


def _counts(analyzer: EnglishAnalyzer, vocabulary: dict[str, int], texts: list[str]) -> csr_matrix:
    cells = [
        (row, vocabulary[term])
        for row, terms in enumerate(analyzer.batch(texts))
        for term in terms
        if term in vocabulary
    ]
    rows, columns = np.asarray(cells).T
    return csr_matrix((np.ones(len(rows)), (rows, columns)), shape=(len(texts), len(vocabulary)))


def _strongest(vectors: csr_matrix, together: csr_matrix, mean: int) -> csr_matrix:
    """Expand, bring to SPLADE's range (0 to about 3) and keep `mean` terms a row on average."""
    parts = []
    for start in range(0, vectors.shape[0], 500):
        rows = normalised(vectors[start : start + 500])
        wide = csr_matrix(rows + 0.5 * normalised(csr_matrix(rows @ together)))
        wide.data *= 3 / max(wide.data.max(), 1e-12)
        wide.data[wide.data < 0.02] = 0
        wide.eliminate_zeros()
        parts.append(wide)
    whole = csr_matrix(vstack(parts, format="csr"))
    wanted = mean * whole.shape[0]
    whole.data[whole.data < np.partition(whole.data, -wanted)[-wanted]] = 0
    whole.eliminate_zeros()
    return whole


def of_index(index: str, collection: str) -> tuple[csr_matrix, csr_matrix]:
    """The vectors of a sparse index, and of all queries of its collection by its own encoder."""
    from rtk.retrieval.search import Retriever

    opened = open_index(index)
    retriever = Retriever.open(index)
    texts = [
        text
        for split in open_collection(collection).splits
        for text in open_collection(collection).queries(split).texts
    ]
    queries = retriever.encoder.encode_query(texts)
    return opened.vectors(np.arange(len(opened.ids))), queries


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("index", help="a sparse index, or `stand-in`")
    parser.add_argument("collection", help="its collection; for `stand-in` the folder of nfcorpus and scifact")
    parser.add_argument("--out", type=Path, default=STATISTICS)
    options = parser.parse_args()
    stand = options.index == "stand-in"
    vectors, queries = stand_in(Path(options.collection)) if stand else of_index(options.index, options.collection)
    centres = cluster(vectors)
    sides = [estimate(part, np.asarray(normalised(part) @ centres.T).argmax(axis=1)) for part in (vectors, queries)]
    save(options.out, *sides)
    drawn = [side.draw(2000, (1, number)) for number, side in enumerate(sides)]
    for name, real, made in zip(("documents", "queries"), (vectors, queries), drawn, strict=True):
        print(f"{name}: {real.nnz / real.shape[0]:.1f} terms real, {made.nnz / made.shape[0]:.1f} drawn, weights "
              f"{real.data.mean():.2f} and {made.data.mean() / SCALE:.2f}")  # fmt: skip


if __name__ == "__main__":
    main()
