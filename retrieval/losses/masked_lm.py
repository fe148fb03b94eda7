"""Masked-LM training (Devlin et al. 2019): which tokens are hidden, and what the head makes of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from sentence_transformers.util.distributed import get_world_size
from torch import Tensor, nn
from torch.nn import functional as F

from .context import LossContext
from .gathering import gather_constant
from .masking import wide
from .options import LossOptions

__all__ = ["IGNORED", "MaskedLmLoss", "Masking", "hide_tokens", "make_masked_lm_loss", "masked_lm_loss"]

IGNORED = -100
"""The target of a position that is not asked for."""


@dataclass(frozen=True)
class Masking:
    """How tokens are hidden.

    Attributes:
        mask: id of the mask.
        first, last: ids that may stand for another, both included.
        probability: that a token is asked for; of those 80% become the mask, 10% a random token, 10% stay.
    """

    mask: int
    first: int
    last: int
    probability: float = 0.15


def hide_tokens(tokens: np.ndarray, masking: Masking, randomness: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """What the model sees, and what it is asked for: (n,) ids each; at least one token is asked for.

    Args:
        tokens: (n,) ids without special tokens, n ≥ 1.
        randomness: decides everything.
    """
    draws = randomness.random((2, len(tokens)))
    asked = draws[0] < masking.probability
    asked[int(draws[0].argmin())] = True
    others = randomness.integers(masking.first, masking.last, len(tokens), endpoint=True)
    seen = np.where(draws[1] < 0.8, masking.mask, np.where(draws[1] < 0.9, others, tokens))
    return np.where(asked, seen, tokens), np.where(asked, tokens, IGNORED)


def masked_lm_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """L = −Σ over asked positions of log softmax(z)_target. A scalar sum, to be divided by how many there are.

    Args:
        logits: (n, V).
        targets: (n,) int64.
    """
    return F.cross_entropy(wide(logits), targets, reduction="sum")


class MaskedLmLoss(nn.Module):
    """The mean of `masked_lm_loss` over the asked positions of all processes.

    The head sees these positions only: what the network under it returns is cut down on the way, which saves most of
    its cost and memory.

    Args:
        model: sentence-transformers modules, the first of which is a masked language model.
        options: the weight.
        context: told the share of tokens that were found.
    """

    def __init__(self, model: nn.Module, options: LossOptions, context: LossContext) -> None:
        super().__init__()
        self.model, self.options, self.context = model, options, context
        self._asked: Tensor | None = None
        network = cast(Any, next(model.children())).model
        getattr(network, network.base_model_prefix).register_forward_hook(self._select)

    def get_config_dict(self) -> dict[str, Any]:
        """What sentence-transformers' model card asks a loss."""
        return {self.options.name: {"weight": self.options.weight}}

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: dict[str, Tensor]) -> dict[str, Tensor]:
        """One column of texts with hidden tokens, and `targets` (B, longest) → {"masked-lm": loss}."""
        (features,) = sentence_features
        targets = labels["targets"].to(features["input_ids"].device)
        self._asked = targets != IGNORED
        logits = self.model(dict(features))["token_embeddings"].squeeze(0)
        self._asked = None
        wanted = targets[targets != IGNORED]
        count = gather_constant(torch.tensor([len(wanted)], device=targets.device)).sum()
        with torch.no_grad():
            self.context.log("masked-lm-accuracy", float((logits.argmax(dim=1) == wanted).float().mean()))
        # gradients are averaged over the processes, whose shares of the asked positions differ
        value = masked_lm_loss(logits, wanted) * get_world_size() / count
        return {self.options.name: self.options.weight * value}

    def _select(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        """(B, T, hidden) → (1, asked, hidden)."""
        if self._asked is not None:
            output.last_hidden_state = output.last_hidden_state[self._asked][None]
        return output


def make_masked_lm_loss(model: nn.Module, options: LossOptions, context: LossContext) -> MaskedLmLoss:
    """See `MaskedLmLoss`."""
    return MaskedLmLoss(model, options, context)
