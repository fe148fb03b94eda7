"""ADORE's loss: the authors' numbers, a float64 reference of a few lines, and its properties."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from rtk.retrieval.losses.adore import RankedLists, adore_loss, append_unfound, delta_ndcg, delta_rr, ideal_dcg

GOLDENS = json.loads((Path(__file__).parent / "goldens" / "adore.json").read_text())
DOUBLE = torch.float64


def lists_of(grades: list[list[float]]) -> RankedLists:
    """Lists of the rows 0, 1, … with these grades in retrieval order; -1 is padding."""
    labels = torch.tensor(grades)
    rows = torch.arange(labels.shape[1]).expand_as(labels)
    return RankedLists(torch.where(labels < 0, -1, rows), labels.clamp(min=0))


def padded(lists: list[list[int]]) -> torch.Tensor:
    width = max(map(len, lists))
    return torch.tensor([row + [-1] * (width - len(row)) for row in lists])


def by_hand(scores: list[float], grades: list[float], cut: int, metric: str) -> float:
    """One query's loss, written out."""
    costs = []
    ideal = sum((2**y - 1) / math.log2(1 + r) for r, y in enumerate(sorted(grades, reverse=True)[:cut], 1))
    for i, yi in enumerate(grades, 1):
        for j, yj in enumerate(grades, 1):
            if metric == "rr" and yi > 0 and yj == 0:
                weight = abs((1 / i if i <= cut else 0) - (1 / j if j <= cut else 0))
            elif metric == "ndcg" and yi > yj:
                discounts = [1 / math.log2(1 + r) if r <= cut else 0 for r in (i, j)]
                weight = (2**yi - 2**yj) / ideal * abs(discounts[0] - discounts[1])
            else:
                continue
            costs.append(weight * math.log(1 + math.exp(scores[j - 1] - scores[i - 1])))
    return sum(costs) / len(costs) if costs else 0.0


@pytest.mark.parametrize("name", ["found", "not_found_appended"])
def test_loss_gradient_and_lists_equal_the_authors(name: str):
    case: dict[str, Any] = GOLDENS[name]
    documents = torch.tensor(case["passage_embeddings"], dtype=DOUBLE)
    queries = torch.tensor(case["query_embeddings"], dtype=DOUBLE, requires_grad=True)
    found = (queries @ documents.T).topk(case["top_k"], dim=1).indices
    assert found.tolist() == case["retrieved"]
    relevant = padded(case["relevant"])
    lists = append_unfound(found, relevant, torch.ones(relevant.shape))
    scores = (queries[:, None, :] * documents[lists.rows.clamp(min=0)]).sum(dim=2)
    loss = adore_loss(scores, lists, metric_cut=case["metric_cut"])
    loss.backward()
    assert loss.item() == pytest.approx(case["loss"], rel=1e-7)
    torch.testing.assert_close(queries.grad, torch.tensor(case["grad_query"], dtype=DOUBLE), rtol=1e-7, atol=1e-9)


def test_the_metric_cut_is_required():
    """The published code takes None, which makes every weight and the whole loss 0."""
    with pytest.raises(TypeError, match="metric_cut"):
        adore_loss(torch.zeros(1, 2), lists_of([[0, 1]]))  # pyright: ignore[reportCallIssue]


def test_ndcg_weights_are_lambdarank_s():
    case = GOLDENS["lambdarank"]
    predictions, labels = torch.tensor(case["y_pred"], dtype=DOUBLE), torch.tensor(case["y_true"], dtype=DOUBLE)
    total, count = 0.0, 0
    for scores, grades in zip(predictions, labels, strict=True):
        scores, grades = scores[grades >= 0], grades[grades >= 0]
        order = scores.argsort(descending=True)
        scores, grades = scores[order], grades[order]
        ranks = torch.arange(1, len(scores) + 1, dtype=DOUBLE)
        gains = (2**grades - 1) / ideal_dcg(grades[None], len(grades))
        weights = delta_ndcg(ranks[:, None], ranks[None, :], gains[:, None], gains[None, :], len(grades))
        costs = weights * torch.nn.functional.softplus(scores[None, :] - scores[:, None]) / math.log(2)
        pairs = grades[:, None] > grades[None, :]
        total += float(costs[pairs].sum())
        count += int(pairs.sum())
    assert total / count == pytest.approx(case["loss"], rel=1e-5)  # 32-bit constants inside the published code


