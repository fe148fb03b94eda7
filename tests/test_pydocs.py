"""The embedded collection: what is in it, and that nothing of the test leaks into training."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from rtk import open_collection
from rtk.errors import BackendError, ConfigError, DataError
from rtk.eval import Collection, pydocs
from rtk.eval.documents import Document

SCRIPT = Path(pydocs.__file__).with_name("pydocs_extract.py")


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of this module's own: what is tested is what this code makes, not what an earlier one left."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("RTK_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def collection(cache: Path) -> Collection:
    return open_collection("pydocs")


@pytest.fixture(scope="module")
def training(cache: Path) -> Collection:
    return open_collection("pydocs-train")


def extract(*code: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", *(("-c", *code) if code else (str(SCRIPT),))]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=True)


class TestDocuments:
    def test_a_few_thousand_in_order_of_id(self, collection: Collection) -> None:
        ids = list(collection.documents.ids)
        assert 4000 < len(ids) < 8000
        assert ids == sorted(ids)
        assert len(set(ids)) == len(ids)

    def test_known_documents_are_there_under_their_usual_names(self, collection: Collection) -> None:
        names = ["itertools.islice", "open", "str.split", "os.path.join", "json.loads", "asyncio.run", "heapq",
                 "pathlib.Path.mkdir", "pathlib.PurePath.with_suffix", "array.array"]  # fmt: skip
        assert (collection.documents.rows(names) >= 0).all()
        islice = collection.documents[int(collection.documents.rows(["itertools.islice"])[0])]
        assert islice.title.startswith("itertools.islice")
        assert "iterable" in islice.text

    def test_one_document_for_all_names_of_an_object(self, collection: Collection) -> None:
        aliases = ["posixpath.join", "ntpath.join", "io.open", "asyncio.runners.run", "json.decoder.JSONDecoder",
                   "unittest.case.TestCase", "builtins.open", "bisect.insort"]  # fmt: skip
        assert (collection.documents.rows(aliases) < 0).all()

    def test_no_private_name_and_no_text_without_words(self, collection: Collection) -> None:
        for document in collection.documents:
            assert not any(part.startswith("_") for part in document.id.split(".")), document.id
            assert len(document.text.split()) >= 2, document.id
            assert " at 0x" not in document.title, document.id

    def test_no_document_repeats_its_base_class(self, collection: Collection) -> None:
        texts = Counter((document.id.rpartition(".")[2], document.text) for document in collection.documents)
        assert max(texts.values()) == 1

    def test_two_extractions_give_the_same_bytes(self) -> None:
        assert extract().stdout == extract().stdout

    def test_the_calling_process_neither_imports_nor_changes_anything(self) -> None:
        code = (
            "import sys; sys.path.insert(0, sys.argv[1]); before = set(sys.modules)\n"
            "import subprocess, json; json.loads.__doc__ = 'zzpatchedzz'\n"
            "print(subprocess.run([sys.executable, '-I', sys.argv[2]], capture_output=True, text=True).stdout)\n"
            "assert not {'curses', 'ftplib', 'mailbox'} & set(sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", code, str(SCRIPT.parent), str(SCRIPT)],
                              capture_output=True, text=True, check=True)  # fmt: skip
        assert "json.loads" in done.stdout
        assert "zzpatchedzz" not in done.stdout

    def test_imports_have_no_effects(self) -> None:
        code = f"""
import runpy, sys
space = runpy.run_path({str(SCRIPT)!r})
space["import_modules"](space["MODULES"])
harmful = {{"antigravity", "this", "idlelib", "turtle", "turtledemo", "tkinter", "readline", "rlcompleter", "test"}}
found = harmful & {{name.partition(".")[0] for name in sys.modules}}
assert not found, found
"""
        done = extract(code)
        assert done.stdout == ""
        assert done.stderr.replace("\n", "") == "" or "Warning" in done.stderr

    def test_a_module_that_cannot_be_imported_is_counted(self) -> None:
        code = f"""
