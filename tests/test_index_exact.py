"""The exact sparse index: equal to a dense float64 product with strict ties, whatever the data, and what it counts."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from rtk.errors import ConfigError, DataError
from rtk.ids import Ids
from rtk.indexes import BuildPlan, build_lexical, build_sparse, open_index, parse_backend

pytest.importorskip("numba", reason="the sparse extra is not installed")

BM25 = json.loads((Path(__file__).parent / "goldens" / "sparse" / "bm25.json").read_text(encoding="utf-8"))
DOCUMENTS = [[1, 0, 2, 0, 0, 0.5], [0, 1.5, 0, 0, 0, 0], [1, 0, 2, 0, 0, 0.5], [0, 0, 0, 3, 0, 0],
             [0.2, 0.7, 0, 0, 0, 1], [0, 0, 0, 0, 0, 0]]  # fmt: skip
QUERIES = [[1, 0, 0.5, 0, 0, 2], [0, 2, 0, 0, 0, 0.1], [0, 0, 0, 0, 4, 0]]


def build(out: Path, documents: Any, **changes: Any) -> Any:
    matrix = sp.csr_matrix(documents, dtype=np.float32)
    ids = Ids([f"d{row}" for row in range(matrix.shape[0])])
    plan = BuildPlan(parse_backend("exact"), **{"shard_size": 300, **changes})
    return build_sparse(out, ids, lambda start, stop: matrix[start:stop], plan=plan)


def brute_force(documents: Any, queries: Any, k: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Rows and float32 scores of every query by a dense float64 product; only documents with a common term."""
    left, right = (np.asarray(sp.csr_matrix(part).todense(), dtype=np.float64) for part in (queries, documents))
    scores = (left @ right.T).astype(np.float32)
    common = ((left > 0).astype(np.float32) @ (right > 0).astype(np.float32).T) > 0
    orders = [np.lexsort((np.arange(scores.shape[1]), -line)) for line in scores]
    rows = [order[common[at][order]][:k] for at, order in enumerate(orders)]
    return rows, [scores[at][found] for at, found in enumerate(rows)]


def assert_equal(index: Any, documents: Any, queries: Any, k: int) -> None:
    hits = index.search(sp.csr_matrix(queries, dtype=np.float32), k)
    rows, scores = brute_force(documents, sp.csr_matrix(queries, dtype=np.float32), k)
    for at, (row, score) in enumerate(zip(rows, scores, strict=True)):
        np.testing.assert_array_equal(hits.rows[at, : len(row)], row)
        np.testing.assert_array_equal(hits.scores[at, : len(row)], score)
        assert (hits.rows[at, len(row) :] == -1).all()


def test_golden(tmp_path: Path) -> None:
    """Documents and queries of goldens/sparse/sparse_search.json: a tie, an empty document, a query without hits."""
    index = build(tmp_path / "index", DOCUMENTS)
    hits = index.search(sp.csr_matrix(QUERIES, dtype=np.float32), 10)
    assert hits.rows[:, :4].tolist() == [[0, 2, 4, -1], [1, 4, 0, 2], [-1, -1, -1, -1]]
    np.testing.assert_allclose(hits.scores[0, :3], [3.0, 3.0, 2.2], rtol=1e-6)
    np.testing.assert_allclose(hits.scores[1, :4], [3.0, 1.5, 0.05, 0.05], rtol=1e-6)
    assert index.search(sp.csr_matrix(QUERIES, dtype=np.float32), 2).rows.tolist() == [[0, 2], [1, 4], [-1, -1]]


