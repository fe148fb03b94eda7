"""What single engines promise beyond the conformance suite: other programs open their files, updates, the registry."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rtk.errors import BackendError, ConfigError, DataError, MissingExtra
from rtk.ids import Ids
from rtk.indexes import (
    Bm25sIndex,
    BuildPlan,
    TorchIndex,
    append,
    build_dense,
    build_lexical,
    delete,
    open_index,
    parse_backend,
    read_manifest,
)
from rtk.indexes.english import EnglishAnalyzer, words

faiss = pytest.importorskip("faiss", reason="the cpu extra (faiss) is not installed")
from rtk.indexes import FaissIndex  # noqa: E402

GENERATOR = np.random.default_rng(5)
VECTORS = GENERATOR.standard_normal((600, 16)).astype(np.float32)
QUERIES = GENERATOR.standard_normal((9, 16)).astype(np.float32)
IDS = [f"d {row}" for row in range(600)]
TEXTS = ["the quick brown fox", "quick quick dog", "lazy dogs sleep", "a fox sleeps", "nothing here"]


def build(out: Path, backend: str, **changes: Any) -> Any:
    settings = {"shard_size": 250, **changes}
    return build_dense(
        out, Ids(IDS), lambda start, stop: VECTORS[start:stop], plan=BuildPlan(parse_backend(backend), **settings)
    )


def build_texts(out: Path, backend: str = "bm25s", texts: list[str] = TEXTS, **changes: Any) -> Any:
    return build_lexical(
        out,
        Ids([f"d{row}" for row in range(len(texts))]),
        lambda start, stop: texts[start:stop],
        plan=BuildPlan(parse_backend(backend), shard_size=2, **changes),
    )


# torch


@pytest.mark.parametrize("block", [1, 7, 64, 10_000])
def test_block_size_and_threads_do_not_change_results(block: int) -> None:
    documents = np.concatenate([VECTORS, VECTORS[::-1], np.zeros((5, 16), np.float32)])
    index = TorchIndex.from_arrays(documents, [str(row) for row in range(len(documents))])
    expected = index.search(QUERIES, 50)
    found = index.search(QUERIES, 50, options={"block": block})
    np.testing.assert_array_equal(found.rows, expected.rows)
    np.testing.assert_array_equal(found.scores, expected.scores)
    assert (expected.scores[:, 0] == expected.scores[:, 1]).all()
    assert (expected.rows[:, 0] < expected.rows[:, 1]).all()  # a copy ties with its original, which has the lower row


def test_rising_scores_are_found_too() -> None:
    """Every block beats all before it, which is the worst case for the running threshold."""
    documents = np.arange(1, 3001, dtype=np.float32)[:, None] * np.ones((1, 4), np.float32)
    index = TorchIndex.from_arrays(documents, [str(row) for row in range(3000)])
    hits = index.search(np.ones((2, 4), np.float32), 6, options={"block": 100})
    assert hits.rows.tolist() == [[2999, 2998, 2997, 2996, 2995, 2994]] * 2


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_scores_are_those_of_the_stored_values_in_float32(dtype: Any) -> None:
    index = TorchIndex.from_arrays(VECTORS, IDS, dtype=dtype)
    stored = index.vectors(np.arange(len(index))).astype(np.float64)
    hits = index.search(QUERIES, 20)
    exact = np.take_along_axis(QUERIES.astype(np.float64) @ stored.T, hits.rows, 1)
    np.testing.assert_array_equal(hits.scores, exact.astype(np.float32))


def test_topk_takes_and_gives_tensors_and_excludes_per_query() -> None:
    index = TorchIndex.from_arrays(VECTORS, IDS, similarity="cosine")
    queries = torch.from_numpy(QUERIES).requires_grad_()
    plain_scores, plain = index.topk(queries, 10)
    assert isinstance(plain, torch.Tensor)
    assert plain.dtype == torch.int64
    assert plain_scores.dtype == torch.float32
    assert not plain_scores.requires_grad
    assert float(plain_scores.max()) <= 1.0
    _, rows = index.topk(queries, 5, exclude=[row[:5].tolist() for row in plain])
    torch.testing.assert_close(rows, plain[:, 5:])


def test_more_queries_than_one_batch() -> None:
    queries = np.random.default_rng(6).standard_normal((700, 16)).astype(np.float32)
    index = TorchIndex.from_arrays(VECTORS, IDS)
    exclude = [[number % 600] for number in range(700)]
    hits = index.search(queries, 3, exclude=exclude)
    scores = queries.astype(np.float64) @ VECTORS.astype(np.float64).T
    scores[np.arange(700), np.arange(700) % 600] = -np.inf
    np.testing.assert_array_equal(hits.rows, np.argsort(-scores, axis=1)[:, :3])


def test_bad_queries_are_refused() -> None:
    index = TorchIndex.from_arrays(VECTORS, IDS)
    with pytest.raises(ConfigError, match=r"expected \(n, 16\)"):
        index.search(QUERIES[:, :8], 3)
    broken = QUERIES.copy()
    broken[4, 0] = np.inf
    with pytest.raises(DataError, match="vector 4"):
        index.search(broken, 3)


# faiss


def test_faiss_and_torch_agree_on_everything(tmp_path: Path) -> None:
    first, second = build(tmp_path / "a", "faiss"), build(tmp_path / "b", "torch")
    for exclude in (None, [[1, 2, 3]] * len(QUERIES)):
        left, right = (index.search(QUERIES, 40, exclude=exclude) for index in (first, second))
        np.testing.assert_array_equal(left.rows, right.rows)
        np.testing.assert_array_equal(left.scores, right.scores)
    np.testing.assert_array_equal(first.vectors([5, 599, 0]), VECTORS[[5, 599, 0]])


def test_faiss_itself_opens_the_index(tmp_path: Path) -> None:
    index = build(tmp_path / "index", "faiss:IVF8,Flat", similarity="cosine")
    plain = faiss.read_index(str(tmp_path / "index" / "index"))
    assert plain.ntotal == 600
    assert plain.metric_type == faiss.METRIC_INNER_PRODUCT
    plain.nprobe = index.options["nprobe"]
    queries = QUERIES / np.linalg.norm(QUERIES, axis=1, keepdims=True)
    np.testing.assert_array_equal(plain.search(queries, 5)[1], index.search(QUERIES, 5).rows)
    assert (tmp_path / "index" / "docid").read_text().splitlines() == IDS


def test_knobs_have_defaults_are_recorded_and_can_be_given(tmp_path: Path) -> None:
    index = build(tmp_path / "index", "faiss:IVF32,Flat")
    assert read_manifest(tmp_path / "index").settings == {
        "factory": "IVF32,Flat",
        "search": {"nprobe": 8},
        "train_size": 600,
        "seed": 0,
    }
    few, many = (index.search(QUERIES, 600, options={"nprobe": value}) for value in (1, 32))
    assert (few.rows >= 0).sum() < (many.rows >= 0).sum() == 600 * len(QUERIES)
    assert (few.scores[few.rows < 0] == -np.inf).all()
    again = index.search(QUERIES, 600)
    assert (few.rows >= 0).sum() < (again.rows >= 0).sum() < (many.rows >= 0).sum()
    with pytest.raises(ConfigError, match=r"nprob'.*did you mean 'nprobe'"):
        index.search(QUERIES, 3, options={"nprob": 3})
    refined = build(tmp_path / "refined", "faiss:IVF8,SQ8,RFlat", settings={"k_factor": 6, "nprobe": 3})
    assert refined.options == {"k_factor": 6, "nprobe": 3}


@pytest.mark.parametrize("factory", ["Nonsense", "IVF900,Flat", "LSH"])
def test_factories_that_cannot_be_made_say_why(factory: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        build(tmp_path / "index", f"faiss:{factory}")


def test_flat_drops_its_vector_shards_unless_told(tmp_path: Path) -> None:
    build(tmp_path / "a", "faiss")
    kept = build(tmp_path / "b", "faiss", keep_vectors=True)
    ivf = build(tmp_path / "c", "faiss:IVF8,SQ8", keep_vectors=False)
    assert [(tmp_path / name / "vectors").exists() for name in "abc"] == [False, True, False]
    np.testing.assert_array_equal(kept.vectors([3]), VECTORS[[3]])
    np.testing.assert_allclose(ivf.vectors([3]), VECTORS[[3]], atol=0.05)


def test_memory_need_is_said_before_building(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="rtk"):
        build(tmp_path / "index", "faiss")
        build_texts(tmp_path / "texts")
    assert "faiss:Flat needs about" in caplog.text
    assert "bm25s needs about" in caplog.text


def test_arrays_make_an_index_without_files() -> None:
    index = FaissIndex.from_arrays(VECTORS, IDS, factory="HNSW16", similarity="cosine")
    exact = TorchIndex.from_arrays(VECTORS, IDS, similarity="cosine")
    assert (index.search(QUERIES, 1).rows == exact.search(QUERIES, 1).rows).mean() > 0.8
    with pytest.raises(DataError, match="duplicate"):
        TorchIndex.from_arrays(VECTORS[:2], ["a", "a"])


# bm25s


def test_bm25_equals_the_formula_and_bm25s_reads_the_files(tmp_path: Path) -> None:
    import bm25s

    index = build_texts(tmp_path / "index", settings={"k1": 1.2, "b": 0.75})
    terms = [EnglishAnalyzer()(text) for text in TEXTS]
    mean = np.mean([len(part) for part in terms])
    query = ["quick", "fox", "quick"]
    expected = np.zeros(len(TEXTS))
    for term in query:
        frequency = sum(term in part for part in terms)
        for row, part in enumerate(terms):
            times = part.count(term)
            norm = 1.2 * (1 - 0.75 + 0.75 * len(part) / mean)
            expected[row] += np.log(1 + (len(TEXTS) - frequency + 0.5) / (frequency + 0.5)) * times / (times + norm)
    hits = index.search([" ".join(query)], 5)
    assert hits.rows[0].tolist() == [*np.argsort(-expected, kind="stable")[:3], -1, -1]
    np.testing.assert_allclose(hits.scores[0, :3], np.sort(expected)[::-1][:3], rtol=1e-6)
    theirs = bm25s.BM25.load(str(tmp_path / "index" / "bm25s"), mmap=True)
    np.testing.assert_allclose(theirs.get_scores(query), expected, rtol=1e-6)


def test_bm25_blocks_do_not_matter(tmp_path: Path) -> None:
    texts = [f"w{row % 13} w{row % 7} w{row % 3} common" for row in range(100)]
    queries = ["w1 w2 common", "w12 w5", "common common w0"]
    found = []
    for size in (1, 9, 1000):
        index = build_lexical(
            tmp_path / str(size),
            Ids(map(str, range(100))),
            lambda start, stop: texts[start:stop],
            plan=BuildPlan(parse_backend("bm25s"), shard_size=size),
        )
        found.append(index.search(queries, 20))
    for other in found[1:]:
        np.testing.assert_array_equal(found[0].rows, other.rows)
        np.testing.assert_array_equal(found[0].scores, other.scores)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The U.S.A.'s dogs' foo_bar", "U.S.A s dogs foo_bar"),
        ("can't 3.14 1,000 a.b 3.a x-y", "can't 3.14 1,000 a.b 3 a x y"),
        ("10% ___ a_ C++ p<0.05 IL-1β", "10 a_ C p 0.05 IL 1β"),
        ("naïve cafe\u0301 日本 テスト ひら 한국어", "naïve cafe\u0301 日 本 テスト ひ ら 한국어"),
    ],
)
def test_words_are_those_of_lucene(text: str, expected: str) -> None:
    assert [word for word in words(text) if word != "The"] == expected.split()


def test_terms_are_those_of_lucene() -> None:
    found = EnglishAnalyzer()("The dog's possible pathologies, irreversibly vs. us; O'Neil's x-ray")
    assert found == ["dog", "possibl", "patholog", "irrevers", "vs", "us", "o'neil", "x", "rai"]


def test_one_text_in_place_of_several_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="sequence"):
        build_texts(tmp_path / "index").search("quick", 3)


# updates


@pytest.mark.parametrize("backend", ["torch", "faiss", "faiss:IVF8,Flat", "faiss:IVF8,SQ8"])
def test_append_and_delete_equal_building_at_once(backend: str, tmp_path: Path) -> None:
    out = tmp_path / "index"
    build_dense(
        out,
        Ids(IDS[:400]),
        lambda start, stop: VECTORS[start:stop],
        plan=BuildPlan(parse_backend(backend), shard_size=150, similarity="cosine"),
    )
    reader = open_index(out)
    gone = [5, 100, 399]
    delete(out, [IDS[row] for row in gone])
    index = append(out, Ids([IDS[5], *IDS[400:]]), VECTORS[[5, *range(400, 600)]])
    rows = [row for row in range(400) if row not in gone] + [5, *range(400, 600)]
    assert list(index.ids) == [IDS[row] for row in rows]
    assert read_manifest(out).count == len(rows)
    exact = TorchIndex.from_arrays(VECTORS[rows], [IDS[row] for row in rows], similarity="cosine").search(QUERIES, 10)
    options = {"nprobe": 8} if "IVF" in backend else None
    found = open_index(out, verify=True).search(QUERIES, 10, options=options)
    assert np.mean([len({*a} & {*b}) / 10 for a, b in zip(found.rows, exact.rows, strict=True)]) > 0.9
    assert len(reader.search(QUERIES, 3)) == len(QUERIES)  # opened before, still whole
    with pytest.raises(DataError, match="in the index already"):
        append(out, Ids([IDS[7]]), VECTORS[:1])
    with pytest.raises(DataError, match="not in the index"):
        delete(out, ["unheard"])
    assert [path.name for path in tmp_path.iterdir()] == ["index"]
    assert not (out / "building.lock").exists()


def test_engines_that_cannot_update_say_so(tmp_path: Path) -> None:
    build_texts(tmp_path / "texts")
    with pytest.raises(BackendError, match=r"cannot append.*overwrite"):
        append(tmp_path / "texts", Ids(["new"]), ["text"])
    build(tmp_path / "graph", "faiss:HNSW8")
    with pytest.raises(BackendError, match="cannot delete"):
        delete(tmp_path / "graph", [IDS[0]])
    assert len(open_index(tmp_path / "graph", verify=True).ids) == 600


# registry


def test_registry_names_the_nearest() -> None:
    assert str(parse_backend("faiss")) == "faiss:Flat"
    for wrong, message in (("fais", "'faiss'"), ("torch:Flat", "faiss:FACTORY"), ("faiss:", "faiss:FACTORY")):
        with pytest.raises(ConfigError, match=message):
            parse_backend(wrong)


def test_a_lexical_backend_for_vectors_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="torch, faiss"):
        build(tmp_path / "index", "bm25s")


def test_importing_the_package_imports_no_engine() -> None:
    code = "import sys, rtk.indexes; print([n for n in ('torch', 'faiss', 'scipy', 'jnius') if n in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_missing_engine_is_a_missing_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(tmp_path / "index", "faiss")
    monkeypatch.setitem(sys.modules, "faiss", None)
    for name in ("faiss_index", "faiss_factory"):
        monkeypatch.delitem(sys.modules, f"rtk.indexes.{name}")
    with pytest.raises(MissingExtra, match="pip install"):
        open_index(tmp_path / "index")


def test_numbers_of_the_golden(shared_data: Path, tmp_path: Path) -> None:
    """bm25s stands beside Lucene's published nDCG@10 (0.6789 on SciFact) within 0.006."""
    import gzip

    folder = shared_data / "scifact"
    with gzip.open(folder / "corpus.jsonl.gz", "rt", encoding="utf-8") as lines:
        documents = [json.loads(line) for line in lines]
    index = build_texts_of(documents, tmp_path / "index")
    assert ndcg_of(index, folder) == pytest.approx(0.6789, abs=0.006)


