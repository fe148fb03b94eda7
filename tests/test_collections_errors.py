"""Bad input: each fault is refused with its file and line, what was expected and what to do."""

from __future__ import annotations

import gzip
import json

import pytest

from rtk.errors import DataError
from rtk.eval import open_collection

GOOD = '{"_id": "1", "title": "t", "text": "x"}'


def refused(action, *parts):
    """The error of `action`, whose message holds all `parts`."""
    with pytest.raises(DataError) as caught:
        action()
    for part in parts:
        assert part in str(caught.value), str(caught.value)
    assert caught.value.exit_code == 4
    return caught.value


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ('{"_id": "2", "text": ', ("not valid JSON", "expected one JSON object")),
        ('{"_id": "2", "text": "x", "n": 1' + "0" * 5000 + "}", ("not valid JSON",)),
        ("[" * 100_000, ("not valid JSON",)),
        ('["2", "text"]', ("expected a JSON object", "a list")),
        ('"2"', ("expected a JSON object", "a string")),
        ('{"title": "t", "text": "x"}', ("no field '_id'",)),
        ('{"_id": "2", "title": "t"}', ("no field 'text'",)),
        ('{"_id": "2", "text": null}', ("null in field 'text'",)),
        ('{"_id": "2", "text": ["x"]}', ("field 'text' is a list", "expected a string")),
        ('{"_id": "2", "title": 5, "text": "x"}', ("field 'title' is a number",)),
        ('{"_id": "", "text": "x"}', ("the _id is empty",)),
        ('{"_id": 7, "text": "x"}', ("field '_id' is a number (7)", 'write "_id": "7"')),
        ('{"_id": 7.5, "text": "x"}', ("field '_id' is a number (7.5)", "expected a string")),
        ('{"_id": true, "text": "x"}', ("field '_id' is true or false",)),
        ('{"_id": "2", "text": "\\ud83d half"}', ("lone surrogate \\ud83d",)),
        ('{"_id": "1", "text": "x"}', ("duplicate document id '1'", "first seen at line 1")),
        ("", ("empty line",)),
    ],
)
def test_bad_line_of_a_corpus(beir_folder, line, parts, compress):
    folder = beir_folder(corpus=[GOOD, line, '{"_id": "3", "text": "x"}'], compress=compress)
    error = refused(lambda: open_collection(folder).documents, *parts)
    assert error.line == 2
    assert str(error).startswith(f"{(folder / 'corpus.jsonl').resolve()}{'.gz' if compress else ''}:2: ")


def test_a_duplicate_far_away_has_its_line(beir_folder):
    corpus = [{"_id": str(number), "text": "x"} for number in range(5000)]
    corpus.append({"_id": "17", "text": "x"})
    error = refused(lambda: open_collection(beir_folder(corpus=corpus)).documents, "'17'", "first seen at line 18")
    assert error.line == 5001


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ('{"_id": "q1"}', ("no field 'text'",)),
        ('{"_id": 12, "text": "x"}', ('write "_id": "12"',)),
        ('{"_id": "q0", "text": "x"}', ("duplicate query id 'q0'", "line 1")),
        ("{", ("not valid JSON",)),
    ],
)
def test_bad_line_of_queries(beir_folder, line, parts):
    folder = beir_folder(queries=['{"_id": "q0", "text": "x"}', line])
    error = refused(lambda: open_collection(folder).queries(), "queries.jsonl:2: ", *parts)
    assert error.line == 2


@pytest.mark.parametrize(
    ("row", "parts"),
    [
        (("q1", "7"), ("2 tab-separated columns, expected 3",)),
        (("q1", "0", "7", "1"), ("4 tab-separated columns, expected 3",)),
        (("q1 7 1",), ("1 tab-separated columns",)),
        (("q1", "7", "1.0"), ("grade '1.0' is no integer",)),
        (("q1", "7", ""), ("grade '' is no integer",)),
        (("q1", "7", "1_0"), ("grade '1_0' is no integer",)),
        (("q1", "7", "99999999999"), ("does not fit 32 bits",)),
        (("", "7", "1"), ("an id is empty",)),
        (("q0", "007", "1"), ("grade 2 and grade 1", "first at line 2")),
    ],
)
def test_bad_line_of_qrels(beir_folder, row, parts):
    folder = beir_folder(qrels={"test": [("q0", "007", 2), row, ("q2", "d4", 1)]})
    error = refused(lambda: open_collection(folder).judgments("test"), "test.tsv:3: ", *parts)
    assert error.line == 3


@pytest.mark.parametrize("file", ["corpus.jsonl", "queries.jsonl", "qrels/test.tsv"])
@pytest.mark.parametrize("compress", [False, True])
def test_bytes_that_are_not_utf8(beir_folder, file, compress):
    folder = beir_folder(compress=compress)
    path = folder / (file + (".gz" if compress else ""))
    data = gzip.decompress(path.read_bytes()) if compress else path.read_bytes()
    lines = data.split(b"\n")
    lines[1] = lines[1][:3] + b"\xe9" + lines[1][3:]
    path.write_bytes(gzip.compress(b"\n".join(lines)) if compress else b"\n".join(lines))
    error = refused(lambda: use(folder), ":2: byte 4 of the line (0xe9) is not UTF-8", "iconv")
    assert error.line == 2


@pytest.mark.parametrize("file", ["corpus.jsonl.gz", "queries.jsonl.gz", "qrels/test.tsv.gz"])
@pytest.mark.parametrize("kept", [0.3, 0.9])
def test_gzip_cut_short(beir_folder, file, kept):
    folder = beir_folder(compress=True)
    path = folder / file
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    refused(lambda: use(folder), str(path.name), "cut short")


