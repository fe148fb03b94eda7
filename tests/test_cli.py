"""The program: every verb from file to file, what it prints where, and its exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rtk import extras

VERBS = (
    "index", "search", "rerank", "train", "eval", "encode", "explain", "mine", "fuse", "crop", "idf", "soup",
    "quickstart", "doctor",
)  # fmt: skip


@pytest.fixture
def collection(beir_folder) -> Path:
    text = "merge sort file read list text gene vitamin risk cell number time path query heat wing"
    words = text.split()
    corpus = [
        {"_id": f"d{i}", "title": words[i % 16], "text": f"{words[(i * 3) % 16]} {words[(i * 7 + 1) % 16]} study"}
        for i in range(32)
    ]
    queries = [{"_id": f"q{i}", "text": corpus[i]["text"]} for i in range(16)]
    qrels = {
        "train": [(f"q{i}", f"d{i}", 1) for i in range(12)],
        "test": [(f"q{i}", f"d{i}", 1) for i in range(12, 16)],
    }
    return beir_folder(corpus=corpus, queries=queries, qrels=qrels)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_shows_two_examples(rtk, verb):
    code, out, err = rtk(f"{verb} --help")
    assert (code, err) == (0, "")
    assert out.count(f" rtk {verb}") >= 2 + ("Usage: rtk" in out)


def test_from_a_collection_to_a_report(rtk, collection, tiny_models):
    assert rtk(f"index {collection} --out bm25")[0] == 0
    assert rtk(f"search bm25 -c {collection} -k 10 --out bm25.trec")[0] == 0
    assert rtk(f"index {collection} --retriever {tiny_models}/dense --backend torch --out dense")[0] == 0
    assert rtk(f"search dense -c {collection} -k 10 --out dense.trec")[0] == 0
    assert rtk("fuse bm25.trec dense.trec --out fused.trec")[0] == 0
    line = f"rerank fused.trec -c {collection} --reranker cross-encoder --model {tiny_models}/cross_encoder"
    assert rtk(f"{line} --raw --out reranked.parquet")[0] == 0
    runs = "bm25.trec dense.trec fused.trec reranked.parquet"
    code, out, err = rtk(
        f"eval {runs} -c {collection} --baseline bm25.trec -m nDCG@10 -m R@100 --report r.html --per-query q.tsv"
    )
    assert code == 0, err
    assert all(name in out for name in ("bm25", "dense", "fused", "reranked", "nDCG@10", "R@100"))
    assert "<html" in Path("r.html").read_text().lower()
    assert len(Path("q.tsv").read_text().splitlines()) == 1 + 4 * 4 * 2


def test_eval_json_and_quiet_keep_to_stdout(rtk, collection):
    rtk(f"index {collection} --out bm25")
    rtk(f"search bm25 -c {collection} --out bm25.trec")
    code, out, err = rtk(f"eval bm25.trec -c {collection} --json --quiet")
    assert (code, err) == (0, "")
    assert json.loads(out)["evaluations"][0]["means"]["nDCG@10"] > 0.5


def test_search_of_one_text_prints_documents(rtk, collection):
    rtk(f"index {collection} --out bm25")
    code, out, _ = rtk("search bm25 -q 'merge sort' -k 2")
    assert code == 0
    assert len([line for line in out.splitlines() if line.startswith("  ") and line.strip()[0].isdigit()]) == 2
    code, out, _ = rtk("search bm25 -q zzzz --json")
    assert (code, json.loads(out)["documents"]) == (0, [])


def test_mine_leaves_out_positives(rtk, collection):
    rtk(f"index {collection} --out bm25")
    rtk(f"search bm25 -c {collection} --split train --out train.trec")
    code, out, _ = rtk(f"mine train.trec -c {collection} --ranks 1:5 --out negatives.trec --json")
    assert code == 0
    assert json.loads(out)["kept"] > 0
    for line in Path("negatives.trec").read_text().splitlines():
        qid, _, docid, *_ = line.split()
        assert qid[1:] != docid[1:]


def test_train_from_a_file(rtk, collection, tiny_models):
    Path("c.yaml").write_text(
        f"method: contrastive\nmodel: {tiny_models}/dense\ndata: {{collection: {collection}}}\noutput: model\n"
        "trainer: {per_device_train_batch_size: 4, max_steps: 2, use_cpu: true}\n"
    )
    code, out, err = rtk("train c.yaml --dry-run")
    assert (code, "12 queries" in out) == (0, True), err
    assert not Path("model").exists()
    code, out, err = rtk("train c.yaml trainer.max_steps=3")
    assert code == 0, err
    assert rtk(f"index {collection} --retriever model --backend torch --out trained")[0] == 0
    code, _, err = rtk("train c.yaml")
    assert (code, "model" in err) == (2, True)
    code, _, err = rtk("train c.yaml lenghts.query=3 trainer.learning_rat=1")
    assert code == 2
    assert "lengths" in err
    assert "learning_rate" in err


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        ("indx x", 2, "index"),
        ("index nothing --out x", 2, "no collection"),
        ("index {collection} --out x --backend fais", 2, "faiss"),
        ("index {collection} --out x --set k1", 2, "NAME=VALUE"),
        ("index {collection} --out x --set k1=[", 2, "no YAML value"),
        ("search nowhere -q x", 4, "nowhere"),
        ("search nowhere", 2, "-q TEXT"),
        ("eval missing.trec -c {collection}", 4, "missing.trec"),
        ("eval bad.trec -c {collection}", 4, "bad.trec:2"),
        ("eval good.trec -c {collection} -m nDCG10", 2, "nDCG"),
        ("eval good.trec", 2, "--collection"),
        ("eval good.trec -c {collection} --split tset", 4, "test"),
        ("rerank good.trec -c {collection} --model minilm --raw --out x.trec", 2, "parquet"),
        ("rerank good.trec -c {collection} --model minilm --reranker cross --out x.trec", 2, "cross-encoder"),
        ("mine good.trec -c {collection} --ranks 5 --out x.trec", 2, "10:200"),
        ("mine good.trec -c {collection} --split train --out good.trec", 2, "--overwrite"),
        ("fuse good.trec good.trec --weights a,b --out x.trec", 2, "0.3,0.7"),
    ],
)
def test_what_is_wrong_is_said_with_its_exit_code(rtk, collection, line, code, said):
    Path("good.trec").write_text("q12 Q0 d1 1 2.0 x\nq13 Q0 d2 1 1.0 x\n")
    Path("bad.trec").write_text("q12 Q0 d1 1 2.0 x\nq13 Q0 d2 1.0 x\n")
    got, out, err = rtk(line.format(collection=collection))
    assert (got, out) == (code, "")
    assert said in err
    assert "Traceback" not in err


def test_a_bug_shows_its_traceback_and_exits_with_1(rtk, monkeypatch):
    from rtk.retrieval.cli import doctor

    monkeypatch.setattr(doctor, "report", lambda: 1 / 0)
    code, _, err = rtk("doctor")
    assert code == 1
    assert "ZeroDivisionError" in err


def test_doctor_names_the_command_for_what_is_missing(rtk, monkeypatch):
    monkeypatch.setattr(extras, "available", lambda module: module != "faiss")
    code, out, _ = rtk("doctor")
    assert code == 0
    assert extras.EXTRAS["cpu"].install in out
    assert extras.EXTRAS["minilm"].install not in out


def test_a_closed_pipe_is_no_error(collection, tmp_path):
    line = f"{sys.executable} -m rtk doctor | head -1"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout.startswith("rtk ")
    assert "Traceback" not in done.stderr


def test_tasks_share_an_encoding_and_the_same_command_completes_it(rtk, collection, tiny_models):
    line = f"encode {collection} --retriever {tiny_models}/dense --shard-size 5"
    assert "shards missing in parts: 4" in rtk(f"{line} --out parts --part 1/2")[1]
    assert rtk("search parts -q x")[0] == 4  # a half-written index is not read
    assert "shards missing in parts: 0" in rtk(f"{line} --out parts --part 0/2")[1]
    code, _, err = rtk(f"{line.replace('-size 5', '-size 6')} --out parts --part 0/2")
    assert (code, "shard_size" in err) == (2, True)
    assert rtk(f"{line} --out parts")[0] == 0
    assert rtk(f"{line} --out whole")[0] == 0
    names = sorted(path.relative_to("parts") for path in Path("parts").rglob("*") if path.is_file())
    assert names == sorted(path.relative_to("whole") for path in Path("whole").rglob("*") if path.is_file())
    assert all((Path("parts") / name).read_bytes() == (Path("whole") / name).read_bytes() for name in names)
    assert rtk(f"{line} --out parts --part 0/2")[0] == 2


def test_two_processes_encode_like_one(rtk, collection, tiny_models, forked, monkeypatch):
    monkeypatch.setattr("rtk.retrieval.encoders.corpus.multiprocessing.get_context", lambda _: forked)
    line = f"encode {collection} --retriever {tiny_models}/dense --shard-size 8"
    assert rtk(f"{line} --device cpu,cpu --out two")[0] == 0
    assert rtk(f"{line} --device cpu --out one")[0] == 0
    for path in Path("one/vectors").iterdir():
        assert path.read_bytes() == (Path("two/vectors") / path.name).read_bytes()
