"""What the losses of language models can be told."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from .option_base import LossOptions

__all__ = ["FirstOptions", "GrpoOptions", "YesNoOptions"]


class FirstOptions(LossOptions):
    """FIRST's joint loss.

    Attributes:
        rank: the ranking loss over the identifiers' logits.
        rank_weight: λ; None is the published one of that loss: 10, 1, 1 and 0.1.
        generation_weight: of the permutation as text; 0 trains the order of the first token alone.
        dealt: the targets of lambdarank and listnet are the model's own logits in the target order, as published, in
            place of fixed gains.
    """

    rank: Literal["weighted-ranknet", "ranknet", "lambdarank", "listnet"] = "weighted-ranknet"
    rank_weight: PositiveFloat | None = None
    generation_weight: NonNegativeFloat = 1.0
    dealt: bool = False


class YesNoOptions(LossOptions):
    """How hard each document is pushed, and where to (see `losses.yes_no`); GMR finds both supervised best."""

    weights: Literal["supervised", "contrastive"] = "supervised"
    direction: Literal["supervised", "contrastive"] = "supervised"


class GrpoOptions(LossOptions):
    """GRPO through TRL.

    Attributes:
        reward: whose reward and prompt (see `training.policy_rewards`).
        generations: rollouts of a prompt, whose advantages are relative to each other.
        max_new_tokens: the longest answer.
        temperature: of the rollouts.
        beta: weight of the KL to the model as it was loaded; 0 keeps no copy of it.
        alpha, tau: of Retro*'s reward.
    """

    reward: Literal["rank-r1", "erank", "retro", "prorank"]
    generations: PositiveInt = Field(8, ge=2)
    max_new_tokens: PositiveInt = 2048
    temperature: PositiveFloat = 1.0
    beta: NonNegativeFloat = 0.0
    alpha: float = Field(0.75, ge=0, le=1)
    tau: NonNegativeFloat = 20.0
