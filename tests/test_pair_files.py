"""Published pair and triple files as training tables, and teachers' scores looked over."""

from __future__ import annotations

import gzip
import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import chisquare

from rtk.errors import ConfigError, DataError
from rtk.eval.files import write_run
from rtk.eval.run import Run
from rtk.retrieval.sampling.margin_balanced import ScoredPairs, margin_bins
from rtk.retrieval.training import pair_files, pair_lines
from rtk.retrieval.training.blocks import Part, Runs
from rtk.retrieval.training.config import load_config
from rtk.retrieval.training.data import open_table, open_tables
from rtk.retrieval.training.examples import TrainingTable

LINES = [
    (8.5, 1.25, "q1", "d1", "d2"),
    (7.5, 2.0, "q0", "007", "d3"),
    (8.5, -3.5, "q1", "d1", "d4"),
    (8.5, 1.25, "q1", "d1", "d2"),  # again
    (6.25, 2.0, "q0", "d5", "d3"),
    (7.5, 0.5, "q0", "007", "7"),
]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RTK_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def collection(beir_folder: Callable[..., Path]) -> Path:
    return beir_folder(
        corpus=[{"_id": doc, "text": f"text {doc}"} for doc in ("d1", "d2", "d3", "d4", "d5", "007", "7")],
        queries=[{"_id": f"q{n}", "text": f"query {n}"} for n in range(4)],
        qrels={"train": [("q0", "007", 1), ("q1", "d1", 2), ("q2", "d2", 1)], "dev": [("q3", "d1", 1)]},
    )


def write(path: Path, lines: list[tuple[Any, ...]], separator: str = "\t") -> Path:
    data = "".join(separator.join(map(str, line)) + "\n" for line in lines).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def part(collection: Path, path: Path, **rules: Any) -> Part:
    return Part(collection=str(collection), pairs=str(path), **rules)


def contents(table: TrainingTable, column: str | None) -> dict[str, tuple[dict[str, float], dict[str, float]]]:
    """By query: positives and negatives with their scores, in order."""
    found = {}
    for row, qid in enumerate(table.qids(np.arange(len(table)))):
        start, stop = table.offsets[row], table.offsets[row + 1]
        ids = table.documents.ids.take(table.entries[start:stop])
        scores = table.scores[column][start:stop].tolist() if column else [0.0] * len(ids)
        both = list(zip(ids, scores, strict=True))
        middle = int(table.positives[row])
        found[qid] = (dict(both[:middle]), dict(both[middle:]))
    return found


EXPECTED = {
    "q0": ({"007": 7.5, "d5": 6.25}, {"d3": 2.0, "7": 0.5}),
    "q1": ({"d1": 8.5}, {"d2": 1.25, "d4": -3.5}),
}


@pytest.mark.parametrize("separator", ["\t", " ", "  ", " \t"])
@pytest.mark.parametrize("name", ["cat.tsv", "cat.pairs.gz"])
def test_pairs_become_a_table(collection: Path, tmp_path: Path, separator: str, name: str):
    table = open_table(part(collection, write(tmp_path / name, LINES, separator)))
    assert contents(table, "cat") == EXPECTED
    assert [list(side) for side in contents(table, "cat")["q0"]] == [["007", "d5"], ["d3", "7"]]  # order of appearance
    assert table.grades.tolist() == [1, 1, 0, 0, 2, 0, 0]  # a positive that nobody judged counts as grade 1
    report = table.report
    assert (report.queries, report.positives, report.negatives, report.without_positives) == (2, 3, 4, 1)


def test_blanks_at_the_edges_of_lines_are_no_fields(collection: Path, tmp_path: Path):
    path = tmp_path / "cat.txt"
    path.write_bytes(
        b"".join(b"  " + " ".join(map(str, line)).encode() + b" \r\n" for line in LINES) + b" 8.5 1.25 q1 d1 d2 "
    )
    assert contents(open_table(part(collection, path)), "cat") == EXPECTED


def test_triples_become_a_table_without_a_teacher(collection: Path, tmp_path: Path):
    table = open_table(part(collection, write(tmp_path / "triples.tsv", [line[2:] for line in LINES])))
    assert table.scores == {}
    assert {qid: tuple(map(list, sides)) for qid, sides in contents(table, None).items()} == {
        qid: tuple(map(list, sides)) for qid, sides in EXPECTED.items()
    }


