"""Yes/no rerankers in one frame (GMR): who pushes how hard, and in which direction, chosen apart from each other.

z_y and z_n are a document's logits of yes and no, W the weight with which its last hidden state is pushed, D the
direction. Supervised cross-entropy has D = M_y − M_n and W from each document alone, the contrastive loss D = M_y and W
from the softmax over the query's documents; M are rows of the head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from sentence_transformers.cross_encoder.modules import LogitScore
from sentence_transformers.util import batch_to_device
from torch import Tensor, nn

from ...errors import ConfigError
from .batch import Side
from .context import LossContext
from .language_options import YesNoOptions
from .options import LossOptions
from .ranking import binary_cross_entropy, listwise_softmax

__all__ = ["YesNoLoss", "make_yes_no", "push_weights", "unified_yes_no"]

Kind = Literal["supervised", "contrastive"]


def push_weights(yes: Tensor, no: Tensor, labels: Tensor, kind: Kind) -> Tensor:
    """W with its sign: below 0 where a document is pushed up. (B, N), constants.

    supervised: p − y with p = σ(z_y − z_n), so 1 − p₀ for a positive and p_i for a negative;
    contrastive: softmax(z_y) − y / Σ y, with one positive the W⁺ and W⁻ of the paper.
    """
    wanted = (labels > 0).to(yes.dtype)
    if kind == "supervised":
        return (torch.sigmoid(yes - no) - wanted).detach()
    return (yes.softmax(dim=1) - wanted / wanted.sum(dim=1, keepdim=True).clamp(min=1)).detach()


def unified_yes_no(yes: Tensor, no: Tensor, labels: Tensor, *, weights: Kind, direction: Kind) -> Tensor:
    """The loss whose gradient is W · D, W and D of either kind; its value is that of the loss that W comes from.

    Where both are of one kind this is that loss: the mean over all documents of the cross-entropy of yes and no, or the
    mean over queries of −log softmax(z_y) at the positive.

    Args:
        yes, no: (B, N) logits, float32.
        labels: (B, N), above 0 is relevant.
        weights: where W comes from.
        direction: which logits it pushes.
    """
    pushed = yes - no if direction == "supervised" else yes
    surrogate = (push_weights(yes, no, labels, weights) * pushed).sum()
    if weights == "supervised":
        surrogate, value = surrogate / labels.numel(), binary_cross_entropy(yes - no, labels)
    else:
        surrogate, value = surrogate / len(labels), listwise_softmax(yes, (labels > 0).to(yes.dtype))
    return value.detach() + surrogate - surrogate.detach()


class YesNoLoss(nn.Module):
    """`unified_yes_no` over the logits of yes and no of a cross-encoder that is a causal language model.

    Args:
        model: a CrossEncoder that ends in a `LogitScore` of two tokens.
        options: see `YesNoOptions`.
    """

    def __init__(self, model: nn.Module, options: YesNoOptions) -> None:
        super().__init__()
        self.model, self.options = model, options
        scores = [module for module in model.modules() if isinstance(module, LogitScore)]
        if not scores or scores[-1].false_token_id is None:
            raise ConfigError("loss yes-no: needs a language model that answers yes or no; take method yes-no")
        self.yes, self.no = scores[-1].true_token_id, scores[-1].false_token_id

    def get_config_dict(self) -> dict[str, Any]:
        """What sentence-transformers' model card asks a loss."""
        return {self.options.name: self.options.model_dump(exclude={"name"})}

    def forward(self, inputs: Sequence[Any], labels: Side, **preprocessing: Any) -> dict[str, Tensor]:
        """(queries, documents of each query: N everywhere) and the batch's `Side` → {"yes-no": loss}."""
        queries, documents = inputs
        pairs = [(query, text) for query, texts in zip(queries, documents, strict=True) for text in texts]
        encoder = cast(Any, self.model)
        features = batch_to_device(encoder.preprocess(pairs, **preprocessing), next(encoder.parameters()).device)
        logits = encoder(dict(features))["causal_logits"][:, -1].float()
        yes, no = (logits[:, token].view(len(queries), -1) for token in (self.yes, self.no))
        chosen = self.options
        value = unified_yes_no(yes, no, labels["labels"].to(yes), weights=chosen.weights, direction=chosen.direction)
        return {chosen.name: chosen.weight * value}


def make_yes_no(model: nn.Module, options: LossOptions, context: LossContext) -> YesNoLoss:
    """For configurations."""
    return YesNoLoss(model, cast(YesNoOptions, options))
