"""InfoNCE's variants (focal, symmetric, joint, hardness, guide), and hard-negative mixing."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from rtk.retrieval.losses.contrastive import (
    add_hardness,
    direction_scores,
    guide_mask,
    in_batch_scores,
    info_nce,
    info_nce_over,
    same_type_scores,
)
from rtk.retrieval.losses.mixing import MixDraw, draw_mixes, mix_list, mix_pairs

FOLDER = Path(__file__).parent / "goldens"
LIBRARY = json.loads((FOLDER / "st_losses.json").read_text())
GRADCACHE = json.loads((FOLDER / "infonce_gradcache.json").read_text())
QD, DQ, QQ, DD = "query-document", "document-query", "query-query", "document-document"
PP = "positive-positive"
MNRL = {case["case"]: case for case in LIBRARY["mnrl"]}


def double(values: object) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def random(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def cosine(first: torch.Tensor, second: torch.Tensor, scale: float = 20) -> torch.Tensor:
    return in_batch_scores(first, second, similarity="cosine", scale=scale)


def check(loss: torch.Tensor, leaves: list[torch.Tensor], case: dict) -> None:
    loss.backward()
    assert loss.item() == pytest.approx(case["loss"], rel=1e-7)
    for leaf, expected in zip(leaves, case["grads"], strict=True):
        torch.testing.assert_close(leaf.grad, double(expected), rtol=1e-7, atol=1e-9)


def columns_of(case: dict) -> list[torch.Tensor]:
    return [double(column).requires_grad_() for column in LIBRARY["mnrl_embeddings"][: case["n_columns"]]]


# --- equal to sentence-transformers ---


def test_symmetric_equals_sentence_transformers():
    case = MNRL["symmetric, one softmax per direction"]
    queries, positives = leaves = columns_of(case)
    pools = [cosine(queries, positives), cosine(positives, queries)]
    check(info_nce_over(pools[0].diagonal(), pools, joint=False), leaves, case)


def test_joint_over_four_directions_equals_sentence_transformers():
    case = MNRL["all four directions, joint softmax (Qwen3/GTE style)"]
    queries, positives, negatives = leaves = columns_of(case)
    size, documents = len(queries), torch.cat([positives, negatives])
    own = torch.arange(size)[:, None] + size * torch.arange(2)
    pools = [
        cosine(queries, documents),
        same_type_scores(cosine(queries, queries), own[:, :1]),
        cosine(positives, queries),
        same_type_scores(cosine(positives, documents), own),
    ]
    check(info_nce_over(pools[0].diagonal(), pools), leaves, case)


@pytest.mark.parametrize(
    ("name", "negatives", "strength"),
    [
        ("hardness on in-batch negatives alpha=9", "in-batch", 9),
        ("hardness on all negatives alpha=5", "all", 5),
    ],
)
def test_hardness_equals_sentence_transformers(name: str, negatives: str, strength: float):
    case = MNRL[name]
    queries, positives, hard = leaves = columns_of(case)
    size, documents = len(queries), torch.cat([positives, hard])
    own = torch.arange(size)[:, None] + size * torch.arange(2)
    similarities = cosine(queries, documents, 1)
    scores = add_hardness(20 * similarities, similarities, own, strength=strength, negatives=negatives)
    check(info_nce(scores, own[:, 0]), leaves, case)


@pytest.mark.parametrize("case", LIBRARY["gist"], ids=lambda case: f"{case['margin_strategy']}-{case['n_columns']}")
def test_guided_masks_equal_gist(case: dict):
    count = case["n_columns"]
    leaves = [double(column).requires_grad_() for column in LIBRARY["gist_embeddings"][:count]]
    guides = [double(column) for column in LIBRARY["gist_guide_embeddings"][:count]]
    directions = [QD] + [QQ] * case["contrast_anchors"] + [PP] * case["contrast_positives"]
    own = torch.arange(len(leaves[0]))[:, None] + len(leaves[0]) * torch.arange(count - 1)
    pools, seen = (
        direction_scores(partial(cosine, scale=scale), vectors[0], vectors[0], torch.cat(vectors[1:]), own, directions)
        for vectors, scale in ((leaves, 1 / case["temperature"]), (guides, 1))
    )
    bound = seen[0].gather(1, own[:, :1]).squeeze(1)
    masks = [guide_mask(pool, bound, margin=case["margin"], strategy=case["margin_strategy"]) for pool in seen]
    masks[0] = masks[0].scatter(1, own[:, :1], True)
    positive = pools[0].diagonal()
    pools = [pool.masked_fill(~mask, -torch.inf) for pool, mask in zip(pools, masks, strict=True)]
    check(info_nce_over(positive, pools), leaves, case)


SETTINGS = [
    ((QD,), True, None),
    ((QD, DQ), False, None),
    ((QD, DQ), True, None),
    ((QD, QQ), True, None),
    ((QD, QQ, DQ, DD), True, None),
    ((QD,), True, "in-batch"),
    ((QD,), True, "hard"),
    ((QD,), True, "all"),
    ((QD, QQ, DQ, DD), True, "hard"),
]


@pytest.mark.parametrize(("directions", "joint", "negatives"), SETTINGS)
@pytest.mark.parametrize("hard", [0, 3])
def test_every_setting_equals_the_library_run_here(
    directions: tuple[str, ...], joint: bool, negatives: str | None, hard: int
):
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    theirs = [random(40 + at, 5, 7).requires_grad_() for at in range(2 + hard)]
    library = MultipleNegativesRankingLoss(
        torch.nn.Identity(),
        scale=15,
        directions=[name.replace("-", "_to_").replace("document", "doc") for name in directions],
        partition_mode="joint" if joint else "per_direction",
        hardness_mode={None: None, "in-batch": "in_batch_negatives"}.get(negatives, f"{negatives}_negatives"),
        hardness_strength=6.0 if negatives else 0.0,
    )
    expected = library.compute_loss_from_embeddings(theirs, None)
    expected.backward()
    ours = [column.detach().clone().requires_grad_() for column in theirs]
    documents, own = torch.cat(ours[1:]), torch.arange(5)[:, None] + 5 * torch.arange(1 + hard)
    pools = direction_scores(lambda a, b: cosine(a, b, 15), ours[0], ours[0], documents, own, directions)
    if negatives:
        pools[0] = add_hardness(pools[0], pools[0].detach() / 15, own, strength=6.0, negatives=negatives)
    loss = info_nce_over(pools[0].diagonal(), pools, joint=joint)
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-9)
    for mine, theirs_ in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, theirs_.grad, rtol=1e-8, atol=1e-12)


def test_expanded_negatives_are_other_queries_and_other_positives():
    queries, positives, negatives = (random(60 + at, 3, 5) for at in range(3))
    documents, own = torch.cat([positives, negatives]), torch.arange(3)[:, None] + 3 * torch.arange(2)
    pools = direction_scores(cosine, queries, queries, documents, own, (QD, QQ, PP))
    expected = 0.0
    for i in range(3):
        others = [j for j in range(3) if j != i]
        total = cosine(queries, documents)[i].exp().sum()
        total = total + cosine(queries, queries)[i, others].exp().sum()
        total = total + cosine(positives, positives)[i, others].exp().sum()
        expected = expected + (total.log() - cosine(queries, positives)[i, i]) / 3
    assert info_nce_over(pools[0].diagonal(), pools).item() == pytest.approx(expected.item(), rel=1e-12)


# --- focal weight ---


def test_focal_weight_is_the_sum_written_out():
    scores = random(0, 4, 6)
    expected = 0.0
    for i, row in enumerate(scores.tolist()):
        p = math.exp(row[i]) / sum(map(math.exp, row))
        expected -= (1 - p) ** 0.5 * math.log(p) / 4
    assert info_nce(scores, torch.arange(4), gamma=0.5).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("case", GRADCACHE["infonce"], ids=lambda case: str(case["n_hard_negatives"]))
def test_gamma_zero_is_the_published_infonce(case: dict):
    queries, passages = double(case["query"]), double(case["passages_grouped_pos_first"])
    targets = torch.arange(len(queries)) * (1 + case["n_hard_negatives"])
    loss = info_nce(in_batch_scores(queries, passages), targets, gamma=0.0)
    assert loss.item() == pytest.approx(case["loss"], rel=1e-9)


def test_the_focal_weight_is_a_constant_unless_asked():
    scores, target = random(1, 1, 5), torch.zeros(1, dtype=torch.int64)
    gradients = []
    for gamma, detach in ((0.0, True), (0.5, True), (0.5, False)):
        leaf = scores.clone().requires_grad_()
        info_nce(leaf, target, gamma=gamma, detach_weight=detach).backward()
        gradients.append(leaf.grad)
    weight = (1 - scores.softmax(1)[0, 0]) ** 0.5
    torch.testing.assert_close(gradients[1], weight * gradients[0])
    assert not torch.allclose(gradients[1], gradients[2])


def test_an_easy_query_counts_less_and_a_solved_one_gives_no_nan():
    easy, hard = double([[3.0, 0.0]]), double([[0.0, 3.0]])
    target = torch.zeros(1, dtype=torch.int64)
    shares = [(info_nce(s, target, gamma=0.5) / info_nce(s, target)).item() for s in (easy, hard)]
    assert shares[0] < shares[1]
    solved = torch.tensor([[90.0, -90.0]], requires_grad=True)
    info_nce(solved, target, gamma=0.5, detach_weight=False).backward()
    assert solved.grad is not None
    assert solved.grad.isfinite().all()


# --- pools, hardness, guide ---


def test_one_pool_is_plain_infonce():
    scores = random(2, 4, 8)
    expected = info_nce(scores, torch.arange(4), gamma=0.7).item()
    positive = scores[torch.arange(4), torch.arange(4)]
    for joint in (True, False):
        assert info_nce_over(positive, [scores], joint=joint, gamma=0.7).item() == pytest.approx(expected)


def test_hardness_leaves_the_positive_and_gives_no_gradient_of_its_own():
    scores, own = random(3, 3, 9), torch.arange(3)[:, None] + 3 * torch.arange(3)
    touched = {}
    for kind in ("in-batch", "hard", "all"):
        similarities = torch.ones(3, 9, dtype=torch.float64, requires_grad=True)
        changed = add_hardness(scores, similarities, own, strength=2.0, negatives=kind)
        touched[kind] = (changed - scores) / 2
        assert not changed.requires_grad
        assert (touched[kind].gather(1, own[:, :1]) == 0).all()
    assert (touched["hard"].sum(1) == 2).all()
    assert (touched["in-batch"].sum(1) == 6).all()
    torch.testing.assert_close(touched["all"], touched["hard"] + touched["in-batch"])


def test_guide_keeps_what_it_has_not_scored_and_what_is_clearly_below():
    guide = double([[0.8, 0.75, 0.5, math.nan, 0.9]])
    assert guide_mask(guide, guide[:, 0], margin=0.1).tolist() == [[False, False, True, True, False]]
    negative = double([[-1.0, -1.4, -1.6]])  # relative to a negative positive the bound goes down too
    assert guide_mask(negative, negative[:, 0], margin=0.5, strategy="relative").tolist() == [[False, False, True]]


# --- mixing ---


def test_pairs_are_mixed_as_written_and_shares_of_zero_and_one_give_originals_back():
    negatives = F.normalize(random(4, 3, 4, 5), dim=-1)
    first, second = torch.tensor([0, 3, 1]), torch.tensor([2, 1, 0])
    draw = MixDraw(first, second, double([0.0, 1.0, 0.25]))
    mixed = mix_pairs(negatives, draw)
    torch.testing.assert_close(mixed[0], negatives[0, 2])
    torch.testing.assert_close(mixed[1], negatives[1, 3])
    torch.testing.assert_close(mixed[2], F.normalize(0.25 * negatives[2, 1] + 0.75 * negatives[2, 0], dim=0))


def test_lists_are_mixed_by_similarity_to_the_query():
    queries, negatives = F.normalize(random(5, 3, 6), dim=-1), F.normalize(random(6, 3, 4, 6), dim=-1)
    mixed = mix_list(queries, negatives, scale=7.0)
    shares = torch.stack([(7 * negatives[i] @ queries[i]).softmax(0) for i in range(3)])
    expected = torch.stack([F.normalize(shares[i] @ negatives[i], dim=0) for i in range(3)])
    torch.testing.assert_close(mixed, expected)
    torch.testing.assert_close(mixed.norm(dim=1), torch.ones(3, dtype=torch.float64))
    hardest = (negatives @ queries[:, :, None]).squeeze(2).argmax(1)
    torch.testing.assert_close(mix_list(queries, negatives, scale=1e6), negatives[torch.arange(3), hardest])


def test_draws_are_a_function_of_seed_and_batch_and_leave_global_randomness_alone():
    before = torch.random.get_rng_state()
    draw, again = (draw_mixes(64, 5, seed=3, number=9) for _ in range(2))
    assert torch.equal(draw.shares, again.shares)
    assert torch.equal(draw.first, again.first)
    assert not torch.equal(draw.shares, draw_mixes(64, 5, seed=3, number=10).shares)
    assert not torch.equal(draw.shares, draw_mixes(64, 5, seed=4, number=9).shares)
    assert torch.equal(before, torch.random.get_rng_state())
    assert (draw.first != draw.second).all()
    assert set(draw.second.tolist()) == set(range(5))


def test_shares_are_beta_distributed():
    shares = draw_mixes(20000, 2, seed=0, number=0).shares
    assert shares.mean().item() == pytest.approx(0.5, abs=0.01)
    assert shares.var().item() == pytest.approx(0.05, abs=0.003)  # Beta(2, 2)


def test_one_negative_cannot_be_mixed():
    with pytest.raises(ValueError, match="two negatives"):
        draw_mixes(4, 1, seed=0, number=0)


def test_gradient_flows_into_what_is_mixed():
    negatives = random(7, 2, 3, 4).requires_grad_()
    (mix_pairs(negatives, draw_mixes(2, 3, seed=0, number=0)) * random(8, 2, 4)).sum().backward()
    assert negatives.grad is not None
    assert ((negatives.grad.abs().sum(2) > 0).sum(1) == 2).all()


def test_the_target_stays_whatever_the_mask_says():
    scores, targets = random(12, 3, 5), torch.tensor([2, 0, 4])
    allowed = torch.rand(3, 5, generator=torch.Generator().manual_seed(0)) > 0.4
    losses = [info_nce(scores, targets, allowed.scatter(1, targets[:, None], value)) for value in (True, False)]
    assert losses[0].item() == losses[1].item()
    assert losses[0].isfinite()
