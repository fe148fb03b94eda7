"""Explanations: contributions add up to the score, terms are exact pieces, and every kind of model can tell them."""

from __future__ import annotations

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from rtk.errors import ConfigError  # noqa: E402
from rtk.retrieval.encoders import as_encoder  # noqa: E402
from rtk.retrieval.encoders.idf import compute_idf  # noqa: E402
from rtk.retrieval.encoders.inference_free import inference_free  # noqa: E402
from rtk.retrieval.explain import expand, explain  # noqa: E402

QUERY, DOCUMENT = "the protein of a cell", "vitamin and protein in the cancer study"


@pytest.fixture(params=["inference-free", "splade"])
def encoder(request, tiny_sparse):
    if request.param == "inference-free":
        table = compute_idf([QUERY, DOCUMENT, "wing"], tiny_sparse.tokenizer)
        return as_encoder(inference_free(tiny_sparse, table))
    return as_encoder(tiny_sparse)


def test_contributions_add_up_to_the_score(encoder):
    match = explain(encoder, QUERY, DOCUMENT)
    score = (encoder.encode_query([QUERY]) @ encoder.encode_document([DOCUMENT]).T)[0, 0]
    assert match.score == pytest.approx(float(score), rel=1e-5)
    assert match.score == pytest.approx(sum(term.query * term.document for term in match.terms))
    assert len(match.terms) > 0


def test_terms_come_by_contribution_with_their_own_weights(encoder):
    match = explain(encoder, QUERY, DOCUMENT)
    added = [term.contribution for term in match.terms]
    assert added == sorted(added, reverse=True)
    numbers = encoder.model.tokenizer.convert_tokens_to_ids([term.piece for term in match.terms])
    asked, found = encoder.encode_query([QUERY]).toarray()[0], encoder.encode_document([DOCUMENT]).toarray()[0]
    assert [term.query for term in match.terms] == [asked[number] for number in numbers]
    assert [term.document for term in match.terms] == [found[number] for number in numbers]


def test_what_the_text_has_and_what_was_added(encoder):
    terms = {term.piece: term for term in explain(encoder, QUERY, DOCUMENT).terms}
    for piece, term in terms.items():
        assert term.in_query == (piece in encoder.model.tokenizer.tokenize(QUERY))
        assert term.in_document == (piece in encoder.model.tokenizer.tokenize(DOCUMENT))


def test_an_inference_free_query_has_no_expansion(tiny_sparse):
    encoder = as_encoder(inference_free(tiny_sparse, compute_idf([QUERY], tiny_sparse.tokenizer)))
    assert all(term.in_text for term in expand(encoder, QUERY, task="query"))
    assert all(term.in_query for term in explain(encoder, QUERY, DOCUMENT).terms)
    assert not all(term.in_text for term in expand(encoder, DOCUMENT, k=None))


def test_expansions_are_the_heaviest_terms(encoder):
    vector = encoder.encode_document([DOCUMENT])
    found = expand(encoder, DOCUMENT, k=5)
    assert [term.weight for term in found] == np.sort(vector.data)[::-1][:5].tolist()
    assert len(expand(encoder, DOCUMENT, k=None)) == vector.nnz


def test_a_word_beyond_the_cut_is_in_the_text(tiny_sparse):
    encoder = as_encoder(tiny_sparse, document_length=4)
    found = expand(encoder, "protein cell wing vitamin", k=None)
    assert [term.in_text for term in found if term.piece == "vitamin"] in ([True], [])
    assert {term.piece for term in found if term.in_text} <= {"protein", "cell", "wing", "vitamin"}


def test_pieces_are_exact(encoder):
    pieces = {term.piece for term in expand(encoder, "xyz", k=None) if term.in_text}
    assert pieces <= {"x", "##y", "##z"}


def test_the_words_of_an_echo_encoder_are_those_that_it_pools(tiny_llama):
    from rtk.retrieval.encoders.echo import make_echo

    templates = dict.fromkeys(("query", "document"), "Query: {text} Query: {echo}")
    echo = make_echo(str(tiny_llama), device="cpu", templates=templates)
    features = echo.preprocess(["vitamin cancer"], task="document")
    pooled = echo.tokenizer.convert_ids_to_tokens(features["input_ids"][0][features["pool_mask"][0].bool()])
    assert pooled[0] == "Ġvitamin"  # and not what the tokenizer makes of a text that begins with it
    found = {term.piece: term.in_text for term in expand(as_encoder(echo), "vitamin cancer", k=None)}
    assert {piece for piece, own in found.items() if own} == found.keys() & set(pooled)
    assert found.keys() & set(pooled)
    match = explain(as_encoder(echo), "vitamin cancer", "the vitamin")
    marks = {term.piece: (term.in_query, term.in_document) for term in match.terms}
    assert marks["Ġvitamin"] == (True, True)


