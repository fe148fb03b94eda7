"""Parts of a split: `train[:90%]`."""

from __future__ import annotations

import pytest

from rtk.errors import DataError
from rtk.eval import Judgments, open_collection
from rtk.eval.split_part import SplitPart, parse_split


def judged(count: int) -> Judgments:
    return Judgments.from_dict({f"q{number}": {"d": 1} for number in range(count)})


@pytest.mark.parametrize(
    ("written", "parsed"),
    [
        ("train", ("train", None)),
        ("train[:90%]", ("train", SplitPart(0, 90))),
        ("train[90%:]", ("train", SplitPart(90, 100))),
        ("dev/small[5%:6%]", ("dev/small", SplitPart(5, 6))),
    ],
)
def test_how_parts_are_written(written, parsed):
    assert parse_split(written) == parsed


@pytest.mark.parametrize(
    "written", ["train[90%]", "train[:0.9]", "train[:90]", "train[50%:50%]", "train[:101%]", "[:5%]"]
)
def test_other_writings_are_refused(written):
    with pytest.raises(DataError, match="split"):
        parse_split(written)


@pytest.mark.parametrize("count", [1, 7, 100, 809])
def test_parts_share_nothing_and_leave_nothing_out(count):
    whole = judged(count)
    parts = [SplitPart(first, last).select(whole) for first, last in [(0, 33), (33, 34), (34, 90), (90, 100)]]
    assert sorted(qid for part in parts for qid in part) == sorted(whole)
    assert all(abs(len(part) - count * share) <= 1 for part, share in zip(parts, [0.33, 0.01, 0.56, 0.1], strict=True))


def test_a_part_keeps_the_order_and_is_no_run_of_neighbours():
    chosen = list(SplitPart(0, 20).select(judged(100)))
    rows = [int(qid[1:]) for qid in chosen]
    assert rows == sorted(rows)
    assert rows[-1] > 60
    assert chosen == list(SplitPart(0, 20).select(judged(100)))
    # a hash, so the same everywhere: this is the first of 100 by sha256 of its id
    assert list(SplitPart(0, 1).select(judged(100))) == ["q60"]


def test_a_collection_gives_parts_of_its_splits(beir_folder):
    folder = beir_folder(qrels={"train": [("q0", "7", 1), ("q1", "007", 1)], "test": [("q2", "7", 1)]})
    collection = open_collection(folder)
    first, second = collection.judgments("train[:50%]"), collection.judgments("train[50%:]")
    assert {*first, *second} == {"q0", "q1"}
    assert len(first) == len(second) == 1
    assert list(collection.queries("train[:50%]").ids) == list(first)
    with pytest.raises(DataError, match=r"no split 'trian'.*did you mean 'train'"):
        collection.judgments("trian[:50%]")
    with pytest.raises(DataError, match=r"test\[:50%\]: none of the 1 queries"):
        collection.judgments("test[:50%]")
