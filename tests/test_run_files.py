"""Runs on disk: TREC and Parquet, there and back, and what is wrong with a bad file."""

from __future__ import annotations

import gzip
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtk.errors import DataError
from rtk.eval import blocks, trec
from rtk.eval.files import read_run, run_name, write_run
from rtk.eval.run import Run

WORDS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Z", "Cc"]), min_size=1, max_size=8)
ANY = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=8)
FLOATS = st.floats(width=32, allow_nan=False)


def runs(ids: st.SearchStrategy[str], *, empty: bool) -> st.SearchStrategy[Run]:
    docs = st.dictionaries(ids, FLOATS, min_size=0 if empty else 1, max_size=6)
    return st.dictionaries(ids, docs, min_size=1, max_size=4).map(
        lambda lists: Run.from_lists((qid, list(docs), list(docs.values())) for qid, docs in lists.items())
    )


def lines(*rows: str) -> bytes:
    return ("\n".join(rows) + "\n").encode()


@given(run=runs(WORDS, empty=False), suffix=st.sampled_from([".trec", ".txt", ".run.gz"]))
@settings(max_examples=80, deadline=None)
def test_trec_round_trip(run: Run, suffix: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a{suffix}"
        write_run(run, path)
        assert read_run(path) == run
        assert read_run(path, order="rank") == run


@given(run=runs(ANY, empty=True), column=st.lists(st.floats(width=32), min_size=24, max_size=24))
@settings(max_examples=80, deadline=None)
def test_parquet_round_trip(run: Run, column: list[float]) -> None:
    entries = len(run.codes)
    run = run.replace(
        columns={"raw": np.asarray(column[:entries], dtype=np.float32), "list_id": np.zeros(entries, dtype=np.int16),
                 "calibrated": np.asarray(column[:entries]) > 0}, tag="a b",
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.parquet"
        write_run(run, path)
        again = read_run(path)
        assert again == run
        assert again.tag == "a b"
        assert again.columns["list_id"].dtype == np.int16


@given(bits=st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_every_float32_survives_text_read_through_float64(bits: int) -> None:
    value = np.asarray([bits], dtype=np.uint32).view(np.float32)
    if np.isnan(value[0]):
        return
    text = trec._score_text(value)[0].as_py()
    assert np.float32(float(text)) == value[0]


def test_parquet_keeps_rank_order_and_ids_of_any_kind(tmp_path: Path) -> None:
    run = Run.from_lists([("007", ["é ü", "0", "a\tb"], [1.0, 5.0, 1.0])], order="rank", tag="t")
    write_run(run, tmp_path / "a.parquet")
    assert read_run(tmp_path / "a.parquet") == run
    assert read_run(tmp_path / "a.parquet").order == "rank"
    assert read_run(tmp_path / "a.parquet", order="score")["007"].documents[0] == "0"


def test_equal_runs_give_equal_bytes(tmp_path: Path) -> None:
    run = Run.from_lists([("1", ["a"], [0.1])])
    write_run(run, tmp_path / "a.trec.gz")
    write_run(run, tmp_path / "b.trec.gz")
    assert (tmp_path / "a.trec.gz").read_bytes() == (tmp_path / "b.trec.gz").read_bytes()
    assert gzip.decompress((tmp_path / "a.trec.gz").read_bytes()) == b"1 Q0 a 1 0.1 rtk\n"


@pytest.mark.parametrize(
    ("field", "name"), [("document", "a b"), ("query", "a\u00a0b"), ("document", ""), ("tag", "x y")]
)
def test_trec_refuses_what_it_cannot_hold(tmp_path: Path, field: str, name: str) -> None:
    run = Run.from_lists(
        [(name if field == "query" else "q", [name if field == "document" else "d"], [1.0])],
        tag=name if field == "tag" else "rtk",
    )
    with pytest.raises(DataError) as caught:
        write_run(run, tmp_path / "a.trec")
    assert (repr(name) in str(caught.value)) or not name
    assert field == "tag" or ".parquet" in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_white_space_blank_lines_and_line_ends_of_any_kind(tmp_path: Path) -> None:
    path = tmp_path / "a.run"
    path.write_bytes(b'1\tQ0\td1\t1\t2.5\tx\r\n\n  1  Q0 d2   2 +1e0 x  \n1 Q0 "d3 3 .5 x')
    run = read_run(path)
    assert run["1"].documents == ["d1", "d2", '"d3']
    assert run["1"].scores.tolist() == [2.5, 1.0, 0.5]
    assert run.tag == "x"


def test_lines_of_a_query_need_not_stand_together(tmp_path: Path) -> None:
    path = tmp_path / "a.trec"
    path.write_bytes(lines("2 Q0 a 1 9 x", "1 Q0 b 1 8 x", "2 Q0 c 2 10 x", "1 Q0 a 2 1 x"))
    run = read_run(path)
    assert [(entry.qid, entry.documents) for entry in run] == [("2", ["c", "a"]), ("1", ["b", "a"])]
    assert read_run(path, order="rank")["2"].documents == ["a", "c"]


def test_blocks_join_at_line_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [f"q{i % 7} Q0 d{i} {i} {i / 3:.5f} x" for i in range(200)]
    path = tmp_path / "a.trec"
    path.write_bytes(lines(*rows))
    whole = read_run(path)
    monkeypatch.setattr(blocks.read_blocks, "__defaults__", (37,))
    assert read_run(path) == whole
    path.write_bytes(lines(*rows, "q1 Q0 d"))
    with pytest.raises(DataError, match=":201: expected six columns"):
        read_run(path)


BAD = {
    "five columns": (lines("1 Q0 a 1 2 x", "", "1 Q0 b 2 1"), [":3:", "six columns", "found 5"], "score"),
    "seven columns": (lines("1 Q0 a b 1 2 x"), [":1:", "found 7"], "score"),
    "nan": (lines("1 Q0 a 1 2 x", "1 Q0 b 2 NaN x"), [":2:", "'b'", "'1'", "'NaN'"], "score"),
    "no number": (lines("1 Q0 a 1 high x"), [":1:", "'high'", "expected a number"], "score"),
    "underscore": (lines("1 Q0 a 1 1_0 x"), [":1:", "'1_0'"], "score"),
    "duplicate": (lines("1 Q0 a 1 2 x", "2 Q0 a 1 2 x", "1 Q0 a 2 1 x"), ["'a'", "'1'", "lines 1 and 3"], "score"),
    "latin-1": (lines("1 Q0 a 1 2 x") + b"1 Q0 \xe9 1 2 x\n", [":2:", "UTF-8", "0xe9"], "score"),
    "empty": (b"", ["empty", "six columns"], "score"),
    "blank": (b"\n  \n", ["empty"], "score"),
    "rank": (lines("1 Q0 a first 2 x"), [":1:", "'first'", "integer"], "rank"),
    "rank with a fraction": (lines("1 Q0 a 1.5 2 x"), [":1:", "'1.5'", "integer"], "rank"),
    "rank twice": (lines("1 Q0 a 1 2 x", "1 Q0 b 1 1 x"), ["rank 1", "twice", "'1'", "by score"], "rank"),
}


@pytest.mark.parametrize("name", list(BAD))
def test_bad_trec_files_say_where_and_what(tmp_path: Path, name: str) -> None:
    content, words, order = BAD[name]
    path = tmp_path / "bad.trec"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_run(path, order=order)
    assert all(word in str(caught.value) for word in [str(path), *words]), str(caught.value)
    assert str(caught.value).count(str(path)) == 1


def test_a_rank_that_is_no_integer_does_not_matter_by_score(tmp_path: Path) -> None:
    path = tmp_path / "a.trec"
    path.write_bytes(lines("1 Q0 a - 2 x"))
    assert read_run(path)["1"].documents == ["a"]


def test_gzip_cut_short_is_refused(tmp_path: Path) -> None:
    whole = gzip.compress(lines(*(f"1 Q0 d{i * 7919} {i} {i} x" for i in range(5000))))
    for cut in (len(whole) // 2, len(whole) - 4):
        (tmp_path / "a.trec.gz").write_bytes(whole[:cut])
        with pytest.raises(DataError, match=r"a\.trec\.gz: .*cut short"):
            read_run(tmp_path / "a.trec.gz")
    (tmp_path / "a.trec.gz").write_bytes(lines("1 Q0 a 1 1 x"))
    with pytest.raises(DataError, match="gzip"):
        read_run(tmp_path / "a.trec.gz")


def test_missing_file_and_unknown_suffix(tmp_path: Path) -> None:
    for name in ("a.trec", "a.parquet"):
        with pytest.raises(DataError, match="no such file"):
            read_run(tmp_path / name)
    with pytest.raises(DataError, match=r"\.parquet"):
        write_run(Run.from_lists([("q", ["d"], [1.0])]), tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"qid": ["1"], "score": [1.0]}, ["docid", "qid, score"]),
        ({"qid": [1], "docid": ["a"], "score": [1.0]}, ["'qid'", "int64", "text"]),
        ({"qid": ["1"], "docid": ["a"], "score": ["x"]}, ["'score'", "numbers"]),
        ({"qid": ["1", None], "docid": ["a", "b"], "score": [1.0, 2.0]}, ["'qid'", "nulls"]),
        ({"qid": ["1", "1"], "docid": ["a", "a"], "score": [1.0, 2.0]}, ["'a'", "twice"]),
        ({"qid": ["1"], "docid": ["a"], "score": [float("nan")]}, ["'a'", "NaN"]),
    ],
)
def test_bad_parquet_files_say_what(tmp_path: Path, columns: dict, words: list[str]) -> None:
    path = tmp_path / "bad.parquet"
    pq.write_table(pa.table(columns), path)
    with pytest.raises(DataError) as caught:
        read_run(path)
    assert all(word in str(caught.value) for word in [str(path), *words]), str(caught.value)


def test_cut_parquet_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_run(Run.from_lists([("q", [f"d{i}" for i in range(500)], range(500))]), path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match="not a readable Parquet file"):
        read_run(path)


def test_parquet_of_others_is_read(tmp_path: Path) -> None:
    table = pa.table({"qid": ["1", "2", "1"], "docid": ["a", "b", "c"], "score": [1, 2, 3], "rank": [2, 1, 1]})
    pq.write_table(table, tmp_path / "theirs.parquet")
    run = read_run(tmp_path / "theirs.parquet")
    assert run["1"].documents == ["c", "a"]
    assert run.tag == "theirs"


def test_a_full_disk_leaves_no_half_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run.from_lists([("q", ["d"], [1.0])])
    for name, module in (("a.trec", "rtk.eval.trec._block_text"), ("a.parquet", "rtk.eval.parquet._block_table")):
        write_run(run, tmp_path / name)
        before = (tmp_path / name).read_bytes()

        def full(*_: object) -> bytes:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(module, full)
            with pytest.raises(OSError, match="No space left"):
                write_run(run, tmp_path / name)
        assert (tmp_path / name).read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.parquet", "a.trec"]


@pytest.mark.parametrize(
    ("file", "name"),
    [("a/dl19.bm25.trec.gz", "dl19.bm25"), ("x.parquet", "x"), ("run.txt", "run"), ("odd.name", "odd.name")],
)
def test_a_run_is_called_by_its_file(file: str, name: str) -> None:
    assert run_name(file) == name
