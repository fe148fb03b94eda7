"""Plackett-Luce and dynamic contrastive distillation: published values, references, properties."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from rtk.retrieval.losses.dynamic_contrastive import (
    dynamic_contrastive_loss,
    dynamic_contrastive_parts,
    hardest_negatives,
    query_uncertainty,
    weighted_soft_loss,
)
from rtk.retrieval.losses.plackett_luce import plackett_luce_distillation, plackett_luce_order

FOLDER = Path(__file__).parent / "goldens"
PLD = json.loads((FOLDER / "pld_loss.json").read_text())["cases"]
DCD = json.loads((FOLDER / "dcd_loss.json").read_text())
NAN = float("nan")


def double(values: object) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def random(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# --- PLD ---


@pytest.mark.parametrize("case", PLD, ids=lambda case: str(case["temperature"]))
def test_pld_as_published(case: dict):
    student, teacher, labels = (
        double(case["student"]).requires_grad_(),
        double(case["teacher"]),
        torch.tensor(case["labels"]),
    )
    loss = plackett_luce_distillation(student, teacher, labels, temperature=case["temperature"])
    loss.backward()
    assert loss.item() == pytest.approx(case["loss"], rel=1e-9)
    torch.testing.assert_close(student.grad, double(case["grad_student"]), rtol=1e-9, atol=1e-12)
    assert plackett_luce_order(teacher, labels).flip(1).tolist() == case["ranking_last_is_label"]


def test_pld_is_the_sum_written_out():
    student, teacher = random(0, 3, 5), random(1, 3, 5)
    expected = 0.0
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        order = [0, *sorted(range(1, 5), key=lambda j: -t[j])]
        total = sum(math.exp(x / 2) for x in t)
        for place, j in enumerate(order):
            rest = math.log(sum(math.exp(s[l]) for l in order[place:]))  # noqa: E741
            expected += math.exp(t[j] / 2) / total * (rest - s[j]) / 3
    assert plackett_luce_distillation(student, teacher, temperature=2).item() == pytest.approx(expected, rel=1e-12)


def test_pld_with_all_weight_on_gold_is_cross_entropy_and_with_even_weights_listmle():
    student, order = random(2, 4, 6), torch.arange(6).flip(0).double()
    sure = torch.zeros(4, 6, dtype=torch.float64)
    sure[:, 0] = 1e4
    expected = F.cross_entropy(student, torch.zeros(4, dtype=torch.int64))
    assert plackett_luce_distillation(student, sure).item() == pytest.approx(expected.item(), rel=1e-12)
    even = order.expand(4, 6)
    mle = sum(torch.logsumexp(student[:, k:], 1) - student[:, k] for k in range(6)).mean() / 6
    assert plackett_luce_distillation(student, even, temperature=1e9).item() == pytest.approx(mle.item(), rel=1e-6)


def test_pld_gradient_is_that_of_the_remaining_items():
    student, teacher = random(3, 1, 4).requires_grad_(), double([[1.0, 3.0, 2.0, 0.0]])
    plackett_luce_distillation(student, teacher).backward()
    order, weights = [0, 1, 2, 3], teacher.softmax(1)[0]
    expected = torch.zeros(4, dtype=torch.float64)
    for place, j in enumerate(order):
        rest = order[place:]
        expected[rest] += weights[j] * student.detach()[0, rest].softmax(0)
        expected[j] -= weights[j]
    torch.testing.assert_close(student.grad, expected[None])


def test_pld_padding_changes_nothing_and_gives_no_nan():
    student, teacher, labels = random(4, 3, 5), random(5, 3, 5), torch.tensor([2, 0, 4])
    leaf = torch.cat([student, torch.full((3, 2), 40.0)], 1).requires_grad_()
    padded = torch.cat([teacher, torch.full((3, 2), 9.0)], 1)
    valid = torch.arange(7).expand(3, 7) < 5
    expected = plackett_luce_distillation(student, teacher, labels).item()
    for given, mask in ((padded, valid), (padded.masked_fill(~valid, NAN), None)):
        leaf.grad = None
        loss = plackett_luce_distillation(leaf, given, labels, mask)
        loss.backward()
        assert loss.item() == pytest.approx(expected, rel=1e-12)
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()
        assert (leaf.grad[:, 5:] == 0).all()


def test_pld_leaves_out_lists_whose_gold_is_unscored():
    student, teacher = random(6, 3, 4), random(7, 3, 4)
    expected = plackett_luce_distillation(student[:1], teacher[:1]).item()
    teacher[1, 0] = NAN
    teacher[2] = NAN
    leaf = student.clone().requires_grad_()
    loss = plackett_luce_distillation(leaf, teacher)
    loss.backward()
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    assert leaf.grad is not None
    assert (leaf.grad[1:] == 0).all()


def test_pld_sees_only_differences_of_scores_and_is_convex():
    student, teacher, other = random(8, 3, 6), random(9, 3, 6), random(10, 3, 6)
    loss = plackett_luce_distillation
    assert loss(student + 5, teacher).item() == pytest.approx(loss(student, teacher).item(), rel=1e-12)
    assert 2 * loss((student + other) / 2, teacher) <= loss(student, teacher) + loss(other, teacher)


# --- DCD ---


@pytest.mark.parametrize("case", DCD["cases"], ids=lambda case: str(len(case["student"])))
@pytest.mark.parametrize("name", ["distillation_loss", "WSLDistiller"])
def test_dcd_reproduces_what_was_published(case: dict, name: str):
    student, teacher = double(case["student"]).requires_grad_(), double(case["teacher"])
    function = dynamic_contrastive_parts if name == "distillation_loss" else weighted_soft_loss
    parts, alpha = function(student, teacher, temperature=case["T"], published=True), case["alpha"]
    expected = case[name]
    assert parts.hard.item() == pytest.approx(expected["hard"], rel=1e-7)
    assert parts.distillation.item() == pytest.approx(expected["distill"], rel=1e-7)
    total = alpha * parts.distillation + (1 - alpha if name == "distillation_loss" else 1) * parts.hard
    assert total.item() == pytest.approx(expected["total"], rel=1e-7)
    total.backward()
    torch.testing.assert_close(student.grad, double(expected["grad"]), rtol=1e-6, atol=1e-9)


def test_dcd_is_the_sum_written_out():
    student, teacher, T = random(11, 3, 4), random(12, 3, 4), 2.0
    p = teacher.softmax(1)
    entropies = -(p * p.log()).sum(1)
    u = entropies / entropies.sum()
    v = ((1 - u) ** 2).softmax(0)
    labels = torch.tensor([1.0, 0, 0, 0], dtype=torch.float64).expand(3, 4)
    hard = (u * F.binary_cross_entropy_with_logits(student, labels, reduction="none").mean(1)).sum()
    soft = T**2 * (v * ((teacher - student) / T).square().mean(1)).sum()
    found = dynamic_contrastive_loss(student, teacher, alpha=0.3, temperature=T)
    assert found.item() == pytest.approx((0.3 * soft + 0.7 * hard).item(), rel=1e-12)


def test_the_weights_of_queries_matter_but_not_in_the_published_value():
    student, teacher = random(13, 2, 4), random(14, 2, 4)
    teacher[0] *= 9  # certain
    right, published = (
        dynamic_contrastive_parts(student, teacher, published=flag).distillation for flag in (False, True)
    )
    assert published.item() == pytest.approx((teacher - student).square().mean().item())
    assert right.item() != pytest.approx(published.item())


def test_uncertainty_sums_to_one_and_is_even_without_entropy():
    assert query_uncertainty(random(15, 5, 6)).sum().item() == pytest.approx(1)
    assert query_uncertainty(random(16, 4, 1)).tolist() == [0.25] * 4
    flat_and_sure = query_uncertainty(double([[1.0, 1.0, 1.0], [90.0, 0.0, 0.0]]))
    assert flat_and_sure[0].item() == pytest.approx(1)


@pytest.mark.parametrize("case", DCD["hard_negative_selection"], ids=lambda case: str(case["teacher_scores"]))
def test_hardest_negatives_keep_teacher_and_student_together(case: dict):
    """The published selection keeps teacher scores in teacher order: right only where it ranks the positive first."""
    teacher = double(case["teacher_scores"])
    columns = hardest_negatives(teacher, case["hard_negative"])
    assert columns.tolist() == case["student_columns"]
    kept = teacher.gather(1, columns)
    assert kept[0, 0] == teacher[0, 0]
    if teacher[0].argmax() == 0:
        assert kept.tolist() == case["teacher_scores_kept"]


def test_hardest_negatives_of_short_lists_and_unscored_ones():
    assert hardest_negatives(double([[0.0, 1.0, 2.0]]), 7).tolist() == [[0, 2, 1]]
    assert hardest_negatives(double([[0.0, NAN, -5.0, 2.0]]), 2).tolist() == [[0, 3, 2]]
    assert hardest_negatives(double([[3.0]]), 2).tolist() == [[0]]


LOSSES = {
    "dcd": dynamic_contrastive_loss,
    "wsl": lambda s, t: 0.2 * (parts := weighted_soft_loss(s, t)).distillation + parts.hard,
}


@pytest.mark.parametrize("name", LOSSES)
def test_dcd_leaves_out_what_is_not_scored(name: str):
    student, teacher = random(17, 3, 4), random(18, 3, 4)
    expected = LOSSES[name](student, teacher).item()
    leaf = torch.cat([torch.cat([student, random(19, 3, 2)], 1), random(20, 2, 6)]).requires_grad_()
    wider = torch.cat([torch.cat([teacher, torch.full((3, 2), NAN)], 1), torch.full((2, 6), NAN)])
    loss = LOSSES[name](leaf, wider)
    loss.backward()
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    assert leaf.grad is not None
    assert leaf.grad.isfinite().all()
    assert (leaf.grad[3:] == 0).all()
    assert (leaf.grad[:, 4:] == 0).all()


@pytest.mark.parametrize("name", LOSSES)
def test_dcd_of_nothing_scored_is_zero(name: str):
    leaf = random(21, 2, 3).requires_grad_()
    loss = LOSSES[name](leaf, torch.full((2, 3), NAN))
    loss.backward()
    assert loss.item() == 0
    assert leaf.grad is not None
    assert (leaf.grad == 0).all()


def test_the_weight_of_weighted_soft_labels_is_a_constant_that_falls_as_the_student_overtakes():
    teacher = double([[2.0, 0.0, 0.0]])
    shares = []
    for lead in (-2.0, 2.0, 6.0):
        student = double([[lead, 0.0, 0.0]])
        parts = weighted_soft_loss(student, teacher)
        shares.append((parts.distillation / (teacher - student).square().mean().clamp(min=1e-9)).item())
    assert shares[0] > shares[2]
