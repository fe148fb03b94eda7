"""One suite for every index: what the protocol promises, run over all back-ends, built, opened again and in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from rtk.errors import ConfigError, DataError
from rtk.extras import available
from rtk.ids import Ids
from rtk.indexes import (
    BuildPlan,
    Index,
    build_dense,
    build_lexical,
    build_sparse,
    open_index,
    parse_backend,
    read_manifest,
)

LEXICAL = ("bm25s", "lucene", "exact-bm25")
SPARSE = ("exact", "lucene-impact", "seismic")
EXACT = ("torch", "torch-f16", "faiss:Flat", "bm25s", "lucene", "exact-bm25", "exact", "lucene-impact")
NEEDS = {"lucene": "pyserini", "faiss": "faiss", "exact": "numba", "seismic": "seismic"}
APPROXIMATE = {
    "faiss:IVF32,Flat": 0.9,
    "faiss:HNSW32": 0.95,
    "faiss:SQ8": 0.9,
    "faiss:SQfp16": 0.95,
    "faiss:IVF16,SQ8,RFlat": 0.9,
    "faiss:IVF16,PQ16x4,RFlat": 0.6,
    "faiss:IVF16_HNSW8,Flat": 0.9,
}
IDS = ("007", "7", "a b", " lead", "ß-é-漢", "x" * 300, "d9", "d10")
WORDS = ("alpha", "beta", "gamma", "delta", "omega", "sigma", "kappa", "theta")


@dataclass(frozen=True)
class Subject:
    """A back-end under test and how to build it from a seed."""

    name: str

    @property
    def lexical(self) -> bool:
        return self.name in LEXICAL

    @property
    def sparse(self) -> bool:
        return self.name in SPARSE

    def plan(self, **changes: Any) -> BuildPlan:
        backend, _, variant = self.name.partition("-")
        dtype = "float16" if variant == "f16" else "float32"
        return BuildPlan(parse_backend(backend), shard_size=5, dtype=dtype, **changes)

    def documents(self, count: int) -> Any:
        if self.lexical:
            return [" ".join(WORDS[: 1 + row % len(WORDS)]) + f" only{row}" for row in range(count)]
        if self.sparse:  # the first terms are words that documents share, the others are one document's own
            weights = np.zeros((count, len(WORDS) + count), dtype=np.float32)
            for row in range(count):
                weights[row, : 1 + row % len(WORDS)] = 1 + row % 3
                weights[row, len(WORDS) + row] = 2.5
            return csr_matrix(weights)
        return np.random.default_rng(0).standard_normal((count, 8)).astype(np.float32)

    def build(self, out: Any, documents: Any, ids: Any, **changes: Any) -> Index:
        build = build_lexical if self.lexical else build_sparse if self.sparse else build_dense
        return build(out, Ids(ids), lambda start, stop: documents[start:stop], plan=self.plan(**changes))

    def queries(self, documents: Any, rows: list[int]) -> Any:
        """Queries that find these rows first; of lexical and sparse engines nothing else."""
        if self.lexical:
            return [f"only{row}" for row in rows]
        return self.terms(documents, *([len(WORDS) + row] for row in rows)) if self.sparse else documents[rows] * 100

    def terms(self, documents: Any, *queries: list[int]) -> csr_matrix:
        """Sparse queries with these terms, each of weight one."""
        weights = np.zeros((len(queries), documents.shape[1]), dtype=np.float32)
        for number, terms in enumerate(queries):
            weights[number, terms] = 1
        return csr_matrix(weights)

    def common(self, documents: Any, count: int) -> Any:
        """Queries that find every document."""
        if self.lexical:
            return ["alpha"] * count
        return self.terms(documents, *[[0]] * count) if self.sparse else documents[:count]


def skip_without(name: str) -> None:
    module = next((NEEDS[part] for part in NEEDS if name.startswith(part)), None)
    if module is not None and not available(module):
        pytest.skip(f"{module} is not installed")


@pytest.fixture(params=[*EXACT, "seismic", "faiss:IVF2,Flat", "faiss:HNSW8"])
def subject(request: pytest.FixtureRequest) -> Subject:
    skip_without(request.param)
    return Subject(request.param)


@pytest.fixture
def small(subject: Subject, tmp_path: Any) -> tuple[Subject, Index, Any]:
    documents = subject.documents(len(IDS))
    return subject, subject.build(tmp_path / "index", documents, IDS), documents


def test_it_is_an_index(small: tuple[Subject, Index, Any]) -> None:
    assert isinstance(small[1], Index)


def test_ids_survive_as_strings(small: tuple[Subject, Index, Any]) -> None:
    assert list(small[1].ids) == list(IDS)


def test_query_order_is_kept(small: tuple[Subject, Index, Any]) -> None:
    subject, index, documents = small
    wanted = [5, 0, 7, 2, 2]
    queries = subject.queries(documents, wanted)
    alone = [index.search(queries[at : at + 1], 3).rows[0] for at in range(len(wanted))]
    together = index.search(queries, 3).rows
    np.testing.assert_array_equal(together, alone)
    if subject.lexical or subject.sparse:
        assert together[:, 0].tolist() == wanted


def test_shapes_types_and_padding_when_k_is_larger(small: tuple[Subject, Index, Any]) -> None:
    subject, index, documents = small
    hits = index.search(subject.queries(documents, [1, 3]), 50)
    assert hits.rows.shape == hits.scores.shape == (2, 50)
    assert hits.rows.dtype == np.int64
    assert hits.scores.dtype == np.float32
    short = hits.rows < 0
    assert short[:, len(IDS) :].all()
    assert (hits.rows[short] == -1).all()
    assert np.isneginf(hits.scores[short]).all()
    assert np.isfinite(hits.scores[~short]).all()
    for row, filled in zip(hits.rows, ~short, strict=True):
        assert len(set(row[filled])) == filled.sum()


def test_no_zero_score_fillers(small: tuple[Subject, Index, Any]) -> None:
    subject, index, documents = small
    if not (subject.lexical or subject.sparse):
        pytest.skip("a dense score of zero is a score like any other")
    if subject.lexical:
        hits = index.search(["only3", "unheard", "", "the of and"], 8)
        assert (hits.rows >= 0).sum(axis=1).tolist() == [1, 0, 0, 0]
    else:
        hits = index.search(subject.terms(documents, [len(WORDS) + 3], []), 8)
        assert (hits.rows >= 0).sum(axis=1).tolist() == [1, 0]


def test_no_queries_and_k_zero(small: tuple[Subject, Index, Any]) -> None:
    subject, index, documents = small
    assert index.search(subject.queries(documents, [0])[:0], 4).rows.shape == (0, 4)
    assert index.search(subject.queries(documents, [0]), 0).rows.shape == (1, 0)


def test_saved_is_loaded(small: tuple[Subject, Index, Any], tmp_path: Any) -> None:
    subject, index, documents = small
    queries = subject.queries(documents, [4, 1, 6])
    settings = [{}, {"mmap": False}] if subject.name.startswith("faiss") else [{}]
    for setting in settings:
        again = open_index(tmp_path / "index", verify=True, **setting)
        assert list(again.ids) == list(index.ids)
        first, second = index.search(queries, 5), again.search(queries, 5)
        np.testing.assert_array_equal(first.rows, second.rows)
        np.testing.assert_array_equal(first.scores, second.scores)


def test_excluded_rows_do_not_return_and_lists_stay_long(small: tuple[Subject, Index, Any]) -> None:
    subject, index, documents = small
    queries = subject.common(documents, 2)
    plain = index.search(queries, 8)
    exclude = [plain.rows[0, :2].tolist(), []]
    hits = index.search(queries, 4, exclude=exclude)
    np.testing.assert_array_equal(hits.rows[0], plain.rows[0, 2:6])
    np.testing.assert_array_equal(hits.rows[1], plain.rows[1, :4])
    with pytest.raises(ConfigError, match="one for each"):
        index.search(queries, 4, exclude=[[]])


def test_duplicate_ids_are_refused(subject: Subject, tmp_path: Any) -> None:
    with pytest.raises(DataError, match="'twice'"):
        subject.build(tmp_path / "index", subject.documents(3), ["twice", "x", "twice"])


def test_unknown_options_name_the_nearest(small: tuple[Subject, Index, Any]) -> None:
    subject, index, documents = small
    with pytest.raises(ConfigError, match="blok"):
        index.search(subject.queries(documents, [0]), 1, options={"blok": 3})


def test_empty_index(tmp_path: Any) -> None:
    for name in ("torch", "faiss:Flat", "bm25s", "exact-bm25", *SPARSE):
        skip_without(name)
        subject = Subject(name)
        documents = subject.documents(0)
        index = subject.build(tmp_path / name.replace(":", ""), documents, [])
        queries = np.ones((1, 8), np.float32) if name in ("torch", "faiss:Flat") else subject.common(documents, 1)
        hits = index.search(queries, 3)
        assert hits.rows.tolist() == [[-1, -1, -1]]


@pytest.mark.parametrize("name", SPARSE)
def test_documents_without_a_weight_are_counted(name: str, tmp_path: Any, caplog: pytest.LogCaptureFixture) -> None:
    skip_without(name)
    subject, documents = Subject(name), Subject(name).documents(7)
    subject.build(tmp_path / "whole", documents, IDS[:7])
    assert not caplog.records
    assert read_manifest(tmp_path / "whole").settings["empty"] == 0
    documents.data[documents.indptr[4] : documents.indptr[6]] = 0
    index = subject.build(tmp_path / "index", documents, IDS[:7])
    assert "2 of 7 documents have no weight" in caplog.text
    assert read_manifest(tmp_path / "index").settings["empty"] == 2
    assert sorted(index.search(subject.common(documents, 1), 7).rows[0]) == [-1, -1, 0, 1, 2, 3, 6]


@pytest.mark.parametrize("name", SPARSE)
def test_documents_that_are_all_without_a_weight_make_no_index(name: str, tmp_path: Any) -> None:
    skip_without(name)
    subject, nothing = Subject(name), csr_matrix((3, 5), dtype=np.float32)
    with pytest.raises(DataError, match="none of the 3 documents has a weight"):
        subject.build(tmp_path / "index", nothing, IDS[:3])
    with pytest.raises(DataError, match="interrupted"):
        open_index(tmp_path / "index")


@pytest.mark.parametrize("name", ["torch", "faiss:Flat", "bm25s", "exact-bm25", "exact", "lucene-impact"])
def test_exact_ties_go_to_the_lower_row(name: str, tmp_path: Any) -> None:
    skip_without(name)
    subject = Subject(name)
    count = 3000
    if subject.lexical:
        documents: Any = ["alpha beta"] * count
        queries: Any = ["alpha", "beta"] * 20
    elif subject.sparse:
        documents = csr_matrix(np.tile(np.float32([[0.5, 0, 0.25]]), (count, 1)))
        queries = csr_matrix(np.tile(np.float32([[1, 1, 2]]), (40, 1)))
    else:
        documents = np.tile(np.random.default_rng(1).standard_normal((1, 24)).astype(np.float32), (count, 1))
        queries = np.random.default_rng(2).standard_normal((40, 24)).astype(np.float32)
    index = subject.build(tmp_path / "index", documents, [str(row) for row in range(count)])
    hits = index.search(queries, 7)
    assert (hits.rows == np.arange(7)).all()
    hits = index.search(queries, 3, exclude=[[0, 2]] * 40)
    assert (hits.rows == [1, 3, 4]).all()


@pytest.fixture(scope="module")
def clustered() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Documents, queries, and the true first ten rows of each query in float64."""
    generator = np.random.default_rng(3)
    centres = generator.standard_normal((40, 32))
    documents, queries = (
        (centres[generator.integers(0, 40, count)] + 0.5 * generator.standard_normal((count, 32))).astype(np.float32)
        for count in (3000, 50)
    )
    scores = queries.astype(np.float64) @ documents.astype(np.float64).T
    return documents, queries, np.argsort(-scores, axis=1)[:, :10]


