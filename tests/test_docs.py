"""The examples of the documentation run as they stand."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rtk

DOCS = Path(__file__).resolve().parent.parent / "docs"


def blocks(name: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (DOCS / name).read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.fixture
def collection(beir_folder, monkeypatch, tmp_path) -> Any:
    """What `rtk.open_collection` gives in the examples: a small folder in place of pydocs."""
    opened = rtk.open_collection(beir_folder())
    monkeypatch.setattr(rtk, "open_collection", lambda name: opened, raising=False)
    monkeypatch.chdir(tmp_path)
    return opened


def test_own_encoder(collection):
    scope: dict[str, Any] = {}
    for block in blocks("own-encoder.md"):
        exec(block, scope)
    assert scope["run"]["q2"].documents[0] == "d4"


def test_own_index(collection):
    vectors = np.eye(4, dtype=np.float32)

    class Encoder:
        def encode_query(self, texts, /):
            return vectors[: len(texts)]

    scope: dict[str, Any] = {"encoder": Encoder(), "vectors": vectors, "ids": ["a", "b", "c", "d"]}
    for block in blocks("own-index.md"):
        exec(block, scope)
    hits = scope["retriever"].search(["x", "y"], 6)
    assert hits.rows[:, 0].tolist() == [0, 1]
    assert (hits.rows[:, 4:] == -1).all()


def test_sparse(collection, tiny_models, tmp_path, capsys):
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    shutil.copytree(tiny_models / "sparse", tmp_path / "models" / "splade")
    tokenizer = AutoTokenizer.from_pretrained(tiny_models / "bert")
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(tmp_path / "models" / "causal")
    tokenizer.save_pretrained(tmp_path / "models" / "causal")
    scope: dict[str, Any] = {}
    for block in blocks("sparse.md"):
        exec(block, scope)
    assert scope["queries"].shape[0] == scope["vectors"].shape[0] == 1
    assert scope["match"].terms[0].piece in capsys.readouterr().out
    assert set(scope["added"]).isdisjoint({"merge", "list", "##s"})


def test_own_reranker(collection):
    run = rtk.Run.from_lists([("q0", ["007", "7", "d4"], [3.0, 2.0, 1.0]), ("q2", ["d4", "7"], [2.0, 1.0])])

    class Longest:
        def predict(self, pairs):
            return [float(len(text)) for _, text in pairs]

    scope: dict[str, Any] = {"my_cross_encoder": Longest(), "run": run, "collection": collection}
    for block in blocks("own-reranker.md"):
        exec(block, scope)
    lengths = {document.id: len(document.full_text) for document in collection.documents}
    found = scope["reranked"]["q0"].documents
    assert found == sorted(found, key=lengths.__getitem__)


def test_the_first_example_of_the_readme(collection, tiny_models, capsys):
    (block,) = re.findall(r"```python\n(.*?)```", (DOCS.parent / "README.md").read_text(), flags=re.DOTALL)
    exec(block.replace('"minilm"', repr(str(tiny_models / "dense"))), {})
    assert "nDCG@10" in capsys.readouterr().out


def test_language_model_rerankers(tiny_llama, capsys):
    scope: dict[str, Any] = {"path": str(tiny_llama), "texts": ["a wing", "a list"]}
    for block in blocks("language-model-rerankers.md"):
        exec(block, scope)
    assert scope["logits"].values.shape == (2, 2)
    assert set(scope["result"].ids) == {"d1", "d2"}
    assert "Usage(" in capsys.readouterr().out


def test_sparse_index(monkeypatch, tmp_path):
    pytest.importorskip("numba", reason="the sparse extra is not installed")
    monkeypatch.chdir(tmp_path)
    for block in blocks("sparse-index.md"):
        exec(block, {})
