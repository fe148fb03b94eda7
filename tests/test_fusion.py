"""Fusion: its formulas, and what it must not depend on."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtk.errors import ConfigError, DataError
from rtk.eval import fusion
from rtk.eval.fusion import METHODS, fuse
from rtk.eval.run import Run

DOCS = st.dictionaries(st.sampled_from("abcdefgh"), st.floats(-5, 5, width=32), min_size=1, max_size=6)
LISTS = st.dictionaries(st.sampled_from(["q1", "q2", "q3"]), DOCS, max_size=3).map(
    lambda more: {"q0": {"a": 1.0}} | more
)
LENIENT = [(method, missing) for method in METHODS for missing in ("zero", "min", "ignore", "drop")]


def run_of(lists: dict[str, dict[str, float]], tag: str = "x") -> Run:
    return Run.from_lists([(qid, list(docs), list(docs.values())) for qid, docs in lists.items()], tag=tag)


def scores_of(run: Run) -> dict[str, dict[str, float]]:
    return {entry.qid: dict(zip(entry.documents, entry.scores.tolist(), strict=True)) for entry in run}


A = run_of({"q": {"a": 3.0, "b": 2.0, "c": 1.0}}, "A")
B = run_of({"q": {"b": 30.0, "d": 10.0}}, "B")


@given(st.lists(LISTS, min_size=2, max_size=4), st.sampled_from(LENIENT))
@settings(max_examples=60, deadline=None)
def test_the_order_of_runs_makes_no_difference(lists: list[dict], how: tuple[str, str]) -> None:
    runs = [run_of(one, str(number)) for number, one in enumerate(lists)]
    weights = [0.1, 0.7, 0.3, 1.1][: len(runs)]
    fused = [
        fuse([runs[at] for at in order], method=how[0], missing=how[1], weights=[weights[at] for at in order])
        for order in permutations(range(len(runs)))
    ]
    same = {entry.qid: (entry.documents, entry.scores.tolist()) for entry in fused[0]}
    assert all({entry.qid: (entry.documents, entry.scores.tolist()) for entry in other} == same for other in fused)


@given(st.lists(LISTS, min_size=2, max_size=3))
@settings(max_examples=40, deadline=None)
def test_rrf_looks_at_ranks_only(lists: list[dict]) -> None:
    runs = [run_of(one) for one in lists]
    squashed = [
        Run.from_lists((entry.qid, entry.documents, -np.arange(len(entry.documents)) * 7.0) for entry in run)
        for run in runs
    ]
    assert scores_of(fuse(runs)) == scores_of(fuse(squashed))


@given(st.lists(LISTS, min_size=2, max_size=3), st.floats(0.5, 4), st.floats(-3, 3), st.sampled_from(["min-max", "z"]))
@settings(max_examples=40, deadline=None)
def test_normalised_fusion_ignores_scale_and_shift(lists: list[dict], scale: float, shift: float, how: str) -> None:
    exact = [{qid: {doc: round(score) for doc, score in docs.items()} for qid, docs in one.items()} for one in lists]
    moved = [
        {qid: {doc: score * scale + shift for doc, score in docs.items()} for qid, docs in one.items()} for one in exact
    ]
    plain = fuse([run_of(one) for one in exact], method="interpolate", normalise=how)
    other = scores_of(fuse([run_of(one) for one in moved], method="interpolate", normalise=how))
    for qid, docs in scores_of(plain).items():
        assert other[qid] == pytest.approx(docs, abs=2e-5)


@given(st.lists(LISTS, min_size=2, max_size=3), st.sampled_from(LENIENT))
@settings(max_examples=30, deadline=None)
def test_block_size_does_not_matter(lists: list[dict], how: tuple[str, str]) -> None:
    runs = [run_of(one) for one in lists]
    whole = fuse(runs, method=how[0], missing=how[1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fusion, "_BLOCK", 1)
        assert fuse(runs, method=how[0], missing=how[1]) == whole


def test_rrf_by_hand() -> None:
    fused = scores_of(fuse([A, B], k=60))["q"]
    assert fused == pytest.approx({"b": 1 / 62 + 1 / 61, "a": 1 / 61, "d": 1 / 62, "c": 1 / 63})


@pytest.mark.parametrize(
    ("missing", "expected"),
    [
        ("zero", {"b": 16.0, "d": 5.0, "a": 1.5, "c": 0.5}),
        ("min", {"b": 16.0, "a": 6.5, "d": 5.5, "c": 5.5}),
        ("ignore", {"b": 16.0, "d": 10.0, "a": 3.0, "c": 1.0}),
        ("drop", {"b": 16.0}),
    ],
)
def test_missing_documents_follow_the_rule(missing: str, expected: dict[str, float]) -> None:
    assert scores_of(fuse([A, B], method="mean", missing=missing))["q"] == pytest.approx(expected)


def test_a_mean_of_teachers_refuses_gaps() -> None:
    with pytest.raises(DataError, match=r"'a' of query 'q' is missing from a run.*missing='min'"):
        fuse([A, B], method="mean")


def test_comb_sum_and_comb_mnz_by_hand() -> None:
    assert scores_of(fuse([A, B], method="combsum"))["q"] == pytest.approx({"b": 1.5, "a": 1.0, "d": 0.0, "c": 0.0})
    assert scores_of(fuse([A, B], method="combmnz"))["q"] == pytest.approx({"b": 3.0, "a": 1.0, "d": 0.0, "c": 0.0})


def test_z_is_mean_zero_and_deviation_one() -> None:
    fused = scores_of(fuse([A, A], method="interpolate", normalise="z"))["q"]
    values = np.asarray(list(fused.values()))
    assert values.mean() == pytest.approx(0, abs=1e-6)
    assert values.std() == pytest.approx(1, abs=1e-6)


def test_teacher_ensembles_of_the_golden() -> None:
    """Raw scores and results of teacher_ensemble.json: min-max per query, then the mean."""
    dense = [[0.91754997, 0.34347105, -0.16971104], [0.98509884, -0.31046024, 0.6554736]]
    sparse = [[4.0, 0.5, 1.05], [1.95, 0.6, 0.275]]
    expected = [[29.999983, 7.079924, 2.357142], [29.99998, 2.9104462, 11.183586]]

    def teacher(rows: list[list[float]]) -> Run:
        return Run.from_lists((str(row), ["a", "b", "c"], values) for row, values in enumerate(rows))

    fused = scores_of(fuse([teacher(dense), teacher(sparse)], method="mean", normalise="min-max"))
    for row, values in enumerate(expected):
        assert [30 * fused[str(row)][doc] for doc in "abc"] == pytest.approx(values, rel=1e-5, abs=2e-5)
    constant = teacher([[2.0, 2.0, 2.0]])
    assert set(scores_of(fuse([constant, constant], method="mean", normalise="min-max"))["0"].values()) == {0.0}


def test_queries_of_either_run_are_fused_and_reported(caplog: pytest.LogCaptureFixture) -> None:
    fused = fuse([A, run_of({"q": {"a": 1.0}, "p": {"z": 1.0}}, "C")])
    assert set(fused.qids) == {"p", "q"}
    assert "'A' lacks 1 of the 2 queries" in caplog.text


def test_depth_cuts_the_fused_lists() -> None:
    assert fuse([A, B], depth=2)["q"].documents == fuse([A, B])["q"].documents[:2]


def test_disjoint_runs_are_refused() -> None:
    with pytest.raises(DataError, match="no query in common"):
        fuse([A, run_of({"p": {"a": 1.0}})])


def test_infinite_scores_are_refused_by_name() -> None:
    with pytest.raises(DataError, match="'I' has an infinite score"):
        fuse([A, run_of({"q": {"a": float("-inf")}}, "I")], method="interpolate")


def test_all_problems_come_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        fuse([A], method="rff", normalise="minmax", weights=[1.0, -1.0], k=-1)  # type: ignore[arg-type]
    assert len(caught.value.problems) == 5
    assert "did you mean 'rrf'" in str(caught.value)
    assert "did you mean 'min-max'" in str(caught.value)
