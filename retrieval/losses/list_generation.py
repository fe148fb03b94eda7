"""What a language model pays for the permutation that it should write, and for the order of its first-token logits.

FIRST (Gangi Reddy et al. 2024) joins both; FullRank (Liu et al. 2024) weighs the tokens by whose identifier they write.
Shapes: B lists, T target tokens, V words, N documents.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from .ranking import Lambda, lambda_loss, list_net, rank_net

__all__ = [
    "PUBLISHED_WEIGHTS",
    "RankLoss",
    "dealt_labels",
    "first_token_loss",
    "importance_weights",
    "list_gains",
    "token_costs",
    "with_pairs",
]

RankLoss = Literal["weighted-ranknet", "ranknet", "lambdarank", "listnet"]
PUBLISHED_WEIGHTS: dict[RankLoss, float] = {"weighted-ranknet": 10.0, "ranknet": 1.0, "lambdarank": 1.0, "listnet": 0.1}
"""λ of FIRST's joint objective L_LM + λ L_rank, by ranking loss."""


def token_costs(logits: Tensor, targets: Tensor) -> Tensor:
    """−log P(target) at every position, in float32; 0 where the target is −100.

    Args:
        logits: (B, T, V), those after which the target stands.
        targets: (B, T) int64.

    Returns:
        (B, T).
    """
    return F.cross_entropy(logits.float().transpose(1, 2), targets, ignore_index=-100, reduction="none")


def importance_weights(numbers: Tensor) -> Tensor:
    """FullRank's weight of each target token: 1 + 1 / log2(p + 1) for tokens of the p-th identifier, 1 for others.

    The cost is Σ weight · −log P over the number of target tokens, not over the sum of the weights, as published. Which
    token belongs to which identifier is said by offsets; the published code knows the separator by one tokenizer's
    number of it, and with any other tokenizer gives every token weight 2.

    Args:
        numbers: (B, T) int, p from 1; 0 for separators, the end, and what is no target.
    """
    place = numbers.clamp(min=1).to(torch.float32)
    return torch.where(numbers > 0, 1 + 1 / torch.log2(place + 1), torch.ones_like(place))


def first_token_loss(
    scores: Tensor, levels: Tensor, valid: Tensor, kind: RankLoss = "weighted-ranknet", *, dealt: bool = False
) -> Tensor:
    """FIRST's ranking loss over the identifiers' logits, a mean over the lists that have a pair (ListNet: over all).

    Both RankNets depend on the order of `levels` alone. For the other two the targets are fixed (`list_gains`); with
    `dealt` they are the model's own logits, dealt out in the target order, as published but without the gradient that
    the published code lets flow into its targets. LambdaRank is the published code's, `ndcg-loss2` here.

    Args:
        scores: (B, N) logits.
        levels: (B, N), larger is better; equal levels are no pair.
        valid: (B, N) bool, False at padding.
        kind: which loss.
        dealt: see above.
    """
    if kind in ("weighted-ranknet", "ranknet"):
        return rank_net(scores, levels, valid, pair_weight="inverse-rank" if kind == "weighted-ranknet" else "none")
    labels = dealt_labels(scores, levels, valid) if dealt else list_gains(levels, valid)
    if kind == "listnet":
        return list_net(scores, labels, valid, epsilon=0.0)
    lists = zip(scores.split(1), labels.split(1), valid.split(1), strict=True)
    costs = torch.stack([lambda_loss(*each, settings=Lambda("ndcg-loss2")) for each in lists])
    return costs.sum() / with_pairs(levels, valid).sum().clamp(min=1)


def with_pairs(levels: Tensor, valid: Tensor) -> Tensor:
    """Which lists have two documents of different levels: those that the ranking losses are a mean over. (B,) bool."""
    high = levels.float().masked_fill(~valid, -torch.inf).amax(dim=1)
    low = levels.float().masked_fill(~valid, torch.inf).amin(dim=1)
    return high > low


def list_gains(levels: Tensor, valid: Tensor) -> Tensor:
    """Fixed targets 1 / r, r the rank by level from 1 with ties sharing the best of theirs. (B, N) float32.

    Positive whatever the logits are (the published LambdaRank costs nothing when all of them are negative), and flat
    enough that twenty documents do not all but vanish beside the first in 2^y.
    """
    above = (levels[:, None, :] > levels[:, :, None]) & valid[:, None, :]
    return torch.where(valid, 1.0 / (1 + above.sum(dim=2)).to(torch.float32), 0.0)


def dealt_labels(scores: Tensor, levels: Tensor, valid: Tensor) -> Tensor:
    """The logits themselves, sorted and dealt out in the target order: the best level gets the highest. (B, N)."""
    kept = scores.detach().masked_fill(~valid, -torch.inf).sort(dim=1, descending=True).values
    order = levels.float().masked_fill(~valid, -torch.inf).argsort(dim=1, descending=True, stable=True)
    return torch.zeros_like(kept).scatter(1, order, kept)