def test_dense_models_have_no_terms(tiny_dense):
    with pytest.raises(ConfigError, match="no sparse encoder"):
        explain(as_encoder(tiny_dense), QUERY, DOCUMENT)


def test_learned_dimensions_have_no_names(tiny_models):
    from sentence_transformers import SparseEncoder

    latent = SparseEncoder(str(tiny_models / "bert"), device="cpu")
    with pytest.raises(ConfigError, match="learned dimensions"):
        expand(as_encoder(latent), DOCUMENT)


# --- the command ---


def test_the_command_with_texts(rtk, tiny_models):
    code, out, _ = rtk(f"explain {tiny_models / 'sparse'} -q '{QUERY}' -d '{DOCUMENT}' -k 3 --json --quiet")
    assert code == 0
    found = json.loads(out)
    assert len(found["terms"]) == 3
    assert found["count"] > 3
    code, shown, _ = rtk(f"explain {tiny_models / 'sparse'} -q '{QUERY}' -d '{DOCUMENT}' -k 3 --quiet")
    assert f"score {found['score']:.6f}" in shown
    assert f"({found['count'] - 3} more terms)" in shown
    assert all(term["piece"] in shown for term in found["terms"])


def test_the_command_with_one_text(rtk, tiny_models):
    code, out, _ = rtk(f"explain {tiny_models / 'sparse'} -d '{DOCUMENT}' -k 4 --json --quiet")
    assert code == 0
    assert [set(term) for term in json.loads(out)["terms"]] == [{"piece", "weight", "in_text"}] * 4


def test_bm25_adds_up_to_what_the_search_says(rtk, beir_folder):
    folder = beir_folder(qrels={"test": [("q0", "007", 1)]})
    assert rtk(f"index {folder} --out bm25 --quiet")[0] == 0
    hits = json.loads(rtk("search bm25 -q 'a spy with the number number seven' --json --quiet")[1])["documents"]
    for hit in hits:
        code, out, _ = rtk(f"explain bm25 -q 'a spy with the number number seven' --document-id {hit['id']} --json")
        assert code == 0
        assert json.loads(out)["score"] == pytest.approx(hit["score"], rel=1e-6)
    assert len(hits) == 2
    code, out, _ = rtk("explain bm25 --query-id q0 --document-id 007 --json")
    assert [term["piece"] for term in json.loads(out)["terms"]] == ["spy"]


def test_the_model_of_an_index_that_was_trained_on_is_refused(rtk, tiny_sparse, beir_folder, tmp_path):
    folder, model = beir_folder(), tmp_path / "model"
    tiny_sparse.save_pretrained(str(model), create_model_card=False)
    assert rtk(f"index {folder} --retriever {model} --out found --quiet")[0] == 0
    asked = f"explain found -q '{QUERY}' --document-id 007 --json --quiet"
    assert rtk(asked)[0] == 0
    with torch.no_grad():
        next(iter(tiny_sparse.parameters())).mul_(1.5)
    tiny_sparse.save_pretrained(str(model), create_model_card=False)
    code, _, err = rtk(asked)
    assert (code, "declares another document side" in err) == (4, True)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ("", 2, "give a query"),
        ("-q a --query-id b", 2, "not both"),
        ("--document-id x", 2, "give --collection"),
        ("-q a -k 0", 2, "at least 1"),
    ],
)
def test_what_cannot_be_explained(rtk, tiny_models, arguments, code, message):
    found, _, err = rtk(f"explain {tiny_models / 'sparse'} {arguments}")
    assert (found, message in err) == (code, True)


def test_unknown_ids_are_told(rtk, tiny_models, beir_folder):
    folder = beir_folder()
    model = tiny_models / "sparse"
    found, _, err = rtk(f"explain {model} -c {folder} --document-id nothing")
    assert (found, "no document 'nothing'" in err) == (4, True)
    found, _, err = rtk(f"explain {model} -c {folder} --query-id nothing")
    assert (found, "no query 'nothing'" in err) == (4, True)
