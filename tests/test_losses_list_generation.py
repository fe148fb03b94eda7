"""FIRST's and FullRank's losses: the published figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rtk.retrieval.losses.list_generation import (
    PUBLISHED_WEIGHTS,
    dealt_labels,
    first_token_loss,
    importance_weights,
    list_gains,
    token_costs,
)
from rtk.retrieval.losses.ranking import Lambda, lambda_loss, list_net, rank_net
from rtk.retrieval.training.list_blocks import Prompting
from rtk.retrieval.training.list_prompts import ListWriter

FOLDER = Path(__file__).parent / "goldens" / "rerank"
RANKING = json.loads((FOLDER / "ranking_losses.json").read_text())
FULL_RANK = json.loads((FOLDER / "fullrank_loss.json").read_text())

LOSSES: dict[str, Any] = {
    "ranknet_unweighted": lambda scores, labels: rank_net(scores, labels),
    "ranknet_weighted": lambda scores, labels: rank_net(scores, labels, pair_weight="inverse-rank"),
    "ranknet_weight_by_diff": lambda scores, labels: rank_net(scores, labels, pair_weight="label-difference"),
    "lambdarank_default": lambda scores, labels: lambda_loss(scores, labels, settings=Lambda("ndcg-loss2")),
    "listnet": lambda scores, labels: list_net(scores, labels, labels != -1),  # -1 is padding to the published one
}
CASES = [(case, result) for case in RANKING["losses"] for result in case["results"] if result["loss"] in LOSSES]


def with_gradient(loss: Any, scores: Any, labels: Any) -> tuple[float, Tensor]:
    given = torch.tensor(scores, dtype=torch.float32, requires_grad=True)
    value = loss(given, torch.tensor(labels, dtype=torch.float32))
    (gradient,) = torch.autograd.grad(value, given)
    return float(value.detach()), gradient


@pytest.mark.parametrize(("case", "result"), CASES, ids=[f"{c['case']}-{r['loss']}" for c, r in CASES])
def test_published_values_and_gradients(case: dict[str, Any], result: dict[str, Any]) -> None:
    value, gradient = with_gradient(LOSSES[result["loss"]], case["y_pred"], case["y_true"])
    assert value == pytest.approx(result["value"], abs=1e-6, rel=1e-6)
    np.testing.assert_allclose(gradient.numpy(), result["grad"], atol=1e-6)


KINDS = {
    "ranknet_unweighted": "ranknet", "ranknet_weighted": "weighted-ranknet",
    "listnet": "listnet", "lambdarank_default": "lambdarank",
}  # fmt: skip


@pytest.mark.parametrize("case", RANKING["self_label_losses"], ids=lambda case: f"{case['loss']}-{len(case['scores'])}")
def test_targets_dealt_from_the_models_own_logits_carry_no_gradient(case: dict[str, Any]) -> None:
    """Values as published; gradients as the published loss has them with its targets detached."""
    levels = -torch.tensor([case["rank_of_each_passage"]])

    def loss(scores: Tensor, _: Tensor) -> Tensor:
        kind: Any = KINDS[case["loss"]]
        return first_token_loss(scores, levels, torch.ones_like(levels, dtype=torch.bool), kind, dealt=True)

    value, gradient = with_gradient(loss, [case["scores"]], [[0.0]])
    assert value == pytest.approx(case["value"], abs=1e-6, rel=1e-6)
    np.testing.assert_allclose(gradient.numpy()[0], case["grad_if_targets_detached"], atol=1e-6)


def test_a_batch_is_the_mean_of_its_lists_and_padding_costs_nothing() -> None:
    scores = torch.tensor([[0.3, -1.0, 2.0, 9.0], [1.0, 0.5, -0.2, 0.1]])
    levels = torch.tensor([[1, 3, 2, 0], [4, 3, 2, 1]])
    valid = torch.tensor([[True, True, True, False], [True] * 4])
    for kind in PUBLISHED_WEIGHTS:
        parts = [
            first_token_loss(scores[:1, :3], levels[:1, :3], valid[:1, :3], kind),
            first_token_loss(scores[1:], levels[1:], valid[1:], kind),
        ]
        together = first_token_loss(scores, levels, valid, kind)
        assert float(together) == pytest.approx(float(sum(parts)) / 2, rel=1e-5)


def test_fixed_targets_do_not_follow_the_logits() -> None:
    levels, valid = torch.tensor([[5, 7, 5, 1]]), torch.tensor([[True, True, True, False]])
    assert list_gains(levels, valid).tolist() == [[0.5, 1.0, 0.5, 0.0]]
    dealt = dealt_labels(torch.tensor([[0.1, -3.0, 2.0, 9.0]]), levels, valid)
    np.testing.assert_allclose(dealt.numpy()[:, :3], [[0.1, 2.0, -3.0]])
    negative = torch.tensor([[-1.0, -3.0, -2.0, -9.0]])
    assert float(first_token_loss(negative, levels, valid, "lambdarank")) > 0
    assert float(first_token_loss(negative, levels, valid, "lambdarank", dealt=True)) == 0  # as published


# --- with the model that the figures were made with ---


@pytest.fixture(scope="module")
def golden_model(rerank_goldens: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = rerank_goldens / "tiny-llama-3-rerank"
    return AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval(), AutoTokenizer.from_pretrained(folder)


def logits_of(model: Any, ids: list[list[int]]) -> Tensor:
    with torch.inference_mode():
        return model(input_ids=torch.tensor(ids)).logits


NAMES = {
    "ranknet_weighted": "weighted-ranknet", "ranknet": "ranknet", "lambda": "lambdarank", "listnet": "listnet",
}  # fmt: skip


@pytest.mark.parametrize("run", RANKING["combined_objective"]["runs"], ids=lambda run: run["pad_token"])
def test_the_joint_objective_at_the_published_positions(run: dict[str, Any], golden_model: tuple[Any, Any]) -> None:
    """The losses alone: ids, targets and the position of the ranking loss are what the published code made.

    Where padding is the end token that position is not the opening bracket, and the figures are those of a bug; what
    the library makes of these examples itself is in test_first_objective.
    """
    model, tokenizer = golden_model
    tokens = ListWriter(tokenizer, 8192, Prompting(identifiers="letters")).identifier_tokens(5)
    logits, targets = logits_of(model, run["input_ids"]), torch.tensor(run["labels"])[:, 1:]
    counts = torch.tensor([len(ranks) for ranks in run["rank_labels"]])
    scores = logits[torch.arange(2), torch.tensor(run["source_lens"])][:, tokens]
    levels = -torch.nn.utils.rnn.pad_sequence([torch.tensor(each) for each in run["rank_labels"]], batch_first=True)
    valid = torch.arange(5)[None] < counts[:, None]
    generation = float(token_costs(logits[:, :-1], targets).sum() / (targets >= 0).sum())
    for name, expected in run["results"].items():
        kind: Any = NAMES[name]
        loss = float(first_token_loss(scores, levels, valid, kind, dealt=True))
        if kind == "listnet":  # the published one adds 1e-10 to probabilities
            loss = float(list_net(scores, dealt_labels(scores, levels, valid), valid, epsilon=1e-10))
        # Logits are float32, and differ from processor to processor.
        assert loss == pytest.approx(expected["rank"], rel=1e-5), name
        assert PUBLISHED_WEIGHTS[kind] == expected["weight_of_rank"]
        assert generation == pytest.approx(expected["generation_alone"], rel=1e-5)
        assert generation + PUBLISHED_WEIGHTS[kind] * loss == pytest.approx(expected["total"], rel=1e-6)


@pytest.mark.parametrize("case", FULL_RANK["cases"], ids=lambda case: case["case"])
def test_the_importance_aware_loss(case: dict[str, Any], golden_model: tuple[Any, Any]) -> None:
    targets = torch.tensor(case["labels"])[:, 1:]
    costs = token_costs(logits_of(golden_model[0], case["input_ids"])[:, :-1], targets)
    count = (targets >= 0).sum()
    assert float(costs.sum() / count) == pytest.approx(case["plain_lm_loss"], rel=1e-5)
    separator = targets == FULL_RANK["separator_token_id"]
    numbers = torch.where((targets >= 0) & ~separator, separator.cumsum(dim=1) + 1, 0)
    found = float((costs * importance_weights(numbers)).sum() / count)
    assert found == pytest.approx(case["importance_aware_loss"], rel=1e-5)


def test_the_weights_of_a_permutation() -> None:
    numbers = torch.tensor([[1, 1, 1, 0, 2, 2, 2, 0, 3, 3, 3, 0]])
    weights = importance_weights(numbers)[0].tolist()
    expected = [2.0] * 3 + [1.0] + [1 + 1 / np.log2(3)] * 3 + [1.0] + [1.5] * 3 + [1.0]
    np.testing.assert_allclose(weights, expected, rtol=1e-6)
