"""Retrievers: encoder and index that belong together, documents found, long documents by their best chunk."""

from __future__ import annotations

import json
import zlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtk.errors import ConfigError, IndexMismatch, MissingExtra
from rtk.eval.chunking import Chunking
from rtk.eval.collection import Queries, open_collection
from rtk.ids import Ids
from rtk.indexes import Hits, TorchIndex, read_manifest
from rtk.retrieval import EncoderIdentity, Retriever, build_index, excluded_documents, hits_to_run, search_documents

DOCUMENTS = {
    "d1": ("Files", "read a file line by line and close the file"),
    "007": ("", "sort a list of numbers"),
    "a b": ("Heaps", "merge sorted lists with a heap of numbers"),
    "é": ("", "wing flow and heat"),
    "q1": ("", "read numbers"),
}
QUERIES = {"q1": "read numbers", "q2": "heat flow", "q3": "xylophone"}


@pytest.fixture
def collection(beir_folder):
    return open_collection(
        beir_folder(
            "small",
            corpus=[{"_id": name, "title": title, "text": text} for name, (title, text) in DOCUMENTS.items()],
            queries=[{"_id": name, "text": text} for name, text in QUERIES.items()],
            qrels={"test": [("q1", "d1", 1), ("q2", "é", 2), ("q3", "d1", 1)]},
        )
    )


class Bag:
    """A user's own encoder: hashed bags of words."""

    def encode_query(self, texts):
        vectors = np.zeros((len(texts), 64), dtype=np.float32)
        for row, text in enumerate(texts):
            for word in text.lower().split():
                vectors[row, zlib.crc32(word.encode()) % 64] += 1
        return vectors

    encode_document = encode_query


class DeclaredBag(Bag):
    identity = EncoderIdentity(name="bag", fingerprint="ab" * 32, dimension=64)


class OtherBag(Bag):
    identity = replace(DeclaredBag.identity, name="other-bag", fingerprint="cd" * 32)


class TestBuilding:
    def test_bm25_is_the_default(self, collection, tmp_path):
        build_index(collection, tmp_path / "index")
        manifest = read_manifest(tmp_path / "index")
        assert (manifest.kind, manifest.backend, manifest.encoder) == ("bm25", "bm25s", None)
        assert manifest.collection["name"] == "small"
        assert manifest.collection["fingerprint"] == collection.documents.fingerprint
        assert manifest.collection["count"] == len(DOCUMENTS)

    def test_the_encoder_is_in_the_manifest(self, collection, tmp_path):
        build_index(collection, tmp_path / "index", retriever=DeclaredBag(), backend="torch")
        assert EncoderIdentity.from_dict(read_manifest(tmp_path / "index").encoder) == DeclaredBag.identity

    def test_shards_are_encoded_one_by_one(self, collection, tmp_path):
        sizes = []

        class Watching(Bag):
            def encode_document(self, texts):
                sizes.append(len(texts))
                return self.encode_query(texts)

        small = build_index(collection, tmp_path / "small-shards", retriever=Watching(), backend="torch", shard_size=2)
        whole = build_index(collection, tmp_path / "whole", retriever=Bag(), backend="torch")
        assert sizes == [2, 2, 1]
        rows = np.arange(len(DOCUMENTS))
        np.testing.assert_array_equal(small.vectors(rows), whole.vectors(rows))

    def test_a_back_end_of_another_kind_is_refused(self, collection, tmp_path):
        with pytest.raises(ConfigError, match=r"'bm25' makes bm25 indexes.*'torch' does not; take bm25s, lucene"):
            build_index(collection, tmp_path / "index", backend="torch")
        with pytest.raises(ConfigError, match="makes dense indexes"):
            build_index(collection, tmp_path / "index", retriever=Bag(), backend="bm25s")

    def test_kinds_without_a_back_end_are_refused(self, collection, tmp_path):
        class Tokens(Bag):
            identity = replace(DeclaredBag.identity, kind="multi-vector")

        with pytest.raises(ConfigError, match="no back-end for multi-vector"):
            build_index(collection, tmp_path / "index", retriever=Tokens())

    def test_settings_that_come_too_late(self, collection, tmp_path):
        with pytest.raises(ConfigError, match="no encoder settings"):
            build_index(collection, tmp_path / "index", encoder_settings={"device": "cpu"})
        with pytest.raises(ConfigError, match="too late: device"):
            build_index(collection, tmp_path / "index", retriever=Bag(), encoder_settings={"device": "cpu"})

    def test_missing_faiss_names_the_command(self, collection, tmp_path, monkeypatch):
        import sys

        monkeypatch.setitem(sys.modules, "faiss", None)
        monkeypatch.delitem(sys.modules, "rtk.indexes.faiss_index", raising=False)
        with pytest.raises(MissingExtra, match=r"pip install .*\[cpu\]"):
            build_index(collection, tmp_path / "index", retriever=Bag())


