"""Collections by ir_datasets id, served by ir_datasets' own readers from local files."""

from __future__ import annotations

import json
import sys

import pytest

from rtk.errors import BackendError, ConfigError, DataError, MissingExtra
from rtk.eval import open_collection

ir_datasets = pytest.importorskip("ir_datasets", reason="needs the extra ir-datasets")
from ir_datasets.datasets.base import Dataset  # noqa: E402
from ir_datasets.formats import JsonlDocs, JsonlQueries, TrecQrels, TsvDocs, TsvQueries  # noqa: E402
from ir_datasets.util.download import LocalDownload  # noqa: E402


@pytest.fixture
def register(tmp_path, monkeypatch):
    """Registers datasets for one test, and makes the local files that they read."""
    registered = ir_datasets.registry._registered
    monkeypatch.setattr(ir_datasets.registry, "_registered", dict(registered))

    class Register:
        def __call__(self, name, *parts):
            ir_datasets.registry._registered.pop(name, None)
            ir_datasets.registry.register(name, Dataset(*parts))

        def file(self, name, text):
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            return LocalDownload(path, mkdir=False)

    return Register()


def qrels(register, name, text, defs=None):
    return TrecQrels(register.file(name, text), defs or {0: "not", 1: "relevant"})


@pytest.fixture
def toy(register):
    """`toy` with all queries, `toy/train` and `toy/dev/judged` with judgments over the same documents."""
    rows = [{"doc_id": "007", "title": "Bond", "text": "a spy"}, {"doc_id": "7", "title": "", "text": "größe"}]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    docs = JsonlDocs(register.file("docs.jsonl", lines), namespace="toy",
                     mapping={name: name for name in ("doc_id", "title", "text")}, doc_cls=_doc_class())  # fmt: skip
    queries = TsvQueries(register.file("queries.tsv", 'q1\tsay "spy"\nq2\tseven\nq3\tunjudged\n'))
    register("toy", docs, queries)
    register("toy/train", docs, queries, qrels(register, "train.qrels", "q2 0 7 1\nq1 0 007 1\n"))
    register("toy/dev/judged", docs, queries, qrels(register, "dev.qrels", "q1 0 007 1\nq1 0 7 0\n"))
    return "toy"


def _doc_class():
    from typing import NamedTuple

    class TitledDoc(NamedTuple):
        doc_id: str
        title: str
        text: str

        def default_text(self):
            return f"{self.title} {self.text}"

    return TitledDoc


def test_an_id_opens_with_its_splits(toy):
    collection = open_collection(toy)
    assert collection.name == "toy"
    assert set(collection.splits) == {"train", "dev/judged"}
    assert list(collection.documents.ids) == ["007", "7"]
    assert collection.documents.texts([0, 1]) == ["Bond a spy", "größe"]
    assert collection.documents[0].title == "Bond"
    assert len(collection.queries()) == 3
    assert list(collection.queries("train")) == [("q1", 'say "spy"'), ("q2", "seven")]
    assert collection.judgments("dev/judged").to_dict() == {"q1": {"007": 1, "7": 0}}
    assert collection.check("train").problems == ()


@pytest.mark.parametrize(("spec", "split"), [("toy/train", "train"), ("toy/dev/judged", "dev/judged")])
def test_an_id_with_a_split_has_that_one(toy, spec, split):
    collection = open_collection(spec)
    assert collection.splits == (split,)
    assert collection.documents.fingerprint == open_collection(toy).documents.fingerprint
    assert collection.documents.folder == open_collection(toy).documents.folder
    with pytest.raises(DataError, match=f"no split 'test' in {spec}: it has {split}"):
        collection.judgments("test")


def test_an_id_that_is_its_only_split(register):
    docs = TsvDocs(register.file("collection.tsv", "1\tone\n2\ttwo\n"), namespace="flat")
    queries = TsvQueries(register.file("q.tsv", "1\tone\n"))
    register("flat/one", docs, queries, qrels(register, "q.qrels", "1 0 1 1\n"))
    collection = open_collection("flat/one")
    assert collection.splits == ("test",)
    assert list(collection.queries("test")) == [("1", "one")]
    assert collection.documents[1].title == ""
    assert not collection.conventions.drop_identical_ids


def test_queries_of_a_group_are_those_of_its_splits(register):
    docs = TsvDocs(register.file("c.tsv", "1\tone\n"), namespace="group")
    register("group", docs)
    for split, text in (("a", "q1\tx\nq2\ty\n"), ("b", "q2\ty\nq3\tz\n")):
        queries = TsvQueries(register.file(f"{split}.tsv", text))
        register(f"group/{split}", docs, queries, qrels(register, f"{split}.qrels", "q2 0 1 1\n"))
    collection = open_collection("group")
    assert list(collection.queries()) == [("q1", "x"), ("q2", "y"), ("q3", "z")]
    assert list(collection.queries("b")) == [("q2", "y")]