import json, runpy
space = runpy.run_path({str(SCRIPT)!r})
modules, skipped = space["import_modules"](["json", "no_such_module"])
print(json.dumps([list(modules), skipped, len(space["documents"](modules))]))
"""
        modules, skipped, count = json.loads(extract(code).stdout)
        assert modules == ["json"]
        assert list(skipped) == ["no_such_module"]
        assert "ModuleNotFoundError" in skipped["no_such_module"]
        assert count > 10

    def test_second_opening_reads_the_cache(self, collection: Collection, monkeypatch: pytest.MonkeyPatch) -> None:
        fingerprint = collection.documents.fingerprint
        monkeypatch.setattr(pydocs, "_extract", lambda: pytest.fail("extracted again"))
        assert open_collection("pydocs").documents.fingerprint == fingerprint

    def test_python_without_documentation_strings_is_refused(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("RTK_CACHE", str(tmp_path))
        monkeypatch.setattr(pydocs, "_extract", lambda: [Document("a", "a", "one two three")])
        with pytest.raises(BackendError, match="only 1 documentation strings"):
            _ = open_collection("pydocs").documents

    def test_failing_extraction_says_why(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("RTK_CACHE", str(tmp_path))
        monkeypatch.setattr(sys, "executable", "/bin/false")
        with pytest.raises(BackendError, match="/bin/false failed"):
            _ = open_collection("pydocs").documents


class TestQuestions:
    def test_at_least_120_with_both_kinds(self, collection: Collection) -> None:
        questions = pydocs.test_questions()
        assert len(questions) >= 120
        assert {question.kind for question in questions} == {"plain", "paraphrase"}
        assert len({question.text for question in questions}) == len(questions)
        assert list(collection.queries("test").ids) == [question.id for question in questions]

    def test_a_third_shares_no_content_word_with_any_answer(self, collection: Collection) -> None:
        """Every one of the kind, in this Python's texts; over a third of all questions."""
        judgments, documents = collection.judgments("test"), collection.documents
        paraphrases = [question for question in pydocs.test_questions() if question.kind == "paraphrase"]
        shared = {}
        for question in paraphrases:
            answers = judgments.relevant(question.id, grade=2)
            words = [pydocs.content_words(text) for text in documents.texts(documents.rows(answers))]
            common = pydocs.content_words(question.text) & frozenset().union(*words)
            if common:
                shared[question.text] = common
        assert not shared
        assert len(paraphrases) >= len(pydocs.test_questions()) / 3

    def test_content_words_see_through_inflection_and_identifiers(self) -> None:
        assert pydocs.content_words("How do I copy the files?") == pydocs.content_words("copying_file")
        assert pydocs.content_words("getSourceLines") == pydocs.content_words("get source lines")

    def test_diverse_modules_answer(self, collection: Collection) -> None:
        judgments = collection.judgments("test")
        modules = {name.partition(".")[0] for qid in judgments.qids for name in judgments.relevant(qid, grade=2)}
        assert len(modules) > 60

    def test_unknown_split_is_refused(self, collection: Collection) -> None:
        with pytest.raises(DataError, match="no split 'train' in pydocs"):
            collection.judgments("train")

    def test_a_slip_in_the_name_is_pointed_out(self) -> None:
        with pytest.raises(ConfigError, match="did you mean 'pydocs'"):
            open_collection("pydoc")


class TestDevQuestions:
    def test_each_has_an_answer_and_none_is_near_a_test_question(self, collection: Collection) -> None:
        tests = [pydocs.content_words(question.text) for question in pydocs.test_questions()]
        judgments = collection.judgments("dev")
        assert len(pydocs.dev_questions()) > 50
        for question in pydocs.dev_questions():
            assert judgments.relevant(question.id), question.text
            assert not pydocs._near(question.text, tests), question.text

    def test_each_has_its_own_id(self, collection: Collection) -> None:
        dev, test = collection.queries("dev").ids, collection.queries("test").ids
        assert not set(dev) & set(test)
        assert len(collection.queries()) == len(dev) + len(test)


