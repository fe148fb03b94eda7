"""What each loss can be told: plain values, checked before torch is imported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt

__all__ = ["LOSSES", "Family", "LossEntry", "LossOptions"]

Family = Literal["bi-encoder", "cross-encoder"]


class LossOptions(BaseModel):
    """What every loss term has: its registered name and its weight in the sum."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    weight: PositiveFloat = 1.0


class InfoNCEOptions(LossOptions):
    """`scale` multiplies the similarity (1 / temperature): None means 20 for cosine and 1 for dot."""

    similarity: Literal["cosine", "dot"] = "cosine"
    scale: PositiveFloat | None = None
    mask_false_negatives: bool = True

    @property
    def resolved_scale(self) -> float:
        return self.scale if self.scale is not None else 20.0 if self.similarity == "cosine" else 1.0


class BinaryOptions(LossOptions):
    """`positive_weight` multiplies the cost of the positives, against many negatives for each of them."""

    positive_weight: PositiveFloat | None = None


class RankNetOptions(LossOptions):
    """`pair_weight`: none, FIRST's inverse sum of ranks, or the difference of the labels."""

    pair_weight: Literal["none", "inverse-rank", "label-difference"] = "none"


class LambdaOptions(LossOptions):
    """The lambda framework's weighting scheme, its cut-off and its base-2 or natural logarithm."""

    scheme: Literal["ndcg-loss1", "ndcg-loss2", "lambdarank", "ndcg-loss2++"] = "ndcg-loss2++"
    k: PositiveInt | None = None
    mu: float = Field(10.0, gt=0)
    sigma: float = Field(1.0, gt=0)


@dataclass(frozen=True)
class LossEntry:
    """A registered loss: who can use it and what it can be told."""

    family: Family
    options: type[LossOptions]


LOSSES: dict[str, LossEntry] = {
    "infonce": LossEntry("bi-encoder", InfoNCEOptions),
    "binary-cross-entropy": LossEntry("cross-encoder", BinaryOptions),
    "listnet": LossEntry("cross-encoder", LossOptions),
    "listwise-softmax": LossEntry("cross-encoder", LossOptions),
    "ranknet": LossEntry("cross-encoder", RankNetOptions),
    "lambda": LossEntry("cross-encoder", LambdaOptions),
}
