"""What may stand under `trainer`: the trainer's own arguments, less those that rtk owns.

Reinforcement has TRL's `GRPOConfig`, all other training sentence-transformers' arguments.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from ...errors import nearest

__all__ = ["OWNED", "for_this_machine", "trainer_problems"]

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
    "train_sampling_strategy": "use `sampling.group_by_length`; batches are a function of the top-level `seed`",
    "length_column_name": "use `sampling.group_by_length`",
    "label_smoothing_factor": "the losses are rtk's; none of them smooths labels",
    "logging_nan_inf_filter": "rtk owns it: a loss that is no number stops the run",
    "prompts": "`prompts` stands at the top of the configuration: {query: …, document: …}",
    "router_mapping": "rtk makes the columns and routes them",
}

OWNED_OF_POLICY: dict[str, str] = {
    "num_generations": "use `generations` of the loss",
    "max_completion_length": "use `max_new_tokens` of the loss",
    "temperature": "use `temperature` of the loss",
    "beta": "use `beta` of the loss",
    "shuffle_dataset": "prompts are a function of the top-level `seed`",
    "model_init_kwargs": "rtk loads the model",
    "chat_template_kwargs": "use `prompt`",
    "reward_weights": "there is one reward, that of the loss",
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


def trainer_problems(arguments: Mapping[str, Any], *, evaluation: bool, policy: bool = False) -> list[str]:
    """Every key of `arguments` that is unknown or that rtk owns, as messages.

    Args:
        arguments: what stands under `trainer`.
        evaluation: whether the configuration has an evaluation, which then decides when checkpoints are written.
        policy: whether TRL trains. Where it is not installed, keys of its own are not checked: training will say so.
    """
    owned = OWNED | (OWNED_OF_POLICY if policy else {})
    problems = [f"trainer.{key}: not here: {owned[key]}" for key in arguments if key in owned]
    if evaluation and "save_strategy" in arguments:
        problems.append("trainer.save_strategy: not here: checkpoints are written after evaluations")
    unsure = [key for key in arguments if key not in owned and key not in COMMON]
    known = argument_names(policy=policy) if unsure else None
    if known is not None:
        choices = sorted(known - owned.keys())
        problems += [f"trainer.{key}: unknown key{nearest(str(key), choices)}" for key in unsure if key not in known]
    problems += _wrong_numbers(arguments, ("max_steps", "per_device_train_batch_size", "gradient_accumulation_steps"))
    problems += [
        f"trainer.{name}: {value!r}: a bare yes or no is a truth value in YAML; put it in quotes, as in {name}='\"no\"'"
        for name in ("save_strategy", "logging_strategy")
        if isinstance(value := arguments.get(name), bool)
    ]
    rate = arguments.get("learning_rate", 1e-5)
    if isinstance(rate, bool) or not isinstance(rate, int | float) or rate <= 0:
        problems.append(f"trainer.learning_rate: {rate!r} should be a number above 0")
    return problems


def for_this_machine(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The same, and the processor named where bf16 is wanted and nothing else is there.

    transformers takes bf16 without an accelerator only when told to use the processor, which it would do anyway. Where
    there is an accelerator that cannot do bf16, its refusal stands.
    """
    import torch

    if arguments.get("bf16") and not torch.accelerator.is_available():
        return {"use_cpu": True, **arguments}
    return dict(arguments)


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


def argument_names(*, policy: bool = False) -> frozenset[str] | None:
    """The fields of the trainer's arguments (imports transformers and torch); None of TRL's without TRL."""
    if policy:
        try:
            from trl.trainer.grpo_config import GRPOConfig as Arguments
        except ModuleNotFoundError:
            return None
    else:
        from sentence_transformers.base.training_args import BaseTrainingArguments as Arguments

    return frozenset(field.name for field in dataclasses.fields(Arguments) if field.init)
