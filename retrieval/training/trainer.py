"""Training, through the trainers of sentence-transformers.

They bring torchrun, checkpoints, logging and mixed precision. What is ours is what goes in (a configuration, batches as
a function of seed and step, losses) and what is checked. A method
is a preset in `methods.py`; it never needs a trainer of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.data_loader import prepare_data_loader
from accelerate.utils import broadcast_object_list
from sentence_transformers import SentenceTransformer
from sentence_transformers.cross_encoder import CrossEncoder, CrossEncoderTrainer, CrossEncoderTrainingArguments
from sentence_transformers.cross_encoder.data_collator import CrossEncoderDataCollator
from sentence_transformers.sentence_transformer.data_collator import SentenceTransformerDataCollator
from sentence_transformers.sentence_transformer.trainer import SentenceTransformerTrainer
from sentence_transformers.sentence_transformer.training_args import SentenceTransformerTrainingArguments
from torch.utils.data import DataLoader
from transformers import EarlyStoppingCallback, PrinterCallback, TrainerCallback, set_seed

from ... import progress
from ...errors import BackendError, ConfigError
from ..losses.modules import make_loss
from ..losses.options import InfoNCEOptions
from ..sampling import BatchSampler
from . import record
from .batches import CandidateExamples, DenseExamples, SideCollator, make_sampler
from .config import TrainConfig, load_config
from .data import open_tables
from .evaluation import open_evaluator
from .examples import TrainingTable

__all__ = ["train"]

_LOG = logging.getLogger(__name__)


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
    arguments = _arguments(config, resuming=False)
    checkpoint = _agreed(arguments, config, overwrite)
    if checkpoint is not None:
        arguments = _arguments(config, resuming=True)
        _LOG.info("resuming from %s", checkpoint)
    with arguments.main_process_first(local=False):
        tables = open_tables(config.data.parts())
    evaluator = open_evaluator(config.evaluation, config.preset.family, config.lengths)
    trainer = _make_trainer(config, arguments, tables, evaluator)
    if arguments.process_index == 0:
        record.start(config, tables, processes=arguments.world_size, score=_score(config))
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    output = Path(config.output)
    if arguments.process_index == 0:
        trainer.model.save_pretrained(str(output))
        record.finish(config, _results(trainer))
    trainer.accelerator.wait_for_everyone()
    return output


def _agreed(arguments: Any, config: TrainConfig, overwrite: bool) -> Path | None:
    """The checkpoint to resume from: looked for by the first process, told to the others."""
    found = [record.prepare_output(config, overwrite=overwrite) if arguments.process_index == 0 else None]
    return broadcast_object_list(found)[0] if arguments.world_size > 1 else found[0]


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
    kind = (
        SentenceTransformerTrainingArguments if config.preset.family == "bi-encoder" else CrossEncoderTrainingArguments
    )
    given: dict[str, Any] = {
        "report_to": "none", "disable_tqdm": True, "logging_steps": 50, "save_total_limit": 2, **config.trainer,
    }  # fmt: skip
    if config.evaluation:
        every = config.evaluation.every
        given |= {"eval_strategy": "steps", "eval_steps": every, "save_strategy": "steps"}
        given |= {"save_steps": given.get("save_steps", every), "load_best_model_at_end": True}
        given |= {"metric_for_best_model": config.evaluation.measure, "greater_is_better": True}
        given["eval_on_start"] = config.evaluation.at_start and not resuming
    given |= {"output_dir": str(Path(config.output) / record.CHECKPOINTS), "seed": config.seed}
    try:
        return kind(**given, dataloader_drop_last=True, logging_nan_inf_filter=False, remove_unused_columns=False)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"sentence-transformers refuses these trainer arguments: {error}") from error


def _make_trainer(config: TrainConfig, arguments: Any, tables: list[TrainingTable], evaluator: Any) -> Any:
    bi_encoder = config.preset.family == "bi-encoder"
    set_seed(config.seed)  # a new head is random
    model = _load_bi_encoder(config) if bi_encoder else _load_cross_encoder(config)
    weights = [part.weight for part in config.data.parts()]
    sampler = make_sampler(
        tables,
        config.sampling,
        batch_size=arguments.train_batch_size * arguments.world_size,
        seed=config.seed,
        weights=None if None in weights else cast("list[float]", weights),
    )
    callbacks: list[TrainerCallback] = [_Progress()]
    if config.evaluation and config.evaluation.patience:
        callbacks.append(EarlyStoppingCallback(config.evaluation.patience))
    kind = _BiEncoderTrainer if bi_encoder else _CrossEncoderTrainer
    trainer = kind(
        model=model,
        args=arguments,
        examples=(DenseExamples if bi_encoder else CandidateExamples)(tables, sampler),
        loss=make_loss(model, config.loss, mini_batch_size=config.mini_batch_size),
        evaluator=evaluator,
        data_collator=_collator(model, config),
        callbacks=callbacks,
    )
    trainer.remove_callback(PrinterCallback)  # it prints; our log has the same
    return trainer


def _model_path(config: TrainConfig) -> str:
    if config.model != "minilm":
        return config.model
    from ..encoders.load import load_minilm_path

    return str(load_minilm_path())


def _load_bi_encoder(config: TrainConfig) -> SentenceTransformer:
    try:
        model = SentenceTransformer(_model_path(config))
    except (OSError, ValueError) as error:
        raise ConfigError(f"model: {config.model!r} does not load as a SentenceTransformer: {error}") from error
    similarity = _score(config)["similarity"]
    if similarity is not None:
        model.similarity_fn_name = similarity
    ends = type(list(model.children())[-1]).__name__
    for item in config.loss:
        if isinstance(item, InfoNCEOptions) and ends == "Normalize" and item.resolved_scale < 5:
            _LOG.warning(
                "the model normalises its vectors, so that scores lie within ±%g: too flat for a softmax to learn "
                "from. Give the loss a scale (20 is usual), or take the last module off.",
                item.resolved_scale,
            )
    return model


def _load_cross_encoder(config: TrainConfig) -> CrossEncoder:
    lengths = config.lengths
    length = lengths.query + lengths.document if lengths.query and lengths.document else None
    try:
        return CrossEncoder(_model_path(config), num_labels=1, max_length=length)
    except (OSError, ValueError) as error:
        raise ConfigError(f"model: {config.model!r} does not load as a CrossEncoder: {error}") from error


def _score(config: TrainConfig) -> dict[str, Any]:
    """What the model's scores are in this training."""
    if config.preset.family == "cross-encoder":
        return {"similarity": None, "scale": 1.0, "what": "raw logits"}
    first = next((item for item in config.loss if isinstance(item, InfoNCEOptions)), None)
    if first is None:
        return {"similarity": None, "scale": 1.0, "what": "the model's own similarity"}
    return {
        "similarity": first.similarity,
        "scale": first.resolved_scale,
        "what": "scale times similarity, in the loss",
    }


