"""Ensembles of unlike teachers: targets of the authors' program, constant teachers, missing scores."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from rtk.retrieval.losses.ensemble import ensemble_distillation, ensemble_targets  # noqa: E402

GOLDEN = json.loads((Path(__file__).parent / "goldens" / "sparse" / "teacher_ensemble.json").read_text())
DENSE, SPARSE = (torch.tensor(GOLDEN["inputs"][f"raw_scores_{kind}"]["own"]) for kind in ("dense", "sparse"))


def golden(key):
    return torch.tensor(next(value for name, value in GOLDEN.items() if name.startswith(key)))


@pytest.mark.parametrize("scale", [10, 30])
def test_targets_are_those_of_the_authors_program(scale):
    targets, dropped = ensemble_targets(torch.stack([DENSE, SPARSE]), scale=scale)
    assert torch.allclose(targets, golden(f"dense+sparse, own candidates, score_scale={scale}"), rtol=1e-5, atol=1e-5)
    assert not dropped.any()


def test_one_teacher():
    targets, _ = ensemble_targets(DENSE[None])
    assert torch.allclose(targets, golden("dense only"), rtol=1e-5, atol=1e-5)


def test_a_batch_of_one():
    both = ensemble_targets(torch.stack([DENSE, SPARSE]))[0]
    assert torch.equal(ensemble_targets(torch.stack([DENSE, SPARSE])[:, :1])[0], both[:1])


def test_targets_lie_between_zero_and_the_scale():
    teachers = torch.randn(3, 20, 6, generator=torch.Generator().manual_seed(0)) * 50
    targets, _ = ensemble_targets(teachers, scale=7)
    assert targets.min() >= 0
    assert targets.max() <= 7


def test_moving_or_stretching_a_teacher_changes_nothing():
    first = ensemble_targets(torch.stack([DENSE, SPARSE]))[0]
    assert torch.allclose(ensemble_targets(torch.stack([DENSE * 100 - 7, SPARSE]))[0], first, atol=1e-2)


def test_a_constant_teacher_leaves_the_mean_of_its_query_only():
    flat = torch.tensor([[2.0, 2.0, 2.0], [1.95, 0.6, 0.275]])
    targets, dropped = ensemble_targets(torch.stack([DENSE, flat]))
    assert dropped.tolist() == [[False, False], [True, False]]
    assert torch.equal(targets[0], ensemble_targets(DENSE[None])[0][0])
    assert torch.equal(targets[1], ensemble_targets(torch.stack([DENSE, SPARSE]))[0][1])


def test_a_teacher_without_a_score_is_left_out_but_no_constant_one():
    silent = torch.full((1, 2, 3), torch.nan)
    targets, dropped = ensemble_targets(torch.cat([DENSE[None], silent]))
    assert not dropped.any()
    assert torch.equal(targets, ensemble_targets(DENSE[None])[0])
    one = torch.full((1, 2, 3), torch.nan)
    one[0, 0, 1] = 2.0  # the only score of a list is a constant one
    assert ensemble_targets(torch.cat([DENSE[None], one]))[1].tolist() == [[False, False], [True, False]]


def test_as_published_a_constant_teacher_halves_the_spread():
    constant = torch.full((1, 2, 3), 4.0)
    targets, dropped = ensemble_targets(constant, drop_constant=False)
    assert torch.equal(targets, golden("constant teacher only"))
    assert not dropped.any()
    both, _ = ensemble_targets(torch.cat([DENSE[None], constant]), drop_constant=False)
    assert torch.allclose(both, ensemble_targets(DENSE[None])[0] / 2)


def test_a_list_without_a_teacher_costs_nothing_and_has_no_gradient():
    student = torch.randn(2, 3, requires_grad=True)
    teachers = torch.stack([torch.full((2, 3), 1.0), torch.stack([torch.zeros(3), DENSE[1]])])
    loss = ensemble_distillation(student, teachers)
    loss.backward()
    assert student.grad[0].tolist() == [0, 0, 0]
    alone = ensemble_distillation(student.detach()[1:], DENSE[None, 1:])
    assert torch.allclose(loss.detach(), alone)


def test_an_unscored_document_leaves_the_list():
    teachers = torch.stack([DENSE, SPARSE])
    teachers[1, 0, 2] = torch.nan
    targets, _ = ensemble_targets(teachers)
    assert targets.isnan().tolist() == [[False, False, True], [False] * 3]
    without = ensemble_targets(teachers[:, :1, :2])[0]
    assert not torch.allclose(targets[0, :2], without)  # the dense teacher has all three, and its smallest is the third
    student = torch.randn(2, 3, requires_grad=True)
    ensemble_distillation(student, teachers).backward()
    assert student.grad[0, 2] == 0
    assert student.grad[0, 0] != 0


def test_the_loss_against_a_reference_in_float64():
    student = torch.tensor([[3.0, -1.0, 0.5], [0.0, 2.0, 1.0]], dtype=torch.float64)
    found = ensemble_distillation(student, torch.stack([DENSE, SPARSE]).double())
    total = 0.0
    for row in range(2):
        each = [s[row].numpy().astype(np.float64) for s in (DENSE, SPARSE)]
        target = 30 * np.mean([(s - s.min()) / (s.max() - s.min() + 1e-6) for s in each], axis=0)
        p, q = (np.exp(x) / np.exp(x).sum() for x in (target, student[row].numpy()))
        total += float((p * (np.log(p) - np.log(q))).sum()) / 2
    assert float(found) == pytest.approx(total, rel=1e-9)


# --- as a term ---


def term(family, width=3, **options):
    """The loss over one batch of two queries, from scores of teachers a and b, and what it told."""
    from rtk.retrieval.losses.context import LossContext
    from rtk.retrieval.losses.modules import CandidateLoss, InBatchLoss
    from rtk.retrieval.losses.options import EnsembleOptions

    chosen = EnsembleOptions(name="ensemble-kl", teacher=("a", "b"), similarity="dot", **options)
    context = LossContext(torch.nn.Identity())
    loss = (CandidateLoss if family == "cross-encoder" else InBatchLoss)(torch.nn.Identity(), [chosen], context)
    flat = torch.full_like(SPARSE, 1.0)
    side = {"a": DENSE[:, :width], "b": torch.stack([flat[0], SPARSE[1]])[:, :width], "labels": torch.zeros(2, width)}
    return loss, side, context


def test_vectors_learn_from_the_ensemble(caplog):
    loss, side, context = term("bi-encoder")
    generator = torch.Generator().manual_seed(0)
    columns = [torch.randn(2, 5, generator=generator) for _ in range(4)]
    found = loss.from_embeddings(columns, side)["ensemble-kl"]
    scores = torch.stack([(columns[0] * column).sum(dim=1) for column in columns[1:]], dim=1)
    assert torch.allclose(found, ensemble_distillation(scores, torch.stack([side["a"], side["b"]])))
    loss.from_embeddings(columns, side)
    assert context.metrics.take()["ensemble-kl-constant-teachers"] == 2  # it adds up, where values are averaged
    loss.from_embeddings(columns, side)
    assert context.metrics.take()["ensemble-kl-constant-teachers"] == 1
    assert not caplog.text


def test_two_candidates_are_warned_of_once(caplog):
    loss, side, _ = term("bi-encoder", width=2)
    columns = [torch.randn(2, 5) for _ in range(3)]
    loss.from_embeddings(columns, side)
    loss.from_embeddings(columns, side)
    assert caplog.text.count("its margin is lost") == 1


def test_every_family_can_have_it():
    from rtk.retrieval.losses.options import LOSSES

    assert set(LOSSES["ensemble-kl"].families) == {"bi-encoder", "sparse-encoder", "cross-encoder"}
