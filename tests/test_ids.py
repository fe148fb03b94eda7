"""Ids: many strings in few bytes, with a way back from string to row."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtk import ids as ids_module
from rtk.errors import DataError
from rtk.ids import Ids

names = st.lists(st.text(max_size=12), max_size=30)
unique_names = st.lists(st.text(max_size=12), max_size=30, unique=True)


@given(names)
def test_a_sequence_like_the_list(values):
    ids = Ids(values)
    assert list(ids) == values
    assert len(ids) == len(values)


@given(names, st.slices(30))
def test_slices_are_those_of_a_list(values, cut):
    assert list(Ids(values)[cut]) == values[cut]


@given(unique_names, names)
def test_rows_find_every_id_and_no_other(values, others):
    ids = Ids(values)
    place = {value: row for row, value in enumerate(values)}
    wanted = values + others
    assert ids.rows(wanted).tolist() == [place.get(value, -1) for value in wanted]


@given(unique_names, st.integers(0, 30), st.integers(0, 30))
def test_rows_of_a_slice_with_an_offset(values, start, stop):
    part = Ids(values)[start:stop]
    assert part.rows(values).tolist() == [row - start if start <= row < stop else -1 for row in range(len(values))]
    assert Ids(values).rows(part).tolist() == list(range(len(values)))[start:stop]


@given(unique_names, names)
def test_rows_survive_hash_collisions(values, others):
    """With every string in one of two hash buckets the answers are the same."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            ids_module,
            "hash_strings",
            lambda array: np.asarray([len(value) % 2 for value in array.to_pylist()], dtype=np.uint64),
        )
        ids = Ids(values)
        place = {value: row for row, value in enumerate(values)}
        assert ids.rows(values + others).tolist() == [place.get(value, -1) for value in values + others]
        assert ids.first_duplicate() is None


@given(names, st.booleans())
def test_a_duplicate_is_found_exactly_when_there_is_one(values, collide):
    with pytest.MonkeyPatch.context() as patch:
        if collide:
            patch.setattr(ids_module, "hash_strings", lambda array: np.zeros(len(array), dtype=np.uint64))
        found = Ids(values).first_duplicate()
    if found is None:
        assert len(set(values)) == len(values)
    else:
        earlier, later = found
        assert earlier < later
        assert values[earlier] == values[later]


def test_duplicates_are_refused_with_their_places():
    Ids(["a", "b"]).refuse_duplicates("document")
    with pytest.raises(DataError, match=r"corpus\.jsonl:4: duplicate document id 'b', first seen at line 2"):
        Ids(["a", "b", "c", "b"]).refuse_duplicates("document", path="corpus.jsonl", first_line=1)
    with pytest.raises(DataError, match=r"first seen at entry 1, again at entry 2"):
        Ids(["a", "a"]).refuse_duplicates("query")


def test_near_ids_are_different_ids():
    ids = Ids(["007", "7", "07", "7 ", "é", "e\u0301", "", "größe #1", "日本"])
    assert ids.first_duplicate() is None
    assert ids.rows(list(ids)).tolist() == list(range(len(ids)))


def test_blocks_hash_like_one(monkeypatch):
    array = Ids([str(number) * (number % 7) for number in range(100)]).array
    whole = ids_module.hash_strings(array)
    monkeypatch.setattr(ids_module, "_BLOCK", 7)
    assert (ids_module.hash_strings(array) == whole).all()
    assert (ids_module.hash_strings(array.slice(13, 50)) == whole[13:63]).all()


@given(names)
def test_saved_and_mapped_again(tmp_path_factory, values):
    path = tmp_path_factory.mktemp("ids") / "ids.arrow"
    Ids(values).save(path)
    again = Ids.load(path)
    assert list(again) == values
    assert again == Ids(values)


def test_loading_maps_instead_of_copying(tmp_path):
    Ids(str(number) for number in range(200_000)).save(tmp_path / "ids.arrow")
    before = pa.total_allocated_bytes()
    ids = Ids.load(tmp_path / "ids.arrow")
    assert pa.total_allocated_bytes() - before < 10_000
    assert ids[199_999] == "199999"


def test_padding_rows_are_not_the_last_id():
    with pytest.raises(ValueError, match="-1"):
        Ids(["a", "b"]).take(np.asarray([0, -1]))
    assert Ids(["a", "b"]).take(np.asarray([1, 1, 0])) == ["b", "b", "a"]


@pytest.mark.parametrize("values", [[1, 2], ["a", None], pa.array([1, 2]), pa.array(["a", None])])
def test_only_strings_are_ids(values):
    with pytest.raises((TypeError, pa.ArrowTypeError)):
        Ids(values)
