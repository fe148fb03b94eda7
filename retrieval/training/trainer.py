"""Training, through the trainers of sentence-transformers.

They bring torchrun, checkpoints, logging and mixed precision. What is ours is what goes in (a configuration, batches as
a function of seed and step, losses) and what is checked. A method
is a preset in `methods.py`; it never needs a trainer of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from sentence_transformers.cross_encoder import CrossEncoderTrainingArguments
from sentence_transformers.sentence_transformer.training_args import SentenceTransformerTrainingArguments
from sentence_transformers.sparse_encoder import SparseEncoderTrainingArguments
from transformers import PrinterCallback, TrainerCallback, TrainingArguments, set_seed

from ...errors import ConfigError
from ..losses.context import LossContext
from ..losses.modules import make_loss, wants_texts
from ..losses.options import CetOptions
from . import record
from .arguments import for_this_machine
from .batches import make_sampler
from .blocks import Optimizer
from .config import TrainConfig, load_config
from .evaluation import open_evaluator
from .kinds import EXAMPLES
from .list_loop import LanguageModelLoop
from .loops import BiEncoderTrainer, CrossEncoderLoop, Patience, Progress, SparseEncoderLoop
from .models import finish_model, load_model, merge_adapters, score

__all__ = ["train"]

_LOG = logging.getLogger(__name__)
_TRAINERS: dict[str, tuple[Any, Any]] = {
    "bi-encoder": (BiEncoderTrainer, SentenceTransformerTrainingArguments),
    "sparse-encoder": (SparseEncoderLoop, SparseEncoderTrainingArguments),
    "cross-encoder": (CrossEncoderLoop, CrossEncoderTrainingArguments),
    "language-model": (LanguageModelLoop, TrainingArguments),
}


def train(config: TrainConfig | Mapping[str, Any] | str | Path, *, overwrite: bool = False) -> Path:
    """Train what the configuration says and return the folder of the model.

    An interrupted run goes on from its last checkpoint when the same configuration is given again; the result is the
    one that an uninterrupted run has. Under torchrun the processes share each batch.

    Args:
        config: a configuration, or what `load_config` takes.
        overwrite: replace what stands at the output.

    Raises:
        ConfigError: see `load_config`; the output is there, or is an unfinished run of another configuration.
        DataError: see `build_columns`.
        BackendError: the loss is no longer a number; names the step and the queries.
    """
    if not isinstance(config, TrainConfig):
        config = load_config(config)
    if config.preset.family == "policy":
        from .policy import train_policy

        return train_policy(config, overwrite=overwrite)
    arguments = _arguments(config, resuming=False)
    checkpoint = record.agreed_checkpoint(config, arguments, overwrite=overwrite)
    if checkpoint is not None:
        arguments = _arguments(config, resuming=True)
        _LOG.info("resuming from %s", checkpoint)
    with arguments.main_process_first(local=False):
        tables = EXAMPLES[config.preset.examples or config.preset.family].open(config)
    evaluator = open_evaluator(config.evaluation, config.preset.family)
    trainer = _make_trainer(config, arguments, tables, evaluator)
    if arguments.process_index == 0:
        what = getattr(trainer.loss, "score", None) or score(config)
        sampler = trainer._examples.sampler
        record.start(config, tables, processes=arguments.world_size, score=what, sampler=sampler)
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    output = Path(config.output)
    if arguments.process_index == 0:
        finish_model(trainer.model, config).save_pretrained(str(output))
        if hasattr(trainer.loss, "save_beside"):  # a second model that the method trains, or a tokenizer
            merge_adapters(trainer.loss, config)
            trainer.loss.save_beside(output)
        record.finish(config, _results(trainer))
    trainer.accelerator.wait_for_everyone()
    return output


def _results(trainer: Any) -> dict[str, Any]:
    state = trainer.state
    values = [
        {"step": entry["step"], **{key.removeprefix("eval_"): entry[key] for key in entry if _is_measure(key)}}
        for entry in state.log_history
        if any(_is_measure(key) for key in entry)
    ]
    return {
        "steps": state.global_step,
        "best": state.best_metric,
        "best_step": state.best_global_step,
        "evaluations": values,
    }


def _is_measure(key: str) -> bool:
    return key.startswith("eval_") and key not in {
        "eval_loss", "eval_runtime", "eval_samples_per_second", "eval_steps_per_second",
    }  # fmt: skip


# --- the parts ---


def _arguments(config: TrainConfig, *, resuming: bool) -> Any:
    kind = _TRAINERS[config.preset.family][1]
    given: dict[str, Any] = {
        "report_to": "none", "disable_tqdm": True, "logging_steps": 50, "save_total_limit": 2, **config.trainer,
    }  # fmt: skip
    if config.evaluation:
        every = config.evaluation.every
        given |= {"eval_strategy": "steps", "eval_steps": every, "save_strategy": "steps"}
        given |= {"save_steps": given.get("save_steps", every), "load_best_model_at_end": True}
        given |= {"metric_for_best_model": config.evaluation.measure, "greater_is_better": True}
        given["eval_on_start"] = config.evaluation.at_start and not resuming
    if config.idf and config.idf.trainable:  # torch's search sees the last pass only: documents, and no table
        given = {"ddp_find_unused_parameters": False, **given}
    if own := _own_rates(config):
        given["learning_rate_mapping"] = {**own, **given.get("learning_rate_mapping", {})}
    given |= {"output_dir": str(Path(config.output) / record.CHECKPOINTS), "seed": config.seed}
    try:
        return kind(
            **for_this_machine(given),
            dataloader_drop_last=True,
            logging_nan_inf_filter=False,
            remove_unused_columns=False,
        )
    except (TypeError, ValueError) as error:
        raise ConfigError(f"sentence-transformers refuses these trainer arguments: {error}") from error


def _own_rates(config: TrainConfig) -> dict[str, float]:
    """Learning rates of small parts that begin at nothing, by a pattern of their parameters' names."""
    rates: dict[str, float] = {}
    if config.idf and config.idf.learning_rate is not None:
        rates[r"sub_modules\.query\."] = config.idf.learning_rate
    for loss in config.loss:
        if isinstance(loss, CetOptions) and loss.selection_features and loss.feature_learning_rate is not None:
            rates[r"selection\.head\."] = loss.feature_learning_rate
    return rates


