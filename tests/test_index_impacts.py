"""Whole weights: the quantiser, Lucene's impact index against Pyserini's figures, and Seismic's own ways."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.sparse import csr_matrix, save_npz
from scipy.sparse import random as random_sparse

from rtk.errors import BackendError, ConfigError, DataError
from rtk.extras import available
from rtk.ids import Ids
from rtk.indexes import BuildPlan, append, build_sparse, delete, open_index, parse_backend, read_manifest
from rtk.indexes.lucene_impact import LIMIT
from rtk.indexes.quantiser import Quantiser

lucene = pytest.mark.skipif(not available("pyserini"), reason="the lucene extra is not installed")
seismic = pytest.mark.skipif(not available("seismic"), reason="the seismic extra is not installed")

FOLDER = Path(__file__).parent / "goldens" / "sparse"
IMPACTS = json.loads((FOLDER / "impact_search.json").read_text(encoding="utf-8"))  # pyserini 1.6.0
WHOLE = json.loads((FOLDER / "quantisation.json").read_text(encoding="utf-8"))
NAVER, NOTHING = WHOLE["naver_EncodeAnserini"], {"[unused993]": 1}  # what naver writes for an empty vector
TERMS = ("cat", "dog", "all", "##s", "fox", "big", "zebra")
DOCUMENTS = [line["vector"] for line in IMPACTS["inputs"]["documents (JsonVectorCollection lines)"]]
ASKED = IMPACTS["inputs"]["query encoder output"]


def weights(*vectors: dict[str, float]) -> csr_matrix:
    dense = np.zeros((len(vectors), len(TERMS)), dtype=np.float32)
    for row, vector in enumerate(vectors):
        for term, value in vector.items():
            dense[row, TERMS.index(term)] = value
    return csr_matrix(dense)


def hits_of(index: Any, queries: list[dict[str, float]], **options: Any) -> list[dict[str, float]]:
    """Document id → score of each query, best first."""
    hits = index.search(weights(*queries), 10, options=options)
    return [
        {index.ids[int(row)]: float(score) for row, score in zip(rows, scores, strict=True) if row >= 0}
        for rows, scores in zip(hits.rows, hits.scores, strict=True)
    ]


def build(out: Path, documents: csr_matrix, backend: str, ids: Any = None, **settings: Any) -> Any:
    names = Ids(ids or [f"d{row}" for row in range(documents.shape[0])])
    plan = BuildPlan(parse_backend(backend), shard_size=200, settings=settings)
    return build_sparse(out, names, lambda start, stop: documents[start:stop], plan=plan)


def whole_weights(factor: float, side: str = "document_weights_4x8") -> list[dict[str, int]]:
    """Token → whole weight of each vector of goldens/sparse/quantisation.json."""
    whole, clipped = Quantiser(factor)(csr_matrix(np.float32(WHOLE["inputs"][side])))
    assert clipped == 0
    rows = [whole[row] for row in range(whole.shape[0])]
    return [
        {f"tok{term}": weight for term, weight in zip(row.indices.tolist(), row.data.tolist(), strict=True)}
        for row in rows
    ]


def without_zeros(weights: dict[str, int]) -> dict[str, int]:
    return {term: weight for term, weight in weights.items() if weight}


def test_whole_weights_are_naver_s_but_for_products_that_float32_makes_halves() -> None:
    """naver multiplies in float32, where 0.015 and 0.025 times 100 are halves, which go to the even number. In float64
    those float32 weights are just under and over them. An empty vector stays empty: naver writes a word for it."""
    for factor in (2, 100):
        lines = NAVER[f"documents, quantization_factor={factor}"]
        expected = [{} if line["vector"] == NOTHING else dict(line["vector"]) for line in lines]
        if factor == 100:
            assert (expected[0]["tok3"], expected[0]["tok4"]) == (2, 2)
            expected[0] |= {"tok3": 1, "tok4": 3}
        assert whole_weights(factor) == expected


def test_whole_weights_of_queries_are_as_often_as_naver_repeats_a_token() -> None:
    lines = NAVER["queries (token repeated weight times), quantization_factor=100"]
    repeated = [Counter(line.split("\t")[1].split()) for line in lines]
    assert repeated[1] == NOTHING
    assert whole_weights(100, "query_weights_2x8") == [repeated[0], {}]


def test_whole_weights_are_tevatron_s_and_pyserini_s_without_their_zeros() -> None:
    assert whole_weights(100) == WHOLE["tevatron_to_token_dict"]["int, quant=100"]
    pyserini = WHOLE["pyserini_SpladeEncoder"]
    assert whole_weights(256 / 5) == [without_zeros(row) for row in pyserini["float32 weights"]]
    ties = next(value for name, value in pyserini.items() if name.startswith("exact ties"))
    halves, _ = Quantiser(51.2)(csr_matrix(np.float32([[0.009765625, 0.029296875, 0.048828125]])))
    assert halves.toarray().tolist() == [list(ties[0].values())]


def test_whole_weights_are_not_truncated_as_bmp_s_are() -> None:
    """int(100 · w) is 99 for a weight of 0.995, and nothing for one of 0.0051."""
    ours, theirs = whole_weights(100), [row for _, row in WHOLE["bmp_BmpIndexer"]["documents"]]
    for row, truncated in zip(ours, theirs, strict=True):
        assert all(row.get(term, 0) - weight in (0, 1) for term, weight in truncated.items())
    assert (ours[3]["tok3"], theirs[3]["tok3"]) == (100, 99)
    assert (ours[0]["tok7"], theirs[0]["tok7"]) == (1, 0)


def test_the_quantiser_counts_what_it_cuts() -> None:
    whole, clipped = Quantiser(100, 255)(csr_matrix(np.float32([[1, 3, 2.55]])))
    assert whole.toarray().tolist() == [[100, 255, 255]]
    assert clipped == 1
    with pytest.raises(ConfigError, match="factor"):
        Quantiser(0)


def test_the_quantiser_refuses_what_64_bits_do_not_hold() -> None:
    one = csr_matrix(np.float32([[0, 1000.0]]))
    with pytest.raises(DataError, match=r"1000\.0 of term 1, times the factor 1e\+18.*smaller factor"):
        Quantiser(1e18)(one)
    assert Quantiser(2.0**53)(one)[0].data.tolist() == [1000 * 2**53]
    assert Quantiser(1e18, 255)(one)[0].data.tolist() == [255]


@lucene
@pytest.mark.lucene
def test_impacts_score_as_pyserini_without_a_least_idf(tmp_path: Path) -> None:
    """And beside that they do what it does not: query weights are not truncated, and no term is dropped for its idf."""
    documents = weights(*DOCUMENTS, {})  # an empty document beside them
    index = build(tmp_path / "index", documents, "lucene", [*"abcde", "none"], factor=1, query_factor=1)
    whole = [name for name in ASKED if name not in ("float", "below_one")]
    found = hits_of(index, [ASKED[name] for name in whole])
    for name, hits in zip(whole, found, strict=True):
        listed = dict(IMPACTS["results"][f"min_idf=-1 {name}"])
        assert list(hits) == list(listed)
        assert hits == {
            docid: round(score) for docid, score in listed.items()
        }  # 29.9999981 is a tie with 30, told apart
    dropped = dict(IMPACTS["results"]["min_idf=0 everywhere"])
    assert dropped == {}, "its default leaves out a term that every document has"
    for name in ("float", "below_one"):
        (hits,) = hits_of(index, [ASKED[name]], query_factor=100)
        truncated = dict(IMPACTS["results"][f"min_idf=-1 {name}"])
        products = [sum(vector.get(term, 0) * weight for term, weight in ASKED[name].items()) for vector in DOCUMENTS]
        assert hits == pytest.approx(
            {docid: product for docid, product in zip("abcde", products, strict=True) if product}
        )
        assert all(hits[docid] > truncated[docid] for docid in "ab"), "3.9 was 3 there, and 0.9 nothing"
    assert hits_of(index, [{}]) == [{}]
    assert read_manifest(tmp_path / "index").settings["empty"] == 1


@lucene
@pytest.mark.lucene
def test_impacts_are_close_to_products_and_pyserini_opens_them(tmp_path: Path) -> None:
    documents = random_sparse(500, 80, 0.1, format="csr", random_state=0, dtype=np.float32)
    queries = random_sparse(9, 80, 0.1, format="csr", random_state=1, dtype=np.float32)
    index = build(tmp_path / "index", documents, "lucene", factor=1000, query_factor=1000)
    hits = index.search(queries, 10)
    products = (queries @ documents.T).toarray()
    np.testing.assert_allclose(hits.scores, np.take_along_axis(products, hits.rows, 1), atol=0.005)
    np.testing.assert_allclose(hits.scores, -np.sort(-products, axis=1)[:, :10], atol=0.005)
    os.environ.setdefault("OPENAI_API_KEY", "unused")  # Pyserini's package asks for one when imported
    module = pytest.importorskip("pyserini.search.lucene")

    class Encoder:
        def encode(self, text: str) -> dict[str, int]:
            row = queries[int(text)]
            return {str(t): round(w * 1000) for t, w in zip(row.indices.tolist(), row.data.tolist(), strict=True)}

    searcher = module.LuceneImpactSearcher(str(tmp_path / "index" / "lucene"), Encoder(), min_idf=-1)
    assert [hit.docid for hit in searcher.search("3", 10)] == index.ids.take(hits.rows[3])


@lucene
@pytest.mark.lucene
def test_cut_weights_and_factors_are_recorded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rounded_away = {"cat": 0.004}
    build(tmp_path / "index", weights({"cat": 20000, "dog": 1}, rounded_away, {}), "lucene")
    settings = read_manifest(tmp_path / "index").settings
    assert (settings["factor"], settings["query_factor"], settings["clipped"]) == (100.0, 100.0, 1)
    assert settings["empty"] == 2
    assert "2 of 3 documents have no weight" in caplog.text
    with pytest.raises(DataError, match="larger factor"):
        build(tmp_path / "none", weights(rounded_away), "lucene")


@lucene
@pytest.mark.lucene
def test_query_weights_that_are_cut_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    index = build(tmp_path / "index", weights(*DOCUMENTS), "lucene")
    index.search(weights({"cat": 1}), 3)
    assert "query weights" not in caplog.text
    hits = index.search(weights({"cat": 1e8}, {"dog": 1}), 3)
    assert f"1 query weights were cut to {LIMIT}" in caplog.text
    assert hits.scores[0, 0] == pytest.approx(120 * LIMIT / 100)


@seismic
@pytest.mark.parametrize("vocabulary", [600, 65_600])
def test_seismic_finds_most_of_what_the_exact_index_finds(vocabulary: int, tmp_path: Path, capfd: Any) -> None:
    documents = random_sparse(1500, vocabulary, 30 / vocabulary, format="csr", random_state=0, dtype=np.float32)
    documents.data[documents.indptr[7] : documents.indptr[8]] = 0  # an empty document moves no id
    queries = documents[[3, 900, 1499, 8]]
    index = build(tmp_path / "index", documents, "seismic")
    capfd.readouterr()
    hits = index.search(queries, 10)
    assert hits.rows[:, 0].tolist() == [3, 900, 1499, 8]
    products = (queries @ documents.T).toarray()
    best = np.argsort(-products, axis=1, kind="stable")[:, :5]
    assert np.mean([len({*found} & {*true}) / 5 for found, true in zip(hits.rows, best, strict=True)]) > 0.6
    found = hits.rows >= 0
    expected = np.take_along_axis(products, np.maximum(hits.rows, 0), 1)
    np.testing.assert_allclose(hits.scores[found], expected[found], rtol=2e-3)
    assert capfd.readouterr().out == ""


def about_topics(count: int, active: int, seed: int) -> csr_matrix:
    """Vectors of 40 topics over 1,000 terms: a topic's terms are each other's company, and others' too, less often."""
    topics = np.random.default_rng(99).gamma(0.1, 1, (40, 1000))
    generator = np.random.default_rng(seed)
    mixed = topics[generator.integers(40, size=count)] * generator.gamma(1, 1, (count, 1000))
    mixed += generator.gamma(0.3, 1, (count, 1000))
    least = np.partition(mixed, -active, axis=1)[:, -active, None]
    return csr_matrix(np.log1p(5 * np.where(mixed >= least, mixed, 0)).astype(np.float32))


