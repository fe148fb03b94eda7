"""Mining: never a positive, never padding, every removal counted, and the choices of sentence-transformers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtk.errors import ConfigError, DataError
from rtk.eval.judgments import Judgments
from rtk.eval.run import Run
from rtk.retrieval.mining import MiningLimits, Selection, mine
from rtk.retrieval.pairs import aligned_scores

GOLDEN = json.loads((Path(__file__).parent / "goldens" / "hard_negative_mining.json").read_text(encoding="utf-8"))
DOCUMENTS = [f"d{number}" for number in range(12)]


def run_of(lists: dict[str, dict[str, float]]) -> Run:
    return Run.from_lists((qid, list(scores), list(scores.values())) for qid, scores in lists.items())


def lists_of(run: Run) -> dict[str, list[str]]:
    return {entry.qid: entry.documents for entry in run}


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: json.dumps(case["settings"]))
def test_same_negatives_as_sentence_transformers(case):
    """Its filters leave more than `num_negatives`; the library drops queries with fewer, we keep what there is."""
    run = run_of(GOLDEN["similarities"])
    judgments: dict[str, dict[str, int]] = {}
    for qid, positive in GOLDEN["queries_and_positives"]:
        judgments.setdefault(qid, {})[positive] = 1
    given_settings = dict(case["settings"])
    count, first = given_settings.pop("num_negatives"), given_settings.pop("range_min", 0)
    last = given_settings.pop("range_max")
    mined, _ = mine(
        run,
        Judgments.from_dict(judgments),
        MiningLimits(ranks=(1, last), skip=first, **given_settings),
        Selection(per_query=count),
    )
    expected: dict[str, list[str]] = {}
    for qid, _positive, negative in case["triplets"]:
        if negative not in expected.setdefault(qid, []):
            expected[qid].append(negative)
    full = {qid: documents for qid, documents in lists_of(mined).items() if len(documents) == count}
    assert full == expected


scores = st.floats(-5, 5, width=16).map(float)
ranked = st.dictionaries(st.sampled_from(DOCUMENTS), scores, max_size=12)
runs = st.dictionaries(st.sampled_from(["q1", "q2", "q3"]), ranked, min_size=1)
grades = st.dictionaries(
    st.sampled_from(["q1", "q2", "q9"]),
    st.dictionaries(st.sampled_from(DOCUMENTS), st.integers(-1, 2), min_size=1),
    max_size=3,
)


@settings(max_examples=150, deadline=None)
@given(
    runs,
    grades,
    st.none() | st.floats(0, 1),
    st.none() | st.integers(1, 4),
    st.sampled_from(["top", "random"]),
    st.integers(1, 3),
    st.integers(0, 9),
)
def test_what_holds_for_every_mining(lists, judged, margin, per_query, choice, first, seed):
    run, judgments = run_of(lists), Judgments.from_dict(judged)
    mined, report = mine(
        run,
        judgments,
        MiningLimits(ranks=(first, first + 6), absolute_margin=margin),
        Selection(per_query=per_query, choice=choice, seed=seed),
    )
    for entry in mined:
        positives = {doc for doc, grade in judged.get(entry.qid, {}).items() if grade >= 1}
        assert positives, "a query without positives gives no negatives"
        assert not positives & set(entry.documents)
        assert set(entry.documents) <= set(lists[entry.qid])
        assert 1 <= len(entry.documents) <= (per_query or len(DOCUMENTS))
        without = [doc for doc in run[entry.qid].documents if doc not in positives]
        assert all(first <= without.index(doc) + 1 <= first + 6 for doc in entry.documents)
        if margin is not None:
            reference = min(np.float32(lists[entry.qid][doc]) for doc in positives if doc in lists[entry.qid])
            assert (entry.scores <= reference - np.float32(margin)).all()
    assert report.candidates == report.kept + sum(report.removed.values())
    assert report.kept == len(mined.codes)
    again, _ = mine(
        run,
        judgments,
        MiningLimits(ranks=(first, first + 6), absolute_margin=margin),
        Selection(per_query=per_query, choice=choice, seed=seed),
    )
    assert again == mined


def test_random_choice_of_a_query_does_not_depend_on_the_others():
    lists = {f"q{number}": {doc: float(-place) for place, doc in enumerate(DOCUMENTS)} for number in range(5)}
    judgments = Judgments.from_dict({qid: {"d0": 1} for qid in lists})
    whole, _ = mine(run_of(lists), judgments, selection=Selection(per_query=3, choice="random", seed=1))
    alone, _ = mine(run_of({"q3": lists["q3"]}), judgments, selection=Selection(per_query=3, choice="random", seed=1))
    other, _ = mine(run_of(lists), judgments, selection=Selection(per_query=3, choice="random", seed=2))
    assert lists_of(whole)["q3"] == lists_of(alone)["q3"]
    assert lists_of(whole) != lists_of(other)
    assert len({tuple(documents) for documents in lists_of(whole).values()}) > 1, "queries draw independently"


def test_a_missed_positive_leaves_a_margin_nothing():
    run = run_of({"q1": {"d1": 3.0, "d2": 2.0}})
    judgments = Judgments.from_dict({"q1": {"d9": 1}})
    mined, report = mine(run, judgments, MiningLimits(absolute_margin=0.1))
    assert len(mined) == 0
    assert report.queries_without_reference == 1
    assert report.removed["absolute margin 0.1"] == 2
    assert lists_of(mine(run, judgments)[0]) == {"q1": ["d1", "d2"]}


def test_relative_margin_stays_strict_below_zero():
    run = run_of({"q1": {"d0": -1.0, "d1": -1.04, "d2": -1.06}})
    judgments = Judgments.from_dict({"q1": {"d0": 1}})
    assert lists_of(mine(run, judgments, MiningLimits(relative_margin=0.05))[0]) == {"q1": ["d2"]}
    assert lists_of(mine(run, judgments, MiningLimits(percent_of_positive=0.95))[0]) == {"q1": ["d2"]}


def test_a_teacher_judges_in_place_of_the_run():
    run = run_of({"q1": {"d1": 9.0, "d2": 8.0, "d3": 7.0, "d4": 6.0}})
    teacher = run_of({"q1": {"d0": 5.0, "d1": 4.95, "d2": -3.0, "d4": 1.0}})
    judgments = Judgments.from_dict({"q1": {"d0": 1}})
    mined, report = mine(run, judgments, MiningLimits(absolute_margin=0.1), teacher=teacher)
    assert lists_of(mined) == {"q1": ["d2", "d4"]}, "d1 is too near to the positive, d3 was not scored"
    assert report.removed["without teacher score"] == 1
    assert mined.columns["teacher"].tolist() == [-3.0, 1.0]
    assert mined.columns["first_rank"].tolist() == [2, 4]
    denoised, _ = mine(run, judgments, MiningLimits(max_score=0.1), teacher=teacher)
    assert lists_of(denoised) == {"q1": ["d2"]}


def test_the_reference_positive():
    run = run_of({"q1": {"p1": 5.0, "d1": 4.0, "d2": 2.5, "p2": 2.0, "d3": 1.0}})
    judgments = Judgments.from_dict({"q1": {"p1": 1, "p2": 2}})
    assert lists_of(mine(run, judgments, MiningLimits(absolute_margin=0.5))[0]) == {"q1": ["d3"]}
    assert lists_of(mine(run, judgments, MiningLimits(absolute_margin=0.5), reference="max")[0]) == {
        "q1": ["d1", "d2", "d3"]
    }
    assert lists_of(mine(run, judgments, positive_grade=2)[0]) == {"q1": ["p1", "d1", "d2", "d3"]}


def test_identical_ids_and_counts():
    run = run_of({"d1": {"d1": 3.0, "d2": 2.0, "d0": 1.0}, "lost": {"d5": 1.0}, "empty": {}})
    judgments = Judgments.from_dict({"d1": {"d0": 1}, "empty": {"d0": 1}})
    mined, report = mine(run, judgments, MiningLimits(drop_identical_ids=True), Selection(per_query=2))
    assert lists_of(mined) == {"d1": ["d2"]}
    assert (report.queries, report.queries_without_positives, report.queries_short, report.queries_empty) == (
        3,
        1,
        1,
        1,
    )
    assert report.removed == {
        "query without a positive": 1,
        "positive": 1,
        "identical id": 1,
        "ranks 1:200": 0,
        "more than asked for": 0,
    }
    assert any("identical id: 1" in line for line in report.lines())


def test_aligned_scores_are_those_of_the_pair():
    run = run_of({"q1": {"d1": 1.0, "d2": 2.0}, "q2": {"d1": 3.0}})
    other = run_of({"q2": {"d2": 7.0, "d1": 8.0}, "q1": {"d2": 9.0}})
    found = dict(
        zip(
            [(run.qids[row], doc) for row, doc in zip(run.query_rows, run.documents.to_pylist(), strict=True)],
            aligned_scores(run, other).tolist(),
            strict=True,
        )
    )
    assert found[("q1", "d2")] == 9.0
    assert found[("q2", "d1")] == 8.0
    assert np.isnan(found[("q1", "d1")])
    assert np.isnan(aligned_scores(run, run_of({}))).all()


def test_settings_that_cannot_be():
    run, judgments = run_of({"q1": {"d1": 1.0}}), Judgments.from_dict({"q1": {"d0": 1}})
    for wrong in (
        {"ranks": (0, 5)},
        {"ranks": (9, 5)},
        {"percent_of_positive": 95},
        {"relative_margin": 0.1, "percent_of_positive": 0.9},
    ):
        with pytest.raises(ConfigError, match=next(iter(wrong)).split("_")[0]):
            mine(run, judgments, MiningLimits(**wrong))
    for choice in ({"choice": "best"}, {"per_query": 0}):
        with pytest.raises(ConfigError, match=next(iter(choice))):
            Selection(**choice)
    several = run.replace(columns={"list_id": np.zeros(1, np.int32)})
    with pytest.raises(DataError, match="list_id"):
        mine(several, judgments)