class TestSearching:
    @pytest.fixture(params=["bm25s", "torch", "faiss"])
    def retriever(self, request, collection, tmp_path):
        dense = request.param != "bm25s"
        index = build_index(
            collection, tmp_path / "index", retriever=DeclaredBag() if dense else "bm25", backend=request.param
        )
        return Retriever(DeclaredBag() if dense else None, index)

    def test_run_equals_search(self, retriever, collection):
        queries = collection.queries("test")
        run = retriever.run(queries, 3, tag="mine")
        hits = retriever.search(queries.texts, 3)
        for row, qid in enumerate(queries.ids):
            valid = hits.rows[row] >= 0
            expected = dict(
                zip(retriever.ids.take(hits.rows[row][valid]), hits.scores[row][valid].tolist(), strict=True)
            )
            entry = run[qid]
            assert dict(zip(entry.documents, entry.scores.tolist(), strict=True)) == expected
        assert run.tag == "mine"
        assert run["q2"].documents[0] == "é"

    def test_excluded_documents_are_not_found(self, retriever, collection):
        queries = collection.queries("test")
        assert "q1" in retriever.run(queries, 5)["q1"].documents
        run = retriever.run(queries, 5, exclude={"q1": ["q1", "unknown"], "q2": []})
        assert "q1" not in run["q1"].documents
        assert run["q2"].documents == retriever.run(queries, 5)["q2"].documents

    def test_k_larger_than_the_index(self, retriever, collection):
        assert max(len(entry.documents) for entry in retriever.run(collection.queries("test"), 99)) <= len(DOCUMENTS)

    def test_no_queries(self, retriever):
        assert len(retriever.run(Queries([], []), 5)) == 0

    def test_k_below_one(self, retriever):
        with pytest.raises(ConfigError, match="k is 0"):
            retriever.search(["x"], 0)

    def test_batches_do_not_show(self, retriever, collection, monkeypatch):
        whole = retriever.run(collection.queries("test"), 4)
        monkeypatch.setattr("rtk.retrieval.search._QUERIES", 1)
        assert retriever.run(collection.queries("test"), 4) == whole


def test_conventions_say_what_is_excluded(collection, tmp_path):
    queries = collection.queries("test")
    assert excluded_documents(collection, queries) == {}
    (tmp_path / "small" / "rtk.yaml").write_text("drop_identical_ids: true\n")
    (tmp_path / "small" / "excluded.tsv").write_text("q2\td1\n")
    other = open_collection(tmp_path / "small")
    assert excluded_documents(other, queries) == {"q1": ["q1"], "q2": ["d1", "q2"], "q3": ["q3"]}