def test_grades_that_mean_left_out_are_conventions(register):
    docs = TsvDocs(register.file("c.tsv", "1\tone\n2\ttwo\n3\tthree\n"), namespace="bright")
    queries = TsvQueries(register.file("q.tsv", "q\tone\n"))
    defs = {1: "Relevant", -100: "Excluded from evaluation"}
    register("bright/toy", docs, queries, qrels(register, "q.qrels", "q 0 1 1\nq 0 2 -100\nq 0 3 -100\n", defs))
    collection = open_collection("bright/toy")
    assert collection.judgments("test").to_dict() == {"q": {"1": 1}}
    assert dict(collection.conventions.excluded) == {"q": ("2", "3")}
    assert collection.conventions.preset == "bright"


def test_arguana_and_quora_of_beir_drop_identical_ids_and_no_other():
    for spec, drops in (("beir/arguana", True), ("beir/quora/test", True), ("beir/scifact", False),
                        ("nano-beir/arguana", False)):  # fmt: skip
        collection = open_collection(spec)  # nothing is downloaded before it is asked for
        assert collection.conventions.drop_identical_ids is drops
        assert collection.conventions.preset == "beir"


@pytest.mark.parametrize(
    ("spec", "splits", "preset"),
    [
        ("beir/scifact", {"train", "test"}, "beir"),
        ("beir/scifact/test", {"test"}, "beir"),
        ("nano-beir/scifact", {"test"}, "beir"),
        ("msmarco-passage/trec-dl-2019/judged", {"trec-dl-2019/judged"}, "trec-dl-2019"),
        ("msmarco-passage/trec-dl-2020", {"trec-dl-2020", "trec-dl-2020/judged"}, "trec-dl-2020"),
        ("vaswani", {"test"}, None),
    ],
)
def test_real_ids_have_their_splits(spec, splits, preset):
    collection = open_collection(spec)
    assert set(collection.splits) == splits
    assert collection.name == spec
    if spec != "nano-beir/scifact" and not spec.startswith("bright"):
        assert collection.conventions.preset == preset


def test_a_changed_local_file_is_read_again(register, toy):
    first = open_collection("toy").documents
    register.file("docs.jsonl", json.dumps({"doc_id": "new", "title": "", "text": "alone"}) + "\n")
    assert list(open_collection("toy").documents.ids) == ["new"]
    assert len(first) == 2


def test_duplicate_documents_are_refused(register):
    register("twice", TsvDocs(register.file("c.tsv", "1\tone\n1\ttwo\n"), namespace="twice"))
    with pytest.raises(DataError, match="twice: duplicate document id '1'"):
        open_collection("twice").documents  # noqa: B018


def test_what_fails_inside_is_named(register):
    register("gone", TsvDocs(LocalDownload("/nowhere/at/all.tsv", mkdir=False), namespace="gone"))
    with pytest.raises(BackendError, match="ir_datasets could not read 'gone'"):
        open_collection("gone").documents  # noqa: B018


def test_an_unknown_id_has_its_nearest():
    with pytest.raises(ConfigError, match="did you mean 'beir/scifact'"):
        open_collection("beir/scifct")


def test_a_group_without_documents_says_what_it_holds():
    with pytest.raises(ConfigError, match="no documents of its own") as caught:
        open_collection("beir")
    assert "beir/arguana" in str(caught.value)


def test_without_the_extra_the_command_is_given(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("rtk.eval.collection.available", lambda module: False)
    monkeypatch.delitem(sys.modules, "rtk.eval.irds", raising=False)
    with pytest.raises(MissingExtra, match=r'pip install "rtk-retrieval\[ir-datasets\]"'):
        open_collection("beir/scifact")


def test_default_text_stands_in_where_there_is_no_text(register):
    from typing import NamedTuple

    class Odd(NamedTuple):
        doc_id: str
        body: str

        def default_text(self):
            return f"<{self.body}>"

    docs = JsonlDocs(register.file("o.jsonl", '{"doc_id": "1", "body": "b"}\n'), namespace="odd", doc_cls=Odd,
                     mapping={"doc_id": "doc_id", "body": "body"})  # fmt: skip
    queries = JsonlQueries(register.file("oq.jsonl", '{"query_id": "1", "text": "t"}\n'),
                           mapping={"query_id": "query_id", "text": "text"})  # fmt: skip
    register("odd", docs, queries, qrels(register, "o.qrels", "1 0 1 1\n"))
    assert open_collection("odd").documents.texts([0]) == ["<b>"]
    assert list(open_collection("odd").queries("test")) == [("1", "t")]