class TestJudgments:
    def test_every_question_has_an_answer_and_a_pool(self, collection: Collection) -> None:
        judgments = collection.judgments("test")
        for qid in collection.queries("test").ids:
            assert judgments.relevant(qid, grade=2), qid
            assert len(judgments[qid]) >= 10, qid

    def test_three_grades(self, collection: Collection) -> None:
        grades = Counter(grade for _, found in collection.judgments("test").items() for grade in found.values())
        assert set(grades) == {0, 1, 2}
        assert sum(grades.values()) > 2500

    def test_all_judged_documents_exist(self, collection: Collection) -> None:
        judgments = collection.judgments("test")
        assert (collection.documents.rows(judgments.vocabulary) >= 0).all()

    def test_documents_of_another_python_are_dropped_and_counted(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(pydocs, "_data", lambda name: tmp_path / name)
        (tmp_path / "pydocs-judgments.tsv").write_text(
            "query-id\tcorpus-id\tscore\nq001\tzip\t2\nq001\tno.such.name\t1\n"
        )
        with caplog.at_level("INFO"):
            judgments = pydocs.PyDocs().judgments("test")
        assert judgments["q001"] == {"zip": 2}
        assert "1 of 2 judged documents are not in Python" in caplog.text
        assert "no.such.name" in caplog.text


class TestNothingLeaks:
    def test_no_training_query_is_near_a_question(self, training: Collection) -> None:
        questions = (*pydocs.dev_questions(), *pydocs.test_questions())
        tests = [pydocs.content_words(question.text) for question in questions]
        assert {len(words) > 0 for words in tests} == {True}
        for split in training.splits:
            for _, text in training.queries(split):
                words = pydocs.content_words(text)
                near = max(len(words & test) / len(words | test) for test in tests)
                assert near <= pydocs.NEAR, text

    def test_a_near_question_would_be_dropped(self) -> None:
        question = pydocs.test_questions()[0].text
        tests = [pydocs.content_words(question)]
        assert pydocs._near(question.upper(), tests)
        assert not pydocs._near("something else altogether", tests)

    def test_no_question_stands_in_a_document(self, collection: Collection) -> None:
        questions = [question.text.lower() for question in pydocs.test_questions()]
        for document in collection.documents:
            text = " ".join(document.full_text.lower().split())
            assert not [question for question in questions if question in text], document.id

    def test_no_training_query_stands_in_its_document(self, training: Collection) -> None:
        documents = training.documents
        for split in training.splits:
            judgments = training.judgments(split)
            for qid, text in training.queries(split):
                for found in documents.texts(documents.rows(list(judgments[qid]))):
                    assert text.lower() not in " ".join(found.lower().split()), text

    def test_train_and_dev_share_neither_queries_nor_documents(self, training: Collection) -> None:
        train, dev = training.judgments("train"), training.judgments("dev")
        assert not set(train.qids) & set(dev.qids)
        assert not set(train.vocabulary) & set(dev.vocabulary)
        assert len(train) > 1000
        assert len(dev) > 100

    def test_training_documents_are_the_collections_own_without_a_sentence(
        self, collection: Collection, training: Collection
    ) -> None:
        whole = collection.documents
        for document in training.documents:
            source = whole[int(whole.rows([document.id])[0])]
            assert document.title == source.title
            assert len(document.text) < len(source.text)
            assert set(document.text.split()) <= set(source.text.split())

    def test_first_sentence_is_the_query(self, training: Collection) -> None:
        judgments = training.judgments("train") if "train" in training.splits else None
        assert judgments is not None
        queries = {name: text for split in training.splits for qid, text in training.queries(split)
                   for name in training.judgments(split)[qid]}  # fmt: skip
        assert queries["difflib.HtmlDiff"] == "For producing HTML side by side comparison with change highlights"
        assert queries["int.from_bytes"] == "the integer represented by the given array of bytes"