def build_texts_of(documents: list[dict[str, str]], out: Path, backend: str = "bm25s") -> Any:
    texts = [(entry["title"] + " " + entry["text"]).strip() for entry in documents]
    return build_lexical(
        out,
        Ids([entry["_id"] for entry in documents]),
        lambda start, stop: texts[start:stop],
        plan=BuildPlan(parse_backend(backend)),
    )


def ndcg_of(index: Bm25sIndex, folder: Path) -> float:
    import pytrec_eval

    lines = (folder / "queries.jsonl").read_text(encoding="utf-8").strip().split("\n")
    queries = {entry["_id"]: entry["text"] for entry in map(json.loads, lines)}
    judged: dict[str, dict[str, int]] = {}
    for line in (folder / "qrels" / "test.tsv").read_text().splitlines()[1:]:
        qid, docid, grade = line.split("\t")
        judged.setdefault(qid, {})[docid] = int(grade)
    hits = index.search([queries[qid] for qid in judged], 100)
    run = {
        qid: {index.ids[int(row)]: float(score) for row, score in zip(rows, scores, strict=True) if row >= 0}
        for qid, rows, scores in zip(judged, hits.rows, hits.scores, strict=True)
    }
    values = pytrec_eval.RelevanceEvaluator(judged, {"ndcg_cut.10"}).evaluate(run)
    return float(np.mean([values[qid]["ndcg_cut_10"] if qid in values else 0.0 for qid in judged]))