@seismic
def test_seismic_finds_what_the_exact_index_finds_at_its_defaults(tmp_path: Path) -> None:
    pytest.importorskip("numba", reason="the sparse extra is not installed")
    documents, queries = about_topics(3000, 60, seed=0), about_topics(50, 30, seed=1)
    exact, index = (build(tmp_path / backend, documents, backend) for backend in ("exact", "seismic"))
    best = exact.search(queries, 10).rows

    def recall(**options: Any) -> float:
        found = index.search(queries, 10, options=options).rows
        return float(np.mean([len({*ours} & {*true}) / 10 for ours, true in zip(found, best, strict=True)]))

    assert recall() > 0.97
    assert recall(query_cut=3) < recall()
    assert recall(query_cut=1000, heap_factor=0) > 0.99  # nothing is skipped; weights are rounded


@seismic
def test_seismic_refuses_what_half_precision_cannot_hold(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="half precision"):
        build(tmp_path / "index", weights({"cat": 70000}), "seismic")


@lucene
def test_a_sparse_index_is_not_changed_as_if_it_were_a_lexical_one(tmp_path: Path) -> None:
    build(tmp_path / "impacts", weights(*DOCUMENTS), "lucene")
    with pytest.raises(BackendError, match=r"sparse index \(lucene\) cannot append"):
        append(tmp_path / "impacts", Ids(["new"]), ["cat"])
    with pytest.raises(BackendError, match=r"sparse index \(lucene\) cannot delete"):
        delete(tmp_path / "impacts", ["d0"])
    assert len(open_index(tmp_path / "impacts", verify=True).ids) == len(DOCUMENTS)