def _collator(model: Any, config: TrainConfig) -> SideCollator:
    if config.preset.family == "cross-encoder":
        return SideCollator(CrossEncoderDataCollator(preprocess_fn=model.preprocess))
    widest = 1 + max(getattr(config.sampling, "negatives", None) or 1, 1)
    documents = ["positive", *(f"negative_{number}" for number in range(1, widest))]
    own = model.prompts or {}
    lengths = {"query": config.lengths.query, "document": config.lengths.document}
    return SideCollator(
        SentenceTransformerDataCollator(
            preprocess_fn=model.preprocess,
            router_mapping={"query": "query", **dict.fromkeys(documents, "document")},
            prompts={
                column: prompt
                for column in ["query", *documents]
                if (prompt := own.get("query" if column == "query" else "document"))
            },
            max_length={task: length for task, length in lengths.items() if length},
        )
    )


class _Progress(TrainerCallback):
    """Tells steps to whoever listens to progress."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._advance: progress.Advance = lambda amount: None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._advance = self._stack.enter_context(progress.task("train", state.max_steps))
        self._advance(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._advance(1)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            _LOG.info(
                "step %d: %s", state.global_step, ", ".join(f"{key} {value}" for key, value in (logs or {}).items())
            )

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._stack.close()


class _Batches:
    """What our batches need of a sentence-transformers trainer; mixed into each kind, so that none is copied."""

    def __init__(self, *, examples: Any, **settings: Any) -> None:
        self._examples = examples
        super().__init__(**settings)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Our keys in place of row numbers. Each process takes its own slots, so accelerate must not divide again."""
        trainer = cast(Any, self)
        args = trainer.args
        keys = BatchSampler(self._examples.sampler, args.process_index, args.world_size)
        loader = DataLoader(
            self._examples,
            batch_sampler=cast(Any, keys),
            collate_fn=trainer.data_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            persistent_workers=args.dataloader_persistent_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
        )
        return prepare_data_loader(
            loader, device=trainer.accelerator.device, num_processes=1, process_index=0, put_on_device=True
        )

    def compute_loss(self, model: Any, inputs: dict[str, Any], *rest: Any, **settings: Any) -> Any:
        """As above us, and stop at a loss that is no number."""
        number = int(inputs["label"]["number"][0])
        found = cast(Any, super()).compute_loss(model, inputs, *rest, **settings)
        loss = found[0] if isinstance(found, tuple) else found
        if not bool(torch.isfinite(loss)):
            qids, step = self._examples.qids(number), cast(Any, self).state.global_step + 1
            raise BackendError(
                f"the loss is {float(loss.detach())} at step {step} (batch {number}, queries "
                f"{', '.join(qids[:64])}{' …' if len(qids) > 64 else ''}). The last checkpoint is whole; a lower "
                "learning rate, bf16 instead of fp16, or max_grad_norm are the usual remedies."
            )
        return found

    def _load_best_model(self) -> None:
        """Without the silence above us: a best model that does not load is an error."""
        trainer = cast(Any, self)
        _LOG.info("best checkpoint: %s (%s)", trainer.state.best_model_checkpoint, trainer.state.best_metric)
        trainer._load_from_checkpoint(trainer.state.best_model_checkpoint)


class _BiEncoderTrainer(_Batches, SentenceTransformerTrainer):
    pass


class _CrossEncoderTrainer(_Batches, CrossEncoderTrainer):
    pass
