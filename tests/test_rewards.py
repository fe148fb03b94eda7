"""What reinforcement learning pays for: published examples, and cases by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtk.errors import ConfigError, DataError
from rtk.retrieval.rerankers.rewards import (
    RetroReward,
    erank_reward,
    mm_r5_format_reward,
    mm_r5_reward,
    prorank_reward,
    rank_r1_reward,
    score_rollouts,
)
from rtk.retrieval.rerankers.scores import ScoreFormat

GOLDEN = json.loads((Path(__file__).parent / "goldens" / "rerank" / "sorting_and_rewards.json").read_text())
nan = float("nan")


def test_rank_r1_on_the_published_table() -> None:
    cases = GOLDEN["rank_r1_rewards"]
    found = rank_r1_reward([each["completion"] for each in cases], [each["ground_truth"] for each in cases])
    assert found.tolist() == [each["reward"] for each in cases]


@pytest.mark.parametrize("text", ["", "<answer>[3]</answer>", "[3]", "<think></think><answer></answer>"])
def test_rank_r1_pays_nothing_for_less(text: str) -> None:
    assert rank_r1_reward([text], ["[3]"]).tolist() == [0]


@pytest.mark.parametrize("case", GOLDEN["mm_r5_rewards"], ids=range(len(GOLDEN["mm_r5_rewards"])))
def test_mm_r5_on_the_published_table(case: dict[str, Any]) -> None:
    positives, count = case["positives_and_count"]
    assert mm_r5_reward([case["completion"]], [positives], [count])[0] == pytest.approx(case["rerank_reward"])
    assert mm_r5_format_reward([case["completion"]], [count])[0] == pytest.approx(case["format_rerank_reward"])


def test_mm_r5_does_not_pay_repetition() -> None:
    text = "<think>x</think><answer>[2, 2, 2]</answer>"
    assert mm_r5_reward([text], [[2]], [3]).tolist() == [0]
    assert mm_r5_format_reward([text], [3])[0] == pytest.approx(1 / 3)


def test_erank_by_hand() -> None:
    scores = np.array([[9.0, 5.0], [7.0, nan], [5.0, 3.0]])
    found = erank_reward(scores, np.array([True, False, False]), np.array([8.0, 3.0, 4.0]))
    # pooled: 9, 7, 5, 5, 3; the lowest readable rollout of the relevant document is 5
    expected = [[1.0, 1 / 3], [-1.0, -1.0], [1 - 0.01, 1 - 0.01]]
    np.testing.assert_allclose(found, expected)


def test_erank_without_a_readable_positive_or_anything_at_all() -> None:
    found = erank_reward(np.array([[nan, nan], [7.0, 2.0]]), np.array([True, False]), np.array([9.0, 2.0]))
    np.testing.assert_allclose(found, [[-1, -1], [0.75, 1.0]])
    assert erank_reward(np.full((2, 3), nan), np.array([True, False]), np.zeros(2)).tolist() == [[-1] * 3] * 2
    with pytest.raises(DataError, match="rollouts"):
        erank_reward(np.zeros(3), np.zeros(3, bool), np.zeros(3))


def test_prorank_pays_form_and_rightness() -> None:
    assert prorank_reward(["1", " 0\n", "yes", "10", ""], [1, 1, 1, 1, 0]).tolist() == [1.5, 0.5, 0, 0, 0]


def test_retro_within_a_document() -> None:
    reward = RetroReward()
    assert reward.intra(np.array([50.0, 60, 70])).tolist() == [0, 0, 0]  # the farthest is within 20
    assert reward.intra(np.array([50.0, 50, 50, 90])).tolist() == [1, 0, 0, -1]
    assert reward.intra(np.array([0.0, 100])).tolist() == [-1, 0]  # equally far: the first counts
    assert reward.intra(np.array([nan, 50, 90, 0])).tolist() == [0, 1, 0, -1]
    assert reward.intra(np.array([nan, nan])).tolist() == [0, 0]
    assert reward.intra(np.array([30.0, 70])).tolist() == [0, 0]  # 20 is still within


def test_retro_between_documents() -> None:
    reward = RetroReward()
    for found in reward.inter(np.array([50.0, 50]), np.array([50.0])):
        assert found.tolist() == [0] * len(found)
    above, below = reward.inter(np.array([80.0, 40, nan]), np.array([60.0, 30, nan]))
    np.testing.assert_allclose(above, [1, 2 / 3, 0])
    np.testing.assert_allclose(below, [1 / 3, 2 / 3, 0])


def test_retro_composite() -> None:
    first, second = np.array([80.0, 80, 20]), np.array([10.0, 10, 60])
    reward = RetroReward(alpha=0.25, tau=20)
    above, below = reward(first, second)
    there, here = reward.inter(first, second)
    np.testing.assert_allclose(above, 0.25 * reward.intra(first) + 0.75 * there)
    np.testing.assert_allclose(below, 0.25 * reward.intra(second) + 0.75 * here)
    with pytest.raises(ConfigError, match="alpha 2"):
        RetroReward(alpha=2)


@given(st.lists(st.floats(0, 100) | st.just(nan), min_size=1, max_size=8), st.lists(st.floats(0, 100), min_size=1))
def test_retro_is_bounded(first: list[float], second: list[float]) -> None:
    for rewards in RetroReward()(np.array(first), np.array(second)):
        assert (np.abs(rewards) <= 1).all()


def test_scores_of_rollouts() -> None:
    found = score_rollouts(["<score>7</score>", "7", "<score>700</score>"], ScoreFormat("score", 100))
    np.testing.assert_array_equal(found, [7, nan, nan])