def test_blocks_and_chunks_do_not_matter(collection: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    generator = np.random.default_rng(0)
    documents = ["d1", "d2", "d3", "d4", "d5", "7"]
    score = {(q, d): float(np.float32(generator.normal())) for q in ("q0", "q1", "q2") for d in [*documents, "007"]}
    lines = []
    for _ in range(3000):
        q, d = str(generator.choice(["q0", "q1", "q2"])), str(generator.choice(documents))
        lines.append((score[q, "007"], score[q, d], q, "007", d))
    path = write(tmp_path / "cat.txt", lines, " ")
    whole = open_table(part(collection, path))
    monkeypatch.setattr(pair_lines, "_BLOCK", 4096)
    monkeypatch.setattr(pair_files, "_CHUNK", 100)
    monkeypatch.setenv("RTK_CACHE", str(tmp_path / "other"))
    pieces = open_table(part(collection, path))
    assert pieces.report == whole.report
    for name in ("queries", "positives", "offsets", "entries", "grades"):
        np.testing.assert_array_equal(getattr(pieces, name), getattr(whole, name))
    np.testing.assert_array_equal(pieces.scores["cat"], whole.scores["cat"])


def test_what_is_judged_relevant_or_a_positive_elsewhere_is_no_negative(collection: Path, tmp_path: Path):
    lines = [(8, 1, "q0", "d1", "007"), (8, 2, "q0", "d1", "d2"), (2, 3, "q0", "d2", "d3")]
    table = open_table(part(collection, write(tmp_path / "cat.tsv", lines)))
    assert contents(table, "cat") == {"q0": ({"d1": 8, "d2": 2}, {"d3": 3})}
    assert table.report.negatives_judged_relevant == 2


def test_labelled_positives_that_the_file_lacks_are_masked_as_with_runs(beir_folder, tmp_path: Path):
    """Triples of `q0` list one of its two positives; the other must not be its negative through `q1`."""
    qrels = {"train": [("q0", "007", 1), ("q0", "7", 1), ("q1", "7", 1)]}
    path = write(tmp_path / "triples.tsv", [("q0", "007", "d4"), ("q1", "7", "d4")])
    table = open_table(part(beir_folder("masked", qrels=qrels), path))
    assert contents(table, None)["q0"] == ({"007": 0.0}, {"d4": 0.0})
    rows, owners = table.relevant_of(np.arange(2))
    found = zip(owners.tolist(), table.documents.ids.take(rows), strict=True)
    assert sorted(found) == [(0, "007"), (0, "7"), (1, "7")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("8.0\t1.0\tq1\td1", "expected the 5 fields .* found 4"),
        ("8.0\t1.0\tq1\td1\td2\td3", "found 6"),
        ("", "found 1"),
        ("eight\t1.0\tq1\td1\td2", "teacher_pos 'eight' is not a number"),
        ("8.0\tnan\tq1\td1\td2", "teacher_neg 'nan' is not finite"),
        ("8.0\tinf\tq1\td1\td2", "teacher_neg 'inf' is not finite"),
        ("8.0\t1.0\tq9\td1\td2", r"query 'q9' is unknown \(1 of 7 lines"),
        ("8.0\t1.0\tq3\td1\td2", "query 'q3' is unknown"),  # of another split
        ("8.0\t1.0\tq1\td1\tno", "negative 'no' is unknown"),
        ("8.0\t1.0\tq1\td1\td2", r"a score of 8 for a \(query, document\) that has 8\.5 in an earlier line"),
    ],
)
def test_a_bad_line_is_named(collection: Path, tmp_path: Path, line: str, message: str):
    path = write(tmp_path / "cat.tsv", LINES)
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(DataError, match=rf"cat\.tsv:7: .*{message}"):
        open_table(part(collection, path))


def test_unknown_ids_can_be_left_out_and_counted(collection: Path, tmp_path: Path):
    lines = [(1, 2, "q9", "d1", "d2"), *LINES, (8.5, 2, "q1", "d1", "no")]
    table = open_table(part(collection, write(tmp_path / "cat.tsv", lines), unknown_pairs="count"))
    assert contents(table, "cat") == EXPECTED
    assert table.report.unknown_pairs == 2
    assert any("2 lines of the pair file with unknown ids" in line for line in table.report.lines())
    with pytest.raises(DataError, match="no line of it is of"):
        open_table(part(collection, write(tmp_path / "cat2.tsv", lines[:1]), unknown_pairs="count"))


def test_differing_scores_can_be_averaged_and_are_counted(collection: Path, tmp_path: Path):
    lines = [*LINES, (9.5, 1.25, "q1", "d1", "d2"), (8.5, -5.5, "q1", "d1", "d4")]
    table = open_table(part(collection, write(tmp_path / "cat.tsv", lines), differing_scores="mean"))
    found = contents(table, "cat")["q1"]
    assert found[1]["d4"] == pytest.approx((-3.5 - 5.5) / 2)
    assert found[0]["d1"] == pytest.approx((3 * 8.5 + 9.5) / 4, abs=0.3)
    assert table.report.differing_scores == 2