def _make_trainer(config: TrainConfig, arguments: Any, tables: Sequence[Any], evaluator: Any) -> Any:
    set_seed(config.seed)  # a new head is random
    model = load_model(config)
    kind = EXAMPLES[config.preset.examples or config.preset.family]
    context = LossContext(model, tables, config)
    loss = make_loss(config.preset.family, config.loss, context, mini_batch_size=config.mini_batch_size)
    if evaluator is not None:
        evaluator.indexes = getattr(loss, "indexes", ())
        evaluator.make_reranker = getattr(loss, "make_reranker", None)
    weights = [part.weight for part in config.data.parts()]
    sampler = make_sampler(
        tables,
        config.sampling,
        batch_size=arguments.train_batch_size * arguments.world_size,
        seed=config.seed,
        weights=None if None in weights else cast("list[float]", weights),
    )
    callbacks: list[TrainerCallback] = [Progress()]
    if config.evaluation and config.evaluation.patience:
        callbacks.append(Patience(config.evaluation.patience))
    trainer = _TRAINERS[config.preset.family][0](
        model=model,
        args=arguments,
        examples=kind.examples(tables, sampler, texts=wants_texts(loss)),
        metrics=context.metrics,
        clock=context.clock,
        optimizer=_optimizer(config.optimizer),
        loss=loss,
        evaluator=evaluator,
        data_collator=kind.collator(model, config),
        callbacks=callbacks,
    )
    context.autocast.set(trainer.accelerator.autocast)
    trainer.remove_callback(PrinterCallback)  # it prints; our log has the same
    return trainer


def _optimizer(block: Optimizer | None) -> tuple[type, dict[str, Any]] | None:
    if block is None:
        return None
    from .lamb import Lamb

    settings = {"max_norm": block.max_norm, "bias_correction": block.bias_correction}
    return Lamb, {"betas": block.betas, "eps": block.epsilon, **settings}
