"""What a configuration's losses need of its other blocks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import nearest
from ..losses.options import CetOptions, InfoNCEOptions, ScoredOptions, TeacherOptions

if TYPE_CHECKING:
    from .config import TrainConfig

__all__ = ["loss_problems"]


def loss_problems(config: TrainConfig) -> list[str]:
    """What a loss needs of the rest, or cannot have here."""
    problems: list[str] = []
    for number, item in enumerate(config.loss):
        if isinstance(item, TeacherOptions):
            problems += _teacher_problems(config, item, f"loss.{number}.teacher")
        if isinstance(item, ScoredOptions) and config.preset.family == "cross-encoder":
            plain = type(item)(name=item.name)
            problems += [
                f"loss.{number}.{key}: is about vectors; a cross-encoder's logits are taken as they are"
                for key in ("similarity", "scale", "learn_scale")
                if getattr(item, key) != getattr(plain, key)
            ]
        if isinstance(item, CetOptions):
            problems += _cet_problems(config, item, f"loss.{number}")
        if isinstance(item, ScoredOptions) and item.learn_scale and _accumulates_cached(config):
            problems.append(
                f"loss.{number}.learn_scale: with mini_batch_size the scale's gradient would not be averaged over "
                "trainer.gradient_accumulation_steps; take larger batches in place of accumulation, they need no memory"
            )
        negatives = getattr(config.sampling, "negatives", None)
        if isinstance(item, InfoNCEOptions) and item.against in ("negatives", "own") and negatives == 0:
            problems.append(f"loss.{number}.against: {item.against} needs negatives; sampling.negatives is 0")
        if isinstance(item, InfoNCEOptions) and item.mixing and (negatives or 0) < 2:
            problems.append(f"loss.{number}.mixing: needs sampling.negatives of 2 or more, it is {negatives}")
    return problems


def _accumulates_cached(config: TrainConfig) -> bool:
    """Cached gradients reach a loss's own parameters before the trainer divides by the steps of accumulation."""
    steps = config.trainer.get("gradient_accumulation_steps", 1)
    return bool(config.mini_batch_size) and isinstance(steps, int) and steps > 1


def _cet_problems(config: TrainConfig, item: CetOptions, place: str) -> list[str]:
    """Negatives, and a first stage for the features."""
    problems: list[str] = []
    if getattr(config.sampling, "negatives", 1) == 0:
        problems.append(f"{place}: cet weighs negatives; sampling.negatives is 0")
    problems += [
        f"{place}.selection_features: are the first stage's; give data.runs.first_stage for {part.collection}"
        for part in config.data.parts()
        if item.selection_features and part.runs.first_stage is None
    ]
    return problems


def _teacher_problems(config: TrainConfig, item: TeacherOptions, place: str) -> list[str]:
    """Every collection has scores of the teachers that a loss wants."""
    wanted = (item.teacher,) if isinstance(item.teacher, str) else item.teacher or ()
    problems: list[str] = []
    for part in config.data.parts():
        files = part.runs.teachers if part.pairs is None else (part.pairs,)
        known = [Path(file).name.split(".")[0] for file in files]
        if not known:
            problems.append(
                f"{place}: {item.name!r} needs a teacher's scores; give data.runs.teachers for {part.collection}"
            )
        problems += [
            f"{place}: {part.collection} has no scores of {name!r}{nearest(name, known)}"
            for name in wanted
            if known and name not in known
        ]
    return problems
