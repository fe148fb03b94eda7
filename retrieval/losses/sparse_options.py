"""What the losses of sparse encoders can be told."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt

from .option_base import LossOptions

__all__ = ["ActiveLimits", "FlopsOptions", "IdfFlopsOptions", "MaskedLmOptions", "RegulariserOptions"]


class MaskedLmOptions(LossOptions):
    """Masked-LM training.

    Attributes:
        parameters: train the "head" only (its decoder stays tied to the word embeddings, which stay), or "all".
        active: at the end the head's bias is shifted so that documents have about so many terms above 0: where a sparse
            encoder begins. The masked-LM loss is the same with any shift. None leaves the bias.
    """

    parameters: Literal["head", "all"] = "head"
    active: PositiveInt | None = None


class RegulariserOptions(LossOptions):
    """What keeps sparse vectors sparse (see `regularisation`).

    Attributes:
        weight: λ, which carries over from a publication only with its conventions and a batch of like size.
        side: whose vectors.
        threshold: texts with at most so many active terms cost nothing, but stay in the divisor; None is without.
        schedule: how the weight grows to λ.
        steps: T, optimiser steps to reach λ as a whole number, or a share of the run as a fraction: 1 is one step, 1.0
            the whole run. 0 is λ from the start.
        convention: whose way to count the steps (see `regularisation.schedule`).
    """

    weight: PositiveFloat = Field(default=...)
    side: Literal["query", "document", "both"] = "document"
    threshold: PositiveInt | None = None
    schedule: Literal["quadratic", "linear", "constant"] = "quadratic"
    steps: Annotated[int, Field(strict=True, ge=0)] | Annotated[float, Field(ge=0, le=1)] = 50_000
    convention: Literal["naver-iteration", "naver-hf", "opensearch", "tevatron", "sentence-transformers"] = (
        "naver-iteration"
    )

    def resolved_steps(self, total: int) -> int:
        """T of a run of `total` steps."""
        return self.steps if isinstance(self.steps, int) else int(self.steps * total)


class FlopsOptions(RegulariserOptions):
    """FLOPS.

    Attributes:
        grouping: which documents share a mean. "all" is one mean over every document of the batch (naver's HF trainer,
            sentence-transformers); "by-side" averages the values of the positives and of the negatives (naver's
            iteration trainer, whose λ are those of SPLADE++); "by-rank" has a mean for each place among a query's
            documents, and sums (OpenSearch).
    """

    grouping: Literal["all", "by-side", "by-rank"] = "all"


class IdfFlopsOptions(FlopsOptions):
    """FLOPS with weights of terms c_t = idf_t^-power; 2 makes it the penalty of idf in the query, on contributions."""

    power: PositiveFloat = 2.0


class ActiveLimits(BaseModel):
    """When a sparse encoder's vectors count as collapsed, or as dense, which ends the training.

    Attributes:
        every: steps between looks at the numbers of active terms, which are logged.
        least: fewest active terms that queries and documents have on average.
        most: most active terms, as a share of the vocabulary, once every regulariser has its full weight.
        patience: looks in a row that a bound may be broken.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    every: PositiveInt = 10
    least: float = Field(default=1.0, ge=0)
    most: float = Field(default=0.25, gt=0, le=1)
    patience: PositiveInt = 3
