"""Sparse encoders through building, searching and the command line; what their vectors' sparsity is reported as."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from scipy.sparse import random as random_sparse

from rtk.errors import ConfigError, IndexMismatch
from rtk.eval import agreement, open_collection, read_run
from rtk.eval.run import Run
from rtk.extras import available
from rtk.indexes import activity, flops_metric, read_manifest
from rtk.retrieval import Retriever, build_index
from rtk.retrieval.encoders.adapters import as_encoder
from rtk.retrieval.encoders.corpus import Part
from rtk.retrieval.indexing import encode_part

pytest.importorskip("numba", reason="the sparse extra is not installed")
WORDS = ("file", "list", "sort", "merge", "heap", "wing", "flow", "heat", "read", "line")


@pytest.fixture
def folder(beir_folder: Callable[..., Path]) -> Path:
    generator = np.random.default_rng(0)
    texts = [" ".join(generator.choice(WORDS, 6)) for _ in range(40)]
    return beir_folder(
        "small",
        corpus=[{"_id": f"d{row}", "title": "", "text": text} for row, text in enumerate(texts)],
        queries=[{"_id": f"q{row}", "text": " ".join(WORDS[row : row + 3])} for row in range(7)],
        qrels={"test": [(f"q{row}", f"d{row}", 1) for row in range(7)]},
    )


def test_a_sparse_encoder_makes_an_exact_index_and_finds_what_a_product_finds(
    folder: Path, tiny_sparse: Any, tmp_path: Path
) -> None:
    encoder = as_encoder(tiny_sparse)
    collection = open_collection(folder)
    index = build_index(folder, tmp_path / "index", retriever=encoder, shard_size=16)
    manifest = read_manifest(tmp_path / "index")
    assert (manifest.kind, manifest.backend) == ("sparse", "exact")
    queries = collection.queries("test")
    found = Retriever(encoder, index).run(queries, 40)
    vectors = encoder.encode_document(collection.documents.texts(slice(0, 40)))
    scores = (encoder.encode_query(queries.texts) @ vectors.T).toarray()
    for row, entry in enumerate(found):
        best = np.argsort(-scores[row], kind="stable")[: len(entry.documents)]
        np.testing.assert_allclose(entry.scores, scores[row][best], rtol=1e-5)
    with pytest.raises(ConfigError, match="take lucene, exact, seismic"):
        build_index(folder, tmp_path / "no", retriever=encoder, backend="faiss")


def test_the_queries_of_another_encoder_are_refused(folder: Path, tiny_sparse: Any, tmp_path: Path) -> None:
    index = build_index(folder, tmp_path / "index", retriever=as_encoder(tiny_sparse), shard_size=16)
    with pytest.raises(IndexMismatch, match="lengths"):
        Retriever(as_encoder(tiny_sparse, document_length=7), index)


def with_bias(model: Path, out: Path, change: Callable[[Any], Any]) -> Path:
    """A copy of a saved masked-LM encoder with another bias of its head."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(model, out)
    weights = load_file(out / "model.safetensors")
    weights["cls.predictions.bias"] = change(weights["cls.predictions.bias"])
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    return out


def with_words_swapped(model: Path, out: Path) -> Path:
    """A copy of a saved encoder whose tokenizer has two words' numbers the other way round."""
    shutil.copytree(model, out)
    written = (out / "tokenizer.json").read_text(encoding="utf-8")
    rules = json.loads(written)
    words = rules["model"]["vocab"]
    words["file"], words["list"] = words["list"], words["file"]
    (out / "tokenizer.json").write_text(json.dumps(rules), encoding="utf-8")
    return out


@pytest.mark.parametrize("other", ["weights", "tokenizer"])
def test_the_command_line_refuses_the_queries_of_another_model(
    other: str, folder: Path, tiny_models: Path, tmp_path: Path, rtk: Callable[[str], tuple[int, str, str]]
) -> None:
    ours, index = tiny_models / "sparse", tmp_path / "index"
    if other == "weights":
        theirs = with_bias(ours, tmp_path / "theirs", lambda bias: bias + 1e-3)
    else:
        theirs = with_words_swapped(ours, tmp_path / "theirs")
    assert rtk(f"index {folder} --retriever {ours} --out {index} --quiet")[0] == 0
    search = f"search {index} -c {folder} --out {tmp_path / 'run.trec'} --quiet"
    code, _, said = rtk(f"{search} --model {theirs}")
    assert code == 4, said
    assert f"'{ours}'" in said
    assert f"'{theirs}'" in said
    assert "fingerprint" in said.partition("declares another document side")[2]
    assert not (tmp_path / "run.trec").exists()
    shutil.copytree(ours, tmp_path / "copy")  # the same model under another name
    assert rtk(f"{search} --model {tmp_path / 'copy'}")[0] == 0