# --- killed while the engine works ---

KILLED = """
import importlib, os, signal, sys
from scipy.sparse import load_npz
from rtk.ids import Ids
from rtk.indexes import BuildPlan, build_sparse, parse_backend
backend, documents, out, module, function, call = sys.argv[1:]
engine, calls = importlib.import_module("rtk.indexes." + module), []
real = getattr(engine, function)
def then_killed(*arguments):
    result = real(*arguments)
    calls.append(function)
    if len(calls) == int(call):
        os.kill(os.getpid(), signal.SIGKILL)
    return result
setattr(engine, function, then_killed)
matrix = load_npz(documents)
ids = Ids([f"d{row}" for row in range(matrix.shape[0])])
plan = BuildPlan(parse_backend(backend), shard_size=200)
build_sparse(out, ids, lambda start, stop: matrix[start:stop], plan=plan)
"""


def moment(backend: str, module: str, function: str, call: str, name: str) -> Any:
    marks = [lucene, pytest.mark.lucene] if backend == "lucene" else [seismic]
    return pytest.param(backend, module, function, call, marks=marks, id=f"{backend} {name}")


@pytest.mark.parametrize(
    ("backend", "module", "function", "call"),
    [
        moment("seismic", "seismic_index", "_narrow", "2", "before it builds"),
        moment("seismic", "seismic_index", "fsync_dir", "1", "with its file"),
        moment("lucene", "lucene_impact", "_token_lines", "3", "among documents"),
        moment("lucene", "lucene_impact", "_add_documents", "1", "after its commit"),
    ],
)
def test_a_build_that_was_killed_in_the_engine_equals_an_undisturbed_one(
    backend: str, module: str, function: str, call: str, tmp_path: Path
) -> None:
    documents = random_sparse(1000, 300, 0.03, format="csr", random_state=0, dtype=np.float32)
    save_npz(tmp_path / "documents.npz", documents)
    arguments = [backend, str(tmp_path / "documents.npz"), str(tmp_path / "cut"), module, function, call]
    killed = subprocess.run([sys.executable, "-c", KILLED, *arguments], cwd=tmp_path, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    with pytest.raises(DataError, match="run the same command again to resume"):
        open_index(tmp_path / "cut")
    if backend == "seismic":  # what a kill while the file is saved leaves
        (tmp_path / "cut" / "seismic" / "new.index.seismic").write_bytes(b"half")

    def encode(start: int, stop: int) -> csr_matrix:
        raise AssertionError("the shards were finished; they are not encoded again")

    plan = BuildPlan(parse_backend(backend), shard_size=200)
    build_sparse(tmp_path / "cut", Ids([f"d{row}" for row in range(1000)]), encode, plan=plan)
    whole, again = build(tmp_path / "whole", documents, backend), open_index(tmp_path / "cut", verify=True)
    files = [sorted(path.relative_to(folder) for path in folder.rglob("*"))
             for folder in (tmp_path / "whole", tmp_path / "cut")]  # fmt: skip
    assert files[0] == files[1]
    manifests = [read_manifest(tmp_path / name).model_dump() for name in ("whole", "cut")]
    assert manifests[0].keys() == manifests[1].keys()
    different = {key for key, value in manifests[0].items() if value != manifests[1][key]}
    assert different <= {"files"}  # neither engine writes the same bytes twice, undisturbed or not
    expected, found = (index.search(documents[::7], 20) for index in (whole, again))
    np.testing.assert_array_equal(found.rows, expected.rows)
    np.testing.assert_array_equal(found.scores, expected.scores)