class TestBelonging:
    def test_another_encoder_is_refused_and_both_are_named(self, collection, tmp_path):
        index = build_index(collection, tmp_path / "index", retriever=DeclaredBag(), backend="torch")
        with pytest.raises(IndexMismatch, match=r"'bag' \(fingerprint abab.*'other-bag' \(fingerprint cdcd"):
            Retriever(OtherBag(), index)

    def test_a_copy_under_another_name_is_the_same_encoder(self, collection, tmp_path):
        class Copy(Bag):
            identity = replace(DeclaredBag.identity, name="elsewhere", dtype="bfloat16")

        index = build_index(collection, tmp_path / "index", retriever=DeclaredBag(), backend="torch")
        assert Retriever(Copy(), index).search(["read"], 1).rows[0, 0] >= 0

    def test_nobody_declares(self, collection, tmp_path):
        index = build_index(collection, tmp_path / "index", retriever=Bag(), backend="torch")
        assert Retriever(Bag(), index).search(["read"], 1).rows[0, 0] >= 0
        with pytest.raises(IndexMismatch, match="names no encoder"):
            Retriever(DeclaredBag(), index)
        with pytest.raises(IndexMismatch, match="give the model"):
            Retriever.open(tmp_path / "index")

    def test_only_the_index_declares(self, collection, tmp_path):
        index = build_index(collection, tmp_path / "index", retriever=DeclaredBag(), backend="torch")
        with pytest.raises(IndexMismatch, match=r"'bag'.*Bag declares no identity"):
            Retriever(Bag(), index)

    def test_an_index_in_memory_is_vouched_for(self):
        vectors = Bag().encode_document(["read a file", "heat"])
        index = TorchIndex.from_arrays(vectors, ["d1", "d2"])
        assert Retriever(DeclaredBag(), index).search(["heat"], 1).rows.tolist() == [[1]]

    def test_encoder_missing_or_one_too_many(self, collection, tmp_path):
        dense = build_index(collection, tmp_path / "dense", retriever=DeclaredBag(), backend="torch")
        build_index(collection, tmp_path / "bm25")
        with pytest.raises(IndexMismatch, match="give the encoder of its documents, 'bag'"):
            Retriever(None, dense)
        with pytest.raises(IndexMismatch, match=r"takes texts.*'bag'"):
            Retriever.open(tmp_path / "bm25", DeclaredBag())

    def test_open_loads_the_manifest_s_encoder(self, collection, tmp_path, tiny_models):
        model = str(tiny_models / "dense")
        build_index(
            collection,
            tmp_path / "index",
            retriever=model,
            backend="torch",
            encoder_settings={"device": "cpu", "document_length": 8},
        )
        retriever = Retriever.open(tmp_path / "index", device="cpu")
        assert retriever.encoder.identity.lengths == {"document": 8}
        assert retriever.name == "index"
        found = retriever.run(Queries(["q"], ["sort a list of numbers"]), 1)
        assert found["q"].documents == ["007"]
        with pytest.raises(IndexMismatch, match="document side"):
            Retriever.open(tmp_path / "index", DeclaredBag())

    def test_open_says_when_the_encoder_is_gone(self, collection, tmp_path):
        build_index(collection, tmp_path / "index", retriever=DeclaredBag(), backend="torch")
        with pytest.raises(IndexMismatch, match=r"made by 'bag', which cannot be loaded.*Give the model"):
            Retriever.open(tmp_path / "index")


