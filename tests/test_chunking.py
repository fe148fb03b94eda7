"""Chunks of long documents, and MaxP back to documents."""

from __future__ import annotations

import re
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtk.errors import ConfigError, DataError
from rtk.eval import (
    ChunkedDocuments,
    Chunking,
    CollectionParts,
    Document,
    Documents,
    Run,
    TokenOffsets,
    chunk_documents,
    max_passage,
    open_collection,
    parent_ids,
    write_beir,
)
from rtk.eval.chunking import token_offsets
from rtk.ids import Ids


def word_offsets(texts):
    return [[match.span() for match in re.finditer(r"\S+", text)] for text in texts]


WORDS = TokenOffsets("white space", word_offsets)
text = st.lists(st.text("abé日\n\t", max_size=4), max_size=40).map(" ".join)
sizes = st.integers(1, 9).flatmap(lambda size: st.tuples(st.just(size), st.integers(0, size - 1)))


@pytest.fixture
def corpus(tmp_path):
    def make(*documents, name="long"):
        return open_collection(write_beir(CollectionParts(documents), tmp_path / name, overwrite=True)).documents

    return make


@given(sizes, st.integers(0, 60), st.integers(0, 12), st.booleans())
def test_windows_cover_every_token_and_overlap_as_asked(size_overlap, tokens, title, repeat):
    size, overlap = size_overlap
    if repeat and overlap >= max(size // 2, 1):
        return
    windows = Chunking(size, overlap, repeat).windows(tokens, title)
    assert windows[0][0] == 0
    assert windows[-1][1] == tokens
    assert {token for start, stop in windows for token in range(start, stop)} == set(range(tokens))
    assert all(stop - start <= size for start, stop in windows)
    for (_, stop), (start, end) in pairwise(windows):
        assert stop - start == overlap
        assert end > stop  # nothing that its predecessor has already
    if repeat and title < size // 2:
        assert all(stop - start + title <= size for start, stop in windows)


@pytest.mark.parametrize(
    ("size", "overlap", "repeat"), [(0, 0, False), (4, 4, False), (4, -1, False), (4, 5, False), (8, 4, True)]
)
def test_impossible_sizes_are_refused(size, overlap, repeat):
    with pytest.raises(ConfigError, match=f"chunks of {size} tokens cannot overlap by {overlap}"):
        Chunking(size, overlap, repeat)


@settings(max_examples=30)
@given(st.lists(st.tuples(text, text), min_size=1, max_size=6), sizes)
def test_no_word_is_lost_and_none_moves(tmp_path_factory, documents, size_overlap):
    size, overlap = size_overlap
    entries = [Document(f"d{number}#{number}", title, body) for number, (title, body) in enumerate(documents)]
    folder = write_beir(CollectionParts(entries), tmp_path_factory.mktemp("chunks") / "c")
    originals = open_collection(folder).documents
    chunks = chunk_documents(originals, WORDS, Chunking(size, overlap))
    assert list(parent_ids(chunks.ids)) == [originals.ids[int(row)] for row in chunks.parents]
    for row, entry in enumerate(entries):
        mine = np.flatnonzero(chunks.parents == row)
        assert [chunks.ids[int(at)] for at in mine] == [f"{entry.id}#{number}" for number in range(len(mine))]
        words = [chunk.split() for chunk in chunks.texts(mine)]
        assert all(len(chunk) <= size for chunk in words)
        rebuilt = words[0] + [word for chunk in words[1:] for word in chunk[overlap:]]
        assert rebuilt == entry.full_text.split()


def test_chunks_are_documents(corpus):
    documents = corpus(Document("a#7", "Title", "one two three four five"), Document("007", "", "short"))
    chunks = chunk_documents(documents, WORDS, Chunking(3, 1))
    assert isinstance(chunks, Documents)
    assert list(chunks) == [
        Document("a#7#0", "", "Title one two"), Document("a#7#1", "", "two three four"),
        Document("a#7#2", "", "four five"), Document("007#0", "", "short"),
    ]  # fmt: skip
    assert chunks.parents.tolist() == [0, 0, 0, 1]
    assert chunks.rows(["007#0", "007"]).tolist() == [3, -1]
    assert chunks.originals is documents
    assert chunks.settings == {"size": 3, "overlap": 1, "repeat_title": False, "tokenizer": "white space"}


def test_titles_are_repeated_and_count(corpus):
    documents = corpus(Document("d", "The Title", "a b c d e f g"), Document("e", "one two three four five", "x y z"))
    chunks = chunk_documents(documents, WORDS, Chunking(6, 1, repeat_title=True))
    assert chunks.texts(slice(0, 2)) == ["The Title a b c d", "The Title d e f g"]
    assert chunks.texts([2]) == ["one two three four five x y z"]  # a long title leaves the text half the chunk
    assert chunks[0].title == "The Title"


def test_an_empty_document_has_one_empty_chunk(corpus):
    chunks = chunk_documents(corpus(Document("e", "", ""), Document("f", " ", "x")), WORDS, Chunking(2, 0))
    assert list(chunks) == [Document("e#0", "", ""), Document("f#0", "", "x")]
    assert chunks.empty == (1, ("e#0",))


def test_fingerprint_and_cache_depend_on_every_setting(corpus, monkeypatch):
    documents = corpus(Document("d", "T", "a b c d e f g h i j"))
    choices = [Chunking(4, 1), Chunking(4, 0), Chunking(5, 1), Chunking(4, 1, repeat_title=True)]
    made = [chunk_documents(documents, WORDS, setting) for setting in choices]
    other = chunk_documents(
        documents,
        TokenOffsets("letters", lambda texts: [[(i, i + 1) for i in range(len(t))] for t in texts]),
        choices[0],
    )
    assert len({chunks.fingerprint for chunks in [*made, other]}) == 5
    assert len({chunks.fingerprint for chunks in [documents, *made]}) == 5
    monkeypatch.setattr("rtk.eval.chunking._chunks", lambda *args: pytest.fail("cut again"))
    again = chunk_documents(documents, WORDS, choices[0])
    assert again.fingerprint == made[0].fingerprint
    assert (again.parents == made[0].parents).all()
    with pytest.raises(pytest.fail.Exception):
        chunk_documents(corpus(Document("d", "T", "changed")), WORDS, choices[0])


def test_a_fast_tokenizer_by_object_and_by_folder(corpus, tiny_models):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_models / "bert")
    documents = corpus(Document("d", "", "the list of proteins, sorted: 日本 vitamin-c and más " * 20))
    chunks = chunk_documents(documents, tokenizer, Chunking(16, 4))
    lengths = [len(ids) for ids in tokenizer(chunks.texts(slice(None)), add_special_tokens=False)["input_ids"]]
    assert max(lengths) <= 16
    assert min(lengths[:-1]) >= 14  # cut by tokens, not by guess: word pieces may join otherwise at the edge
    assert len(chunks) > 10
    assert chunk_documents(documents, tiny_models / "bert", Chunking(16, 4)).folder == chunks.folder


