"""The training table and what is drawn from it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtk.errors import ConfigError, DataError
from rtk.eval.collection import Collection, open_collection
from rtk.eval.run import Run
from rtk.retrieval.sampling import BatchKey, BatchSampler, MixtureSampler, ShuffledSampler
from rtk.retrieval.sampling.shuffled import Shuffling, grouped, separate
from rtk.retrieval.training.batches import DenseExamples, allowed_documents
from rtk.retrieval.training.data import make_table
from rtk.retrieval.training.examples import RoleRuns, TrainingTable, build_columns


def write_collection(
    folder: Path, documents: list[str], queries: list[str], judged: list[tuple[int, int, int]]
) -> Collection:
    """A BEIR folder: documents d0 …, queries q0 …, and (query, document, grade) judgments of the train split."""
    (folder / "qrels").mkdir(parents=True)
    lines = [json.dumps({"_id": f"d{n}", "title": "", "text": text}) for n, text in enumerate(documents)]
    (folder / "corpus.jsonl").write_text("\n".join(lines) + "\n")
    lines = [json.dumps({"_id": f"q{n}", "text": text}) for n, text in enumerate(queries)]
    (folder / "queries.jsonl").write_text("\n".join(lines) + "\n")
    rows = ["query-id\tcorpus-id\tscore", *(f"q{q}\td{d}\t{grade}" for q, d, grade in judged)]
    (folder / "qrels" / "train.tsv").write_text("\n".join(rows) + "\n")
    return open_collection(folder)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RTK_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def toy(tmp_path: Path) -> Collection:
    """q0: d0 (2), d1 (1); q1: d2 (1), d3 judged 0; q2: only a 0. d5 has the text of d0."""
    texts = ["same", "one", "two", "three", "four", "same"]
    judged = [(0, 0, 2), (0, 1, 1), (1, 2, 1), (1, 3, 0), (2, 4, 0)]
    return write_collection(tmp_path / "toy", texts, ["first", "second", "third"], judged)


def run_of(lists: dict[str, dict[str, float]], tag: str = "bm25") -> Run:
    return Run.from_lists(((qid, list(docs), list(docs.values())) for qid, docs in lists.items()), tag=tag)


def row_of(table: TrainingTable, qid: str) -> tuple[list[int], list[int]]:
    row = table.qids(np.arange(len(table))).index(qid)
    start, end = table.offsets[row], table.offsets[row + 1]
    middle = start + table.positives[row]
    return table.entries[start:middle].tolist(), table.entries[middle:end].tolist()


def test_positives_negatives_and_scores_are_joined(toy: Collection):
    negatives = run_of({"q0": {"d0": 9, "d3": 8, "d4": 7}, "q1": {"d5": 3}, "q9": {"d1": 1}})
    teacher = run_of({"q0": {"d0": 11.5, "d1": -2, "d4": 1, "d2": 5}})
    table = make_table(toy, "train", RoleRuns((negatives,), {"cat": teacher}))
    assert row_of(table, "q0") == ([0, 1], [3, 4])
    assert row_of(table, "q1") == ([2], [5])
    np.testing.assert_array_equal(table.scores["cat"], np.float32([11.5, -2, np.nan, 1, np.nan, np.nan]))
    np.testing.assert_array_equal(table.grades, np.float32([2, 1, 0, 0, 1, 0]))
    report = table.report
    assert (report.queries, report.positives, report.negatives) == (2, 3, 3)
    assert (report.without_positives, report.negatives_judged_relevant, report.run_queries_outside_split) == (1, 1, 1)
    assert report.missing_scores == {"cat": 3}
    assert any("judged relevant" in line for line in report.lines())


def test_several_lists_of_a_query_become_one_which_is_told(toy: Collection):
    entries = [("q0", ["d2", "d3"], [2.0, 1.0]), ("q1", ["d4"], [1.0])]
    run = Run.from_lists(entries).replace(columns={"list_id": np.array([0, 1, 0], np.int32)})
    table = make_table(toy, "train", RoleRuns((run,)))
    assert row_of(table, "q0") == ([0, 1], [2, 3])
    assert table.report.joined_lists == 1
    assert "1 queries of the negatives with several lists: joined into one" in table.report.lines()


def test_a_grade_below_the_positive_one_is_neither_positive_nor_negative(toy: Collection):
    table = make_table(toy, "train", RoleRuns((run_of({"q0": {"d1": 2, "d3": 1}}),)), positive_grade=2)
    assert row_of(table, "q0") == ([0], [3])
    assert len(table) == 1


@pytest.mark.parametrize("grade", [1, 2])
def test_a_copy_of_what_is_judged_relevant_is_no_negative(toy: Collection, grade: int):
    """d5 has the text of d0, which is relevant for q0: rerankers, who mask nothing, would learn the opposite."""
    negatives = run_of({"q0": {"d5": 9, "d3": 8}, "q1": {"d5": 3}})
    table = make_table(toy, "train", RoleRuns((negatives,)), positive_grade=grade)
    assert row_of(table, "q0")[1] == [3]
    if grade == 1:
        assert row_of(table, "q1") == ([2], [5])
    assert table.report.negatives_copied == 1
    assert "1 negatives with the text of a document judged relevant: removed" in table.report.lines()
    assert table.document_keys(np.array([0, 5])).tolist() == [0, 0]


def test_what_a_pool_does_not_list_is_neither_positive_nor_negative(toy: Collection):
    negatives = run_of({"q0": {"d0": 9, "d3": 8}, "q1": {"d5": 3}})
    pool = run_of({"q0": {"d1": 3, "d5": 2}, "q1": {"d4": 1}})
    table = make_table(toy, "train", RoleRuns((negatives,), pool=pool))
    assert row_of(table, "q0") == ([1], [3])
    assert len(table) == 1  # q1 has no positive in the pool
    assert table.relevant_of(np.array([0]))[0].tolist() == [1, 0]
    report = table.report
    assert (report.positives, report.outside_pool, report.without_positives) == (1, 2, 2)
    assert "2 documents judged relevant outside of the pool: no positives" in report.lines()
    assert make_table(toy, "train", RoleRuns((negatives,))).report.positives == 3  # another table
    with pytest.raises(DataError, match="grade 1 or better in the pool"):
        make_table(toy, "train", RoleRuns(pool=run_of({"q0": {"d5": 1}})))


def test_raw_logits_are_preferred_to_the_scores_that_order(toy: Collection):
    teacher = run_of({"q1": {"d2": 1.0}})
    teacher = teacher.replace(columns={"raw": np.float32([7.25])})
    assert 7.25 in make_table(toy, "train", RoleRuns(teachers={"t": teacher})).scores["t"]


def test_shuffled_judgments_keep_queries_and_documents_but_not_who_belongs_to_whom(tmp_path: Path):
    judged = [(n, n, 1) for n in range(40)]
    collection = write_collection(tmp_path / "c", [f"d{n}" for n in range(40)], [f"q{n}" for n in range(40)], judged)
    kept, report, _ = build_columns(collection, "train", RoleRuns(), shuffle=7)
    documents = np.asarray(kept.column("documents").chunk(0).values)
    assert sorted(documents) == list(range(40))
    assert (documents == np.arange(40)).sum() < 6
    assert report.positives == 40
    assert build_columns(collection, "train", RoleRuns(), shuffle=7).table.equals(kept)


def test_documents_that_the_collection_lacks_are_refused(toy: Collection):
    with pytest.raises(DataError, match="'d77' of query 'q1'"):
        make_table(toy, "train", RoleRuns((run_of({"q1": {"d77": 1.0}}),)))


def test_a_split_without_positives_is_refused(toy: Collection):
    with pytest.raises(DataError, match="grade 3"):
        make_table(toy, "train", positive_grade=3)


def test_the_table_is_a_dataset_and_is_joined_once(toy: Collection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    table = make_table(toy, "train")
    dataset = table.dataset()
    assert dataset[0]["documents"] == [0, 1]
    assert dataset.column_names == ["query", "positives", "documents", "grade"]
    monkeypatch.setattr("rtk.retrieval.training.data.build_columns", None)
    assert make_table(toy, "train").fingerprint == table.fingerprint
    with pytest.raises(TypeError):
        make_table(toy, "train", RoleRuns((run_of({"q1": {"d5": 1.0}}),)))
    assert not [path for path in (tmp_path / "cache" / "training").iterdir() if ".tmp." in path.name]


def test_copies_of_a_text_have_one_key(toy: Collection):
    table = make_table(toy, "train", RoleRuns((run_of({"q1": {"d5": 1.0}}),)))
    assert table.document_keys(np.array([0, 1, 5])).tolist() == [0, 1, 0]


# --- sampling ---


def settings(**given: object) -> Shuffling:
    return Shuffling(**{"batch_size": 8, "seed": 1, **given})  # type: ignore[arg-type]


@pytest.fixture
def wide(tmp_path: Path) -> TrainingTable:
    """50 queries, two of each text, with 1 to 3 positives among 60 documents and up to 5 negatives. Some positives are
    copies of earlier documents, some negatives of positives."""
    generator = np.random.default_rng(0)
    judged = [(q, int(d), 1) for q in range(50) for d in generator.choice(40, 1 + q % 3, replace=False)]
    texts = [f"text {n - 10 if 30 <= n < 40 else n % 55}" for n in range(60)]
    collection = write_collection(tmp_path / "wide", texts, [f"query {n % 25}" for n in range(50)], judged)
    lists = {f"q{q}": {f"d{40 + (q + n) % 20}": float(-n) for n in range(q % 6)} for q in range(50)}
    return make_table(collection, "train", RoleRuns((run_of({q: docs for q, docs in lists.items() if docs}),)))


@pytest.mark.parametrize("unit", ["query", "pair"])
def test_an_epoch_goes_through_every_example_once(wide: TrainingTable, unit: str):
    sampler = ShuffledSampler(wide, settings(unit=unit, batch_size=5))
    draws = [sampler.draw(number) for number in range(sampler.batches_per_epoch)]
    seen = np.concatenate([draw.rows if unit == "query" else draw.entries[:, 0] for draw in draws])
    total = len(wide) if unit == "query" else wide.report.positives
    assert len(seen) == len(np.unique(seen)) == total - total % 5
    assert all(wide.entries[draw.entries[:, 0]].tolist() == draw.documents[:, 0].tolist() for draw in draws)


def test_a_batch_depends_on_seed_and_number_only(wide: TrainingTable):
    forward = [ShuffledSampler(wide, settings(negatives=2)).draw(n) for n in range(20)]
    other = ShuffledSampler(wide, settings(negatives=2))
    for number in reversed(range(20)):
        draw = other.draw(number)
        assert np.array_equal(draw.documents, forward[number].documents)
        assert len(draw) == 8
    assert not np.array_equal(ShuffledSampler(wide, settings(seed=2)).draw(0).rows, forward[0].rows)
    assert not np.array_equal(forward[0].rows, forward[sampler_epoch(wide)].rows)


def sampler_epoch(table: TrainingTable) -> int:
    return ShuffledSampler(table, settings()).batches_per_epoch


def test_no_text_stands_twice_in_a_batch_where_it_can_be_avoided(wide: TrainingTable):
    def clashes(deduplicate: bool) -> int:
        sampler = ShuffledSampler(wide, settings(unit="pair", deduplicate=deduplicate))
        draws = [sampler.draw(n) for n in range(5 * sampler.batches_per_epoch)]
        keys = [(wide.query_keys(d.rows), wide.document_keys(d.documents[:, 0])) for d in draws]
        return sum(len(key) - len(np.unique(key)) for pair in keys for key in pair)

    assert clashes(False) > 20
    assert clashes(True) == 0


def test_batches_grouped_by_length_hold_every_example_once_and_little_padding():
    generator = np.random.default_rng(0)
    lengths = generator.integers(1, 100, 8 * 200)
    order = grouped(lengths, 8, generator)
    assert sorted(order) == list(range(len(lengths)))
    padding = np.ptp(lengths[order].reshape(-1, 8), axis=1)
    assert padding.mean() < 0.1 * np.ptp(lengths.reshape(-1, 8), axis=1).mean()
    longest = lengths[order].reshape(-1, 8).max(axis=1)
    assert 0.3 < (np.diff(longest) > 0).mean() < 0.7  # the batches' order is not by length


def test_grouping_sorts_by_bytes_of_query_and_positive(tmp_path: Path):
    texts = [f"{n:02d}" + "x" * (n % 30) for n in range(60)]
    collection = write_collection(
        tmp_path / "lengths", texts, [f"q{n:02d}" for n in range(60)], [(n, n, 1) for n in range(60)]
    )
    table = make_table(collection, "train")
    assert table.documents.sizes().tolist() == [len(text) for text in texts]
    draws = [ShuffledSampler(table, settings(group_by_length=True)).draw(n) for n in range(7)]
    spans = [np.ptp(table.documents.sizes()[draw.documents[:, 0]]) for draw in draws]
    assert np.mean(spans) < 6
    seen = np.concatenate([draw.rows for draw in draws])
    assert len(np.unique(seen)) == len(seen)


def test_separate_returns_a_permutation_also_when_it_cannot_succeed():
    generator = np.random.default_rng(0)
    assert sorted(separate((np.zeros(12, np.int64),), 4, generator)) == list(range(12))
    keys = generator.integers(0, 30, 400)
    moved = keys[separate((keys,), 4, generator)].reshape(-1, 4)
    assert all(len(set(row)) == 4 for row in moved.tolist())


def test_negatives_are_from_the_run_without_repetition_then_random_and_never_positive(wide: TrainingTable):
    sampler = ShuffledSampler(wide, settings(negatives=3))
    for number in range(12):
        draw = sampler.draw(number)
        for row, documents, entries in zip(draw.rows, draw.documents[:, 1:], draw.entries[:, 1:], strict=True):
            start = wide.offsets[row] + wide.positives[row]
            own = wide.entries[start : wide.offsets[row + 1]]
            taken = documents[entries >= 0]
            assert len(set(taken.tolist())) == len(taken) == min(3, len(own))
            assert np.isin(taken, own).all()
            assert not np.isin(documents, wide.entries[wide.offsets[row] : start]).any()


def test_a_random_negative_is_no_positive_also_where_nearly_everything_is_one(scored_table: Callable[..., Any]):
    table = scored_table([([1.0] * 30, [1.0])], name="nearly", teacher=False)
    only = int(table.entries[30])
    sampler = ShuffledSampler(table, Shuffling(1, 0, negatives=3))
    for number in range(40):
        assert sampler.draw(number).documents[0, 1:].tolist() == [only] * 3
    table = scored_table([([1.0] * 3, [])], name="all", teacher=False)
    with pytest.raises(DataError, match="every document is relevant for query 'q0'"):
        ShuffledSampler(table, Shuffling(1, 0, negatives=1)).draw(0)


def test_what_is_judged_below_the_positive_grade_is_no_negative_of_any_kind(tmp_path: Path):
    """q0: d0 (2), d1 (1), d4 a copy of d1; q1: d1 (2); q2: d4 (2). Neither d1 nor d4 is a negative of q0."""
    judged = [(0, 0, 2), (0, 1, 1), (1, 1, 2), (2, 4, 2)]
    texts = ["best", "good", "other", "more", "good"]
    collection = write_collection(tmp_path / "c", texts, ["first", "second", "third"], judged)
    table = make_table(collection, "train", positive_grade=2)
    relevant, owners = table.relevant_of(np.array([1, 0]))
    assert sorted(zip(owners.tolist(), relevant.tolist(), strict=True)) == [(0, 1), (1, 0), (1, 1)]
    sampler = ShuffledSampler(table, Shuffling(3, 0, negatives=2, deduplicate=False))
    for number in range(30):
        draw = sampler.draw(number)
        first = int(np.flatnonzero(draw.rows == 0)[0])
        assert not np.isin(draw.documents[first, 1:], [0, 1]).any()
        allowed = allowed_documents(table, draw, slice(0, 3))[first]
        columns = draw.documents.T.ravel()
        assert not allowed[(columns == 1) | (columns == 4)].any()
        assert allowed[np.isin(columns, [2, 3])].all()


def test_queries_with_too_few_negatives_can_be_left_out(wide: TrainingTable):
    sampler = ShuffledSampler(wide, settings(negatives=3, missing_negatives="drop"))
    draws = [sampler.draw(n) for n in range(sampler.batches_per_epoch)]
    assert all((draw.entries >= 0).all() for draw in draws)
    there = wide.negatives()
    assert sampler.batches_per_epoch == (there >= 3).sum() // 8
    short = (3 - there[there < 3]).tolist()
    assert sampler.lines() == [f"{len(short)} of 50 queries have fewer than 3 negatives: left out"]
    filled = ShuffledSampler(wide, settings(negatives=3)).lines()
    assert filled[0].endswith(f"filled up with random documents, {sum(short)} if each comes up once")
    assert ShuffledSampler(wide, settings(negatives=0)).lines() == []


def test_more_than_there_is_in_a_batch_is_refused(wide: TrainingTable):
    with pytest.raises(ConfigError, match="50 examples"):
        ShuffledSampler(wide, settings(batch_size=64))


def test_a_mixture_keeps_its_weights_and_each_goes_through_its_own_epochs(wide: TrainingTable, toy: Collection):
    small = ShuffledSampler(make_table(toy, "train"), settings(batch_size=2), part=1)
    big = ShuffledSampler(wide, settings(batch_size=2))
    mixture = MixtureSampler([big, small], [3, 1], seed=5)
    draws = [mixture.draw(n) for n in range(2000)]
    assert np.mean([draw.part == 0 for draw in draws]) == pytest.approx(0.75, abs=0.03)
    firsts = [draw for draw in draws if draw.part == 0][: big.batches_per_epoch]
    assert len(np.unique(np.concatenate([draw.rows for draw in firsts]))) == 50
    assert np.array_equal(MixtureSampler([big, small], [3, 1], seed=5).draw(1999).rows, draws[1999].rows)


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_processes_share_a_batch_without_loss_or_repetition(wide: TrainingTable, ranks: int):
    sampler = ShuffledSampler(wide, settings())
    examples = DenseExamples([wide], sampler)
    for keys in zip(*(BatchSampler(sampler, rank, ranks) for rank in range(ranks)), strict=True):
        got = [columns["query"] for key in keys for columns, _ in examples.__getitems__(key)]
        assert got == [wide.query_texts[row] for row in wide.queries[sampler.draw(keys[0].number).rows]]


def test_keys_go_on_over_epochs(wide: TrainingTable):
    keys = BatchSampler(ShuffledSampler(wide, settings()))
    keys.set_epoch(2)
    assert [key.number for key in keys] == list(range(12, 18))
    assert next(iter(keys)) == BatchKey(12, 0, 8)


# --- false negatives ---


def test_the_mask_is_what_a_loop_over_texts_says(wide: TrainingTable):
    sampler = ShuffledSampler(wide, settings(negatives=2, deduplicate=False, batch_size=16))
    texts = wide.documents.texts(slice(0, len(wide.documents)))
    masked = 0
    for number in range(9):
        draw = sampler.draw(number)
        mask = allowed_documents(wide, draw, slice(4, 12))
        columns = [texts[d] for d in draw.documents.T.ravel()]
        for i, row in enumerate(draw.rows[4:12]):
            start = wide.offsets[row]
            positives = {texts[d] for d in wide.entries[start : start + wide.positives[row]]}
            for j, text in enumerate(columns):
                same_query = wide.query_texts[wide.queries[draw.rows[j % 16]]] == wide.query_texts[wide.queries[row]]
                expected = j == 4 + i or not (text in positives or (j < 16 and same_query))
                assert mask[i, j] == expected
                masked += not expected
    assert masked > 20


def test_labels_come_from_their_run_then_from_grades(toy: Collection):
    table = make_table(toy, "train", RoleRuns((run_of({"q0": {"d3": 8}}),), labels=run_of({"q0": {"d3": 0.5}})))
    examples = DenseExamples([table], ShuffledSampler(table, settings(batch_size=2, negatives=1)))
    rows = {columns["query"]: side["labels"].tolist() for columns, side in examples.__getitems__(BatchKey(0, 0, 2))}
    assert rows["first"] in ([2.0, 0.5], [1.0, 0.5])
    assert rows["second"] == [1.0, 0.0]
