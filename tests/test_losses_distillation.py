"""Losses against a teacher: the authors' own numbers, references of a few lines, and what unscored documents do."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from rtk.retrieval.losses.distillation import (
    in_batch_margin_mse,
    kl_distillation,
    margin_mse,
    margin_mse_lists,
    rank_net_margins,
    rank_net_pairs,
    teacher_grades,
)
from rtk.retrieval.losses.ranking import Lambda, lambda_loss, list_net

FOLDER = Path(__file__).parent / "goldens"
MARGIN = json.loads((FOLDER / "margin_mse.json").read_text())
DUAL = json.loads((FOLDER / "tasb_dual_loss.json").read_text())
LIBRARY = json.loads((FOLDER / "st_losses.json").read_text())
NAN = float("nan")


def double(values: object) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def leaves(*values: object) -> list[torch.Tensor]:
    return [double(value).requires_grad_() for value in values]


def check_gradients(tensors: list[torch.Tensor], expected: list[object], rtol: float = 1e-9) -> None:
    for tensor, gradient in zip(tensors, expected, strict=True):
        torch.testing.assert_close(tensor.grad, double(gradient), rtol=rtol, atol=1e-10)


def random(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def own_columns(queries: int, negatives: int) -> torch.Tensor:
    return torch.arange(queries)[:, None] + queries * torch.arange(1 + negatives)[None, :]


# --- the authors' numbers ---


@pytest.mark.parametrize("case", MARGIN["cases"], ids=lambda case: str(len(case["student_pos"])))
def test_margin_mse_as_published(case: dict):
    student = leaves(case["student_pos"], case["student_neg"])
    loss = margin_mse(*student, double(case["teacher_pos"]), double(case["teacher_neg"]))
    loss.backward()
    assert loss.item() == pytest.approx(case["loss"], rel=1e-9)
    check_gradients(student, [case["grad_student_pos"], case["grad_student_neg"]])


@pytest.mark.parametrize("case", DUAL["margin_mse_inbatch"], ids=lambda case: str(len(case["query_vecs"])))
def test_the_dual_supervision_of_tas_balanced_as_published(case: dict):
    queries, positives, negatives = vectors = leaves(case["query_vecs"], case["pos_vecs"], case["neg_vecs"])
    scores = queries @ torch.cat([positives, negatives]).T
    teacher = torch.cat([double(case["inbatch_teacher_pos_docs"]), double(case["inbatch_teacher_neg_docs"])], 1)
    own = own_columns(len(queries), 1)
    stored = double(case["pairwise_teacher_pos"]), double(case["pairwise_teacher_neg"])
    pairwise = margin_mse(*scores.gather(1, own).unbind(1), *stored)
    in_batch = in_batch_margin_mse(scores, teacher, own)
    assert pairwise.item() == pytest.approx(case["pairwise_loss"], rel=1e-9)
    assert in_batch.item() == pytest.approx(case["inbatch_loss"], rel=1e-9)
    total = case["in_batch_main_pair_lambda"] * pairwise + case["in_batch_neg_lambda"] * in_batch
    assert total.item() == pytest.approx(case["total_loss"], rel=1e-9)
    total.backward()
    check_gradients(vectors, [case["grad_query"], case["grad_pos"], case["grad_neg"]])


@pytest.mark.parametrize("case", LIBRARY["margin_mse"], ids=lambda case: case["case"])
def test_margin_mse_equals_sentence_transformers(case: dict):
    labels = double(case["labels"])
    count = 3 if labels.ndim == 1 else 1 + labels.shape[1]
    columns = leaves(*LIBRARY["margin_mse_embeddings"][:count])
    scores = torch.stack([(columns[0] * column).sum(1) for column in columns[1:]], 1)
    loss = margin_mse_lists(scores, labels)
    loss.backward()
    assert loss.item() == pytest.approx(case["loss"], rel=1e-7)
    check_gradients(columns, case["grads"], rtol=1e-7)


@pytest.mark.parametrize("case", LIBRARY["kl"], ids=lambda case: str(case["temperature"]))
def test_kl_distillation_equals_sentence_transformers(case: dict):
    columns = leaves(*LIBRARY["kl_embeddings"])
    scores = torch.stack([(columns[0] * column).sum(1) for column in columns[1:]], 1)
    loss = kl_distillation(scores, double(case["teacher_scores"]), temperature=case["temperature"])
    loss.backward()
    assert loss.item() == pytest.approx(case["loss"], rel=1e-7)
    check_gradients(columns, case["grads"], rtol=1e-7)


# --- references ---


def test_in_batch_margin_mse_with_several_negatives_is_the_mean_over_documents_of_others():
    queries, negatives = 3, 2
    student, teacher = random(0, queries, 9), random(1, queries, 9)
    own = own_columns(queries, negatives)
    errors = [
        ((student[i, i] - student[i, d]) - (teacher[i, i] - teacher[i, d])) ** 2
        for i in range(queries)
        for d in range(9)
        if d not in own[i]
    ]
    assert len(errors) == (1 + negatives) * queries * (queries - 1)
    assert in_batch_margin_mse(student, teacher, own).item() == pytest.approx(float(sum(errors)) / len(errors))


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_kl_is_the_sum_written_out(temperature: float):
    student, teacher = random(2, 4, 5), random(3, 4, 5)
    expected = 0.0
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        p, q = ([math.exp(x / temperature) for x in values] for values in (t, s))
        expected += sum(a / sum(p) * math.log(a / sum(p) / (b / sum(q))) for a, b in zip(p, q, strict=True))
    found = kl_distillation(student, teacher, temperature=temperature)
    assert found.item() == pytest.approx(temperature**2 * expected / 4, rel=1e-12)


def test_listnet_differs_from_kl_by_the_teachers_entropy():
    student, teacher = random(4, 3, 6), random(5, 3, 6)
    entropy = torch.distributions.Categorical(logits=teacher).entropy().mean()
    assert list_net(student, teacher).item() == pytest.approx((kl_distillation(student, teacher) + entropy).item())


def test_listnet_with_epsilon_is_the_published_sum():
    student, teacher = random(6, 3, 4) * 8, random(7, 3, 4)
    expected = -(teacher.softmax(1) * (student.softmax(1) + 1e-6).log()).sum(1).mean()
    assert list_net(student, teacher, epsilon=1e-6).item() == pytest.approx(expected.item(), rel=1e-9)


def test_ranknet_by_margins_is_the_published_one_for_positive_margins_and_bounded_for_others():
    student, teacher = random(8, 5, 2), double([[3.0, 1], [2, 0], [1, 0.5], [4, 3], [9, 2]])
    given = (student[:, 0], student[:, 1], teacher[:, 0], teacher[:, 1])
    expected = sum(
        (t[0] - t[1]) * math.log1p(math.exp(s[1] - s[0]))
        for s, t in zip(student.tolist(), teacher.tolist(), strict=True)
    )
    assert rank_net_margins(*given).item() == pytest.approx(expected / 5, rel=1e-12)
    assert rank_net_margins(*given, published=True).item() == pytest.approx(expected / 5, rel=1e-12)
    far = (double([-50.0]), double([50.0]), double([0.0]), double([2.0]))
    assert rank_net_margins(*far).item() == pytest.approx(0, abs=1e-9)
    assert rank_net_margins(*far, published=True).item() < -100


def test_ranknet_of_pairs_is_the_published_in_batch_part_without_a_teacher():
    case = DUAL["ranknet_no_teacher"]
    queries, positives, negatives = (double(case[key]) for key in ("query_vecs", "pos_vecs", "neg_vecs"))
    size = len(queries)
    off = ~torch.eye(size, dtype=torch.bool)
    own = (queries * positives).sum(1, keepdim=True).expand(size, size)[off]
    parts = [rank_net_pairs(own, (queries @ documents.T)[off]) for documents in (positives, negatives)]
    assert (sum(parts) / 2).item() == pytest.approx(case["inbatch_loss"], rel=1e-9)
    vectors = leaves(*(case[key] for key in ("query_vecs", "pos_vecs", "neg_vecs")))
    queries, positives, negatives = vectors
    own = (queries * positives).sum(1)
    pairwise = margin_mse(
        own, (queries * negatives).sum(1), *(double(case[f"pairwise_teacher_{side}"]) for side in ("pos", "neg"))
    )
    assert pairwise.item() == pytest.approx(case["pairwise_loss"], rel=1e-9)
    against = own[:, None].expand(size, size)[off]
    parts = [rank_net_pairs(against, (queries @ documents.T)[off]) for documents in (positives, negatives)]
    total = case["in_batch_main_pair_lambda"] * pairwise + case["in_batch_neg_lambda"] * sum(parts) / 2
    assert total.item() == pytest.approx(case["total_loss"], rel=1e-9)
    total.backward()
    check_gradients(vectors, [case["grad_query"], case["grad_pos"], case["grad_neg"]])


def test_ranknet_of_pairs_with_probabilities_is_binary_cross_entropy():
    student, probabilities = random(30, 5, 2), random(31, 5).sigmoid()
    expected = torch.nn.functional.binary_cross_entropy_with_logits(student[:, 0] - student[:, 1], probabilities)
    assert rank_net_pairs(*student.unbind(1), probabilities).item() == pytest.approx(expected.item(), rel=1e-12)
    gap = probabilities.clone()
    gap[2] = NAN
    kept = torch.arange(5) != 2
    expected = rank_net_pairs(*student[kept].unbind(1), probabilities[kept])
    assert rank_net_pairs(*student.unbind(1), gap).item() == pytest.approx(expected.item(), rel=1e-12)


def test_teacher_grades_lift_what_the_teacher_finds_possible():
    grades, known = teacher_grades(double([[5.0, 4.0, -30.0, NAN]]))
    assert known.tolist() == [[True, True, True, False]]
    assert grades[0, 0] > grades[0, 1] > 2 > 0.001 > grades[0, 2] > 0
    leaf = random(9, 1, 4).requires_grad_()
    lambda_loss(leaf, grades, known, settings=Lambda("ndcg-loss2", reduction="sum")).backward()
    assert leaf.grad is not None
    assert leaf.grad[0, 3] == 0
    assert leaf.grad.isfinite().all()


# --- properties ---

LOSSES = {
    "margin-mse": margin_mse_lists,
    "kl": lambda s, t: kl_distillation(s, t, temperature=2),
    "ranknet": lambda s, t: rank_net_margins(s[:, :1], s[:, 1:], t[:, :1], t[:, 1:]),
    "in-batch": lambda s, t: in_batch_margin_mse(s, t, own_columns(len(s), 0)),
}


@pytest.mark.parametrize("name", sorted(set(LOSSES) - {"ranknet"}))
def test_a_student_that_scores_as_its_teacher_costs_nothing(name: str):
    teacher = random(10, 4, 6)
    assert LOSSES[name](teacher, teacher).item() == pytest.approx(0, abs=1e-12)
    assert LOSSES[name](teacher + random(11, 4, 1), teacher + random(12, 4, 1)).item() == pytest.approx(0, abs=1e-12)
    assert LOSSES[name](random(13, 4, 6), teacher) > 0.01


@pytest.mark.parametrize("name", LOSSES)
def test_unscored_documents_leave_the_loss(name: str):
    student, teacher = random(14, 4, 6), random(15, 4, 6)
    wider, leaf = torch.cat([teacher, torch.full((4, 2), NAN)], 1), torch.cat([student, random(16, 4, 2)], 1)
    leaf.requires_grad_()
    loss = LOSSES[name](leaf, wider)
    loss.backward()
    assert loss.item() == pytest.approx(LOSSES[name](student, teacher).item(), rel=1e-12)
    assert leaf.grad is not None
    assert (leaf.grad[:, 6:] == 0).all()
    assert leaf.grad.isfinite().all()


@pytest.mark.parametrize("name", sorted(set(LOSSES) - {"in-batch"}))
def test_a_list_without_a_scored_pair_leaves_the_mean(name: str):
    student, teacher = random(17, 3, 4), random(18, 3, 4)
    unscored = torch.full((2, 4), NAN)
    unscored[1, 0] = 1.0  # one document is no pair
    found = LOSSES[name](torch.cat([student, random(19, 2, 4)]), torch.cat([teacher, unscored.double()]))
    assert found.item() == pytest.approx(LOSSES[name](student, teacher).item(), rel=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_nothing_scored_costs_nothing_and_has_a_gradient_of_zero(name: str):
    leaf = random(20, 3, 5).requires_grad_()
    loss = LOSSES[name](leaf, torch.full((3, 5), NAN))
    loss.backward()
    assert loss.item() == 0
    assert leaf.grad is not None
    assert (leaf.grad == 0).all()


@pytest.mark.parametrize("name", LOSSES)
def test_no_gradient_reaches_the_teacher(name: str):
    teacher = random(21, 3, 5).requires_grad_()
    LOSSES[name](random(22, 3, 5).requires_grad_(), teacher).backward()
    assert teacher.grad is None


def test_half_precision_scores_are_widened():
    student = torch.randn(3, 4).bfloat16()
    assert margin_mse_lists(student, torch.randn(3, 4).half()).dtype == torch.float32
    assert kl_distillation(student, torch.randn(3, 4).half()).dtype == torch.float32


def test_labels_of_another_width_are_refused():
    with pytest.raises(ValueError, match=r"\(3, 5\)"):
        margin_mse_lists(random(23, 3, 4), random(24, 3, 5))


def test_a_single_query_has_no_document_of_others():
    assert in_batch_margin_mse(random(25, 1, 2), random(26, 1, 2), own_columns(1, 1)).item() == 0