@pytest.mark.parametrize("order", ["given", "similar"])
@pytest.mark.parametrize("k", [1, 7, 100, 5000])
def test_equals_a_dense_product_with_many_ties(order: str, k: int, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    documents = sp.random(1500, 300, 0.05, format="csr", random_state=generator)
    queries = sp.random(30, 300, 0.04, format="csr", random_state=generator)
    for matrix in (documents, queries):
        matrix.data = np.round(matrix.data * 4) / 4 + 0.25
    assert_equal(build(tmp_path / "index", documents, settings={"order": order}), documents, queries, k)


@pytest.mark.parametrize("k", [1, 20, 600])
def test_equals_a_dense_product_for_terms_of_every_frequency(k: int, tmp_path: Path) -> None:
    """Terms in every document, in all of a few blocks, in a few of most blocks, in few blocks, in one document."""
    generator = np.random.default_rng(2)
    documents = np.zeros((4000, 40), np.float32)
    places = [np.arange(4000), np.arange(900, 1700), np.arange(0, 4000, 9), np.arange(5, 4000, 640), np.asarray([3999])]
    for term in range(40):
        here = places[term % 5] if term < 20 else generator.choice(4000, 150 * (term - 19), replace=False)
        documents[here, term] = np.round(generator.gamma(1, 2, len(here)) * 4) / 4 + 0.25
    queries = np.round(generator.random((25, 40)) * (generator.random((25, 40)) < 0.3) * 8) / 8
    index = build(tmp_path / "index", documents, settings={"order": "given"})
    layout = index.layout
    listed, levels = np.diff(layout.block_bounds) > 0, np.diff(layout.level_bounds) > 0
    kinds = {(bool(one), bool(two)) for one, two in zip(listed, levels, strict=True)}
    assert kinds == {(True, False), (False, False), (False, True)}  # the test is of all of them
    assert_equal(index, documents, queries, k)


def test_an_index_of_another_layout_is_refused(tmp_path: Path) -> None:
    build(tmp_path / "index", DOCUMENTS)
    path = tmp_path / "index" / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    manifest["settings"]["layout"] = 1
    path.write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(DataError, match="another version of rtk"):
        open_index(tmp_path / "index")


_WEIGHTS = st.sampled_from([0.0, 0.0, 0.0, 1e-30, 0.001, 0.1, 0.30000001, 1.0, 1.0000001, 3.7, 255.0, 1e6])


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), k=st.integers(1, 12))
def test_equals_a_dense_product_on_any_weights(data: Any, k: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    vocabulary = data.draw(st.integers(1, 6))
    documents = data.draw(st.lists(st.lists(_WEIGHTS, min_size=vocabulary, max_size=vocabulary), max_size=150))
    queries = data.draw(st.lists(st.lists(_WEIGHTS, min_size=vocabulary, max_size=vocabulary), min_size=1, max_size=3))
    matrix = np.asarray(documents, dtype=np.float32).reshape(len(documents), vocabulary)
    assume(matrix.any() or not len(matrix))  # an index of empty documents alone is refused
    index = build(tmp_path_factory.mktemp("any") / "index", matrix)
    assert_equal(index, matrix, np.asarray(queries, dtype=np.float32), k)


def test_real_encoded_queries(shared_data: Path, tmp_path: Path) -> None:
    """SPLADE's vectors of one set's queries as documents, of another's as queries."""
    import gzip

    vocabulary: dict[str, int] = {}

    def read(name: str) -> sp.csr_matrix:
        with gzip.open(
            shared_data / "encoded-queries" / f"{name}.splade-pp-ed.jsonl.gz", "rt", encoding="utf-8"
        ) as file:
            weights = [json.loads(line)["weights"] for line in file]
        cells = [
            (row, vocabulary.setdefault(term, len(vocabulary)), value)
            for row, found in enumerate(weights)
            for term, value in found.items()
        ]
        rows, columns, values = zip(*cells, strict=True)
        return sp.csr_matrix((np.float32(values), (rows, columns)), shape=(len(weights), 30522))

    documents = sp.vstack([read(name) for name in ("nfcorpus", "dl20", "dl19")], format="csr")
    queries = read("scifact")
    queries.data /= np.float32(37)
    index = build(tmp_path / "index", documents)
    for k in (10, 100):
        assert_equal(index, documents, queries, k)


def test_threads_and_counts(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    documents = sp.random(3000, 400, 0.05, format="csr", random_state=generator, dtype=np.float32)
    queries = sp.random(50, 400, 0.02, format="csr", random_state=generator, dtype=np.float32)
    index = build(tmp_path / "index", documents)
    one, work = index.search_counted(queries, 10, options={"threads": 1})
    two, again = index.search_counted(queries, 10, options={"threads": 2})
    np.testing.assert_array_equal(one.rows, two.rows)
    np.testing.assert_array_equal(one.scores, two.scores)
    np.testing.assert_array_equal(work.postings, again.postings)
    lengths = np.diff(sp.csc_matrix(documents).indptr)
    whole = (queries > 0).astype(np.int64) @ lengths
    assert (work.postings <= whole).all()
    assert (work.documents >= 10).all()
    assert (work.documents < 300).all()  # bounds of documents are close: few need an exact score


def test_no_threads_are_refused_wherever_they_are_said(tmp_path: Path) -> None:
    index = build(tmp_path / "index", sp.random(9, 5, 0.5, format="csr", random_state=0, dtype=np.float32))
    assert index.threads == len(os.sched_getaffinity(0))
    for threads in (0, -1):
        with pytest.raises(ConfigError, match=f"threads is {threads}, expected"):
            open_index(tmp_path / "index", threads=threads)
        with pytest.raises(ConfigError, match=f"threads is {threads}, expected"):
            index.search(sp.csr_matrix((1, 5), dtype=np.float32), 3, options={"threads": threads})


def test_stored_vectors_come_back(tmp_path: Path) -> None:
    documents = sp.random(700, 90, 0.1, format="csr", random_state=3, dtype=np.float32)
    index = build(tmp_path / "index", documents)
    wanted = [5, 699, 0, 5]
    assert (index.vectors(wanted) != documents[wanted]).nnz == 0
    assert index.vectors([]).shape == (0, 90)


@pytest.mark.parametrize(("value", "shown"), [(-1.0, "-1.0"), (np.nan, "nan"), (np.inf, "inf")])
def test_bad_weights_name_the_row_and_the_term(value: float, shown: str, tmp_path: Path) -> None:
    documents = sp.random(700, 90, 0.1, format="csr", random_state=3, dtype=np.float32)
    index = build(tmp_path / "index", documents)
    documents.data[documents.indptr[431]] = value
    with pytest.raises(DataError, match=rf"vector 431 .*{shown} for term"):
        build(tmp_path / "bad", documents)
    with pytest.raises(DataError, match=r"vector 431 of the queries"):
        index.search(documents, 3)


def test_weights_that_add_up_to_infinity_are_refused(tmp_path: Path) -> None:
    """A term may stand twice, and then its weights are added up: two finite ones can make one that is not."""
    twice = sp.csr_matrix((np.float32([3e38, 3e38, 1]), [0, 0, 1], [0, 2, 3]), shape=(2, 2))
    with pytest.raises(DataError, match="vector 0 of the documents has the weight inf for term 0"):
        build(tmp_path / "bad", twice)
    twice.data[:2] = 1e38
    hits = build(tmp_path / "index", twice).search(sp.csr_matrix([[1, 0]], dtype=np.float32), 2)
    assert hits.scores[0, 0] == np.float32(2e38)


@pytest.mark.parametrize("term", [-1, 6, 2**31 - 1])
def test_terms_outside_the_vocabulary_are_refused(term: int, tmp_path: Path) -> None:
    index = build(tmp_path / "index", DOCUMENTS)
    for what, rows in (("documents", DOCUMENTS), ("queries", QUERIES)):
        vectors = sp.csr_matrix(rows, dtype=np.float32)
        vectors.indices[vectors.indptr[1]] = term
        with pytest.raises(DataError, match=rf"vector 1 of the {what} .* term {term}; .* from 0 to 5"):
            index.search(vectors, 3) if what == "queries" else build(tmp_path / "bad", vectors)


def test_other_vocabularies_and_shapes_are_refused(tmp_path: Path) -> None:
    index = build(tmp_path / "index", DOCUMENTS)
    with pytest.raises(ConfigError, match="7 terms, but the index's vocabulary has 6"):
        index.search(sp.csr_matrix((1, 7), dtype=np.float32), 3)
    with pytest.raises(ConfigError, match="CSR"):
        index.search(np.ones((1, 6), np.float32), 3)
    with pytest.raises(DataError, match="largest float32"):
        index.search(sp.csr_matrix([[0, 1e38, 0, 3e38, 0, 0]], dtype=np.float32), 3)
    with pytest.raises(ConfigError, match="float16"):
        build(tmp_path / "half", DOCUMENTS, dtype="float16")
    with pytest.raises(ConfigError, match="'sorted'"):
        build(tmp_path / "order", DOCUMENTS, settings={"order": "sorted"})


def test_a_common_term_is_a_hit_even_when_its_score_rounds_to_zero(tmp_path: Path) -> None:
    index = build(tmp_path / "index", [[1e-30, 0], [0, 1], [0, 0]])
    hits = index.search(sp.csr_matrix([[1e-30, 0]], dtype=np.float32), 3)
    assert hits.rows.tolist() == [[0, -1, -1]]
    assert hits.scores[0, 0] == 0.0


def test_bm25_weights_rank_as_bm25s_does(tmp_path: Path) -> None:
    """Scores of bm25s add up in float32, ours in float64: equal to a rounding, and in the same order."""
    generator = np.random.default_rng(0)
    words = [f"word{number}" for number in range(60)]
    share = 1 / np.arange(1, 61)
    texts = [" ".join(generator.choice(words, generator.integers(1, 40), p=share / share.sum())) for _ in range(800)]
    queries = [" ".join(generator.choice(words, 5)) for _ in range(40)] + ["word1 word1 word7", "unheard", ""]
    ids = Ids([f"d{row}" for row in range(len(texts))])
    one, two = (
        build_lexical(tmp_path / name, ids, lambda start, stop: texts[start:stop], plan=BuildPlan(parse_backend(name)))
        for name in ("bm25s", "exact")
    )
    theirs, ours = one.search(queries, 50), two.search(queries, 50)
    np.testing.assert_array_equal(ours.rows >= 0, theirs.rows >= 0)
    some = ours.rows >= 0
    np.testing.assert_allclose(ours.scores[some], theirs.scores[some], rtol=1e-6)
    finite = np.where(some, theirs.scores, -1)
    apart = np.abs(np.diff(finite, prepend=1e9)) > 1e-5
    apart &= np.abs(np.diff(finite, append=-1e9)) > 1e-5
    assert apart[some].mean() > 0.5
    np.testing.assert_array_equal(ours.rows[some & apart], theirs.rows[some & apart])


@pytest.mark.parametrize("backend", ["bm25s", "exact"])
@pytest.mark.parametrize(("k1", "b"), [(0.9, 0.4), (1.2, 0.75)])
def test_bm25_is_bm25s_s_by_the_lucene_formula(k1: float, b: float, backend: str, tmp_path: Path) -> None:
    """bm25s 0.3.16. Its other methods are in the file too: they are other formulas, which no engine here has. The words
    have no suffix to stem."""
    texts, queries = (list(BM25["inputs"][name].values()) for name in ("documents (whitespace tokens)", "queries"))
    plan = BuildPlan(parse_backend(backend), settings={"k1": k1, "b": b})
    index = build_lexical(tmp_path / "index", Ids([f"d{n}" for n in range(1, 7)]), lambda a, b: texts[a:b], plan=plan)
    hits = index.search(queries, 6)
    for number, scores in enumerate(BM25["bm25s 0.3.16"][f"method=lucene,k1={k1},b={b}"].values()):
        found = [docid for docid in sorted(scores, key=lambda name: -scores[name]) if scores[docid] > 0]
        assert index.ids.take(hits.rows[number][hits.rows[number] >= 0]) == found
        np.testing.assert_allclose(hits.scores[number, : len(found)], [scores[name] for name in found], rtol=1e-5)
