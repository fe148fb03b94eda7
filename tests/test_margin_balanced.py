"""Pairs balanced over teacher margins, against the authors' own bins, their frequencies, and the definition."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from rtk.errors import ConfigError, DataError
from rtk.retrieval.sampling import margin_ranges
from rtk.retrieval.sampling.margin_balanced import ScoredPairs, UniformPairs, margin_bins, pairs_of

GOLDEN = json.loads((Path(__file__).parent / "goldens" / "tasb_sampler.json").read_text())
NAN = float("nan")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RTK_CACHE", str(tmp_path / "cache"))


def golden_pairs() -> dict[str, list[tuple[str, float]]]:
    """By query: (negative, margin)."""
    found: dict[str, list[tuple[str, float]]] = {}
    for positive, negative, qid, _, document in GOLDEN["pairs"]:
        found.setdefault(qid, []).append((document, positive - negative))
    return found


@pytest.mark.parametrize("qid", GOLDEN["usable_queries"])
def test_bins_are_those_of_the_authors(qid: str):
    pairs = golden_pairs()[qid]
    bins = margin_bins(np.array([margin for _, margin in pairs]), GOLDEN["n_bins"])
    ours = [{name for (name, _), at in zip(pairs, bins, strict=True) if at == b} for b in range(GOLDEN["n_bins"])]
    assert ours == [{entry[1] for entry in group} for group in GOLDEN["bins_by_query"][qid]]


def test_queries_that_the_authors_drop_are_one_range_here():
    for qid in GOLDEN["dropped_queries_single_pair"]:
        margins = np.array([margin for _, margin in golden_pairs()[qid]])
        assert margin_bins(margins).tolist() == [0]


def test_equal_margins_are_one_range():
    assert margin_bins(np.full(7, 3.25)).tolist() == [0] * 7
    assert margin_bins(np.zeros(0)).tolist() == []


@given(st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=40), st.integers(1, 12))
def test_ranges_are_ordered_as_the_margins_and_the_ends_are_in_the_end_ranges(margins: list[float], bins: int):
    values = np.array(margins)
    found = margin_bins(values, bins)
    assert found.min() == 0
    assert found.max() <= bins - 1
    order = np.argsort(values, kind="stable")
    assert (np.diff(found[order]) >= 0).all()
    if values.max() > values.min() and (values.max() - values.min()) / bins > 0:
        assert set(found[values == values.max()]) == {bins - 1}


def drawn(pairs: Any, table: Any, row: int, times: int, seed: int = 0) -> Counter[tuple[str, str]]:
    rows = np.full(times, row)
    positives, negatives = pairs.draw(rows, np.random.default_rng(seed))
    ids = table.documents.ids
    return Counter(zip(ids.take(table.entries[positives]), ids.take(table.entries[negatives]), strict=True))


def expected(positives: list[float], negatives: list[float], bins: int) -> np.ndarray:
    """By the definition: 1 / (ranges that hold a pair · pairs in its range), 0 for an unscored pair. (P, N)."""
    margins = np.float32(positives).astype(np.float64)[:, None] - np.float32(negatives).astype(np.float64)[None, :]
    known = ~np.isnan(margins)
    found = np.full(margins.shape, -1)
    found[known] = margin_bins(margins[known], bins)
    sizes = np.bincount(found[known], minlength=bins)
    return np.where(known, 1 / ((sizes > 0).sum() * np.maximum(sizes[found], 1)), 0)


@pytest.mark.parametrize("bins", [10, 1, 3])
def test_long_run_frequencies_are_those_of_the_definition(scored_table: Callable[..., Any], bins: int):
    generator = np.random.default_rng(3)
    lists = [
        (generator.normal(8, 1, 3).tolist(), generator.normal(2, 3, 9).tolist()),
        ([7.5], generator.normal(2, 3, 20).tolist()),
        ([9.0, NAN, 8.0], [1.0, NAN, 3.0, 3.5]),
    ]
    table = scored_table(lists)
    pairs = ScoredPairs(table, ["cat"], bins)
    for row, (positives, negatives) in enumerate(lists):
        times = 20_000
        found = drawn(pairs, table, row, times)
        wanted = expected(positives, negatives, bins)
        keys = [(i, j) for i in range(len(positives)) for j in range(len(negatives)) if wanted[i, j] > 0]
        counts = [found[f"q{row}p{i}", f"q{row}n{j}"] for i, j in keys]
        assert sum(counts) == times  # nothing unscored was drawn
        assert chisquare(counts, [times * wanted[key] for key in keys]).pvalue > 1e-4


@pytest.mark.parametrize(("strategy", "name"), [("bins", "bins_counts"), ("random", "random_counts")])
def test_frequencies_of_the_authors_long_run(scored_table: Callable[..., Any], strategy: Any, name: str):
    """Only margins matter, so that a positive of 0 and negatives of minus the margin stand for the golden's pairs."""
    pairs = golden_pairs()["q4"]
    table = scored_table([([0.0], [-margin for _, margin in pairs])])
    found = drawn(pairs_of(table, strategy), table, 0, 200_000)
    ours = np.array([found["q0p0", f"q0n{place}"] for place in range(len(pairs))], dtype=float)
    theirs = np.array([GOLDEN["long_run_q4"][name][f"doc {document}"] for document, _ in pairs], dtype=float)
    assert chisquare(theirs, ours / ours.sum() * theirs.sum()).pvalue > 1e-3


