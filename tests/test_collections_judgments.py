"""Judgments: a value in arrays that behaves like the dictionary it came from."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtk.errors import DataError
from rtk.eval import Judgments

names = st.text(max_size=6)
grades = st.dictionaries(names, st.dictionaries(names, st.integers(-3, 4), min_size=1, max_size=6), max_size=6)


@given(grades)
def test_from_dict_and_back(values):
    judgments = Judgments.from_dict(values)
    assert judgments.to_dict() == values
    assert list(judgments.to_dict()) == list(values)
    assert len(judgments) == len(values)
    assert list(judgments.qids) == list(judgments) == list(values)
    for qid, documents in values.items():
        assert judgments[qid] == documents
        assert list(judgments[qid]) == list(documents)
        assert judgments.relevant(qid, 2) == [name for name, grade in documents.items() if grade >= 2]
    assert judgments == Judgments.from_dict(values)


@given(grades, st.randoms())
def test_rows_may_come_in_any_order(values, random):
    rows = [(qid, name, grade) for qid, documents in values.items() for name, grade in documents.items()]
    random.shuffle(rows)
    columns = list(zip(*rows, strict=True)) or [(), (), ()]
    judgments = Judgments.from_columns(columns[0], columns[1], np.asarray(columns[2], dtype=np.int64))
    assert judgments.to_dict() == values
    assert list(judgments.qids) == list(dict.fromkeys(columns[0]))


@given(grades, st.lists(names, unique=True))
def test_select_keeps_the_asked_order(values, qids):
    chosen = Judgments.from_dict(values).select(qids)
    assert chosen.to_dict() == {qid: values[qid] for qid in qids if qid in values}
    assert list(chosen.qids) == [qid for qid in qids if qid in values]


@given(grades)
def test_filter_drops_queries_left_without_judgments(values):
    judgments = Judgments.from_dict(values)
    kept = judgments.filter(judgments.grades > 0)
    positive = {qid: {name: g for name, g in documents.items() if g > 0} for qid, documents in values.items()}
    assert kept.to_dict() == {qid: documents for qid, documents in positive.items() if documents}


def test_unknown_queries():
    judgments = Judgments.from_dict({"q": {"007": 1, "7": 0}})
    assert "q" in judgments
    assert "7" not in judgments
    assert judgments.relevant("nobody") == []
    assert judgments.relevant("q") == ["007"]
    with pytest.raises(KeyError, match="nobody"):
        judgments["nobody"]


def test_the_same_row_twice_counts_once_and_is_said(caplog):
    judgments = Judgments.from_columns(["q", "q", "p"], ["d", "d", "d"], np.asarray([1, 1, 2]))
    assert judgments.to_dict() == {"q": {"d": 1}, "p": {"d": 2}}
    assert "1 judgments are there twice" in caplog.text


def test_two_grades_for_one_pair_are_refused():
    with pytest.raises(DataError, match=r"document 'd' has grade 1 and grade 2 for query 'q'"):
        Judgments.from_columns(["q", "p", "q"], ["d", "d", "d"], np.asarray([1, 5, 2]))
    with pytest.raises(DataError, match="32 bits"):
        Judgments.from_dict({"q": {"d": 1 << 40}})


def test_equality_sees_grades_and_order():
    base = Judgments.from_dict({"a": {"x": 1}, "b": {"y": 0}})
    assert base != Judgments.from_dict({"b": {"y": 0}, "a": {"x": 1}})
    assert base != Judgments.from_dict({"a": {"x": 2}, "b": {"y": 0}})
    assert base != {"a": {"x": 1}}