class TestChunks:
    @pytest.mark.parametrize("backend", ["bm25s", "torch"])
    def test_documents_get_their_best_chunk(self, collection, tmp_path, backend):
        dense = backend == "torch"
        retriever = Bag() if dense else "bm25"
        build_index(collection, tmp_path / "index", retriever=retriever, backend=backend, chunking=Chunking(3, 1))
        opened = Retriever.open(tmp_path / "index", Bag() if dense else None)
        assert len(opened.index.ids) > len(DOCUMENTS)
        assert sorted(opened.ids) == sorted(DOCUMENTS)
        texts = list(QUERIES.values())
        queries = opened.encoder.encode_query(texts) if dense else texts
        every = opened.index.search(queries, len(opened.index.ids))
        hits = opened.search(texts, 3)
        for row in range(len(texts)):
            best: dict[str, float] = {}
            for chunk, score in zip(every.rows[row].tolist(), every.scores[row].tolist(), strict=True):
                if chunk >= 0:
                    best.setdefault(opened.index.ids[chunk].rsplit("#", 1)[0], score)
            valid = hits.rows[row] >= 0
            assert hits.scores[row][valid].tolist() == sorted(best.values(), reverse=True)[:3]
            assert len(set(hits.rows[row][valid].tolist())) == min(3, len(best)) == int(valid.sum())

    def test_lists_are_filled_however_many_chunks_one_document_has(self, tmp_path):
        from rtk.retrieval.passages import PassageIndex

        names = [f"long#{number}" for number in range(200)] + [f"d{number}#0" for number in range(5)]
        vectors = np.concatenate([np.full((200, 1), 9.0), np.arange(5, 0, -1)[:, None]]).astype(np.float32)
        passages = PassageIndex.over(TorchIndex.from_arrays(vectors, names))
        hits = passages.search(
            np.ones((2, 1), np.float32), 4, options={}, exclude=[[], passages.documents.rows(["d0"])]
        )
        assert [passages.documents.take(rows) for rows in hits.rows] == [
            ["long", "d0", "d1", "d2"],
            ["long", "d1", "d2", "d3"],
        ]

    def test_an_index_that_was_just_built_knows_of_its_chunks(self, collection, tmp_path):
        built = Retriever(None, build_index(collection, tmp_path / "index", chunking=Chunking(3, 0)))
        queries = collection.queries("test")
        assert built.run(queries, 5) == Retriever.open(tmp_path / "index").run(queries, 5)
        assert set(built.run(queries, 5).vocabulary) <= set(DOCUMENTS)

    def test_excluded_documents_take_all_their_chunks_along(self, collection, tmp_path):
        build_index(collection, tmp_path / "index", chunking=Chunking(3, 0))
        run = Retriever.open(tmp_path / "index").run(collection.queries("test"), 5, exclude={"q1": ["d1"]})
        assert "d1" not in run["q1"].documents
        assert "q1" in run["q1"].documents


class TestFound:
    def test_documents_with_their_texts(self, collection, tmp_path):
        build_index(collection, tmp_path / "index")
        found = search_documents(Retriever.open(tmp_path / "index"), "merge sorted lists", 2)
        assert found.note is None
        assert (found.documents[0].id, found.documents[0].title) == ("a b", "Heaps")
        assert found.documents[0].text == DOCUMENTS["a b"][1]
        assert [each.rank for each in found.documents] == list(range(1, len(found.documents) + 1))

    def test_a_collection_that_is_gone_is_said(self, collection, tmp_path):
        build_index(collection, tmp_path / "index")
        (tmp_path / "small").rename(tmp_path / "moved")
        retriever = Retriever.open(tmp_path / "index")
        found = search_documents(retriever, "merge sorted lists", 2)
        assert found.documents[0].id == "a b"
        assert found.documents[0].text is None
        assert "cannot be opened" in found.note
        again = search_documents(retriever, "merge sorted lists", 2, collection=open_collection(tmp_path / "moved"))
        assert again.note is None
        assert again.documents[0].title == "Heaps"

    def test_a_collection_that_has_changed_is_said(self, collection, tmp_path):
        build_index(collection, tmp_path / "index")
        corpus = tmp_path / "small" / "corpus.jsonl"
        corpus.write_text(json.dumps({"_id": "a b", "text": "other"}) + "\n")
        found = search_documents(Retriever.open(tmp_path / "index"), "numbers", 5)
        assert "has changed since it was indexed" in found.note
        assert "not in the collection" in found.note


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.sampled_from(range(6)), unique=True, max_size=6), max_size=5), st.integers(1, 3))
def test_hits_become_runs_without_padding(lists, parts):
    ids = Ids(["z", "y", "é", "a b", "007", "7"])
    hits = Hits.empty(len(lists), 6)
    for row, found in enumerate(lists):
        hits.rows[row, : len(found)] = found
        hits.scores[row, : len(found)] = np.arange(len(found), 0, -1)
    qids = [f"q{row}" for row in range(len(lists))]
    cuts = np.array_split(np.arange(len(lists)), parts)
    run = hits_to_run(qids, [Hits(hits.rows[cut], hits.scores[cut]) for cut in cuts], ids)
    assert [entry.documents for entry in run] == [ids.take(np.asarray(found, int)) for found in lists]
    assert set(run.vocabulary) == {ids[row] for found in lists for row in found}, "only what occurs is kept"
