"""Judgment files, in both forms."""

from __future__ import annotations

import gzip
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtk.errors import DataError
from rtk.eval.judgments import Judgments
from rtk.eval.qrels import read_qrels, write_qrels

WORDS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Z", "Cc"]), min_size=1, max_size=8)
GRADES = st.dictionaries(
    WORDS, st.dictionaries(WORDS, st.integers(-3, 4), min_size=1, max_size=5), min_size=1, max_size=4
)


@given(GRADES, st.sampled_from(["a.tsv", "a.trec", "a.txt.gz", "a.tsv.gz"]))
@settings(max_examples=60, deadline=None)
def test_round_trip(grades: dict[str, dict[str, int]], name: str) -> None:
    judgments = Judgments.from_dict(grades)
    with tempfile.TemporaryDirectory() as folder:
        write_qrels(judgments, Path(folder) / name)
        assert read_qrels(Path(folder) / name) == judgments


def test_forms_are_told_apart_by_their_columns(tmp_path: Path) -> None:
    (tmp_path / "beir").write_bytes(b"query-id\tcorpus-id\tscore\n007\td 1\t1\n")
    (tmp_path / "bare").write_bytes(b"007\td 1\t1\n")
    (tmp_path / "trec").write_bytes(b"007 0 d1 -1\r\n\n007\t0\td2  2\n")
    assert read_qrels(tmp_path / "beir").to_dict() == read_qrels(tmp_path / "bare").to_dict() == {"007": {"d 1": 1}}
    assert read_qrels(tmp_path / "trec").to_dict() == {"007": {"d1": -1, "d2": 2}}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"1 0 a 1\n1 0 b\n", [":2:", "four columns", "found 3"]),
        (b"1 0 a 1.0\n", [":1:", "'1.0'", "integer"]),
        (b"1 0 a 1\n1 0 a 2\n", ["'a'", "'1'", "grade 1", "grade 2"]),
        (b"1 0 \xff 1\n", [":1:", "UTF-8"]),
        (b"\n", ["no judgments"]),
    ],
)
def test_bad_files_say_where_and_what(tmp_path: Path, content: bytes, words: list[str]) -> None:
    (tmp_path / "q.txt").write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_qrels(tmp_path / "q.txt")
    assert all(word in str(caught.value) for word in ["q.txt", *words]), str(caught.value)


def test_gzip_cut_short_is_refused(tmp_path: Path) -> None:
    whole = gzip.compress(b"".join(b"%d 0 d%d 1\n" % (i, i * 7919) for i in range(3000)))
    (tmp_path / "q.txt.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="cut short"):
        read_qrels(tmp_path / "q.txt.gz")


def test_ids_with_blanks_need_the_tab_separated_form(tmp_path: Path) -> None:
    judgments = Judgments.from_dict({"q": {"a b": 1}})
    with pytest.raises(DataError, match="'a b'"):
        write_qrels(judgments, tmp_path / "q.trec")
    write_qrels(judgments, tmp_path / "q.tsv")
    assert read_qrels(tmp_path / "q.tsv") == judgments