def _build_clustered(name: str, documents: np.ndarray, out: Any, **changes: Any) -> Index:
    plan = BuildPlan(parse_backend(name), shard_size=1000, **changes)
    encode: Callable[[int, int], np.ndarray] = lambda start, stop: documents[start:stop]  # noqa: E731
    return build_dense(out, Ids([f"d{row}" for row in range(len(documents))]), encode, plan=plan)


@pytest.mark.parametrize("name", ["torch", "faiss:Flat"])
@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_exact_engines_equal_float64(
    name: str, similarity: str, clustered: tuple[np.ndarray, np.ndarray, np.ndarray], tmp_path: Any
) -> None:
    documents, queries, _ = clustered
    index = _build_clustered(name, documents, tmp_path / "index", similarity=similarity)
    hits = index.search(queries, 100)
    left, right = queries.astype(np.float64), documents.astype(np.float64)
    if similarity == "cosine":
        left, right = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in (left, right))
    scores = left @ right.T
    expected = np.argsort(-scores, axis=1)[:, :101]
    best = np.take_along_axis(scores, expected, 1)
    np.testing.assert_allclose(hits.scores, best[:, :100], rtol=1e-6)
    gaps = -np.diff(best, axis=1) > 1e-5 * best[:, :1]
    distinct = gaps & np.concatenate([np.ones((len(gaps), 1), bool), gaps[:, :-1]], axis=1)
    assert distinct.mean() > 0.9
    np.testing.assert_array_equal(hits.rows[distinct], expected[:, :100][distinct])


@pytest.mark.parametrize(("name", "floor"), APPROXIMATE.items())
def test_approximate_factories_recall(
    name: str, floor: float, clustered: tuple[np.ndarray, np.ndarray, np.ndarray], tmp_path: Any
) -> None:
    if not available("faiss"):
        pytest.skip("the cpu extra (faiss) is not installed")
    documents, queries, truth = clustered
    index = _build_clustered(name, documents, tmp_path / "index")
    hits = index.search(queries, 10)
    recall = np.mean([len({*found} & {*true}) / 10 for found, true in zip(hits.rows, truth, strict=True)])
    assert recall >= floor
    assert (np.diff(hits.scores, axis=1) <= 0).all()
