"""Losses against a float64 reference of a few lines, the authors' own numbers, and their properties."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from rtk.retrieval.losses.contrastive import in_batch_scores, info_nce
from rtk.retrieval.losses.ranking import (
    Lambda,
    binary_cross_entropy,
    lambda_loss,
    list_net,
    listwise_softmax,
    rank_net,
)

GOLDENS = json.loads((Path(__file__).parent / "goldens" / "losses.json").read_text())
DOUBLE = torch.float64


def double(values: object) -> torch.Tensor:
    return torch.tensor(values, dtype=DOUBLE)


def random_lists(seed: int, *shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=DOUBLE, generator=generator), torch.randint(0, 4, shape, generator=generator)


# --- InfoNCE ---


def test_info_nce_is_the_sum_written_out():
    scores, _ = random_lists(0, 4, 9)
    targets, allowed = torch.tensor([0, 1, 2, 3]), torch.rand(4, 9, generator=torch.Generator().manual_seed(1)) > 0.3
    expected = 0.0
    for i in range(4):
        kept = [math.exp(scores[i, j]) for j in range(9) if allowed[i, j] or j == i]
        expected -= math.log(math.exp(scores[i, i]) / sum(kept)) / 4
    assert info_nce(scores, targets, allowed).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("case", GOLDENS["mnrl"]["cases"][:2], ids=lambda case: case["case"])
def test_info_nce_equals_sentence_transformers(case: dict):
    columns = [double(column).requires_grad_() for column in GOLDENS["mnrl"]["embeddings"][: case["n_columns"]]]
    scores = in_batch_scores(columns[0], torch.cat(columns[1:]), similarity="cosine", scale=20)
    loss = info_nce(scores, torch.arange(len(scores)))
    loss.backward()
    assert loss.item() == pytest.approx(case["loss"], rel=1e-7)
    for column, expected in zip(columns, case["grads"], strict=True):
        torch.testing.assert_close(column.grad, double(expected), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("case", GOLDENS["infonce"]["cases"], ids=lambda case: str(case["n_hard_negatives"]))
def test_info_nce_equals_gradcache(case: dict):
    queries, passages = (
        double(case["query"]).requires_grad_(),
        double(case["passages_grouped_pos_first"]).requires_grad_(),
    )
    targets = torch.arange(len(queries)) * (1 + case["n_hard_negatives"])
    loss = info_nce(in_batch_scores(queries, passages), targets)
    loss.backward()
    assert loss.item() == pytest.approx(case["loss"], rel=1e-9)
    torch.testing.assert_close(queries.grad, double(case["grad_query"]), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(passages.grad, double(case["grad_passages"]), rtol=1e-9, atol=1e-12)


def test_a_masked_document_gets_no_gradient_and_the_target_cannot_be_masked():
    scores = torch.randn(3, 6, dtype=DOUBLE, requires_grad=True)
    allowed = torch.ones(3, 6, dtype=torch.bool)
    allowed[0, 4] = allowed[1, 1] = False
    info_nce(scores, torch.arange(3), allowed).backward()
    assert scores.grad is not None
    assert scores.grad[0, 4] == 0
    assert scores.grad[1, 1] < 0


def test_scores_are_float32_whatever_the_model_gives():
    vectors = torch.randn(4, 8).to(torch.bfloat16)
    assert in_batch_scores(vectors, vectors, similarity="cosine", scale=20).dtype == torch.float32


# --- ranking losses against references ---


def reference(name: str, s: list[float], y: list[int]) -> float:
    """One list, plain Python."""
    softmax = [math.exp(value) / sum(map(math.exp, s)) for value in s]
    pairs = [(i, j) for i in range(len(s)) for j in range(len(s)) if y[i] > y[j]]
    rank = {i: r for r, i in enumerate(sorted(range(len(s)), key=lambda i: -y[i]), 1)}
    costs = {(i, j): math.log1p(math.exp(s[j] - s[i])) for i, j in pairs}
    if name == "binary":
        return -sum(
            math.log(p if v > 0 else 1 - p) for p, v in zip([1 / (1 + math.exp(-x)) for x in s], y, strict=True)
        ) / len(s)
    if name == "listnet":
        return -sum(math.exp(v) / sum(map(math.exp, y)) * math.log(p) for v, p in zip(y, softmax, strict=True))
    if name == "softmax":
        return -sum(v / sum(y) * math.log(p) for v, p in zip(y, softmax, strict=True))
    if name == "inverse-rank":
        return sum(costs[i, j] / (rank[i] + rank[j]) for i, j in pairs) / len(pairs)
    if name == "label-difference":
        return sum(costs[i, j] * (y[i] - y[j]) for i, j in pairs) / len(pairs)
    return sum(costs.values()) / len(pairs)


FUNCTIONS = {
    "binary": binary_cross_entropy,
    "listnet": list_net,
    "softmax": listwise_softmax,
    "ranknet": rank_net,
    "inverse-rank": lambda s, y, v=None: rank_net(s, y, v, pair_weight="inverse-rank"),
    "label-difference": lambda s, y, v=None: rank_net(s, y, v, pair_weight="label-difference"),
}
ALL = {
    **FUNCTIONS,
    "lambda": lambda_loss,
    "lambdarank": lambda s, y, v=None: lambda_loss(s, y, v, settings=Lambda("lambdarank", 5)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_ranking_loss_is_the_mean_of_its_reference_over_lists(name: str):
    scores, labels = random_lists(2, 5, 7)
    expected = sum(reference(name, s, y) for s, y in zip(scores.tolist(), labels.tolist(), strict=True)) / 5
    assert FUNCTIONS[name](scores, labels).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", ALL)
def test_padding_changes_nothing_and_inputs_stay_as_they_are(name: str):
    scores, labels = random_lists(3, 4, 6)
    padded = torch.cat([scores, torch.full((4, 3), 50.0, dtype=DOUBLE)], 1)
    padded_labels = torch.cat([labels, torch.full((4, 3), 9)], 1)
    valid = torch.arange(9).expand(4, 9) < 6
    before = padded.clone()
    leaf = padded.clone().requires_grad_()
    loss = ALL[name](leaf, padded_labels, valid)
    loss.backward()
    assert loss.item() == pytest.approx(ALL[name](scores, labels).item(), rel=1e-12)
    assert leaf.grad is not None
    assert (leaf.grad[:, 6:] == 0).all()
    assert leaf.grad.isfinite().all()
    assert torch.equal(padded, before)


@pytest.mark.parametrize("name", ALL)
def test_candidates_can_come_in_any_order(name: str):
    scores, _ = random_lists(4, 3, 6)
    labels = torch.stack([torch.randperm(6, generator=torch.Generator().manual_seed(b)) for b in range(3)])
    order = torch.randperm(6, generator=torch.Generator().manual_seed(9))
    moved = ALL[name](scores[:, order], labels[:, order])
    assert moved.item() == pytest.approx(ALL[name](scores, labels).item(), rel=1e-12)


@pytest.mark.parametrize("name", sorted(set(ALL) - {"binary"}))
def test_only_differences_of_scores_count(name: str):
    scores, labels = random_lists(5, 3, 6)
    assert ALL[name](scores + 7, labels).item() == pytest.approx(ALL[name](scores, labels).item(), rel=1e-9)


@pytest.mark.parametrize("name", sorted(set(ALL) - {"listnet"}))
def test_a_better_order_costs_less_and_a_clear_one_nothing(name: str):
    labels = torch.tensor([[1, 0, 0, 0]])
    good, bad = double([[3.0, 0, -1, -2]]), double([[-2.0, 3, 0, -1]])
    assert ALL[name](good, labels) < ALL[name](bad, labels)
    assert ALL[name](double([[90.0, -90, -90, -90]]), labels).item() == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("name", ALL)
def test_lists_without_a_difference_give_no_nan(name: str):
    leaf = torch.randn(2, 4, dtype=DOUBLE, requires_grad=True)
    ALL[name](leaf * 1e4, torch.zeros(2, 4)).backward()
    assert leaf.grad is not None
    assert leaf.grad.isfinite().all()


# --- the authors' numbers ---

PUBLISHED = {
    "ranknet_unweighted": "ranknet",
    "ranknet_weighted": "inverse-rank",
    "ranknet_weight_by_diff": "label-difference",
    "listnet": "listnet",
}


@pytest.mark.parametrize("case", GOLDENS["ranking"]["cases"], ids=lambda case: case["name"])
@pytest.mark.parametrize("published", PUBLISHED)
def test_published_ranking_losses(case: dict, published: str):
    scores, expected = double(case["scores"]).requires_grad_(), case["results"][published]
    labels = double(case["labels"])
    valid = labels != -1 if published == "listnet" else None  # the published code takes a label of -1 for padding
    loss = FUNCTIONS[PUBLISHED[published]](scores, labels, valid)
    loss.backward()
    assert loss.item() == pytest.approx(expected["value"], rel=1e-6)
    torch.testing.assert_close(scores.grad, double(expected["grad"]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", GOLDENS["ranking"]["cases"], ids=lambda case: case["name"])
def test_what_first_calls_lambdarank_is_ndcg_loss2(case: dict):
    scores, expected = double(case["scores"]).requires_grad_(), case["results"]["lambdarank_default"]
    loss = lambda_loss(scores, double(case["labels"]), settings=Lambda("ndcg-loss2"))
    loss.backward()
    assert loss.item() == pytest.approx(expected["value"], rel=1e-5, abs=1e-9)
    torch.testing.assert_close(scores.grad, double(expected["grad"]), rtol=1e-4, atol=1e-6)


SCHEMES = {
    "ndcgLoss1_scheme": "ndcg-loss1",
    "ndcgLoss2_scheme": "ndcg-loss2",
    "lamdbaRank_scheme": "lambdarank",
    "ndcgLoss2PP_scheme": "ndcg-loss2++",
    "rankNet_scheme": "ranknet",
    "None": "ranknet",
    "rankNetWeightedByGTDiff_scheme": "ranknet-difference",
}
LAMBDA_CASES = GOLDENS["lambda"]["cases"]


@pytest.mark.parametrize("case", LAMBDA_CASES, ids=lambda case: f"{case['scheme']}-{case['k']}-{case['reduction']}")
def test_published_lambda_loss(case: dict):
    scores, labels = double(GOLDENS["lambda"]["y_pred"]).requires_grad_(), double(GOLDENS["lambda"]["y_true"])
    settings = Lambda(SCHEMES[str(case["scheme"])], case["k"], reduction=case["reduction"])
    loss = lambda_loss(scores, labels, labels != GOLDENS["lambda"]["padded_value"], settings=settings)
    loss.backward()
    assert loss.item() == pytest.approx(case["loss"], rel=1e-6)
    torch.testing.assert_close(scores.grad, double(case["grad"]), rtol=1e-6, atol=1e-9)


# --- the modules of sentence-transformers ---


def candidate_loss(name: str, model: object, **options: object) -> torch.nn.Module:
    from rtk.retrieval.losses.modules import CandidateLoss
    from rtk.retrieval.losses.options import LOSSES

    return CandidateLoss(model, [LOSSES[name].options(name=name, **options)])


@pytest.mark.parametrize("name", ["listnet", "binary-cross-entropy", "lambda"])
def test_candidate_losses_equal_those_of_sentence_transformers(name: str, tiny_cross_encoder):
    from sentence_transformers.cross_encoder import losses

    queries = ["file", "cell study"]
    documents = [["read the file", "wing", "heat flow"], ["a cell", "protein", "list"]]
    labels = [[2, 0, 1], [1, 0, 0]] if name != "binary-cross-entropy" else [[1, 0, 1], [1, 0, 0]]
    tiny_cross_encoder.eval()
    ours = candidate_loss(name, tiny_cross_encoder)([queries, documents], {"labels": torch.tensor(labels)})[name]
    if name == "binary-cross-entropy":
        flat = [[q for q in queries for _ in range(3)], [d for ds in documents for d in ds]]
        theirs = losses.BinaryCrossEntropyLoss(tiny_cross_encoder)(flat, torch.tensor(labels).flatten().float())
    else:
        kind = {"listnet": losses.ListNetLoss, "lambda": losses.LambdaLoss}[name]
        theirs = kind(tiny_cross_encoder)([queries, documents], [torch.tensor(row).float() for row in labels])
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)


def in_batch(model: object, size: int | None) -> tuple[float, list[torch.Tensor]]:
    """Loss and gradients with dropout on, from one seed."""
    from rtk.retrieval.losses.context import LossContext
    from rtk.retrieval.losses.modules import make_loss
    from rtk.retrieval.losses.options import InfoNCEOptions

    loss = make_loss("bi-encoder", [InfoNCEOptions(name="infonce")], LossContext(model), mini_batch_size=size)
    texts = [["file read", "cell", "wing flow", "heat"], ["read the file", "a cell", "wing", "heat of air"]]
    model.zero_grad()
    model.eval()  # dropout draws per forward: compare without it
    value = loss([model.preprocess(column) for column in texts], {"allowed": torch.ones(4, 4, dtype=torch.bool)})
    total = value if isinstance(value, torch.Tensor) else value["infonce"]
    total.backward()
    return total.item(), [p.grad.clone() for p in model.parameters() if p.grad is not None]


def test_cached_gradients_equal_the_plain_ones(tiny_dense):
    plain, cached = in_batch(tiny_dense, None), in_batch(tiny_dense, 3)
    assert cached[0] == pytest.approx(plain[0], rel=1e-6)
    for ours, theirs in zip(cached[1], plain[1], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_the_in_batch_module_equals_multiple_negatives_ranking(tiny_dense):
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    value, _ = in_batch(tiny_dense, None)
    texts = [["file read", "cell", "wing flow", "heat"], ["read the file", "a cell", "wing", "heat of air"]]
    theirs = MultipleNegativesRankingLoss(tiny_dense)([tiny_dense.preprocess(column) for column in texts], None)
    assert value == pytest.approx(theirs.item(), rel=1e-6)
