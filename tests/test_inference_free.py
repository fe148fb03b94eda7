"""Queries without a network: what a query's vector is, and that plain sentence-transformers has the same."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from sentence_transformers import SparseEncoder  # noqa: E402
from tokenizers.normalizers import BertNormalizer  # noqa: E402
from tokenizers.processors import BertProcessing  # noqa: E402

from rtk.errors import ConfigError, DataError, IndexMismatch  # noqa: E402
from rtk.retrieval.encoders import as_encoder, load_encoder  # noqa: E402
from rtk.retrieval.encoders.idf import compute_idf, uniform_idf  # noqa: E402
from rtk.retrieval.encoders.inference_free import (  # noqa: E402
    as_learned,
    inference_free,
    query_module,
    settle_learned,
    static_side,
    static_vectors,
)

GOLDEN = json.loads((Path(__file__).parent / "goldens" / "sparse" / "pooling.json").read_text())
CORPUS = ["the protein of a cell", "wing flow and heat", "the query and the document", "vitamin in the study"]


@pytest.fixture
def table(tiny_sparse):
    return compute_idf(CORPUS, tiny_sparse.tokenizer, source="corpus")


@pytest.fixture
def model(tiny_sparse, table):
    return inference_free(tiny_sparse, table)


def toy_tokenizer():
    from transformers import BertTokenizerFast

    vocabulary = GOLDEN["inputs"]["toy_vocabulary"]
    specials = {"mask_token": "[PAD]"}  # the toy vocabulary has four special pieces only
    return BertTokenizerFast(vocab={piece: number for number, piece in enumerate(vocabulary)}, **specials)


@pytest.mark.parametrize(
    ("key", "weights", "texts"),
    [
        ("query inf_free, idf=[1,1,1,1,2.5,0.25]", [1, 1, 1, 1, 2.5, 0.25], ["w4", "w5"]),
        (
            "query inf_free, a repeated token counts once: input_ids [[2,4,4,3]]",
            [1, 1, 1, 1, 2.5, 0.25],
            ["w4 w4 [SEP]"],
        ),
        (
            "query inf_free, negative learned idf is clipped by relu: idf[4]=-0.7",
            [1, 1, 1, 1, -0.7, 0.25],
            ["w4", "w5"],
        ),
    ],
)
def test_the_authors_program_gives_the_same_queries(key, weights, texts):
    module = query_module(toy_tokenizer(), np.array(weights))
    expected = np.array(GOLDEN["opensearch"][key])
    assert np.allclose(static_vectors(module, texts).toarray(), expected)


def test_training_sees_the_same_queries():
    key = "query inf_free, negative learned idf is clipped by relu: idf[4]=-0.7"
    module = query_module(toy_tokenizer(), np.array([1, 1, 1, 1, -0.7, 0.25]), trainable=True)
    as_learned(module)
    features = {"input_ids": torch.tensor([[2, 4, 3, 0], [2, 5, 3, 0]]), "attention_mask": torch.ones(2, 4).long()}
    found = module(features)["sentence_embedding"]
    assert torch.allclose(found, torch.tensor(GOLDEN["opensearch"][key]))
    found.sum().backward()
    assert module.weight.grad.tolist() == [0, 0, 0, 0, 0, 1]  # special pieces and clipped ones learn nothing


def test_a_query_is_the_set_of_its_pieces_times_their_weights(model, table):
    encoder = as_encoder(model)
    found = encoder.encode_query(["the protein the protein [SEP] zebra"])
    pieces = model.tokenizer.tokenize("the protein zebra")
    names = [table.pieces[column] for column in found.indices]
    assert sorted(names) == sorted(set(pieces))
    assert found.data.tolist() == table.weights()[found.indices].tolist()


def test_plain_sentence_transformers_has_the_same_vectors(model, tmp_path):
    texts = ["the protein", "wing flow heat the the", "a9 query"]
    model.save_pretrained(str(tmp_path / "model"), create_model_card=False)
    plain, ours = SparseEncoder(str(tmp_path / "model"), device="cpu"), load_encoder(tmp_path / "model", device="cpu")
    for encode in ("encode_query", "encode_document"):
        theirs = getattr(plain, encode)(texts, convert_to_sparse_tensor=False).numpy()
        assert np.allclose(getattr(ours, encode)(texts).toarray(), theirs, atol=1e-6)


def test_the_document_side_is_the_encoder_it_was_made_of(tiny_models, model, tmp_path):
    model.save_pretrained(str(tmp_path / "model"), create_model_card=False)
    before = load_encoder(tiny_models / "sparse", device="cpu")
    after = load_encoder(tmp_path / "model", device="cpu")
    assert after.identity.fingerprint == before.identity.fingerprint
    assert np.array_equal(after.encode_document(CORPUS).toarray(), before.encode_document(CORPUS).toarray())


@pytest.mark.parametrize("text", ["", "[SEP]", "[UNK] [CLS]", "日本"])
def test_a_query_without_an_ordinary_piece_is_empty(model, text):
    found = as_encoder(model).encode_query([text, "the"])
    assert found[0].nnz == 0
    assert found[1].nnz == 1


def test_queries_keep_as_many_terms_as_the_model_says(model):
    text = "protein cell wing heat"
    whole = as_encoder(model).encode_query([text]).toarray()[0]
    model.max_active_dims = 2
    kept = as_encoder(model).encode_query([text]).toarray()[0]
    assert (whole > 0).sum() > 2 == (kept > 0).sum()
    assert np.array_equal(np.sort(kept)[-2:], np.sort(whole)[-2:])
    plain = model.encode_query([text], convert_to_tensor=True).to_dense().numpy()[0]
    np.testing.assert_array_equal(np.sort(kept), np.sort(plain))


def test_queries_are_cut_at_their_length(tiny_sparse, table):
    short = as_encoder(inference_free(tiny_sparse, table, query_length=2))
    assert short.encode_query(["protein cell wing"]).nnz == 2
    again = short.encode_document(["protein cell wing"]).toarray()
    assert np.array_equal(again, as_encoder(tiny_sparse).encode_document(["protein cell wing"]).toarray())


@pytest.mark.parametrize("side", ["right", "left"])
def test_the_tokenizers_back_end_gives_what_its_call_gives(model, side):
    """Whatever an earlier call left there, and for a tokenizer without one."""
    queries = static_side(model, "query")
    tokenizer: Any = queries.tokenizer
    tokenizer.truncation_side, tokenizer.model_max_length = side, 3
    texts = ["heat flows from a hot wing to the air", "air", ""]
    found = static_vectors(queries, texts)
    tokenizer(texts, truncation=True, max_length=1, padding=True)
    assert (static_vectors(queries, texts) != found).nnz == 0
    slow = type(
        "Slow", (), {"model_max_length": 3, "__call__": lambda self, *given, **more: tokenizer(*given, **more)}
    )()
    assert not hasattr(slow, "backend_tokenizer")
    plain = SimpleNamespace(tokenizer=slow, weight=queries.weight)
    assert (static_vectors(plain, texts) != found).nnz == 0
    assert found.nnz > 3


def test_without_texts(model):
    encoder = as_encoder(model)
    assert encoder.encode_query([]).shape == (0, encoder.dimension)


def test_ranking_does_not_change_when_all_document_weights_are_scaled(model):
    encoder = as_encoder(model)
    queries, documents = encoder.encode_query(["the protein cell", "heat"]), encoder.encode_document(CORPUS)
    scores = (queries @ documents.T).toarray()
    assert np.array_equal(scores.argsort(axis=1), (queries @ (3 * documents).T).toarray().argsort(axis=1))


def test_a_prompt_of_queries_is_not_a_part_of_every_query(tiny_sparse, table):
    tiny_sparse.prompts = {"query": "query: ", "document": "document: "}
    encoder = as_encoder(inference_free(tiny_sparse, table))
    assert encoder.query.prompt is None
    assert encoder.document.prompt == "document: "
    assert encoder.encode_query(["protein"]).nnz == 1


# --- learned tables ---


def test_a_learned_table_is_saved_without_weights_below_zero(tiny_sparse, table, tmp_path):
    model = inference_free(tiny_sparse, table, trainable=True)
    weight = model[0].sub_modules["query"][0].weight
    assert weight.requires_grad
    the, protein = model.tokenizer.convert_tokens_to_ids(["the", "protein"])
    with torch.no_grad():
        weight[the], weight[protein] = -0.5, 2.0
    before = as_encoder(model).encode_query(["the protein"]).toarray()
    assert settle_learned(model) == 1
    model.save_pretrained(str(tmp_path / "model"), create_model_card=False)
    plain = SparseEncoder(str(tmp_path / "model"), device="cpu")
    found = plain.encode_query(["the protein"], convert_to_sparse_tensor=False).numpy()
    assert np.array_equal(found, before)
    assert found[0, protein] == 2.0
    assert found[0, the] == 0.0


def test_frozen_tables_learn_nothing(model):
    assert not model[0].sub_modules["query"][0].weight.requires_grad
    assert any(value.requires_grad for value in model.parameters())


# --- what does not fit ---


def test_a_table_of_another_tokenizer_is_refused(tiny_sparse):
    with pytest.raises(IndexMismatch, match="rtk idf"):
        inference_free(tiny_sparse, uniform_idf(toy_tokenizer()))


def test_dense_documents_are_refused(tiny_multi_vector, table):
    from sentence_transformers.sparse_encoder.modules import SparseStaticEmbedding

    static = SparseEncoder(modules=[SparseStaticEmbedding(toy_tokenizer())])
    with pytest.raises(ConfigError, match="SPLADE encoder"):
        inference_free(static, table)


def test_a_padded_head_gives_up_what_no_piece_has(tiny_models, table, tmp_path):
    size = len(table)
    padded = SparseEncoder(str(tiny_models / "sparse"), device="cpu")
    padded[0].model.resize_token_embeddings(size + 5)
    expected = as_encoder(padded).encode_document(CORPUS).toarray()[:, :size]
    model = inference_free(padded, table)
    assert np.allclose(as_encoder(model).encode_document(CORPUS).toarray(), expected, atol=1e-6)
    model.save_pretrained(str(tmp_path / "model"), create_model_card=False)
    SparseEncoder(str(tmp_path / "model"), device="cpu").encode_query(["the"])


def test_two_vocabularies_are_refused(model):
    model[0].sub_modules["query"][0] = query_module(toy_tokenizer(), np.ones(6))
    with pytest.raises(ConfigError, match="not one vocabulary"):
        as_encoder(model).encode_query(["the"])


def test_queries_cut_by_other_rules_are_refused(model):
    cased = copy.deepcopy(model.tokenizer)
    cased.backend_tokenizer.normalizer = BertNormalizer(lowercase=False)
    assert cased.get_vocab() == model.tokenizer.get_vocab()
    model[0].sub_modules["query"][0] = query_module(cased, np.ones(len(cased)))
    with pytest.raises(ConfigError, match="they differ in normalizer"):
        as_encoder(model).encode_query(["Protein Cell"])


def test_what_cuts_nothing_may_differ(model, table):
    plain = copy.deepcopy(model.tokenizer)
    plain.backend_tokenizer.post_processor = BertProcessing(("[CLS]", 2), ("[SEP]", 3))
    expected = as_encoder(model).encode_query(["the protein"]).toarray()
    model[0].sub_modules["query"][0] = query_module(plain, table.weights())
    assert np.array_equal(as_encoder(model).encode_query(["the protein"]).toarray(), expected)


def test_other_pieces_at_equal_size_are_refused(model):
    from transformers import BertTokenizerFast

    pieces = model.tokenizer.convert_ids_to_tokens(range(len(model.tokenizer)))
    pieces[-2:] = pieces[:-3:-1]
    swapped = BertTokenizerFast(vocab={piece: number for number, piece in enumerate(pieces)})
    model[0].sub_modules["query"][0] = query_module(swapped, np.ones(len(pieces)))
    with pytest.raises(ConfigError, match=f"numbers other pieces.*{len(pieces) - 2} is '{pieces[-2]}' there"):
        as_encoder(model).encode_query(["the"])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_table_with_a_weight_that_is_no_number_is_refused(model, value):
    protein = model.tokenizer.convert_tokens_to_ids("protein")
    with torch.no_grad():
        model[0].sub_modules["query"][0].weight[protein] = value
    with pytest.raises(DataError, match=f"1 of the .* the first is {value}, of the piece 'protein'"):
        as_encoder(model).encode_query(["the protein"])


# --- from a collection to a ranking ---


def test_an_index_of_it_is_searched_and_explained(rtk, model, beir_folder, tmp_path):
    folder = beir_folder()
    model.save_pretrained(str(tmp_path / "model"), create_model_card=False)
    code, _, err = rtk(f"index {folder} --retriever {tmp_path / 'model'} --out found --quiet")
    assert code == 0, err
    encoder = load_encoder(tmp_path / "model", device="cpu")
    texts = {"007": "Bond a spy with a number", "7": "the number seven"}
    code, out, _ = rtk("search found -q 'number the' --json --quiet")
    assert code == 0
    hits = {hit["id"]: hit["score"] for hit in json.loads(out)["documents"]}
    for name, text in texts.items():
        expected = (encoder.encode_query(["number the"]) @ encoder.encode_document([text]).T)[0, 0]
        assert hits[name] == pytest.approx(expected, rel=1e-5)
        told = json.loads(rtk(f"explain found -q 'number the' --document-id {name} --json --quiet")[1])
        assert told["score"] == pytest.approx(expected, rel=1e-5)
    code, out, _ = rtk("search found -q '[UNK] [SEP]' --json --quiet")
    assert (code, json.loads(out)["documents"]) == (0, [])