def test_the_two_strategies_differ_on_the_golden(scored_table: Callable[..., Any]):
    pairs = golden_pairs()["q4"]
    table = scored_table([([0.0], [-margin for _, margin in pairs])])
    balanced, uniform = (drawn(pairs_of(table, kind), table, 0, 20_000) for kind in ("bins", "random"))
    keys = sorted(balanced | uniform)
    ratio = 20_000 / uniform.total()
    assert chisquare([balanced[k] for k in keys], [uniform[k] * ratio for k in keys]).pvalue < 1e-9


def test_adding_a_constant_to_a_querys_scores_changes_nothing(scored_table: Callable[..., Any]):
    lists = [([8.0, 7.25], [1.5, 2.25, -3.0, 4.0])]
    moved = [([s + 16 for s in lists[0][0]], [s + 16 for s in lists[0][1]])]
    one, two = scored_table(lists), scored_table(moved, name="moved")
    first, second = (drawn(ScoredPairs(table, ["cat"]), table, 0, 500) for table in (one, two))
    assert first == second


def test_single_pair_equal_margin_and_unscored_queries_are_kept_and_counted(scored_table: Callable[..., Any]):
    lists = [([5.0], [1.0]), ([5.0], [1.0, 1.0, 1.0]), ([5.0, 6.0], [1.0, 2.0]), ([NAN], [1.0]), ([4.0], [])]
    table = scored_table(lists)
    pairs = ScoredPairs(table, ["cat"])
    report = pairs.report
    assert (report.queries, report.pairs) == (5, 1 + 3 + 4)
    assert (report.without_pairs, report.single_pair, report.equal_margins, report.unscored) == (2, 1, 1, 1)
    assert pairs.usable.tolist() == [True, True, True, False, False]
    assert len(drawn(pairs, table, 0, 50)) == 1
    assert len(drawn(pairs, table, 1, 200)) == 3
    told = "\n".join(pairs.lines())
    for word in ("single scored pair", "all equal", "without a scored pair", "never drawn"):
        assert word in told


def test_different_margins_that_meet_in_one_row_only_are_not_equal(scored_table: Callable[..., Any]):
    """Two positives of one score and negatives of two: not one margin."""
    assert ScoredPairs(scored_table([([5.0, 5.0], [1.0, 2.0])]), ["cat"]).report.equal_margins == 0


def test_a_table_where_no_pair_is_scored_is_refused(scored_table: Callable[..., Any]):
    with pytest.raises(DataError, match="no query has a positive and a negative that cat scored"):
        ScoredPairs(scored_table([([NAN], [1.0]), ([3.0], [NAN])]), ["cat"])


def test_a_teacher_that_is_not_there_is_named(scored_table: Callable[..., Any]):
    table = scored_table([([1.0], [0.0])])
    with pytest.raises(ConfigError, match="'dog'; it has those of 'cat'"):
        ScoredPairs(table, ["dog"])
    with pytest.raises(ConfigError, match="no teacher scores"):
        pairs_of(scored_table([([1.0], [0.0])], name="plain", teacher=False), "bins")


def test_without_teachers_pairs_are_uniform(scored_table: Callable[..., Any]):
    table = scored_table([([1.0, 1.0], [0.0, 0.0, 0.0]), ([1.0], [])], teacher=False)
    pairs = pairs_of(table, "random")
    assert isinstance(pairs, UniformPairs)
    assert pairs.usable.tolist() == [True, False]
    found = drawn(pairs, table, 0, 6000)
    assert len(found) == 6
    assert chisquare(list(found.values())).pvalue > 1e-4
    assert "1 queries without a negative" in pairs.lines()[0]


def test_the_batch_size_and_the_chunks_do_not_matter(
    scored_table: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """The files are the same whether all queries are looked at together or one at a time."""
    generator = np.random.default_rng(5)
    sizes = generator.integers(1, 6, (30, 2))
    lists = [(generator.normal(8, 2, a).tolist(), generator.normal(2, 3, b).tolist()) for a, b in sizes.tolist()]
    together = ScoredPairs(scored_table(lists), ["cat"])
    monkeypatch.setattr(margin_ranges, "_CHUNK", 1)
    monkeypatch.setenv("RTK_CACHE", str(tmp_path / "other"))
    singly = ScoredPairs(scored_table(lists, name="again"), ["cat"])
    assert singly.report == together.report
    np.testing.assert_array_equal(singly._edges, together._edges)
    rows = np.arange(30)
    for left, right in zip(*(p.draw(rows, np.random.default_rng(1)) for p in (together, singly)), strict=True):
        np.testing.assert_array_equal(left, right)


def test_the_files_are_made_once(scored_table: Callable[..., Any], monkeypatch: pytest.MonkeyPatch):
    table = scored_table([([3.0], [1.0, 2.0])])
    ScoredPairs(table, ["cat"])
    monkeypatch.setattr(margin_ranges, "_write", lambda *_: pytest.fail("made again"))
    assert ScoredPairs(table, ["cat"]).report.pairs == 2