def test_what_knows_no_positions_is_refused():
    with pytest.raises(ConfigError, match="TokenOffsets"):
        token_offsets(str.split)


# --- MaxP ---


def test_parents_by_the_last_sign_only():
    assert list(parent_ids(Ids(["a#0", "a#1#12", "##3", "größe #1#0"]))) == ["a", "a#1", "#", "größe #1"]
    assert list(parent_ids(Ids([]))) == []
    for bad in ("a", "a#", "a#x", "a#1 ", "a#-1", "#5", "a#\u0661"):
        with pytest.raises(DataError, match="is no chunk id"):
            parent_ids(Ids(["a#0", bad]))


document_ids = st.text("ab#1é", min_size=1, max_size=3)
lists = st.dictionaries(
    st.text("qr", min_size=1, max_size=2),
    st.dictionaries(st.tuples(document_ids, st.integers(0, 12)), st.integers(-3, 3), max_size=12),
    max_size=4,
)


@given(lists)
def test_a_document_scores_as_its_best_chunk(queries):
    run = Run.from_lists(
        (qid, [f"{name}#{number}" for name, number in scores], list(scores.values())) for qid, scores in queries.items()
    )
    best = max_passage(run)
    assert list(best.qids) == list(queries)
    for entry in best:
        expected: dict[str, int] = {}
        for (name, _), score in queries[entry.qid].items():
            expected[name] = max(score, expected.get(name, score))
        assert dict(zip(entry.documents, entry.scores.tolist(), strict=True)) == expected
    assert best == Run.from_lists((entry.qid, entry.documents, entry.scores) for entry in best)


def test_k_and_columns_are_those_of_the_best_chunk():
    run = Run.from_lists([("q", ["a#0", "b#4", "a#9", "c#0"], [1.0, 2.0, 3.0, 0.5])])
    run = run.replace(columns={"raw": np.asarray([30, 20, 10, 5])})
    best = max_passage(run, k=2)
    assert best["q"].documents == ["a", "b"]
    assert best.columns["raw"].tolist() == [30, 20]


def test_order_by_rank_stays():
    run = Run.from_lists([("q", ["b#0", "a#1", "b#1", "a#0"], [1.0, 1.0, 9.0, 9.0])], order="rank")
    best = max_passage(run)
    assert (best["q"].documents, best.order) == (["b", "a"], "rank")


def test_several_lists_of_one_query_stay_apart():
    run = Run.from_columns(
        Ids(["q"]), np.asarray([0, 4]), Ids(["a#0", "a#1", "a#0", "b#0"]).array, np.asarray([4, 3, 2, 1]),
        columns={"list_id": np.asarray([0, 0, 7, 7])},
    )  # fmt: skip
    best = max_passage(run)
    assert best["q"].documents == ["a", "a", "b"]
    assert best.columns["list_id"].tolist() == [0, 7, 7]


def test_with_the_chunks_at_hand_only_their_ids_count(corpus):
    documents = corpus(Document("a#0", "", "x y z"), Document("a", "", "x y z"))
    chunks = chunk_documents(documents, WORDS, Chunking(2, 0))
    assert isinstance(chunks, ChunkedDocuments)
    run = Run.from_lists([("q", ["a#0#1", "a#1", "a#0"], [3.0, 2.0, 1.0])])
    assert max_passage(run, chunks)["q"].documents == ["a#0", "a"]
    with pytest.raises(DataError, match="'a#2' is no chunk of"):
        max_passage(Run.from_lists([("q", ["a#2"], [1.0])]), chunks)


def test_an_empty_run():
    assert len(max_passage(Run.from_lists([]))) == 0
    assert max_passage(Run.from_lists([("q", [], [])]))["q"].documents == []
