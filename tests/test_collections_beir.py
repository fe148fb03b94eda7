"""Collections in BEIR layout: what is written is what is read, by way of a memory-mapped corpus."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rtk.errors import ConfigError, DataError, OutputExists
from rtk.eval import (
    Collection,
    CollectionParts,
    Conventions,
    Document,
    Documents,
    Judgments,
    Queries,
    open_collection,
    write_beir,
)
from rtk.eval import documents as documents_module
from rtk.eval.documents import collections_dir


@pytest.mark.parametrize("compress", [False, True])
def test_a_folder_opens_plain_or_gzip(beir_folder, compress):
    collection = open_collection(beir_folder(compress=compress))
    assert isinstance(collection, Collection)
    assert (collection.name, collection.splits) == ("tiny", ("test",))
    assert list(collection.documents.ids) == ["007", "7", "größe #1", "d4"]
    assert collection.documents[2] == Document("größe #1", "Größe", "日本語 text")
    assert collection.judgments("test").to_dict() == {"q0": {"007": 2}, "q2": {"d4": 1, "7": 0}}


def test_title_and_text_join_as_beir_does(beir_folder):
    documents = open_collection(beir_folder()).documents
    assert documents.texts(slice(None)) == [
        "Bond a spy with a number", "the number seven", "Größe 日本語 text", "merge sorted lists",
    ]  # fmt: skip
    assert [document.full_text for document in documents] == documents.texts(range(4))


def test_a_split_is_the_queries_in_its_judgments_in_file_order(beir_folder):
    collection = open_collection(
        beir_folder(qrels={"test": [("q2", "d4", 1), ("q0", "007", 1)], "dev": [("q1", "7", 1)]})
    )
    assert list(collection.queries("test")) == [("q0", "spy"), ("q2", "merge")]
    assert list(collection.queries("dev").ids) == ["q1"]
    assert len(collection.queries()) == 3
    assert collection.queries().get("q1") == "seven"
    assert list(collection.queries().select(["q2", "q0"]).texts) == ["merge", "spy"]
    with pytest.raises(KeyError, match="q9"):
        collection.queries().select(["q0", "q9"])


def test_rows_and_texts_go_both_ways(beir_folder, monkeypatch):
    monkeypatch.setattr(documents_module, "_BATCH_ROWS", 3)  # several batches, the last not full
    corpus = [{"_id": f"d{number}", "title": "", "text": f"text {number}"} for number in range(10)]
    documents = open_collection(beir_folder(corpus=corpus)).documents
    assert documents.rows(["d9", "nowhere", "d0"]).tolist() == [9, -1, 0]
    assert documents.texts([9, 0, 3, 3]) == ["text 9", "text 0", "text 3", "text 3"]
    assert documents.texts(np.arange(10)) == documents.texts(slice(0, 10)) == [f"text {n}" for n in range(10)]
    assert documents.texts(slice(2, 8, 2)) == ["text 2", "text 4", "text 6"]
    assert documents.texts(slice(5, 2)) == documents.texts([]) == []
    assert [documents[row].id for row in (0, 2, 3, -1)] == ["d0", "d2", "d3", "d9"]
    assert len(list(documents)) == len(documents) == 10
    with pytest.raises(IndexError):
        documents.texts([0, -1])
    with pytest.raises(IndexError):
        documents[10]


def test_the_arrow_file_is_a_dataset_of_datasets(beir_folder):
    documents = open_collection(beir_folder()).documents
    dataset = documents.dataset()
    assert dataset["id"][:] == list(documents.ids)
    assert dataset[2] == {"id": "größe #1", "title": "Größe", "text": "日本語 text"}


def test_fingerprint_depends_on_ids_and_texts_alone(beir_folder, monkeypatch):
    corpus = [{"_id": "1", "title": "a", "text": "b"}, {"_id": "2", "text": "c"}]
    first = open_collection(beir_folder("first", corpus)).documents.fingerprint
    monkeypatch.setattr(documents_module, "_BATCH_ROWS", 1)
    again = open_collection(beir_folder("again", corpus, compress=True)).documents.fingerprint
    assert first == again
    changes = (
        [{"_id": "1", "title": "a", "text": "b"}, {"_id": "3", "text": "c"}],
        [{"_id": "1", "title": "", "text": "a b"}, {"_id": "2", "text": "c"}],
        [{"_id": "1", "title": "ab", "text": ""}, {"_id": "2", "text": "c"}],
        list(reversed(corpus)),
    )
    others = {open_collection(beir_folder(f"c{n}", change)).documents.fingerprint for n, change in enumerate(changes)}
    assert len(others - {first}) == len(changes)


def test_the_corpus_is_read_once_until_it_changes(beir_folder, monkeypatch):
    folder = beir_folder()
    open_collection(folder).documents  # noqa: B018 - reads it
    with monkeypatch.context() as patch:
        patch.setattr("rtk.eval.beir.read_corpus", lambda path: pytest.fail("read again"))
        assert len(open_collection(folder).documents) == 4
    with open(folder / "corpus.jsonl", "a") as handle:
        handle.write('{"_id": "new", "text": "one more"}\n')
    assert len(open_collection(folder).documents) == 5


def test_a_failed_build_leaves_nothing_that_counts(beir_folder):
    folder = beir_folder(corpus=['{"_id": "1", "text": "a"}', '{"_id": "1", "text": "b"}'])
    before = set(os.listdir(collections_dir())) if collections_dir().exists() else set()
    for _ in range(2):
        with pytest.raises(DataError, match="duplicate"):
            open_collection(folder).documents  # noqa: B018
    left = {name for name in set(os.listdir(collections_dir())) - before if not name.endswith(".lock")}
    assert not left
    (folder / "corpus.jsonl").write_text('{"_id": "1", "text": "a"}\n')
    assert len(open_collection(folder).documents) == 1


def test_a_build_killed_half_way_is_done_again(beir_folder, monkeypatch):
    folder = beir_folder()
    monkeypatch.setattr(documents_module.os, "rename", lambda *paths: (_ for _ in ()).throw(KeyboardInterrupt))
    monkeypatch.setattr(documents_module.shutil, "rmtree", lambda *args, **settings: None)  # nobody cleans up
    with pytest.raises(KeyboardInterrupt):
        open_collection(folder).documents  # noqa: B018
    monkeypatch.undo()
    assert list(open_collection(folder).documents.ids) == ["007", "7", "größe #1", "d4"]


def test_several_processes_may_ask_at_once(beir_folder, tmp_path):
    corpus = [{"_id": str(number), "text": f"text {number}"} for number in range(3000)]
    folder = beir_folder(corpus=corpus)
    code = "import sys; from rtk.eval import open_collection as o; d = o(sys.argv[1]).documents; "
    code += "print(len(d), d.fingerprint)"
    environment = {**os.environ, "RTK_CACHE": str(tmp_path / "cache")}
    started = [
        subprocess.Popen([sys.executable, "-c", code, str(folder)], env=environment, stdout=subprocess.PIPE, text=True,
                         cwd=tmp_path)
        for _ in range(4)
    ]  # fmt: skip
    answers = {process.communicate(timeout=120)[0] for process in started}
    assert {process.returncode for process in started} == {0}
    assert len(answers) == 1
    assert answers.pop().startswith("3000 ")
    assert len([name for name in os.listdir(tmp_path / "cache" / "collections") if not name.endswith(".lock")]) == 1


@pytest.mark.parametrize("name", ["scifact", "nfcorpus", "adi", "cranfield", "vaswani", "msmarco-mini"])
def test_real_collections_open_and_fit_together(shared_data, name):
    counts = {"scifact": 5183, "nfcorpus": 3633, "adi": 82, "cranfield": 1400, "vaswani": 11429, "msmarco-mini": 7249}
    collection = open_collection(shared_data / name)
    assert len(collection.documents) == counts[name]
    for split in collection.splits:
        report = collection.check(split)
        assert not report.unknown_documents
        assert not report.unknown_queries
        assert len(collection.queries(split)) == len(collection.judgments(split)) == report.queries
        assert not collection.conventions.drop_identical_ids


# --- what does not fit together is counted ---


def test_the_report_counts_what_does_not_fit(beir_folder, caplog):
    corpus = [{"_id": "1", "text": "a"}, {"_id": "2", "title": " ", "text": ""}, {"_id": "3", "text": ""}]
    queries = [{"_id": "q1", "text": "a"}, {"_id": "q2", "text": " "}, {"_id": "unjudged", "text": ""}]
    rows = [("q1", "1", 1), ("q1", "gone", 1), ("q2", "gone", 0), ("lost", "1", 1)]
    collection = open_collection(beir_folder(corpus=corpus, queries=queries, qrels={"test": rows}))
    report = collection.check("test")
    assert (report.documents, report.queries, report.judgments) == (3, 3, 4)
    assert (report.unknown_documents.count, report.unknown_documents.examples) == (1, ("gone",))
    assert report.unknown_queries.examples == ("lost",)
    assert report.empty_documents.examples == ("2", "3")
    assert report.empty_queries.examples == ("q2",)
    assert report.unjudged_relevant.examples == ("q2",)
    assert len(report.problems) == 5
    assert all(problem in caplog.text for problem in report.problems)
    assert list(collection.documents.ids) == ["1", "2", "3"]
    assert list(collection.queries("test").ids) == ["q1", "q2"]


def test_the_report_of_a_clean_split_is_silent(beir_folder, caplog):
    assert open_collection(beir_folder()).check("test").problems == ()
    assert not caplog.records


# --- conventions ---


@pytest.mark.parametrize(
    ("name", "drops"), [("arguana", True), ("Quora", True), ("scifact", False), ("my-quora", False)]
)
def test_identical_ids_drop_for_arguana_and_quora_only(beir_folder, name, drops):
    assert open_collection(beir_folder(name)).conventions.drop_identical_ids is drops


@pytest.mark.parametrize(
    ("file", "text"),
    [("rtk.yaml", "drop_identical_ids: true\npreset: beir\nname: Mine\n"),
     ("collection.json", '{"drop_identical_ids": true, "preset": "beir", "name": "Mine"}')],
)  # fmt: skip
def test_settings_state_conventions(beir_folder, file, text):
    folder = beir_folder()
    (folder / file).write_text(text)
    collection = open_collection(folder)
    assert collection.name == "Mine"
    assert collection.conventions == Conventions(drop_identical_ids=True, preset="beir")


def test_settings_overrule_the_name(beir_folder):
    folder = beir_folder("arguana")
    (folder / "rtk.yaml").write_text("drop_identical_ids: false\n")
    assert not open_collection(folder).conventions.drop_identical_ids


def test_bad_settings_are_named_all_at_once(beir_folder):
    folder = beir_folder()
    (folder / "rtk.yaml").write_text("drop_identical_id: true\nname: 7\npreset: bier\n")
    with pytest.raises(ConfigError) as caught:
        open_collection(folder)
    message = str(caught.value)
    assert "'drop_identical_id' (did you mean 'drop_identical_ids'?)" in message
    assert "name is 7, expected a string" in message
    assert "'bier' (did you mean 'beir'?)" in message


@pytest.mark.parametrize("text", ["- a\n", "a: [\n", "drop_identical_ids: 'yes'\n"])
def test_settings_of_another_form_are_refused(beir_folder, text):
    folder = beir_folder()
    (folder / "rtk.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"rtk\.yaml"):
        open_collection(folder)


@pytest.mark.parametrize(
    ("file", "text"),
    [("excluded.tsv", "query-id\tcorpus-id\nq0\t7\nq0\td4\n"), ("excluded.tsv", "q0\t7\nq0\td4\n"),
     ("excluded.jsonl", '{"_id": "q0", "excluded": ["7", "d4"]}\n')],
)  # fmt: skip
def test_excluded_documents_are_read(beir_folder, file, text):
    folder = beir_folder()
    (folder / file).write_text(text)
    collection = open_collection(folder)
    assert dict(collection.conventions.excluded) == {"q0": ("7", "d4")}
    assert not collection.check("test").unknown_excluded


def test_unknown_excluded_documents_are_counted(beir_folder):
    folder = beir_folder()
    (folder / "rtk.yaml").write_text("excluded: left-out.tsv\n")
    (folder / "left-out.tsv").write_text("q0\t7\nq0\tnowhere\n")
    assert open_collection(folder).check("test").unknown_excluded.examples == ("nowhere",)


# --- the door ---


def test_what_is_no_collection_is_told_the_forms(beir_folder, tmp_path):
    folder = beir_folder("scifact")
    for spec in (tmp_path / "scifct", str(tmp_path / "scifct")):
        with pytest.raises(ConfigError, match=r"did you mean '.*scifact'") as caught:
            open_collection(spec)
        assert "BEIR layout" in str(caught.value)
        assert "pydocs" in str(caught.value)
    with pytest.raises(ConfigError, match="is a file"):
        open_collection(folder / "corpus.jsonl")
    with pytest.raises(ConfigError, match="did you mean 'pydocs'"):
        open_collection("pydoc")


# --- writing ---


def test_writing_keeps_everything(beir_folder, tmp_path):
    folder = beir_folder("arguana", qrels={"test": [("q0", "größe #1", 2), ("q0", "7", 0)], "dev": [("q1", "7", -1)]})
    (folder / "excluded.tsv").write_text("q0\t7\n")
    source = open_collection(folder)
    for compress in (False, True):
        copy = open_collection(write_beir(source, tmp_path / f"copy{compress}", compress=compress))
        assert copy.documents.fingerprint == source.documents.fingerprint
        assert list(copy.queries()) == list(source.queries())
        assert copy.splits == source.splits
        assert all(copy.judgments(split) == source.judgments(split) for split in source.splits)
        assert copy.conventions == source.conventions
        assert copy.name == source.name


def test_writing_one_split_takes_its_queries(beir_folder, tmp_path):
    source = open_collection(beir_folder(qrels={"test": [("q0", "7", 1)], "dev": [("q1", "7", 1)]}))
    copy = open_collection(write_beir(source, tmp_path / "copy", splits=["dev"]))
    assert copy.splits == ("dev",)
    assert list(copy.queries()) == [("q1", "seven")]


def test_writing_does_not_overwrite_unasked(beir_folder, tmp_path):
    source = open_collection(beir_folder())
    target = write_beir(source, tmp_path / "copy")
    (target / "mine.txt").write_text("note")
    with pytest.raises(OutputExists):
        write_beir(source, target)
    assert (target / "mine.txt").exists()
    write_beir(source, target, overwrite=True)
    assert not (target / "mine.txt").exists()


@pytest.mark.parametrize("bad", ["a\tb", "a\nb", "a\rb"])
def test_ids_that_a_qrels_file_cannot_hold_are_refused(tmp_path, bad):
    parts = CollectionParts([Document(bad, "", "t")], [("q", "t")], {"test": Judgments.from_dict({"q": {bad: 1}})})
    with pytest.raises(DataError, match="tab or line break"):
        write_beir(parts, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


_ids = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\t\n\r"), min_size=1, max_size=8)
_texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    corpus=st.dictionaries(_ids, st.tuples(_texts, _texts), min_size=1, max_size=8),
    queries=st.dictionaries(_ids, _texts, min_size=1, max_size=5),
    compress=st.booleans(),
    data=st.data(),
)
def test_any_collection_survives_the_round_trip(tmp_path_factory, corpus, queries, compress, data):
    grades = st.dictionaries(st.sampled_from(sorted(corpus)), st.integers(-2, 3), min_size=1)
    judged = data.draw(st.dictionaries(st.sampled_from(sorted(queries)), grades, min_size=1))
    documents = [Document(name, title, text) for name, (title, text) in corpus.items()]
    parts = CollectionParts(documents, queries.items(), {"test": Judgments.from_dict(judged)})
    folder = tmp_path_factory.mktemp("round") / "trip"
    collection = open_collection(write_beir(parts, folder, compress=compress))
    assert list(collection.documents) == documents
    assert list(collection.queries()) == list(queries.items())
    assert collection.judgments("test").to_dict() == judged


def test_parts_of_a_stream_are_read_once(tmp_path):
    documents = (Document(str(number), "", "text") for number in range(5))
    folder = write_beir(CollectionParts(documents, name="streamed"), tmp_path / "out")
    collection = open_collection(folder)
    assert (collection.name, len(collection.documents), collection.splits) == ("streamed", 5, ())
    with pytest.raises(DataError, match=r"no queries\.jsonl"):
        collection.queries()
    with pytest.raises(DataError, match="without documents"):
        write_beir(CollectionParts([]), tmp_path / "none")


# --- queries as a value ---


def test_queries_refuse_what_does_not_match():
    with pytest.raises(DataError, match="duplicate query id"):
        Queries(["a", "a"], ["x", "y"])
    with pytest.raises(DataError, match="2 query ids but 1 texts"):
        Queries(["a", "b"], ["x"])
    assert "a" in Queries(["a"], [""])
    assert "b" not in Queries(["a"], [""])
    assert list(Queries([], [])) == []


# --- memory ---

_MEASURE = """
import json, re, sys, gc
import rtk.eval.beir, rtk.eval.documents
from rtk.eval import open_collection
def anonymous():
    gc.collect()
    return int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
