"""The losses of listwise language models as modules: a permutation as text, FIRST's joint loss, FullRank's weights.

One forward pass; the head is computed for the answer's positions only. Over several processes, tokens are counted and
lists averaged as if one process had them all.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, cast

import torch
from sentence_transformers.util.distributed import get_world_size
from torch import Tensor, nn

from ...errors import ConfigError
from .batch import Side
from .context import LossContext
from .gathering import gather_constant
from .language_options import FirstOptions
from .list_generation import PUBLISHED_WEIGHTS, first_token_loss, importance_weights, token_costs, with_pairs
from .options import LossOptions

__all__ = ["FirstLoss", "FullRankLoss", "PermutationLoss", "make_first", "make_full_rank", "make_permutation"]


class PermutationLoss(nn.Module):
    """L_LM: −log P of the target permutation, summed over the batch and divided by its number of target tokens.

    Args:
        model: a causal language model of transformers.
        options: `weight`.
        context: where values are logged, and whose configuration says what prompts look like.
    """

    def __init__(self, model: nn.Module, options: LossOptions, context: LossContext) -> None:
        from ..training.language_models import list_writer

        super().__init__()
        self.model, self.options, self.context = model, options, context
        self.writer = list_writer(model, context.config)
        self._cuts_head = "logits_to_keep" in inspect.signature(cast(Any, model).forward).parameters

    def forward(self, network: nn.Module, features: dict[str, Tensor], label: Side) -> dict[str, Tensor]:
        """The terms by name.

        Args:
            network: the model, wrapped for several processes or not.
            features: see `ListCollator`.
            label: see `ListCollator`.
        """
        logits = self._logits(network, features, label["targets"].shape[1] + 1)
        return {self.options.name: self.options.weight * self._generation(logits, label)}

    def _logits(self, network: nn.Module, features: dict[str, Tensor], kept: int) -> Tensor:
        """(B, kept, V) of the last positions."""
        cut = {"logits_to_keep": kept} if self._cuts_head else {}
        return network(**features, use_cache=False, **cut).logits[:, -kept:]

    def _generation(self, logits: Tensor, label: Side) -> Tensor:
        targets = label["targets"]
        costs = token_costs(logits[:, :-1], targets) * self._token_weights(label)
        tokens = gather_constant((targets != -100).sum()[None]).sum()
        return costs.sum() * get_world_size() / tokens

    def _token_weights(self, label: Side) -> Tensor | float:
        return 1.0

    def make_reranker(self, model: Any) -> Any:
        """The reranker that asks `model` what training asks it, for evaluation."""
        from ..training.language_models import list_reranker

        return list_reranker(model, self.context.config)

    def save_beside(self, folder: Path) -> None:
        """The tokenizer, without which the model cannot be asked."""
        self.writer.tokenizer.save_pretrained(str(folder))


class FullRankLoss(PermutationLoss):
    """FullRank's importance-aware loss: see `importance_weights`."""

    def _token_weights(self, label: Side) -> Tensor | float:
        return importance_weights(label["identifiers"])


class FirstLoss(PermutationLoss):
    """FIRST: L_LM + λ L_rank, the latter over the identifiers' logits where the first identifier is written."""

    def __init__(self, model: nn.Module, options: FirstOptions, context: LossContext) -> None:
        super().__init__(model, options, context)
        self.first = options
        self.factor = PUBLISHED_WEIGHTS[options.rank] if options.rank_weight is None else options.rank_weight
        self.tokens = torch.tensor(self.writer.identifier_tokens(context.config.sampling.window))
        self.opening = self.writer.opening_token()

    def forward(self, network: nn.Module, features: dict[str, Tensor], label: Side) -> dict[str, Tensor]:
        """The terms by name: "first-lm" and "first-rank"."""
        width = label["targets"].shape[1]
        logits = self._logits(network, features, width + 1)
        scores = self.identifier_logits(logits, label)
        levels, valid = label["levels"], label["valid"]
        rank = first_token_loss(scores, levels, valid, self.first.rank, dealt=self.first.dealt)
        lists = self._lists(levels, valid)
        everywhere = gather_constant(lists[None]).sum()
        rank = rank * lists * get_world_size() / everywhere.clamp(min=1)
        terms = {"first-rank": self.options.weight * self.factor * rank}
        if self.first.generation_weight:
            generation = self.first.generation_weight * self._generation(logits, label)
            terms["first-lm"] = self.options.weight * generation
        return terms

    def _lists(self, levels: Tensor, valid: Tensor) -> Tensor:
        """How many lists the ranking loss is a mean over."""
        count = torch.ones(len(levels)) if self.first.rank == "listnet" else with_pairs(levels, valid)
        return count.to(levels).sum()

    def identifier_logits(self, logits: Tensor, label: Side) -> Tensor:
        """(B, N) float32: what FIRST reads, after the answer's opening bracket.

        Raises:
            ConfigError: an answer does not begin with that bracket.
        """
        targets, lengths = label["targets"], label["lengths"]
        rows, width = torch.arange(len(targets), device=targets.device), targets.shape[1]
        if (targets[rows, width - lengths] != self.opening).any():
            raise ConfigError("an answer does not begin with an opening bracket of one token, after which FIRST reads")
        named = self.tokens[: label["levels"].shape[1]].to(targets.device)
        return logits[rows, width + 1 - lengths][:, named].float()


def make_permutation(model: nn.Module, options: LossOptions, context: LossContext) -> PermutationLoss:
    """For configurations."""
    return PermutationLoss(model, options, context)


def make_full_rank(model: nn.Module, options: LossOptions, context: LossContext) -> FullRankLoss:
    """For configurations."""
    return FullRankLoss(model, options, context)


def make_first(model: nn.Module, options: LossOptions, context: LossContext) -> FirstLoss:
    """For configurations."""
    return FirstLoss(model, cast(FirstOptions, options), context)
