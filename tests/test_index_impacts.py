"""Whole weights: the quantiser, Lucene's impact index against Pyserini's figures, and Seismic's own ways."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
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

TERMS = ("cat", "dog", "all", "##s", "fox", "big", "zebra")
DOCUMENTS = [
    {"cat": 120, "dog": 30, "all": 10},
    {"cat": 50, "##s": 200, "all": 20},
    {"dog": 30, "fox": 7, "all": 5},
    {"dog": 30, "all": 1},
    {"big": 70000, "all": 3},
]


def weights(*vectors: dict[str, float]) -> csr_matrix:
    dense = np.zeros((len(vectors), len(TERMS)), dtype=np.float32)
    for row, vector in enumerate(vectors):
        for term, value in vector.items():
            dense[row, TERMS.index(term)] = value
    return csr_matrix(dense)


def build(out: Path, documents: csr_matrix, backend: str, ids: Any = None, **settings: Any) -> Any:
    names = Ids(ids or [f"d{row}" for row in range(documents.shape[0])])
    plan = BuildPlan(parse_backend(backend), shard_size=200, settings=settings)
    return build_sparse(out, names, lambda start, stop: documents[start:stop], plan=plan)


def test_the_quantiser_rounds_halves_to_even_and_drops_zeros() -> None:
    """goldens/sparse/quantisation.json at factor 2, and at 100 but for 0.015 and 0.025: naver multiplies in float32,
    where those products are halves; in float64 the float32 weights are just under and over them."""
    given = [[0, 0.004, 0.005, 0.015, 0.025, 1.234, 2.5, 0.0051], [0] * 8, [0, 0, 0.0049, 0, 0, 0, 0, 0],
             [3.456, 0, 0.125, 0.995, 0, 0.01, 0, 0]]  # fmt: skip
    vectors = csr_matrix(np.float32(given))
    hundred, clipped = Quantiser(100)(vectors)
    rows = [dict(zip(hundred[row].indices.tolist(), hundred[row].data.tolist(), strict=True)) for row in range(4)]
    exact = [round(100 * float(np.float32(value))) for value in (0.015, 0.025)]  # of the float32 weights, in float64
    assert rows[0] == {3: exact[0], 4: exact[1], 5: 123, 6: 250, 7: 1}
    assert exact != [2, 2], "in float32 both were halves, and even"
    assert rows[1:] == [{}, {}, {0: 346, 2: 12, 3: 100, 5: 1}]
    assert clipped == 0
    two, _ = Quantiser(2)(vectors)
    assert two.toarray().tolist() == [[0, 0, 0, 0, 0, 2, 5, 0], [0] * 8, [0] * 8, [7, 0, 0, 2, 0, 0, 0, 0]]
    halves, _ = Quantiser(51.2)(csr_matrix(np.float32([[0.009765625, 0.029296875, 0.048828125]])))
    assert halves.toarray().tolist() == [[0, 2, 2]]


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
    """goldens/sparse/impact_search.json, pyserini 1.6.0, min_idf -1; an empty document beside them."""
    documents = weights(*DOCUMENTS, {})
    index = build(tmp_path / "index", documents, "lucene", [*"abcde", "none"], factor=1, query_factor=1)
    cases = [
        ({"cat": 3, "dog": 2}, {"a": 420, "b": 150, "c": 60, "d": 60}),
        ({"all": 5}, {"b": 100, "a": 50, "c": 25, "e": 15, "d": 5}),
        ({"all": 5, "dog": 1}, {"b": 100, "a": 80, "c": 55, "d": 35, "e": 15}),
        ({"zebra": 3, "fox": 1}, {"c": 7}),
        ({"##s": 1}, {"b": 200}),
        ({"dog": 1}, {"a": 30, "c": 30, "d": 30}),
        ({"big": 300}, {"e": 21000000}),
        ({}, {}),
    ]
    hits = index.search(weights(*(query for query, _ in cases)), 10)
    for number, (_, expected) in enumerate(cases):
        rows = hits.rows[number][hits.rows[number] >= 0]
        assert dict(zip(index.ids.take(rows), hits.scores[number].tolist(), strict=False)) == expected
        assert index.ids.take(rows) == list(expected)
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