open_collection(sys.argv[1]).documents.rows(["0"])
before = anonymous()
documents = open_collection(sys.argv[2]).documents
opened = anonymous() - before
total = 0
for number, text in enumerate(documents):
    total += len(text.text)
read = anonymous() - before
documents.rows(["0"])
print(json.dumps([len(documents), opened, read, anonymous() - before]))
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="anonymous memory is read from /proc")
def test_memory_does_not_grow_with_the_texts(beir_folder, tmp_path):
    """150,000 documents of 500 characters are 75 MB; a process keeps at most 16 bytes of anonymous memory each beside
    a fixed allowance for one batch."""

    def corpus(count):
        return [json.dumps({"_id": str(number), "title": "t", "text": f"{number} " * 70}) for number in range(count)]

    small, large = beir_folder("small", corpus(20)), beir_folder("large", corpus(150_000))
    environment = {**os.environ, "RTK_CACHE": str(tmp_path / "cache"), "MALLOC_TRIM_THRESHOLD_": "65536",
                   "ARROW_DEFAULT_MEMORY_POOL": "system"}  # fmt: skip
    output = subprocess.run([sys.executable, "-c", _MEASURE, str(small), str(large)], env=environment, cwd=tmp_path,
                            capture_output=True, text=True, check=True).stdout  # fmt: skip
    count, opened, read, looked_up = json.loads(output)
    assert count == 150_000
    allowance = 24 << 20
    assert max(opened, read, looked_up) < 16 * count + allowance, (opened, read, looked_up)


def test_opening_again_maps_and_allocates_nothing(beir_folder):
    import pyarrow as pa

    folder = beir_folder(corpus=[{"_id": str(n), "text": "x" * 1000} for n in range(5000)])
    open_collection(folder).documents  # noqa: B018
    before = pa.total_allocated_bytes()
    documents = open_collection(folder).documents
    assert isinstance(documents, Documents)
    assert pa.total_allocated_bytes() - before < 10_000
