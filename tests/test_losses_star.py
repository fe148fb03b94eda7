"""STAR's loss: the authors' numbers, a reference, and its properties."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from rtk.retrieval.losses.star import star_loss, star_sums

GOLDENS = json.loads((Path(__file__).parent / "goldens" / "star_loss.json").read_text())
CASES = {name: case for name, case in GOLDENS.items() if isinstance(case, dict)}


def double(values: object) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("name", CASES)
def test_as_published(name: str):
    case = CASES[name]
    queries, documents = double(case["query_embs"]).requires_grad_(), double(case["doc_embs"]).requires_grad_()
    leaves, size = {"grad_query": queries, "grad_doc": documents}, len(queries)
    every, masks = [documents], [case["rel_pair_mask"] or torch.ones(size, size).tolist()]
    if case["other_doc_embs"] is not None:
        leaves["grad_other"] = double(case["other_doc_embs"]).requires_grad_()
        every.append(leaves["grad_other"].flatten(0, 1))
        masks.append(case["hard_pair_mask"] or torch.ones(size, len(every[1])).tolist())
    allowed = torch.cat([torch.tensor(mask) for mask in masks], 1) > 0
    loss = star_loss(queries @ torch.cat(every).T, torch.arange(size), allowed)
    loss.backward()
    assert loss.item() == pytest.approx(case["loss"], rel=1e-9)
    for key, leaf in leaves.items():
        torch.testing.assert_close(leaf.grad, double(case[key]), rtol=1e-9, atol=1e-12)


def test_is_the_sum_written_out():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(4, 12, dtype=torch.float64, generator=generator)
    allowed = torch.rand(4, 12, generator=generator) > 0.4
    costs = [
        math.log1p(math.exp(scores[i, d] - scores[i, i]))
        for i in range(4)
        for d in range(12)
        if allowed[i, d] and d != i
    ]
    assert star_loss(scores, torch.arange(4), allowed).item() == pytest.approx(sum(costs) / len(costs), rel=1e-12)


def test_large_scores_do_not_overflow_and_the_gradient_stays_finite():
    scores = torch.tensor([[0.0, 500.0], [-500.0, 0.0]], requires_grad=True)
    loss = star_loss(scores, torch.arange(2))
    loss.backward()
    assert loss.item() == pytest.approx(250, rel=1e-3)  # a difference of 500 in one of two pairs
    assert scores.grad is not None
    assert scores.grad.isfinite().all()


def test_it_is_no_softmax_over_candidates():
    """A candidate's gradient does not depend on the others."""
    first = torch.tensor([[1.0, 2.0, -3.0]], requires_grad=True)
    second = torch.tensor([[1.0, 2.0, 9.0]], requires_grad=True)
    for scores in (first, second):
        star_loss(scores, torch.zeros(1, dtype=torch.int64)).backward()
    assert first.grad is not None
    assert second.grad is not None
    assert first.grad[0, 1] == second.grad[0, 1]


def test_all_masked_costs_nothing():
    scores = torch.randn(2, 4, requires_grad=True)
    loss = star_loss(scores, torch.arange(2), torch.zeros(2, 4, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert scores.grad is not None
    assert (scores.grad == 0).all()


def test_the_sums_of_parts_make_the_whole():
    scores = torch.randn(6, 18, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    allowed = torch.rand(6, 18, generator=torch.Generator().manual_seed(2)) > 0.5
    parts = [star_sums(scores[at], torch.arange(6)[at], allowed[at]) for at in (slice(0, 2), slice(2, 6))]
    total, count = (sum(part[at].sum() for part in parts) for at in (0, 1))
    assert (total / count).item() == pytest.approx(star_loss(scores, torch.arange(6), allowed).item(), rel=1e-12)


def test_over_the_documents_of_others_it_is_the_in_batch_ranknet_of_tas_balanced():
    case = json.loads((Path(__file__).parent / "goldens" / "tasb_dual_loss.json").read_text())["ranknet_no_teacher"]
    queries, documents = double(case["query_vecs"]), double(case["pos_vecs"] + case["neg_vecs"])
    size = len(queries)
    allowed = torch.ones(size, 2 * size, dtype=torch.bool)
    allowed[torch.arange(size), size + torch.arange(size)] = False  # its own negative belongs to the pairwise loss
    loss = star_loss(queries @ documents.T, torch.arange(size), allowed)
    assert loss.item() == pytest.approx(case["inbatch_loss"], rel=1e-9)
