"""The run: its order, its refusals, what it keeps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtk.errors import DataError
from rtk.eval import run as run_module
from rtk.eval.run import Run

IDS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=6)
SCORES = st.sampled_from([0.0, -0.0, 1.0, 2.5, 2.5000001, 2.50000001, -3.0, float("inf"), 1e-40])
LISTS = st.dictionaries(IDS, st.dictionaries(IDS, SCORES, max_size=8), max_size=5)


def build(lists: dict[str, dict[str, float]], **settings: object) -> Run:
    return Run.from_lists([(qid, list(docs), list(docs.values())) for qid, docs in lists.items()], **settings)


@given(LISTS)
@settings(deadline=None)
def test_lists_are_in_trec_eval_order(lists: dict[str, dict[str, float]]) -> None:
    run = build(lists)
    assert [entry.qid for entry in run] == list(lists)
    for entry in run:
        docs = lists[entry.qid]
        expected = sorted(docs, key=lambda doc: (np.float32(docs[doc]), doc.encode()), reverse=True)
        assert entry.documents == expected
        assert entry.scores.tolist() == [np.float32(docs[doc]) for doc in expected]


@given(LISTS, st.integers(1, 5))
@settings(max_examples=50, deadline=None)
def test_order_does_not_depend_on_block_size(lists: dict[str, dict[str, float]], block: int) -> None:
    whole = build(lists)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "_BLOCK", block)
        patch.setattr(Run.blocks, "__defaults__", (block,))
        assert build(lists) == whole
        assert build(lists).top(2) == whole.top(2)


def test_double_precision_ties_fall_to_the_document_id() -> None:
    run = build({"q": {"a": 0.123456782, "b": 0.123456781, "c": 0.5}})
    assert run["q"].documents == ["c", "b", "a"]


def test_rank_order_keeps_what_is_given() -> None:
    run = build({"q": {"a": 1.0, "b": 2.0, "c": 1.0}}, order="rank")
    assert run["q"].documents == ["a", "b", "c"]


def test_arguments_are_not_changed() -> None:
    scores = np.asarray([1.0, 2.0], dtype=np.float32)
    run = build({"q": {"a": 1.0, "b": 2.0}})
    again = Run.from_codes(run.qids, run.offsets, run.vocabulary, run.codes[::-1].copy(), scores)
    assert scores.tolist() == [1.0, 2.0]
    assert again == run


def test_further_columns_move_with_their_entries() -> None:
    run = build({"q": {"a": 1.0, "b": 2.0}})
    first = Run.from_codes(run.qids, run.offsets, run.vocabulary, np.asarray([0, 1]), np.asarray([1.0, 2.0]),
                           columns={"raw": np.asarray([10, 20])})  # fmt: skip
    assert first["q"].documents == ["b", "a"]
    assert first.columns["raw"].tolist() == [20, 10]
    assert first.replace(scores=-first.scores).columns["raw"].tolist() == [10, 20]


@pytest.mark.parametrize(
    ("lists", "words"),
    [
        ([("q", ["a", "b"], [1.0])], ["'q'", "2 documents", "1 scores"]),
        ([("q", ["a"], [1.0]), ("q", ["b"], [1.0])], ["duplicate query", "'q'"]),
        ([("p", ["x"], [1.0]), ("q", ["a", "b", "a"], [3.0, 2.0, 1.0])], ["'a'", "twice", "'q'"]),
        ([("q", ["a", "b"], [1.0, float("nan")])], ["'b'", "'q'", "NaN"]),
    ],
)
def test_bad_lists_are_refused(lists: list, words: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        Run.from_lists(lists)
    assert all(word in str(caught.value) for word in words)


def test_columns_of_another_length_are_refused() -> None:
    run = build({"q": {"a": 1.0}})
    with pytest.raises(DataError, match="column 'raw': 2"):
        run.replace(columns={"raw": np.zeros(2)})


def test_several_lists_of_a_query_may_share_documents() -> None:
    run = build({"q": {"a": 1.0, "b": 2.0}})
    both = Run.from_codes(run.qids, np.asarray([0, 4]), run.vocabulary, np.asarray([0, 1, 1, 0]),
                          np.asarray([1.0, 2.0, 1.0, 2.0]), columns={"list_id": np.asarray([0, 0, 1, 1])})  # fmt: skip
    assert both.columns["list_id"].tolist() == [0, 0, 1, 1]
    assert both.scores.tolist() == [2.0, 1.0, 2.0, 1.0]
    with pytest.raises(DataError, match="occurs twice"):
        Run.from_codes(run.qids, np.asarray([0, 2]), run.vocabulary, np.asarray([0, 0]), np.zeros(2),
                       columns={"list_id": np.zeros(2, dtype=int)})  # fmt: skip


@given(LISTS, st.integers(0, 4), st.lists(IDS, max_size=3))
@settings(max_examples=50, deadline=None)
def test_top_and_select_cut_lists(lists: dict[str, dict[str, float]], k: int, others: list[str]) -> None:
    run = build(lists)
    assert [entry.documents for entry in run.top(k)] == [entry.documents[:k] for entry in run]
    wanted = [*list(lists)[::-1], *(other for other in others if other not in lists)]
    assert [entry.documents for entry in run.select(wanted)] == [run[qid].documents for qid in list(lists)[::-1]]


def test_eight_bytes_an_entry() -> None:
    run = Run.from_lists((f"q{i}", [f"d{i + j}" for j in range(100)], range(100)) for i in range(200))
    assert run.codes.nbytes + run.scores.nbytes == 8 * 20_000
