"""What may stand under `trainer`: sentence-transformers' own training arguments, less those that rtk owns."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from ...errors import nearest

__all__ = ["OWNED", "trainer_problems"]

OWNED: dict[str, str] = {
    "output_dir": "rtk writes to `output`",
    "seed": "use the top-level `seed`; it also decides the batches",
    "data_seed": "batches are a function of the top-level `seed`",
    "batch_sampler": "rtk owns it: a batch is a function of seed and step; see `sampling`",
    "multi_dataset_batch_sampler": "rtk owns it; see `data.mixture`",
    "drop_last": "rtk owns it: every batch has exactly the batch size, and no example is lost",
    "dataloader_drop_last": "rtk owns it: every batch has exactly the batch size, and no example is lost",
    "ignore_data_skip": "rtk owns it: resuming goes on with the next batch",
    "resume_from_checkpoint": "running the same configuration again resumes",
    "eval_strategy": "use `evaluation`",
    "eval_steps": "use `evaluation.every`",
    "eval_on_start": "use `evaluation.at_start`",
    "load_best_model_at_end": "with `evaluation` the best checkpoint is always kept",
    "metric_for_best_model": "use `evaluation.measure`",
    "greater_is_better": "use `evaluation.measure`",
    "auto_find_batch_size": "the batch size is part of what the batches are",
    "remove_unused_columns": "rtk makes the columns",
    "prompts": "`prompts` stands at the top of the configuration: {query: …, document: …}",
    "router_mapping": "rtk makes the columns and routes them",
}

# The names that nearly every configuration uses: checking these needs no import of transformers.
COMMON = frozenset(
    (
        *("bf16", "dataloader_num_workers", "disable_tqdm", "fp16", "gradient_accumulation_steps"),
        *("gradient_checkpointing", "learning_rate", "logging_steps", "lr_scheduler_type", "max_grad_norm"),
        *("max_steps", "num_train_epochs", "optim", "per_device_train_batch_size", "report_to", "save_steps"),
        *("save_total_limit", "use_cpu", "warmup_steps", "weight_decay"),
    )
)


def trainer_problems(arguments: Mapping[str, Any], *, evaluation: bool) -> list[str]:
    """Every key of `arguments` that is unknown or that rtk owns, as messages.

    Args:
        arguments: what stands under `trainer`.
        evaluation: whether the configuration has an evaluation, which then decides when checkpoints are written.
    """
    problems = [f"trainer.{key}: not here: {OWNED[key]}" for key in arguments if key in OWNED]
    if evaluation and "save_strategy" in arguments:
        problems.append("trainer.save_strategy: not here: checkpoints are written after evaluations")
    unsure = [key for key in arguments if key not in OWNED and key not in COMMON]
    if unsure:
        known = argument_names()
        choices = sorted(known - OWNED.keys())
        problems += [f"trainer.{key}: unknown key{nearest(str(key), choices)}" for key in unsure if key not in known]
    problems += _wrong_numbers(arguments, ("max_steps", "per_device_train_batch_size", "gradient_accumulation_steps"))
    rate = arguments.get("learning_rate", 1e-5)
    if isinstance(rate, bool) or not isinstance(rate, int | float) or rate <= 0:
        problems.append(f"trainer.learning_rate: {rate!r} should be a number above 0")
    return problems


def _wrong_numbers(arguments: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    """The ones that rtk itself counts with."""
    return [
        f"trainer.{name}: {value!r} should be a whole number above 0"
        for name in names
        if (value := arguments.get(name, 1)) is not None
        and (
            isinstance(value, bool) or not isinstance(value, int) or (value < 1 and (name, value) != ("max_steps", -1))
        )
    ]


def argument_names() -> frozenset[str]:
    """The fields of sentence-transformers' training arguments (imports transformers and torch)."""
    from sentence_transformers.base.training_args import BaseTrainingArguments

    return frozenset(field.name for field in dataclasses.fields(BaseTrainingArguments) if field.init)
