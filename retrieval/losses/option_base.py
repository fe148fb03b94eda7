"""What the options of losses have in common."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, PositiveFloat

__all__ = ["Family", "LossOptions", "ScoredOptions", "TeacherOptions"]

Family = Literal["bi-encoder", "sparse-encoder", "cross-encoder", "language-model", "policy"]


class LossOptions(BaseModel):
    """What every loss term has: its registered name and its weight in the sum."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    weight: PositiveFloat = 1.0


class ScoredOptions(LossOptions):
    """A bi-encoder's scores: scale · similarity.

    `scale` (1 / temperature) is 20 for cosine and 1 for dot where it is None; with `learn_scale` it is where a trained
    scale begins, which losses against a teacher's logits need when the model normalises its vectors. Every term trains
    a scale of its own: it says how wide the logits of that term's teacher are, which differ between teachers, and it
    changes no order. Vectors that are not normalised have one scale for all terms: their lengths.
    """

    similarity: Literal["cosine", "dot"] = "cosine"
    scale: PositiveFloat | None = None
    learn_scale: bool = False

    @property
    def resolved_scale(self) -> float:
        return self.scale if self.scale is not None else 20.0 if self.similarity == "cosine" else 1.0


class TeacherOptions(LossOptions):
    """`teacher`: the score columns that teach (stems of the files under data.runs.teachers), averaged; None is all."""

    teacher: str | tuple[str, ...] | None = None
