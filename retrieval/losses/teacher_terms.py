"""Terms against stored scores of teachers, over a query's candidates."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor

from ...errors import ConfigError
from ..sampling.margin_balanced import teacher_names
from .batch import CandidateBatch, CandidateTerm
from .context import LossContext
from .distillation import kl_distillation, margin_mse_lists, margin_mse_pairs
from .dynamic_contrastive import dynamic_contrastive_parts, hardest_negatives, query_uncertainty, weighted_soft_loss
from .ensemble import ensemble_targets
from .list_term import ListTerm
from .options import (
    DynamicContrastiveOptions,
    EnsembleOptions,
    KLOptions,
    LossOptions,
    MarginMSEOptions,
    PlackettLuceOptions,
    TeacherOptions,
)
from .plackett_luce import plackett_luce_distillation
from .telling import tell_quantiles

__all__ = [
    "EnsembleTeachers",
    "StoredTeachers",
    "make_dynamic_contrastive",
    "make_ensemble",
    "make_kl",
    "make_margin_mse",
    "make_plackett_luce",
]

_LOG = logging.getLogger(__name__)


class StoredTeachers:
    """The mean of the teachers that the options name, for a batch.

    Raises:
        ConfigError: a collection has no scores of one of them, or of any.
    """

    def __init__(self, options: TeacherOptions, context: LossContext) -> None:
        given = (options.teacher,) if isinstance(options.teacher, str) else options.teacher
        self._log, self._name = context.log, options.name
        self._names = [given or tuple(teacher_names(table)) for table in context.tables]
        for table, names in zip(context.tables, self._names, strict=True):
            strange = [name for name in names if name not in table.scores]
            if strange or not names:
                raise ConfigError(
                    f"loss {options.name}: {table.name} has no scores of "
                    f"{', '.join(map(repr, strange)) or 'any teacher'}; it has those of "
                    f"{', '.join(map(repr, teacher_names(table))) or 'none'} (data.runs.teachers, by file stem)"
                )
        if not self._names:
            if not given:
                raise ConfigError(f"loss {options.name}: without a training table its teachers must be named")
            self._names = [given]

    def __call__(self, batch: CandidateBatch) -> Tensor:
        """(B, N) float32, NaN where one of the teachers has no score. The share of those is logged, and the mean margin
        of the first document over the others, the teacher's and the student's."""
        scores = self.join(self.columns(batch))
        self._log(f"{self._name}-unscored", float(scores.isnan().float().mean()))
        margins = scores[:, :1] - scores[:, 1:]
        there = ~margins.isnan()
        if there.any():
            student = (batch.scores[:, :1] - batch.scores[:, 1:]).detach()
            self._log(f"{self._name}-teacher-margin", float(margins[there].mean()))
            self._log(f"{self._name}-student-margin", float(student[there].float().mean()))
        return scores

    def columns(self, batch: CandidateBatch) -> Tensor:
        """(K, B, N), what each teacher says."""
        part = int(batch.side["part"][0]) if "part" in batch.side else 0
        return torch.stack([batch.side[name].to(batch.scores.device) for name in self._names[part]])

    def join(self, columns: Tensor) -> Tensor:
        """(K, B, N) → (B, N)."""
        return columns.mean(dim=0)


class EnsembleTeachers(StoredTeachers):
    """The targets of `ensemble.ensemble_targets` of the teachers that the options name; counts the constant ones."""

    def __init__(self, options: EnsembleOptions, context: LossContext) -> None:
        super().__init__(options, context)
        self._scale, self._warned, self._count = options.teacher_scale, False, context.count

    def join(self, columns: Tensor) -> Tensor:
        if columns.shape[2] == 2 and not self._warned:
            self._warned = True
            _LOG.warning(
                "loss %s: with two candidates a query each teacher's normalised scores are 0 and 1, so its margin is "
                "lost; take sampling.negatives of 7 or more, or the loss margin-mse",
                self._name,
            )
        targets, dropped = ensemble_targets(columns, scale=self._scale)
        self._count(f"{self._name}-constant-teachers", int(dropped.sum()))
        return targets


def _whole(options: LossOptions, context: LossContext, function: Callable[[Tensor, Tensor], Tensor]) -> CandidateTerm:
    """`function(student, teacher)` over the lists of all processes."""
    return ListTerm(function, StoredTeachers(cast(TeacherOptions, options), context))


def make_margin_mse(options: LossOptions, context: LossContext) -> CandidateTerm:
    """See `distillation.margin_mse`, and `margin_mse_pairs`."""
    every = cast(MarginMSEOptions, options).pairs == "all"
    return _whole(options, context, margin_mse_pairs if every else margin_mse_lists)


def make_kl(options: LossOptions, context: LossContext) -> CandidateTerm:
    """See `distillation.kl_distillation`."""
    chosen = cast(KLOptions, options)

    def function(student: Tensor, teacher: Tensor) -> Tensor:
        return kl_distillation(
            student, teacher, temperature=chosen.temperature, teacher_temperature=chosen.teacher_temperature
        )

    return _whole(options, context, function)


def make_ensemble(options: LossOptions, context: LossContext) -> CandidateTerm:
    """See `ensemble.ensemble_distillation`."""
    return ListTerm(kl_distillation, EnsembleTeachers(cast(EnsembleOptions, options), context))


def make_plackett_luce(options: LossOptions, context: LossContext) -> CandidateTerm:
    """See `plackett_luce`."""
    temperature = cast(PlackettLuceOptions, options).temperature
    return _whole(
        options,
        context,
        lambda student, teacher: plackett_luce_distillation(student, teacher, temperature=temperature),
    )


def make_dynamic_contrastive(options: LossOptions, context: LossContext) -> CandidateTerm:
    """See `dynamic_contrastive`."""
    chosen = cast(DynamicContrastiveOptions, options)
    parts_of = dynamic_contrastive_parts if chosen.variant == "dcd" else weighted_soft_loss
    share = 1 - chosen.alpha if chosen.variant == "dcd" else 1.0

    def function(student: Tensor, teacher: Tensor) -> Tensor:
        if chosen.hardest is not None:
            columns = hardest_negatives(teacher, chosen.hardest)
            student, teacher = student.gather(1, columns), teacher.gather(1, columns)
        if chosen.variant == "dcd":
            tell_quantiles(context.log, f"{chosen.name}-uncertainty", query_uncertainty(teacher))
        parts = parts_of(student, teacher, temperature=chosen.temperature, published=chosen.published)
        context.log(f"{chosen.name}-distillation", float(parts.distillation.detach()))
        context.log(f"{chosen.name}-hard", float(parts.hard.detach()))
        return chosen.alpha * parts.distillation + share * parts.hard

    return _whole(options, context, function)
