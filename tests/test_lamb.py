"""LAMB against the update of its paper, computed by hand, and against Adam."""

from __future__ import annotations

import math

import pytest
import torch

from rtk.retrieval.training.lamb import Lamb

# Two steps of algorithm 2 on x = (3, 4) with gradients (1, −2) and (0.5, 1), η = 0.1, β = (0.9, 0.999), ε = 1e-6,
# λ = 0.01. Step 1: m̂ = g, v̂ = g², r = (0.999999, −0.9999995), r + λx = (1.029999, −0.9599995), ‖x‖ = 5, norm of the
# update 1.4080117; x becomes x − 0.1 · 5 / 1.4080117 · (r + λx). Worked out with 30 digits.
STEP_1 = (2.634236352043446723, 4.340906077730383915)
STEP_2 = (2.139669670607544058, 4.455929835948049047)


def parameter(values: object) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.tensor(values, dtype=torch.float64))


def step(optimizer: torch.optim.Optimizer, x: torch.nn.Parameter, gradient: object) -> list[float]:
    x.grad = torch.tensor(gradient, dtype=torch.float64)
    optimizer.step()
    return x.detach().tolist()


def test_two_steps_of_the_paper():
    x = parameter([3.0, 4.0])
    optimizer = Lamb([x], lr=0.1, eps=1e-6, weight_decay=0.01)
    assert step(optimizer, x, [1.0, -2.0]) == pytest.approx(STEP_1, rel=1e-12)
    assert step(optimizer, x, [0.5, 1.0]) == pytest.approx(STEP_2, rel=1e-12)


def test_the_length_of_a_step_is_the_rate_times_the_length_of_the_tensor():
    x = parameter([[2.0, -1.0], [0.5, 3.0]])
    before = x.detach().clone()
    optimizer = Lamb([x], lr=0.01)
    step(optimizer, x, [[1e-3, 5.0], [-2.0, 1.0]])
    assert (x.detach() - before).norm().item() == pytest.approx(0.01 * before.norm().item(), rel=1e-9)


def test_steps_go_where_adams_go():
    """Adam's steps at rate 1 and without decay do not depend on where it stands: they are the direction."""
    ours, theirs = parameter([1.0, -2.0, 0.5]), parameter([0.0, 0.0, 0.0])
    lamb, adam = Lamb([ours], lr=0.05, eps=1e-8), torch.optim.AdamW([theirs], lr=1.0, eps=1e-8, weight_decay=0.0)
    for gradient in ([1.0, 0.1, -3.0], [0.2, -0.5, 1.0], [2.0, 2.0, 2.0]):
        before, start = ours.detach().clone(), theirs.detach().clone()
        direction = torch.tensor(step(adam, theirs, gradient), dtype=before.dtype) - start
        expected = before + 0.05 * before.norm() / direction.norm() * direction
        assert step(lamb, ours, gradient) == pytest.approx(expected.tolist(), rel=1e-9)


def test_a_tensor_of_zeros_moves_and_a_gradient_of_zeros_does_not():
    x, y = parameter([0.0, 0.0]), parameter([1.0, 2.0])
    optimizer = Lamb([x, y], lr=0.1)
    x.grad, y.grad = torch.ones_like(x), torch.zeros_like(y)
    optimizer.step()
    assert x.tolist() == pytest.approx([-0.1, -0.1], rel=1e-4)
    assert y.tolist() == [1.0, 2.0]


def test_the_norm_can_be_bounded():
    x = parameter([30.0, 40.0])
    optimizer = Lamb([x], lr=0.1, max_norm=10.0)
    moved = step(optimizer, x, [1.0, 1.0])
    assert math.dist(moved, [30.0, 40.0]) == pytest.approx(1.0, rel=1e-9)


def test_resumed_equals_uninterrupted():
    whole, half = parameter([1.0, 2.0]), parameter([1.0, 2.0])
    one, two = Lamb([whole], lr=0.1), Lamb([half], lr=0.1)
    gradients = [[0.3, -1.0], [0.1, 0.4], [-2.0, 0.2]]
    for gradient in gradients[:2]:
        step(one, whole, gradient)
        step(two, half, gradient)
    again = Lamb([half], lr=0.7)
    again.load_state_dict(two.state_dict())
    assert step(again, half, gradients[2]) == step(one, whole, gradients[2])


def test_values_out_of_range_are_refused():
    for wrong in ({"lr": -1.0}, {"eps": 0.0}, {"betas": (1.0, 0.9)}, {"weight_decay": -0.1}):
        with pytest.raises(ValueError, match="LAMB"):
            Lamb([parameter([1.0])], **wrong)


def test_without_correction_of_the_bias_the_moments_are_taken_as_they_are():
    x = parameter([3.0, 4.0])
    optimizer = Lamb([x], lr=0.1, bias_correction=False, weight_decay=0.01)
    r = [0.1 * g / (math.sqrt(0.001) * abs(g) + 1e-6) + 0.01 * v for g, v in ((1.0, 3.0), (-2.0, 4.0))]
    expected = [v - 0.1 * 5 / math.hypot(*r) * u for v, u in zip((3.0, 4.0), r, strict=True)]
    assert step(optimizer, x, [1.0, -2.0]) == pytest.approx(expected, rel=1e-12)
