"""Where texts are cut: a model keeps the lengths that it was trained on, an index those that it was asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from rtk.eval.files import read_run  # noqa: E402
from rtk.retrieval.encoders import as_encoder, load_encoder  # noqa: E402
from rtk.retrieval.encoders.sides import keep_length, transformer_of  # noqa: E402
from rtk.retrieval.training import load_config, train  # noqa: E402

WORDS = ["file", "cell", "wing", "heat", "vitamin", "cancer", "json", "date", "path", "flow", "gene", "list"]
QUERIES = [f"{WORDS[n]} {WORDS[n + 1]} {WORDS[n + 2]} {WORDS[n + 3]}" for n in range(4)]
DOCUMENTS = [" ".join(WORDS[n : n + 6]) for n in range(6)]
SPARSE = {"loss": [{"name": "infonce"}, {"name": "flops", "weight": 1e-3}]}
METHODS: dict[str, dict[str, Any]] = {
    "dense": {"method": "contrastive", "model": "dense"},
    "splade": {"method": "splade", "model": "bert-mlm", **SPARSE},
    "lexical": {"method": "splade", "model": "bert-mlm", **SPARSE, "sparse": {"expansion": "document"}},
    "bag": {"method": "splade", "model": "bert-mlm", **SPARSE, "sparse": {"query": "bag"}},
    "inference-free": {"method": "inference-free", "model": "bert-mlm", **SPARSE},
}


@pytest.fixture
def collection(beir_folder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RTK_CACHE", str(tmp_path / "cache"))
    rows = [(f"q{n}", f"d{n}", 1) for n in range(len(QUERIES))]
    return beir_folder(
        corpus=[{"_id": f"d{n}", "text": text} for n, text in enumerate(DOCUMENTS)],
        queries=[{"_id": f"q{n}", "text": text} for n, text in enumerate(QUERIES)],
        qrels={"train": rows, "test": rows},
    )


def trained(kind: str, collection: Path, tiny_models: Path, **changes: Any) -> Path:
    chosen = METHODS[kind]
    config: dict[str, Any] = {
        **chosen,
        "model": str(tiny_models / chosen["model"]),
        "data": {"collection": str(collection)},
        "sampling": {"negatives": 0},
        "lengths": {"query": 4 if transformed(kind) else 2, "document": 5},
        "trainer": {"per_device_train_batch_size": 2, "max_steps": 1, "use_cpu": True, "save_strategy": "no"},
        "output": str(collection.parent / "model"),
    }
    if chosen["method"] != "contrastive":
        config["sparse"] = {**chosen.get("sparse", {}), "active": {"most": 1.0}}
    return train(load_config({**config, **changes}))


def transformed(kind: str) -> bool:
    """Whether a transformer reads the queries, with special tokens around them."""
    return kind not in ("bag", "inference-free")


@pytest.mark.parametrize("kind", METHODS)
def test_a_search_finds_what_was_evaluated_in_training(
    kind: str, collection: Path, tiny_models: Path, rtk: Any, monkeypatch: pytest.MonkeyPatch
):
    from rtk.retrieval.training import evaluation

    if kind != "dense":
        pytest.importorskip("numba", reason="the sparse extra is not installed")
    measured: list[Any] = []
    search = evaluation.search_exactly
    monkeypatch.setattr(evaluation, "search_exactly", lambda *given: measured.append(search(*given)) or measured[-1])
    block = {"collection": str(collection), "split": "test", "every": 1, "at_start": False}
    changes = {"evaluation": block, "trainer": {"per_device_train_batch_size": 2, "max_steps": 1, "use_cpu": True}}
    model = trained(kind, collection, tiny_models, **changes)
    encoder = load_encoder(model, device="cpu")
    assert (encoder.query.length, encoder.document.length) == (4 if transformed(kind) else 2, 5)
    backend = "torch" if kind == "dense" else "exact"
    code, _, err = rtk(f"index {collection} --retriever {model} --backend {backend} --out found --quiet")
    assert code == 0, err
    assert rtk(f"search found -c {collection} --out found.trec --quiet")[0] == 0
    found, (wanted,) = read_run("found.trec"), measured
    for qid in wanted.qids:
        assert found[qid].documents == wanted[qid].documents
        np.testing.assert_allclose(found[qid].scores, wanted[qid].scores, rtol=1e-4)
    longer = f"search found -c {collection} --query-length 32 --out longer.trec --quiet"
    assert rtk(longer)[0] == (0 if transformed(kind) else 2)
    if transformed(kind):
        assert read_run("longer.trec") != found


@pytest.mark.parametrize("kind", METHODS)
def test_sentence_transformers_cuts_where_training_did(kind: str, collection: Path, tiny_models: Path):
    from sentence_transformers import SentenceTransformer, SparseEncoder

    load = SentenceTransformer if kind == "dense" else SparseEncoder
    model: Any = load(str(trained(kind, collection, tiny_models)), device="cpu")

    def vectors(side: str, text: str) -> torch.Tensor:
        found = getattr(model, f"encode_{side}")([text], convert_to_tensor=True, show_progress_bar=False)
        return found.to_dense() if found.is_sparse else found

    for side, text, words in (("query", QUERIES[0], 2), ("document", DOCUMENTS[0], 3)):
        assert torch.equal(vectors(side, text), vectors(side, " ".join(text.split()[:words])))
        assert not torch.equal(vectors(side, text), vectors(side, " ".join(text.split()[: words - 1])))


def test_lengths_that_are_not_given_are_the_model_s(collection: Path, tiny_models: Path, tmp_path: Path):
    first = trained("dense", collection, tiny_models)
    changes = {"model": str(first), "lengths": {"document": 6}, "output": str(tmp_path / "second")}
    encoder = load_encoder(trained("dense", collection, tiny_models, **changes), device="cpu")
    assert (encoder.query.length, encoder.document.length) == (4, 6)


def test_no_more_is_kept_than_there_are_positions(tiny_dense: Any):
    keep_length(tiny_dense, "document", 1000)
    reader = transformer_of(tiny_dense, "document")
    assert reader is not None
    assert (reader.query_length, reader.document_length) == (None, 128)
    assert as_encoder(tiny_dense).encode_document(["the " * 500]).shape == (1, 32)


def test_an_index_keeps_the_query_length_that_it_was_asked_for(collection: Path, tiny_models: Path, rtk: Any):
    model = tiny_models / "dense"
    for name, given in (("short", "--query-length 4"), ("plain", "")):
        made = f"index {collection} --retriever {model} --backend torch {given} --out {name} --quiet"
        assert rtk(made)[0] == 0

    def run(index: str, given: str = "") -> Any:
        code, _, err = rtk(f"search {index} -c {collection} {given} --out run.trec --overwrite --quiet")
        assert code == 0, err
        return read_run("run.trec")

    assert json.loads(Path("short/manifest.json").read_text())["encoder"]["query_length"] == 4
    assert run("short") == run("plain", "--query-length 4") != run("plain")
    assert run("short", "--query-length 32") == run("plain")
    assert run("short", f"--model {model}") == run("plain")  # another model has a length of its own
    assert rtk(f"encode {collection} --retriever {model} --part 0/1 --out parts --quiet")[0] == 0  # documents alone
    assert rtk(f"index {collection} --retriever {model} --backend torch --query-length 4 --out parts --quiet")[0] == 0
    assert run("parts") == run("short")


def test_a_query_length_without_an_encoder_to_load_is_refused(collection: Path, tiny_dense: Any, rtk: Any):
    from rtk.errors import ConfigError
    from rtk.retrieval.search import Retriever

    assert rtk(f"index {collection} --out bm25 --quiet")[0] == 0
    code, _, err = rtk("search bm25 -q cell --query-length 4 --quiet")
    assert (code, "BM25 has no encoder" in err) == (2, True)
    with pytest.raises(ConfigError, match="loaded already"):
        Retriever.open("bm25", as_encoder(tiny_dense), query_length=4)
