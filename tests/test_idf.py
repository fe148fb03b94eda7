"""IDF tables of word pieces: the formula, the file, and what does not fit."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path

import numpy as np
import pytest

from rtk.errors import DataError, IndexMismatch
from rtk.retrieval.encoders.idf import compute_idf, read_idf, record_path, uniform_idf

GOLDEN = json.loads((Path(__file__).parent / "goldens" / "sparse" / "idf.json").read_text())


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import BertTokenizerFast

    vocabulary = GOLDEN["inputs"]["wordpiece_vocabulary"]
    return BertTokenizerFast(vocab={piece: number for number, piece in enumerate(vocabulary)})


def test_the_authors_program_gives_the_same_table(tokenizer):
    table = compute_idf(GOLDEN["inputs"]["corpus"], tokenizer)
    found = {
        piece: value for piece, value in zip(table.pieces, table.idf.tolist(), strict=True) if not math.isnan(value)
    }
    assert found == pytest.approx(GOLDEN["idf"], rel=1e-12)
    assert table.passages == 4


def test_texts_without_ordinary_tokens_do_not_count(tokenizer):
    corpus = GOLDEN["inputs"]["corpus"]
    table = compute_idf(corpus, tokenizer)
    more = compute_idf([*corpus, "", "zzz", "   "], tokenizer)
    assert np.array_equal(table.idf, more.idf, equal_nan=True)


def test_order_and_blocks_do_not_matter(tokenizer, monkeypatch):
    corpus = GOLDEN["inputs"]["corpus"] * 3
    table = compute_idf(corpus, tokenizer)
    monkeypatch.setattr("rtk.retrieval.encoders.idf._BLOCK", 2)
    assert np.array_equal(table.idf, compute_idf(corpus[::-1], tokenizer).idf, equal_nan=True)


@pytest.mark.parametrize("name", ["table.json", "table.json.gz"])
def test_a_written_table_is_read_as_it_was(tokenizer, tmp_path, name):
    table = compute_idf(GOLDEN["inputs"]["corpus"], tokenizer, source="toy")
    table.save(tmp_path / name)
    again = read_idf(tmp_path / name, tokenizer)
    assert np.array_equal(table.weights(), again.weights())
    assert again.passages == 4
    assert again.unseen == 0  # every piece has an entry: no reader has to guess


def test_other_readers_find_one_where_a_piece_never_occurs(tokenizer, tmp_path):
    from sentence_transformers.sparse_encoder.modules import SparseStaticEmbedding

    table = compute_idf(GOLDEN["inputs"]["corpus"], tokenizer)
    table.save(tmp_path / "table.json")
    theirs = SparseStaticEmbedding.from_json(str(tmp_path / "table.json"), tokenizer)
    assert np.array_equal(theirs.weight.detach().numpy(), table.weights())
    assert table.weights()[tokenizer.convert_tokens_to_ids("[MASK]")] == 1.0


def test_a_missing_piece_weighs_one_and_is_told(tokenizer, tmp_path, caplog):
    (tmp_path / "short.json").write_text('{"the": 0.25}')
    table = read_idf(tmp_path / "short.json", tokenizer)
    assert table.weights()[tokenizer.convert_tokens_to_ids(["the", "cat"])].tolist() == [0.25, 1.0]
    assert f"no entry for {len(table) - 1}" in caplog.text


def test_uniform_weights_are_one(tokenizer):
    assert set(uniform_idf(tokenizer).weights().tolist()) == {1.0}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"the": 1.0, "paris": 2.0}', "'paris'"),
        ('{"the": -0.5}', "'the': -0.5"),
        ('{"the": NaN}', "nan"),
        ('{"the": "1"}', "finite numbers"),
        ('{"the": true}', "finite numbers"),
        ('{"the": 1, "the": 2}', "twice"),
        ("[1, 2]", "JSON object"),
        ("{}", "with an entry"),
        ('{"the": 1', "not an IDF table"),
    ],
)
def test_what_is_no_table_is_refused_with_its_file(tokenizer, tmp_path, text, message):
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        read_idf(tmp_path / "bad.json", tokenizer)
    assert "bad.json" in str(caught.value)


def test_a_damaged_gzip_is_refused(tokenizer, tmp_path):
    (tmp_path / "cut.json.gz").write_bytes(gzip.compress(b'{"the": 1}')[:-6])
    with pytest.raises(DataError, match="not an IDF table"):
        read_idf(tmp_path / "cut.json.gz", tokenizer)


def test_a_table_of_a_tokenizer_that_cuts_differently_is_refused(tokenizer, tmp_path):
    from transformers import BertTokenizerFast

    compute_idf(GOLDEN["inputs"]["corpus"], tokenizer).save(tmp_path / "table.json")
    vocabulary = {piece: number for number, piece in enumerate(GOLDEN["inputs"]["wordpiece_vocabulary"])}
    cased = BertTokenizerFast(vocab=vocabulary, do_lower_case=False)
    with pytest.raises(IndexMismatch, match="cut texts differently"):
        read_idf(tmp_path / "table.json", cased)
    record_path(tmp_path / "table.json").unlink()  # nothing is known then, and every piece is in the vocabulary
    read_idf(tmp_path / "table.json", cased)


def test_nothing_to_count_is_an_error(tokenizer):
    with pytest.raises(DataError, match="ordinary token"):
        compute_idf(["", "[UNK]"], tokenizer)


def test_the_published_table(shared_data):
    from transformers import BertTokenizerFast

    path = shared_data / "idf" / "bert-base-uncased-msmarco.idf.json.gz"
    names = list(json.loads(gzip.decompress(path.read_bytes())))
    tokenizer = BertTokenizerFast(vocab={name: number for number, name in enumerate(names)})
    weights, published = read_idf(path, tokenizer).weights(), GOLDEN["published_idf_json"]
    for piece in ("the", "of", "what", "paris", "##ing", "[CLS]"):
        assert weights[tokenizer.convert_tokens_to_ids(piece)] == pytest.approx(published[piece], rel=1e-6)
    found = (weights.min(), weights.max(), weights.mean())
    assert found == pytest.approx((published["min"], published["max"], published["mean"]), rel=1e-6)


def test_the_command(tiny_models, beir_folder, tmp_path, capsys):
    from rtk.retrieval.cli.main import run

    collection, out = beir_folder(), tmp_path / "idf.json"
    with pytest.raises(SystemExit) as done:
        run(["idf", "-c", str(collection), "--model", str(tiny_models / "sparse"), "--out", str(out), "--json"])
    assert done.value.code == 0
    told = json.loads(capsys.readouterr().out)
    assert told["passages"] == 4
    assert json.loads(out.read_text())["number"] == pytest.approx(math.log(1 + 2.5 / 2.5))
    with pytest.raises(SystemExit) as refused:
        run(["idf", "-c", str(collection), "--model", str(tiny_models / "sparse"), "--out", str(out)])
    assert refused.value.code == 2