@pytest.mark.parametrize("metric", ["rr", "ndcg"])
@pytest.mark.parametrize("cut", [2, 5, 10])
def test_the_loss_is_the_sum_written_out(metric: Any, cut: int):
    generator = torch.Generator().manual_seed(cut)
    scores = torch.randn(6, 8, generator=generator, dtype=DOUBLE)
    grades = torch.randint(0, 4, (6, 8), generator=generator) * (torch.rand(6, 8, generator=generator) < 0.5)
    grades[0] = 0  # nothing to learn from
    expected = [by_hand(s, g, cut, metric) for s, g in zip(scores.tolist(), grades.tolist(), strict=True)]
    lists = RankedLists(torch.arange(8).expand(6, 8), grades.float())
    loss = adore_loss(scores, lists, metric_cut=cut, metric=metric)
    assert loss.item() == pytest.approx(sum(expected) / 6, rel=1e-6)


def test_padding_costs_nothing_and_takes_no_rank():
    scores = torch.tensor([[3.0, 9.0, 1.0, 2.0, 9.0]], requires_grad=True)
    whole = adore_loss(scores, lists_of([[0, -1, 1, 0, -1]]), metric_cut=3)
    assert whole.item() == pytest.approx(by_hand([3.0, 1.0, 2.0], [0, 1, 0], 3, "rr"), rel=1e-6)
    whole.backward()
    assert scores.grad is not None
    assert scores.grad[0, [1, 4]].tolist() == [0, 0]


def test_relevant_documents_are_appended_only_where_none_was_found():
    found = torch.tensor([[4, 2, 7], [1, 0, 3], [9, 8, -1]])
    relevant = torch.tensor([[2, 5, -1], [5, -1, 6], [-1, -1, -1]])
    grades = torch.tensor([[2.0, 1.0, 1.0], [1.0, 1.0, 3.0], [1.0, 1.0, 1.0]])
    lists = append_unfound(found, relevant, grades)
    assert lists.rows.tolist() == [[4, 2, 7, -1, -1], [1, 0, 3, 5, 6], [9, 8, -1, -1, -1]]
    assert lists.grades.tolist() == [[0, 2, 0, 0, 0], [0, 0, 0, 1, 3], [0, 0, 0, 0, 0]]


def test_nothing_to_append_makes_no_columns():
    lists = append_unfound(torch.tensor([[4, 2]]), torch.tensor([[2]]), torch.ones(1, 1))
    assert lists.rows.tolist() == [[4, 2]]


def test_documents_of_equal_discount_can_be_exchanged():
    """Beyond the cut all discounts are 0: the order of the non-relevant documents there changes nothing."""
    grades = [[0.0, 1.0, 0.0, 0.0, 0.0]]
    scores = torch.tensor([[5.0, 4.0, 3.0, 2.5, 0.5]], dtype=DOUBLE)
    loss = adore_loss(scores, lists_of(grades), metric_cut=2)
    moved = adore_loss(scores[:, [0, 1, 4, 2, 3]], lists_of(grades), metric_cut=2)
    assert loss.item() == pytest.approx(moved.item(), rel=1e-12)


def test_a_perfect_ranking_with_wide_gaps_costs_nothing():
    scores = torch.tensor([[900.0, 0.0, -10.0]])
    assert adore_loss(scores, lists_of([[1, 0, 0]]), metric_cut=3).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("metric", ["rr", "ndcg"])
def test_large_gaps_do_not_overflow_and_half_precision_is_widened(metric: Any):
    """log(1 + exp(x)) is infinite in float32 above 88."""
    scores = torch.tensor([[30000.0, 200.0, -30000.0]], dtype=torch.float16, requires_grad=True)
    loss = adore_loss(scores, lists_of([[0, 0, 1]]), metric_cut=3, metric=metric)
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
    loss.backward()
    assert scores.grad is not None
    assert torch.isfinite(scores.grad).all()


def test_an_exchange_near_the_top_weighs_more():
    ranks = torch.arange(1, 6)
    weights = delta_rr(ranks[:-1], ranks[1:], 4)
    assert weights.tolist() == pytest.approx([1 / 2, 1 / 6, 1 / 12, 1 / 4])  # the last falls out of the cut
    assert (delta_rr(torch.tensor([7]), torch.tensor([9]), 4) == 0).all()


def test_the_ideal_of_all_judgments_lowers_ndcg_weights():
    lists, scores = lists_of([[0, 2, 0]]), torch.zeros(1, 3)
    own = adore_loss(scores, lists, metric_cut=3, metric="ndcg")
    all_judged = adore_loss(
        scores, lists, metric_cut=3, metric="ndcg", ideal=ideal_dcg(torch.tensor([[2.0, 2.0, 1.0]]), 3)
    )
    assert 0 < all_judged.item() < own.item()
