"""Mining's filters against false negatives, its padding and its report by query; what published miners get wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtk.errors import ConfigError
from rtk.eval.collection import open_collection
from rtk.eval.files import read_run, write_run
from rtk.eval.judgments import Judgments
from rtk.eval.qrels import read_qrels
from rtk.eval.run import Run
from rtk.ids import Ids
from rtk.retrieval.mining import MiningLimits, Selection, mine, pseudo_positives, write_trace
from rtk.retrieval.mining.candidates import needed_depth

DOCUMENTS = [f"d{number}" for number in range(12)]


def run_of(lists: dict[str, dict[str, float]]) -> Run:
    return Run.from_lists((qid, list(scores), list(scores.values())) for qid, scores in lists.items())


def lists_of(run: Run) -> dict[str, list[str]]:
    return {entry.qid: entry.documents for entry in run}


def falling(*documents: str) -> dict[str, float]:
    return {doc: float(len(documents) - place) for place, doc in enumerate(documents)}


# --- ranking consistency ---

LISTS = {
    "good": falling("p", "d1", "d2", "d3"),
    "edge": falling("d1", "d2", "p", "d3"),
    "bad": falling("d1", "d2", "d3", "p"),
    "lost": falling("d1", "d2", "d3", "d4"),
    "short": falling("d1", "d2"),
}
JUDGED = Judgments.from_dict({qid: {"p": 1} for qid in LISTS})


def test_a_query_whose_best_positive_lies_below_the_place_is_dropped():
    """Place 2 from 0 is the third: there the positive still stands. What was not found lies below any full list."""
    mined, report = mine(run_of(LISTS), JUDGED, MiningLimits(consistency_rank=2))
    assert set(lists_of(mined)) == {"good", "edge", "short"}
    assert report.queries_inconsistent == 2
    assert report.removed["ranking consistency 2"] == 3 + 4
    assert report.candidates == report.kept + sum(report.removed.values())
    assert any("inconsistent: 2" in line for line in report.lines())


def test_the_best_of_several_positives_decides():
    judged = Judgments.from_dict({"bad": {"p": 1, "d1": 1}})
    assert lists_of(mine(run_of({"bad": LISTS["bad"]}), judged, MiningLimits(consistency_rank=1))[0]) == {
        "bad": ["d2", "d3"]
    }


def test_a_run_that_is_not_deep_enough_is_refused_and_not_let_pass():
    """The published filter is silently off there."""
    with pytest.raises(ConfigError, match=r"place 4.*has 4 documents.*search deeper"):
        mine(run_of(LISTS), JUDGED, MiningLimits(consistency_rank=4))
    with pytest.raises(ConfigError, match="has 2 documents"):
        mine(run_of(LISTS), JUDGED, MiningLimits(consistency_rank=2), depth=2)
    mine(run_of(LISTS), JUDGED, MiningLimits(consistency_rank=3))


def test_consistency_by_a_teachers_scores():
    run = run_of({"q": falling("d1", "d2", "p", "d3")})
    judged = Judgments.from_dict({"q": {"p": 1}})
    agrees = run_of({"q": {"p": 9.0, "d1": 1.0, "d2": 0.0, "d3": -1.0}})
    differs = run_of({"q": {"p": -9.0, "d1": 1.0, "d2": 0.0, "d3": -1.0}})
    assert len(mine(run, judged, MiningLimits(consistency_rank=1), teacher=agrees)[0]) == 1
    assert len(mine(run, judged, MiningLimits(consistency_rank=1), teacher=differs)[0]) == 0


# --- two thresholds ---


def test_below_one_threshold_negative_above_the_other_pseudo_positive_between_neither():
    run = run_of({"q": falling("d1", "d2", "p", "d3", "j")})
    teacher = run_of({"q": {"d1": 0.95, "d2": 0.5, "d3": 0.05, "p": 0.99, "j": 0.97}})
    judged = Judgments.from_dict({"q": {"p": 1, "j": 0}})
    mined, report = mine(run, judged, MiningLimits(max_score=0.1, positive_score=0.9), teacher=teacher)
    assert lists_of(mined) == {"q": ["d3"]}
    assert report.removed["pseudo-positive, score from 0.9"] == 2
    found = pseudo_positives(run, judged, score=0.9, teacher=teacher)
    assert lists_of(found) == {"q": ["d1"]}, "j was judged: its grade is known"
    assert found.scores.tolist() == pytest.approx([0.95])
    assert found.columns["first_rank"].tolist() == [1]
    without, _ = mine(run, judged, MiningLimits(positive_score=0.9), teacher=teacher)
    assert lists_of(without) == {"q": ["d2", "d3"]}, "a pseudo-positive is no negative without --max-score either"
    with pytest.raises(ConfigError, match="above max_score"):
        mine(run, judged, MiningLimits(max_score=0.9, positive_score=0.1))


def test_a_rerankers_raw_logits_count_not_the_scores_of_its_order():
    run = run_of({"q": falling("d1", "d2", "d3")})
    judged = Judgments.from_dict({"q": {"d1": 1}})
    ordinal = run_of({"q": {"d1": 3.0, "d2": 2.0, "d3": 1.0}})
    teacher = ordinal.replace(columns={"raw": np.array([4.0, 3.9, np.nan])})
    mined, report = mine(run, judged, MiningLimits(absolute_margin=0.05), teacher=teacher)
    assert lists_of(mined) == {"q": ["d2"]}
    assert mined.columns["teacher"].tolist() == pytest.approx([3.9])
    assert report.removed["without teacher score"] == 1
    assert len(mine(run, judged, MiningLimits(absolute_margin=0.5), teacher=teacher)[0]) == 0
    own, _ = mine(run, judged, teacher=teacher, reference="own")
    assert own.columns["reference"].tolist() == [4.0]


# --- copies of the query ---


def test_a_document_that_says_what_the_query_says_is_no_negative(beir_folder):
    corpus = [
        {"_id": name, "text": text} for name, text in [("a", " spy "), ("b", "spying"), ("c", "seven"), ("p", "x")]
    ]
    collection = open_collection(beir_folder(corpus=corpus, qrels={"test": [("q0", "p", 1), ("q1", "p", 1)]}))
    lists = {"q0": falling("a", "b", "c", "p"), "q1": falling("c", "a", "unknown"), "beyond": falling("a")}
    run, judged = run_of(lists), Judgments.from_dict({qid: {"p": 1} for qid in lists})
    texts = collection.queries("test"), collection.documents
    for reference in ("min", "own"):
        mined, report = mine(run, judged, MiningLimits(identical_texts=texts), reference=reference)
        assert lists_of(mined) == {"q0": ["b", "c"], "q1": ["a", "unknown"], "beyond": ["a"]}
        assert report.removed["identical text"] == 2
    assert lists_of(mine(run, judged)[0])["q0"] == ["a", "b", "c"]


# --- reference ---


def test_each_positive_its_own_reference_gives_a_list_for_each():
    run = run_of({"q": {"p1": 5.0, "d1": 4.0, "d2": 2.5, "p2": 2.0, "d3": 1.0}, "r": {"d1": 1.0, "d2": 0.5}})
    judged = Judgments.from_dict({"q": {"p1": 1, "p2": 1, "unfound": 1}, "r": {"unfound": 1}})
    mined, report = mine(run, judged, MiningLimits(absolute_margin=0.5), reference="own")
    entry = list(zip(mined.columns["list_id"].tolist(), mined.documents.to_pylist(), strict=True))
    assert entry == [(0, "d1"), (0, "d2"), (0, "d3"), (1, "d3")]
    assert mined.columns["reference"].tolist() == [5, 5, 5, 2]
    assert report.candidates == 5 * 2 + 2 == report.kept + sum(report.removed.values())
    assert report.queries_without_reference == 1
    few, told = mine(run, judged, MiningLimits(absolute_margin=0.5), Selection(per_query=2), reference="own")
    assert few.columns["list_id"].tolist() == [0, 0, 1]
    assert told.queries_short == 1, "one of four is missing"
    with pytest.raises(ConfigError, match="own"):
        mine(run, judged, selection=Selection(per_query=2), reference="own", pad_from=Ids(DOCUMENTS))
    with pytest.raises(ConfigError, match="reference 'mean'"):
        mine(run, judged, reference="mean")


# --- padding ---


@given(
    st.dictionaries(st.sampled_from(DOCUMENTS), st.floats(-5, 5, width=16).map(float), max_size=12),
    st.sets(st.sampled_from(DOCUMENTS), min_size=1, max_size=5),
    st.integers(1, 12),
    st.integers(0, 5),
)
def test_padding_is_marked_counted_and_never_a_positive_or_a_candidate(scores, positives, per_query, seed):
    run = run_of({"q": scores, "other": {"d1": 1.0, "d2": 0.0}})
    judged = Judgments.from_dict({"q": dict.fromkeys(positives, 1)})
    settings = (MiningLimits(absolute_margin=1.0), Selection(per_query=per_query, seed=seed))
    plain, before = mine(run, judged, *settings)
    mined, report = mine(run, judged, *settings, pad_from=Ids(DOCUMENTS))
    marked = mined.columns["padded"].astype(bool)
    documents = np.array(mined.documents.to_pylist())
    random, kept = set(documents[marked].tolist()), documents[~marked].tolist()
    assert kept == plain.documents.to_pylist(), "the mined ones are there, before all others"
    assert not random & (positives | set(scores))
    free = len(set(DOCUMENTS) - positives - set(scores))
    assert len(random) == marked.sum() == min(per_query - len(kept), free) == report.padded
    assert report.kept == before.kept
    assert (mined.columns["first_rank"][marked] == 0).all()
    assert "other" not in mined.qids, "no positive, no negatives"
    again, _ = mine(run, judged, *settings, pad_from=Ids(DOCUMENTS))
    assert again == mined


def test_padding_fills_no_query_that_was_dropped_and_asks_for_a_length():
    settings = (MiningLimits(consistency_rank=2), Selection(per_query=4))
    mined, report = mine(run_of(LISTS), JUDGED, *settings, pad_from=Ids([*DOCUMENTS, "p"]))
    assert {qid: len(docs) for qid, docs in lists_of(mined).items()} == {"good": 4, "edge": 4, "short": 4}
    assert (report.padded, report.queries_short, report.queries_empty) == (4, 0, 2)
    with pytest.raises(ConfigError, match="per_query"):
        mine(run_of(LISTS), JUDGED, pad_from=Ids(DOCUMENTS))


def test_no_padding_unless_it_is_asked_for():
    mined, report = mine(run_of(LISTS), JUDGED, selection=Selection(per_query=9))
    assert "padded" not in mined.columns
    assert report.padded == 0
    assert report.queries_short == 5


# --- depth, report ---


def test_depth_counts_positives_and_ranks_do_not():
    run = run_of({"q": falling("p", "d1", "d2", "d3", "d4")})
    judged = Judgments.from_dict({"q": {"p": 1}})
    assert lists_of(mine(run, judged, depth=3)[0]) == {"q": ["d1", "d2"]}
    assert lists_of(mine(run, judged, MiningLimits(ranks=(2, 3)))[0]) == {"q": ["d2", "d3"]}
    more = Judgments.from_dict({"q": {"p": 1, "x": 1}, "z": {"a": 1, "b": 1, "c": 1}})
    assert needed_depth(run.qids, more, ranks=(1, 200), consistency_rank=None) == 202
    assert needed_depth(run.qids, more, ranks=(1, 5), consistency_rank=50) == 51


def test_the_report_by_query_adds_up(tmp_path):
    run = run_of({**LISTS, "unjudged": falling("d1")})
    mined, report = mine(
        run, JUDGED, MiningLimits(absolute_margin=1.5, ranks=(1, 2), consistency_rank=3), Selection(per_query=1)
    )
    write_trace(report.trace, tmp_path / "removed.tsv")
    header, *lines = [line.split("\t") for line in (tmp_path / "removed.tsv").read_text().splitlines()]
    rows = {line[0]: dict(zip(header, line, strict=True)) for line in lines}
    assert list(rows) == list(run.qids)
    for name, count in report.removed.items():
        assert sum(int(row[name]) for row in rows.values()) == count
    for qid, row in rows.items():
        assert int(row["kept"]) == len(lists_of(mined).get(qid, []))
        assert sum(int(row[name]) for name in report.removed) + int(row["kept"]) == len(run[qid].documents)
    assert rows["good"]["reference"] == "4"
    assert rows["lost"]["reference"] == ""


# --- the command ---


@pytest.fixture
def collection(beir_folder) -> Path:
    words = ["merge", "sort", "file", "read", "list", "text", "gene", "vitamin", "risk", "cell", "number", "time"]
    corpus = [{"_id": f"d{i}", "title": "", "text": f"{words[i % 12]} {words[(i * 5 + 1) % 12]}"} for i in range(24)]
    queries = [{"_id": f"q{i}", "text": corpus[i]["text"]} for i in range(8)]
    return beir_folder(corpus=corpus, queries=queries, qrels={"train": [(f"q{i}", f"d{i}", 1) for i in range(8)]})


def test_an_index_is_searched_as_deep_as_needed(rtk, collection):
    rtk(f"index {collection} --out bm25")
    code, out, err = rtk(f"mine bm25 -c {collection} --ranks 1:4 --out mined.trec --found found.trec --json")
    assert code == 0, err
    found = read_run(Path("found.trec"))
    assert np.diff(found.offsets).max() <= 5
    rtk(f"mine found.trec -c {collection} --ranks 1:4 --out again.trec")
    assert read_run(Path("again.trec")) == read_run(Path("mined.trec"))
    assert json.loads(out)["kept"] == len(read_run(Path("mined.trec")).codes) > 0
    code, _, err = rtk(f"mine found.trec -c {collection} --out x.trec --model minilm")
    assert (code, "no folder" in err) == (2, True)


def test_every_option_of_the_library_is_on_the_command_line(rtk, collection):
    rtk(f"index {collection} --out bm25")
    rtk(f"search bm25 -c {collection} --split train --out found.trec")
    line = (
        f"mine found.trec -c {collection} --depth 20 --ranks 1:15 --relative-margin 0.01 --min-score 0.1 "
        "--positive-score 1.2 --max-score 1.1 --consistency-rank 1 --skip 0 --reference max --per-query 6 "
        "--choice random --seed 3 --pad random --drop-identical-ids --drop-identical-texts --positives found.qrels "
        "--report removed.tsv --out mined.parquet --json"
    )
    code, out, err = rtk(line)
    assert code == 0, err
    counts = json.loads(out)
    mined = read_run(Path("mined.parquet"))
    assert counts["padded"] == int(mined.columns["padded"].sum()) > 0
    judged = read_qrels(Path("found.qrels")) if counts["pseudo_positives"] else Judgments.from_dict({})
    assert sum(len(grades) for _, grades in judged.items()) == counts["pseudo_positives"]
    assert len(Path("removed.tsv").read_text().splitlines()) == 1 + counts["queries"]
    code, _, err = rtk(f"mine found.trec -c {collection} --reference own --out own.parquet")
    assert code == 0, err
    assert set(read_run(Path("own.parquet")).columns) >= {"list_id", "reference"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--pad random --per-query 3 --out x.trec", "parquet"),
        ("--pad blank --out x.trec", "none or random"),
        ("--reference own --out x.trec", "list_id"),
        ("--positives p.tsv --out x.trec", "--positive-score"),
        ("--consistency-rank 500 --out x.trec", "search deeper"),
        ("--choice best --out x.trec", "'top' or 'random'"),
    ],
)
def test_what_cannot_be_is_said(rtk, collection, options, said):
    write_run(run_of({f"q{n}": falling(*DOCUMENTS) for n in range(8)}), "found.trec")
    code, out, err = rtk(f"mine found.trec -c {collection} {options}")
    assert (code, out) == (2, "")
    assert said in err
