"""MS MARCO's files: texts as they are, triples as judgments and runs, hard negatives."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtk.errors import DataError
from rtk.eval import (
    Document,
    Judgments,
    Queries,
    Run,
    read_collection_tsv,
    read_hard_negatives,
    read_queries_tsv,
    read_triples,
    write_collection_tsv,
    write_hard_negatives,
    write_queries_tsv,
    write_triples,
)
from rtk.eval import blocks as blocks_module

plain = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\t\r\n"), max_size=12)
names = st.text(st.characters(exclude_categories=["Cs", "Z", "C"]), min_size=1, max_size=6)


def test_quotes_are_data(tmp_path):
    path = tmp_path / "collection.tsv"
    path.write_text('007\t"quoted" text\n7\tan open " quote\n8\t\'\n', encoding="utf-8")
    assert list(read_collection_tsv(path)) == [
        Document("007", "", '"quoted" text'), Document("7", "", 'an open " quote'), Document("8", "", "'"),
    ]  # fmt: skip


@given(st.dictionaries(names, plain, min_size=1, max_size=6), st.sampled_from(["q.tsv", "q.tsv.gz"]))
def test_queries_and_collections_round_trip(tmp_path_factory, texts, name):
    folder = tmp_path_factory.mktemp("tsv")
    write_queries_tsv(Queries(texts.keys(), texts.values()), folder / name)
    assert list(read_queries_tsv(folder / name)) == list(texts.items())
    documents = [Document(key, "", text.strip()) for key, text in texts.items()]
    write_collection_tsv(documents, folder / f"c-{name}")
    assert list(read_collection_tsv(folder / f"c-{name}")) == documents


def test_titles_join_on_writing_and_breaks_are_refused_or_squashed(tmp_path):
    path = tmp_path / "c.tsv"
    write_collection_tsv([Document("1", "Title", "text")], path)
    assert path.read_text() == "1\tTitle text\n"
    broken = [Document("1", "", "a\tb\nc")]
    with pytest.raises(DataError, match="'1' holds a tab or line break"):
        write_collection_tsv(broken, tmp_path / "other.tsv")
    assert not (tmp_path / "other.tsv").exists()
    write_collection_tsv(broken, path, squash=True)
    assert path.read_text() == "1\ta b c\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [("1\tone\n2\n", ":2: 1 tab-separated columns, expected 2"), ("1\ta\tb\n", ":1: 3 tab-separated"),
     ("1\ta\n1\tb\n", ":2: duplicate query id '1', first seen at line 1"), ("", "the file is empty")],
)  # fmt: skip
def test_bad_queries(tmp_path, text, message):
    (tmp_path / "q.tsv").write_text(text)
    with pytest.raises(DataError, match=message):
        read_queries_tsv(tmp_path / "q.tsv")


# --- triples ---


def test_triples_become_judgments_and_runs(tmp_path):
    path = tmp_path / "triples.tsv"
    path.write_text("q1\t007\tn1\nq2\tp\tn1\nq1\t007\tn2\nq1\tp\tn1\n")
    triples = read_triples(path)
    assert list(triples) == [("q1", "007", "n1"), ("q2", "p", "n1"), ("q1", "007", "n2"), ("q1", "p", "n1")]
    assert triples.judgments().to_dict() == {"q1": {"007": 1, "p": 1}, "q2": {"p": 1}}
    negatives = triples.negatives_run()
    assert {entry.qid: entry.documents for entry in negatives} == {"q1": ["n1", "n2"], "q2": ["n1"]}
    assert negatives.order == "rank"
    with pytest.raises(DataError, match="no scores"):
        triples.teacher_run()


def test_scored_triples_keep_the_teacher_raw(tmp_path):
    path = tmp_path / "scored.tsv.gz"
    path.write_bytes(gzip.compress(b"9.5\t-2.25\tq1\tp\tn1\n9.5\t1e1\tq1\tp\tn2\n"))
    triples = read_triples(path)
    np.testing.assert_array_equal(triples.scores, np.asarray([[9.5, -2.25], [9.5, 10.0]], np.float32))
    teacher = triples.teacher_run()["q1"]
    assert dict(zip(teacher.documents, teacher.scores.tolist(), strict=True)) == {"n2": 10.0, "p": 9.5, "n1": -2.25}
    assert teacher.documents == ["n2", "p", "n1"]


def test_a_teacher_that_contradicts_itself_is_said(tmp_path, caplog):
    path = tmp_path / "scored.tsv"
    path.write_text("9.5\t1\tq\tp\ta\n9.25\t2\tq\tp\tb\n")
    entry = read_triples(path).teacher_run()["q"]
    assert entry.scores.tolist() == [9.5, 2.0, 1.0]
    assert "by 0.25 at most" in caplog.text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("q\tp\n", ":1: 2 tab-separated columns, expected 3 .* or 5"),
        ("q\tp\tn\nq\tp\n", ":2: 2 tab-separated columns, expected 3: query id, positive id, negative id"),
        ("q\tp\tn\n\nq\tp\tn\n", ":2: 1 tab-separated"),
        ("q\tp\tn\nq\t\tn\n", ":2: the positive id is empty"),
        ("1\t2\tq\tp\tn\n1\tx\tq\tp\tn\n", ":2: the negative score 'x' is no finite number"),
        ("1\t2\tq\tp\tn\nnan\t1\tq\tp\tn\n", ":2: the positive score 'nan'"),
        ("1\t2\tq\tp\tn\n1\t\tq\tp\tn\n", ":2: the negative score ''"),
        ("", "the file is empty"),
    ],
)
def test_bad_triples(tmp_path, text, message):
    (tmp_path / "t.tsv").write_text(text)
    with pytest.raises(DataError, match=message):
        read_triples(tmp_path / "t.tsv")


def test_bad_bytes_and_short_gzip_in_triples(tmp_path):
    (tmp_path / "t.tsv").write_bytes(b"q\tp\tn\nq\t\xe9\tn\n")
    with pytest.raises(DataError, match=r"t\.tsv:2: .*not UTF-8"):
        read_triples(tmp_path / "t.tsv")
    (tmp_path / "t.tsv.gz").write_bytes(gzip.compress(b"q\tp\tn\n" * 1000)[:-12])
    with pytest.raises(DataError, match="cut short"):
        read_triples(tmp_path / "t.tsv.gz")


rows = st.lists(st.tuples(names, names, names), min_size=1, max_size=20)


@given(rows, st.integers(1, 40))
def test_triples_do_not_depend_on_the_blocks(tmp_path_factory, triples, size):
    path = tmp_path_factory.mktemp("triples") / "t.tsv"
    path.write_text("".join("\t".join(row) + "\n" for row in triples), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        read = blocks_module.read_blocks
        patch.setattr("rtk.eval.tsv.read_blocks", lambda path, _size=0: read(path, size))
        assert list(read_triples(path)) == triples


def test_triples_are_written_as_read(tmp_path):
    positives = Judgments.from_dict({"q1": {"p1": 1, "p2": 2, "z": 0}, "q2": {"p": 1}})
    negatives = Run.from_lists([("q1", ["n1", "n2"], [2.0, 1.0]), ("q2", ["n1"], [1.0])])
    assert write_triples(positives, negatives, tmp_path / "t.tsv") == 5
    again = read_triples(tmp_path / "t.tsv")
    assert set(again) == {("q1", p, n) for p in ("p1", "p2") for n in ("n1", "n2")} | {("q2", "p", "n1")}
    teacher = Run.from_lists([("q1", ["p1", "p2", "n1", "n2"], [0.1, 1 / 3, -7.25, 1e-9]), ("q2", ["p", "n1"], [1, 2])])
    write_triples(positives, negatives, tmp_path / "scored.tsv.gz", teacher=teacher)
    assert read_triples(tmp_path / "scored.tsv.gz").teacher_run() == teacher
    short = Run.from_lists([("q1", ["p1", "p2", "n1"], [3, 2, 1])])
    with pytest.raises(DataError, match="no score of document 'n2' for query 'q1'"):
        write_triples(positives, negatives, tmp_path / "bad.tsv", teacher=short)
    assert not (tmp_path / "bad.tsv").exists()


def test_real_teacher_scores(shared_data):
    triples = read_triples(shared_data / "tas-clusters" / "teacher-scores.tsv")
    assert len(triples) == 3600
    assert len(triples.judgments()) == 177
    positive, negative = triples.scores[:, 0], triples.scores[:, 1]
    assert (positive > negative).mean() > 0.9


# --- hard negatives ---


def test_hard_negatives_of_the_published_forms(tmp_path):
    path = tmp_path / "hard.jsonl"
    lines = [
        {"qid": 1, "pos": [7], "neg": {"bm25": [9, 8], "dense": [8]}},
        {"qid": "2", "pos": [{"pid": "007", "ce-score": 9.5}], "neg": {"dense": [{"pid": "8", "ce-score": -2.0}]}},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = read_hard_negatives(path)
    assert found.positives.to_dict() == {"1": {"7": 1}, "2": {"007": 1}}
    assert found.systems == ("bm25", "dense")
    assert found.negatives["1"].documents == ["9", "8", "8"]
    assert found.negatives.columns["list_id"].tolist() == [0, 0, 1, 1]
    assert found.teacher["2"].documents == ["007", "8"]
    assert "1" not in found.teacher


def test_scores_alone(tmp_path):
    (tmp_path / "s.jsonl").write_text('{"1": {"7": 9.5, "9": -2}}\n{"2": {"7": 1}, "3": {"7": 2}}\n')
    found = read_hard_negatives(tmp_path / "s.jsonl")
    assert (found.positives, found.negatives) == (None, None)
    assert list(found.teacher.qids) == ["1", "2", "3"]
    assert found.teacher["1"].scores.tolist() == [9.5, -2.0]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"qid": 1, "pos": [7]}, "fields 'pos' .* and 'neg'"),
        ({"qid": 1, "pos": [7], "neg": {"bm25": 9}}, "expected a list"),
        ({"qid": 1.5, "pos": [], "neg": {}}, "1.5 is no id"),
        ({"qid": 1, "pos": [None], "neg": {}}, "None is no id"),
        ({"qid": 1, "pos": [{"pid": 1, "ce-score": "x"}], "neg": {}}, "score 'x' is no finite number"),
        ({"qid": 0, "pos": [], "neg": {}}, "query '0' is there twice"),
        ({"1": 5}, "expected"),
    ],
)
def test_bad_hard_negatives(tmp_path, line, message):
    (tmp_path / "h.jsonl").write_text('{"qid": 0, "pos": [1], "neg": {}}\n' + json.dumps(line) + "\n")
    with pytest.raises(DataError, match=rf"h\.jsonl:2: .*{message}"):
        read_hard_negatives(tmp_path / "h.jsonl")


def test_hard_negatives_are_read_as_written(tmp_path):
    positives = Judgments.from_dict({"q1": {"p": 1}, "q2": {"größe": 2}})
    runs = {
        "bm25": Run.from_lists([("q1", ["a", "b"], [2, 1])]),
        "dense": Run.from_lists([("q1", ["b"], [1]), ("q2", ["c"], [1])]),
    }
    teacher = Run.from_lists([("q1", ["p", "a", "b"], [0.1, -1 / 3, 5.5])])
    write_hard_negatives(positives, runs, tmp_path / "h.jsonl.gz", teacher=teacher)
    found = read_hard_negatives(tmp_path / "h.jsonl.gz")
    assert found.positives.to_dict() == {"q1": {"p": 1}, "q2": {"größe": 1}}
    assert found.systems == ("bm25", "dense")
    assert found.negatives["q1"].documents == ["a", "b", "b"]
    assert found.negatives["q2"].documents == ["c"]
    assert found.teacher == teacher