@pytest.mark.parametrize("content", [b"", b"q1\n", b"1\t2\n"])
def test_files_of_another_form_are_refused(collection: Path, tmp_path: Path, content: bytes):
    path = tmp_path / "cat.tsv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"cat\.tsv:1: \d fields, expected `teacher_pos"):
        open_table(part(collection, path))


def test_a_broken_archive_is_refused(collection: Path, tmp_path: Path):
    path = write(tmp_path / "cat.tsv.gz", LINES * 2000)
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(DataError, match=r"cat\.tsv\.gz: not readable"):
        open_table(part(collection, path))


def test_the_real_scores_are_read(shared_data: Path, beir_folder: Callable[..., Path]):
    """3,600 lines for 177 queries. The negatives' texts are not at hand: a corpus of their ids stands for them."""
    path = shared_data / "tas-clusters" / "teacher-scores.tsv"
    fields = [line.split() for line in path.read_text().splitlines()[1:]]
    folder = beir_folder(
        name="real",
        corpus=[{"_id": doc, "text": doc} for doc in dict.fromkeys(doc for line in fields for doc in line[3:])],
        queries=[{"_id": qid, "text": qid} for qid in dict.fromkeys(line[2] for line in fields)],
        qrels={"train": list(dict.fromkeys((line[2], line[3], 1) for line in fields))},
    )
    table = open_table(part(folder, path))
    assert (table.report.queries, table.report.positives) == (177, 180)
    for line in fields[:: len(fields) // 50]:
        positives, negatives = contents(table, "teacher-scores")[line[2]]
        assert positives[line[3]] == pytest.approx(float(line[0]), rel=1e-6)
        if line[4] not in positives:
            assert negatives[line[4]] == pytest.approx(float(line[1]), rel=1e-6)
    pairs = ScoredPairs(table, ["teacher-scores"])
    assert pairs.usable.all()
    for row in range(0, len(table), 40):  # every filled range of real margins is as frequent
        drawn = pairs.draw(np.full(3000, row), np.random.default_rng(row))
        margins = np.subtract(*(table.scores["teacher-scores"][entries].astype(float) for entries in drawn))
        start, middle = table.offsets[row], table.offsets[row] + table.positives[row]
        own = table.scores["teacher-scores"].astype(float)
        possible = own[start:middle, None] - own[None, middle : table.offsets[row + 1]]
        bins = dict(zip(possible.ravel().tolist(), margin_bins(possible.ravel()).tolist(), strict=True))
        counts = Counter(bins[margin] for margin in margins.tolist())
        assert len(counts) == len(set(bins.values()))
        assert chisquare(list(counts.values())).pvalue > 1e-4


# --- teachers ---


def teacher_part(collection: Path, tmp_path: Path, scores: dict[str, dict[str, float]], **rules: Any) -> Part:
    negatives = Run.from_lists([("q0", ["d3", "7"], [2.0, 1.0]), ("q1", ["d2", "d4"], [2.0, 1.0])])
    write_run(negatives, tmp_path / "bm25.run")
    write_run(Run.from_lists((q, list(s), list(s.values())) for q, s in scores.items()), tmp_path / "cat.run")
    runs = Runs(negatives=(str(tmp_path / "bm25.run"),), teachers=(str(tmp_path / "cat.run"),))
    return Part(collection=str(collection), runs=runs, **rules)


def test_a_teacher_that_misses_too_many_documents_is_refused_with_examples(collection: Path, tmp_path: Path):
    scores = {"q0": {"007": 5.0, "d3": 1.0, "7": 0.5}, "q1": {"d1": 4.0, "d2": 3.0}, "q2": {"d2": 2.0}}
    with pytest.raises(DataError, match=r"'cat' has no score for 1 of 7 .*14\.3%.*query 'q1' document 'd4'"):
        open_tables([teacher_part(collection, tmp_path, scores)])
    table = open_tables([teacher_part(collection, tmp_path, scores, max_missing_scores=0.2)])[0]
    assert table.report.missing_scores == {"cat": 1}


def test_squashed_scores_are_warned_of(collection: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    scores = {"q0": {"007": 0.9, "d3": 0.1, "7": 0.0}, "q1": {"d1": 1.0, "d2": 0.3, "d4": 0.2}, "q2": {"d2": 0.5}}
    with caplog.at_level(logging.WARNING):
        open_tables([teacher_part(collection, tmp_path, scores)])
    assert "as if a sigmoid had squashed them" in caplog.text
    caplog.clear()
    scores["q0"]["d3"] = -0.1
    open_tables([teacher_part(collection, tmp_path, scores)])
    assert "sigmoid" not in caplog.text


# --- the configuration ---


def problems(**data: Any) -> list[str]:
    given = {
        "method": "tas-balanced",
        "model": "minilm",
        "output": "out",
        "data": {"collection": "c", **data},
        "loss": ["margin-mse"],
        "sampling": {"clusters": "no-such-clusters.txt"},
    }
    with pytest.raises(ConfigError) as caught:
        load_config(given)
    return list(caught.value.problems)


def test_pairs_stand_instead_of_runs_and_balancing_needs_scores(tmp_path: Path):
    run = tmp_path / "a.run"
    run.write_text("")
    found = problems(pairs="no-such-file", runs={"negatives": str(run)})
    assert any("data.pairs: has its own positives" in problem for problem in found)
    assert any("data.pairs: there is no file no-such-file" in problem for problem in found)
    assert any("sampling.clusters: there is no file no-such-clusters.txt" in problem for problem in found)
    found = problems()
    assert any("data.runs.teachers: pairs are balanced over a teacher's margins" in problem for problem in found)
    assert any("data.runs.negatives: this method trains on pairs" in problem for problem in found)
