"""Curricula: the published heuristics and weights, what is repaired in them, and training by them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtk.eval.run import Run
from rtk.ids import Ids
from rtk.retrieval.sampling.curriculum import Schedule, curriculum_weights, easiness, kde_cdf, score_easiness

GOLDEN = json.loads((Path(__file__).parent / "goldens" / "curriculum_weights.json").read_text(encoding="utf-8"))
RUN = Run.from_lists((qid, list(scores), list(scores.values())) for qid, scores in GOLDEN["run"].items())
FOUND = [row for row in GOLDEN["heuristics"] if row["did"] != "not in run"]


def of(rows: list[dict[str, Any]], difficulty: Any) -> np.ndarray:
    return easiness(RUN, Ids([row["qid"] for row in rows]), Ids([row["did"] for row in rows]), difficulty)


def test_heuristics_are_the_published_ones():
    np.testing.assert_allclose(of(FOUND, "reciprocal-rank"), [1 / row["rank"] for row in FOUND], rtol=1e-6)
    np.testing.assert_allclose(of(FOUND, "normalised-score"), [row["normscore"] for row in FOUND], rtol=1e-6)
    np.testing.assert_allclose(of(FOUND, "kde"), [row["kdescore"] for row in FOUND], rtol=1e-6)


def test_scores_beyond_the_list_are_held_within_bounds_and_the_density_goes_on():
    """The published normalised score is 1.81 and -0.35 there."""
    beyond = [row for row in GOLDEN["heuristics"] if row["did"] == "not in run"]
    among = np.array(list(GOLDEN["run"]["q1"].values()))
    scores = np.array([row["score"] for row in beyond])
    np.testing.assert_allclose(score_easiness(scores, among), [1.0, 0.0])
    np.testing.assert_allclose(kde_cdf(scores, among), [row["kdescore"] for row in beyond], rtol=1e-6)


def test_a_document_that_was_not_found_is_hard_and_equal_scores_say_nothing():
    rows = [{"qid": "q1", "did": "elsewhere"}, {"qid": "no such query", "did": "d1"}]
    assert of(rows, "reciprocal-rank").tolist() == pytest.approx([0.001, 0.001])
    assert of(rows, "kde").tolist() == of(rows, "normalised-score").tolist() == [0, 0]
    equal = np.full(3, 7.5)
    assert score_easiness(equal, equal).tolist() == kde_cdf(equal, equal).tolist() == [0.5] * 3
    assert kde_cdf(equal[:1], equal[:1]).tolist() == [0.5]


def values_of(case: dict[str, Any], key: str) -> np.ndarray:
    """Ranks go in as reciprocals."""
    values = np.array(case[key], dtype=np.float64)
    return 1 / values if case["curriculum"] == "reciprank" else values


@pytest.mark.parametrize("case", GOLDEN["pairwise"] + GOLDEN["pairwise_single_pair_batches"])
def test_pairwise_weights_are_the_published_ones(case):
    easy = values_of(case, "heuristic_values_pos_then_negs").reshape(-1, 1 + case["num_neg"])
    schedule = Schedule(end=case["eoc_epoch"], anti=case["anti"])
    weights = curriculum_weights(easy, easy, "pairwise", case["epoch"], schedule)
    assert weights.mean() == pytest.approx(case["mean_weight"], abs=2e-7)
    scores = np.array(case["scores_pos_then_negs"]).reshape(easy.shape)
    if case["loss_fn"] == "softmax":
        costs = 1 - 1 / (1 + np.exp(scores[:, 1] - scores[:, 0]))
    else:
        costs = np.maximum(0, scores[:, 1] - scores[:, 0])  # the published hinge has no margin
    assert costs.mean() == pytest.approx(case["unweighted_loss"], rel=1e-6)
    assert costs.mean() * weights.mean() == pytest.approx(case["loss"], rel=1e-6), "batch_mean_product"
    if len(costs) == 1:
        assert (costs * weights).mean() == pytest.approx(case["loss"], rel=1e-6), "one query: the same by sample"


@pytest.mark.parametrize("case", GOLDEN["pointwise"])
def test_pointwise_weights_are_the_published_ones(case):
    easy, labels = values_of(case, "heuristic_values")[None], np.array(case["relscores"])[None]
    weights = curriculum_weights(easy, labels, "pointwise", case["epoch"], Schedule())
    costs = (np.array(case["scores"])[None] - labels) ** 2
    assert costs.mean() * weights.mean() == pytest.approx(case["loss"], rel=1e-6)


easy_lists = st.lists(st.floats(0, 1), min_size=4, max_size=4)


@given(easy_lists, st.integers(1, 30), st.sampled_from(["pairwise", "pointwise"]))
def test_weights_rise_to_one_with_the_epochs(values, end, weighting):
    easy = np.array(values).reshape(2, 2)
    labels = np.array([[1, 0], [1, 0]])
    by_epoch = np.stack([curriculum_weights(easy, labels, weighting, i, Schedule(end)) for i in range(end + 2)])
    assert (np.diff(by_epoch, axis=0) >= -1e-7).all()
    assert (by_epoch[end:] == 1).all()
    never = curriculum_weights(easy, labels, weighting, 99, Schedule(end=0))
    np.testing.assert_array_equal(never, by_epoch[0])


@given(easy_lists)
def test_exchanging_positive_and_negative_and_the_anti_curriculum_turn_the_weight_around(values):
    easy = np.array(values).reshape(2, 2)
    weights = curriculum_weights(easy, easy, "pairwise", 0)
    np.testing.assert_allclose(curriculum_weights(easy[:, ::-1], easy, "pairwise", 0), 1 - weights, atol=3e-8)
    anti = curriculum_weights(easy, easy, "pairwise", 0, Schedule(anti=True))
    np.testing.assert_allclose(anti, 1 - weights, atol=3e-8)


def test_the_hardest_of_several_negatives_decides():
    easy = np.array([[0.5, 0.1, 0.9, 0.3]])
    assert curriculum_weights(easy, easy, "pairwise", 0)[0] == pytest.approx(0.3)


def test_an_epoch_is_a_number_of_batches():
    schedule = Schedule(batches_per_epoch=32)
    assert [schedule.epoch(number) for number in (0, 31, 32, 640)] == [0, 0, 1, 20]
