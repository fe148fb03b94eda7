"""CET: the authors' weights, safe ones, two models that weigh each other, a resume and two processes that change
nothing."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rtk.retrieval.losses.cet import (
    Debiasing,
    cet_costs,
    inverse_propensity_weights,
    pair_costs,
    quantiles,
    spearman,
)

GOLDEN = json.loads((Path(__file__).parent / "goldens" / "cet_weights.json").read_text(encoding="utf-8"))


def pairs(interleaved: list[float]) -> torch.Tensor:
    """(n, 2), the positive first."""
    return torch.tensor(interleaved, dtype=torch.float64).view(-1, 2)


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: f"T={case['debias_ratio']}")
def test_weights_losses_and_gradients_are_those_of_the_authors(case):
    relevance = pairs(case["relevance_scores_pos_neg_interleaved"]).requires_grad_()
    selection = pairs(case["selection_scores_pos_neg_interleaved"]).requires_grad_()
    costs = cet_costs((relevance, selection), (relevance, selection), Debiasing(case["debias_ratio"]))
    close = {"rtol": 1e-9, "atol": 0}
    expected = {name: torch.tensor(case[name], dtype=torch.float64) for name in case if isinstance(case[name], list)}
    torch.testing.assert_close(costs.relevance_weights[:, 0], expected["weights_for_relevance_model"], **close)
    torch.testing.assert_close(costs.selection_weights[:, 0], expected["weights_for_selection_model"], **close)
    assert pair_costs(relevance).mean().item() == pytest.approx(case["relevance_loss_unweighted"], rel=1e-9)
    assert costs.relevance.mean().item() == pytest.approx(case["relevance_loss_weighted"], rel=1e-9)
    assert costs.selection.mean().item() == pytest.approx(case["selection_loss_weighted"], rel=1e-9)
    (costs.relevance.mean() + costs.selection.mean()).backward()
    torch.testing.assert_close(relevance.grad.flatten(), expected["relevance_grad"], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(selection.grad.flatten(), expected["selection_grad"], rtol=1e-9, atol=1e-12)


def test_a_logit_of_thirty_weighs_millions_unless_it_is_capped():
    """The extreme that the published code allows: no cap, T = 2."""
    logit = torch.tensor([30.0, 0.0, -30.0])
    expected = torch.tensor([1 + math.exp(15), 2.0, 1 + math.exp(-15)])
    torch.testing.assert_close(inverse_propensity_weights(logit, Debiasing(2.0)), expected, rtol=1e-6, atol=0)
    capped = inverse_propensity_weights(logit, Debiasing(2.0, cap=10.0))
    assert capped.tolist() == [10.0, 2.0, pytest.approx(1.0, abs=1e-6)]
    assert inverse_propensity_weights(torch.tensor([1e9, torch.finfo(torch.float32).max])).isfinite().all()
    assert inverse_propensity_weights(torch.tensor([8.0]).half(), Debiasing(0.1)).isfinite().all()


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=9), st.floats(0.5, 100))
def test_weights_are_at_least_one_and_grow_with_the_logit(values, temperature):
    logits = torch.tensor(sorted(values), dtype=torch.float64)
    weights = inverse_propensity_weights(logits, Debiasing(temperature))
    reference = [1 / (1 - 1 / (1 + math.exp(-value / temperature))) if value / temperature < 30 else None
                 for value in sorted(values)]  # fmt: skip
    assert (weights >= 1).all()
    assert (weights.diff() >= 0).all()
    for found, wanted in zip(weights.tolist(), reference, strict=True):
        assert wanted is None or found == pytest.approx(wanted, rel=1e-3)


def test_at_a_high_temperature_the_gradient_is_that_of_plain_training():
    scores = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    other = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    costs = cet_costs((scores, other), (scores, other), Debiasing(1e12))
    (found,) = torch.autograd.grad(costs.relevance.mean(), scores, retain_graph=True)
    (plain,) = torch.autograd.grad(pair_costs(scores).mean(), scores)
    torch.testing.assert_close(found, 2 * plain)
    (through,) = torch.autograd.grad(costs.relevance.mean(), other, allow_unused=True)
    assert through is None, "weights are constants"


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=3, max_size=12))
def test_spearman_is_scipys(values):
    from scipy.stats import spearmanr

    left, right = (torch.tensor(side, dtype=torch.float32) for side in zip(*values, strict=True))
    found = spearman(left, right)
    if len(set(left.tolist())) == 1 or len(set(right.tolist())) == 1:
        assert math.isnan(found)
    else:
        assert found == pytest.approx(float(spearmanr(left, right).statistic), abs=1e-9)


def test_quantiles_are_numpys():
    values = torch.tensor([[3.0, 1.0], [2.0, 9.0]])
    assert quantiles(values, (0.5, 0.9, 1.0)) == pytest.approx(np.quantile(values.numpy(), (0.5, 0.9, 1.0)))