def test_gzip_cut_short_names_the_last_good_line(beir_folder):
    corpus = [{"_id": str(number), "text": f"{number * 7919 % 10007} words"} for number in range(20_000)]
    folder = beir_folder(corpus=corpus, compress=True)
    data = (folder / "corpus.jsonl.gz").read_bytes()
    (folder / "corpus.jsonl.gz").write_bytes(data[: len(data) // 2])
    error = refused(lambda: open_collection(folder).documents, "cut short after this line")
    assert 5_000 < error.line < 15_000


def test_what_is_no_gzip_at_all(beir_folder):
    folder = beir_folder(compress=True)
    (folder / "corpus.jsonl.gz").write_bytes((GOOD + "\n").encode())
    refused(lambda: open_collection(folder).documents, "corpus.jsonl.gz", "damaged gzip data")


def test_gzip_with_a_flipped_byte(beir_folder):
    folder = beir_folder(compress=True)
    data = bytearray((folder / "corpus.jsonl.gz").read_bytes())
    data[-6] ^= 0xFF  # in the checksum
    (folder / "corpus.jsonl.gz").write_bytes(bytes(data))
    refused(lambda: open_collection(folder).documents, "damaged gzip data")


@pytest.mark.parametrize("content", [b"", b"\n\n"])
@pytest.mark.parametrize("file", ["corpus.jsonl", "queries.jsonl", "qrels/test.tsv"])
def test_empty_file(beir_folder, file, content):
    folder = beir_folder()
    (folder / file).write_bytes(content)
    refused(lambda: use(folder), f"{file}: the file is empty")


def test_qrels_with_a_header_alone(beir_folder):
    folder = beir_folder(qrels={"test": []})
    refused(lambda: open_collection(folder).judgments("test"), "test.tsv", "no judgments after the header")


def test_qrels_without_a_header_lose_nothing(beir_folder):
    folder = beir_folder()
    (folder / "qrels" / "test.tsv").write_text("q0\t007\t1\nq2\td4\t1\n")
    assert open_collection(folder).judgments("test").to_dict() == {"q0": {"007": 1}, "q2": {"d4": 1}}


@pytest.mark.parametrize(
    ("file", "action"),
    [
        ("corpus.jsonl", lambda folder: open_collection(folder)),
        ("queries.jsonl", lambda folder: open_collection(folder).queries()),
        ("queries.jsonl", lambda folder: open_collection(folder).queries("test")),
    ],
)
def test_missing_file(beir_folder, file, action):
    folder = beir_folder()
    (folder / file).unlink()
    refused(lambda: action(folder), f"no {file} or {file}.gz", str(folder), "qrels")


def test_a_corpus_alone_can_be_opened(beir_folder):
    folder = beir_folder()
    (folder / "queries.jsonl").unlink()
    assert len(open_collection(folder).documents) == 4


def test_missing_qrels_folder(beir_folder):
    folder = beir_folder()
    (folder / "qrels" / "test.tsv").unlink()
    (folder / "qrels").rmdir()
    refused(lambda: open_collection(folder).judgments("test"), "no qrels/test.tsv", str(folder))


def test_missing_split_names_those_there_are(beir_folder):
    folder = beir_folder(qrels={"train": [("q0", "7", 1)], "dev": [("q1", "7", 1)]})
    for action in (open_collection(folder).judgments, open_collection(folder).queries):
        refused(lambda: action("trian"), "no split 'trian' in tiny", "dev, train", "did you mean 'train'")  # noqa: B023


def test_both_plain_and_gzip(beir_folder):
    folder = beir_folder()
    (folder / "corpus.jsonl.gz").write_bytes(gzip.compress(b"{}"))
    refused(lambda: open_collection(folder), "corpus.jsonl and corpus.jsonl.gz are both there")


@pytest.mark.parametrize(
    ("file", "text", "parts"),
    [
        ("excluded.tsv", "q0\t7\nq0\n", ("excluded.tsv:2", "1 tab-separated columns, expected 2")),
        ("excluded.jsonl", '{"_id": "q0", "excluded": "7"}\n', ("excluded.jsonl:1", "list of document ids")),
        ("excluded.jsonl", '{"_id": "q0", "excluded": [7]}\n', ("excluded.jsonl:1", "list of document ids")),
    ],
)
def test_bad_lists_of_excluded_documents(beir_folder, file, text, parts):
    folder = beir_folder()
    (folder / file).write_text(text)
    refused(lambda: open_collection(folder).conventions, *parts)


def test_what_is_odd_but_right_is_kept(beir_folder):
    """A byte order mark, Windows line ends, no line end at the end, blank lines there, null titles, further fields."""
    folder = beir_folder()
    lines = [
        '{"_id": "007", "title": null, "text": "", "metadata": {"url": 1}}',
        '{"_id": " a\\tb ", "text": "x\\u0000"}',
    ]
    (folder / "corpus.jsonl").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    (folder / "queries.jsonl").write_text('{"_id": "q", "text": ""}\n\n\n')
    collection = open_collection(folder)
    assert [(document.id, document.text) for document in collection.documents] == [("007", ""), (" a\tb ", "x\x00")]
    assert list(collection.queries()) == [("q", "")]
    assert json.loads(lines[1])["_id"] == collection.documents.ids[1]


def use(folder):
    collection = open_collection(folder)
    collection.documents  # noqa: B018 - reads it
    collection.queries("test")