def test_a_model_without_active_terms_makes_no_index(
    folder: Path, tiny_models: Path, tmp_path: Path, rtk: Callable[[str], tuple[int, str, str]]
) -> None:
    dead = with_bias(tiny_models / "sparse", tmp_path / "dead", lambda bias: bias - 1e4)
    code, _, said = rtk(f"index {folder} --retriever {dead} --out {tmp_path / 'index'} --quiet")
    assert code == 4, said
    assert "none of the 40 documents has a weight" in said


def test_parts_make_the_same_index(folder: Path, tiny_sparse: Any, tmp_path: Path) -> None:
    encoder = as_encoder(tiny_sparse)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    build_index(folder, whole, retriever=encoder, shard_size=10)
    left = [encode_part(folder, parts, part=Part(number, 2), retriever=encoder, shard_size=10) for number in (0, 1)]
    assert left == [2, 0]
    build_index(folder, parts, retriever=encoder, shard_size=10)
    files = {path.name: path.read_bytes() for path in whole.rglob("*") if path.is_file()}
    assert {path.name: path.read_bytes() for path in parts.rglob("*") if path.is_file()} == files


def test_the_command_line_reports_sparsity_and_agreement(
    folder: Path, tiny_models: Path, tmp_path: Path, rtk: Callable[[str], tuple[int, str, str]]
) -> None:
    index, run = tmp_path / "index", tmp_path / "exact.trec"
    code, _, error = rtk(f"index {folder} --retriever {tiny_models / 'sparse'} --out {index} --quiet")
    assert code == 0, error
    record = json.loads(rtk(f"search {index} -c {folder} --out {run} -k 20 --json --quiet")[1])
    assert record["flops"] > 0
    assert 0 < record["query_active_dimensions"] <= (read_manifest(index).dimension or 0)
    whole = read_run(run)
    assert agreement(whole.top(5), whole, [5, 10]).recall == {5: 1.0, 10: 0.5}
    assert json.loads(rtk(f"eval {run} --against {run} --json")[1])[0]["recall"] == {"10": 1.0}
    assert "recall@10" in rtk(f"eval {run} --against {run}")[1]
    code, _, said = rtk(f"eval {run} --against {run} -m RR --split test --report r.html")
    assert code == 2
    assert "leave --split, --measures, --report out" in said
    assert "FLOPS metric" in rtk(f"search {index} -c {folder} --out {tmp_path / 'again.trec'}")[1]


@pytest.mark.skipif(not available("seismic"), reason="the seismic extra is not installed")
def test_settings_that_an_engine_cannot_take_are_the_user_s_error(
    folder: Path, tiny_models: Path, tmp_path: Path, rtk: Callable[[str], tuple[int, str, str]]
) -> None:
    make = f"index {folder} --retriever {tiny_models / 'sparse'} --backend seismic --out {tmp_path / 'index'} --quiet"
    code, _, said = rtk(f"{make} --set n_postings=abc")
    assert code == 2, said
    assert "n_postings is 'abc', expected a whole number" in said
    assert not (tmp_path / "index").exists()  # the right setting is not another plan than that of a begun build
    assert rtk(f"{make} --set n_postings=1e3")[0] == 0
    find = f"search {tmp_path / 'index'} -q file"
    assert rtk(f"{find} --set query_cut=5")[0] == 0
    for setting, expected in (
        ("query_cut=0", "query_cut is 0, expected"),
        ("threads=1", "known: query_cut, heap_factor"),
    ):
        code, _, said = rtk(f"{find} --set {setting}")
        assert code == 2, said
        assert expected in said


def test_agreement_counts_missing_queries_as_zero() -> None:
    reference = Run.from_lists([("a", ["x", "y"], [2.0, 1.0]), ("b", ["x", "z"], [2.0, 1.0])])
    found = agreement(Run.from_lists([("a", ["y", "w"], [2.0, 1.0])]), reference, [1, 2])
    assert found.missing == 1
    assert found.recall == {1: 0.0, 2: 0.25}
    with pytest.raises(ConfigError, match="no hits"):
        agreement(reference, Run.from_lists([]), [1])


def test_flops_metric_is_the_mean_number_of_common_terms() -> None:
    queries, documents = (random_sparse(rows, 30, 0.2, format="csr", random_state=rows) for rows in (9, 40))
    common = ((queries > 0).astype(int) @ (documents > 0).astype(int).T).mean()
    halves = activity(csr_matrix(documents[:11])) + activity(csr_matrix(documents[11:]))
    assert flops_metric(activity(csr_matrix(queries)), halves) == pytest.approx(common)
    assert halves.mean == pytest.approx(documents.nnz / 40)
    with pytest.raises(ConfigError, match="different encoders"):
        flops_metric(activity(csr_matrix(queries[:, :20])), halves)
