"""The trainers of sentence-transformers with our batches, our losses' own state, and a stop at NaN.

They save, load and all-reduce what belongs to the model only. What a loss trains or keeps beside it (a second model, a
queue, a trained scale) is taken care of here: it lies in `loss.safetensors` of every checkpoint, its gradients are
averaged over the processes, and its norm is clipped apart from the model's.
"""

from __future__ import annotations

import functools
import inspect
import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from accelerate.data_loader import prepare_data_loader
from safetensors.torch import load_file, save_file
from sentence_transformers.cross_encoder import CrossEncoderTrainer
from sentence_transformers.sentence_transformer.trainer import SentenceTransformerTrainer
from sentence_transformers.sparse_encoder.trainer import SparseEncoderTrainer
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import EarlyStoppingCallback, TrainerCallback

from ... import progress
from ...errors import BackendError, ConfigError
from ..losses.context import Clock, Metrics
from ..losses.modules import own_state
from ..sampling import BatchSampler
from .lora import AdapterCheckpoints

__all__ = ["LOSS_FILE", "BiEncoderTrainer", "CrossEncoderLoop", "Patience", "Progress", "SparseEncoderLoop"]

_LOG = logging.getLogger(__name__)
LOSS_FILE = "loss.safetensors"


class Progress(TrainerCallback):
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
            told = (
                f"{key} {value:.5g}" if isinstance(value, float) else f"{key} {value}"
                for key, value in (logs or {}).items()
            )
            _LOG.info("step %d: %s", state.global_step, ", ".join(told))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._stack.close()


class Patience(EarlyStoppingCallback):
    """Early stopping that goes on counting where a stopped run was; transformers starts over at 0 unless all callbacks
    are made anew from the checkpoint."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        stored = state.stateful_callbacks.get(type(self).__name__)
        if stored is not None:
            self.early_stopping_patience_counter = stored["attributes"]["early_stopping_patience_counter"]


class _Loop(AdapterCheckpoints):
    """What our batches and losses need of a sentence-transformers trainer; mixed into each kind, no trainer is copied.

    Args:
        examples: a dataset whose keys are batches (see `batches`).
        metrics: what the loss tells beside its value; logged with it.
        clock: told the step before every loss.
        optimizer: (class, settings) in place of the trainer's own choice; groups and learning rate stay the trainer's.
    """

    def __init__(
        self,
        *,
        examples: Any,
        metrics: Metrics,
        clock: Clock,
        optimizer: tuple[type, dict[str, Any]] | None = None,
        **settings: Any,
    ) -> None:
        self._examples, self._metrics, self._clock, self._optimizer = examples, metrics, clock, optimizer
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
            pin_memory=args.dataloader_pin_memory and args.device.type != "cpu",  # else torch warns
            persistent_workers=args.dataloader_persistent_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
            worker_init_fn=_start_worker,
        )
        return prepare_data_loader(
            loader, device=trainer.accelerator.device, num_processes=1, process_index=0, put_on_device=True
        )

    def compute_loss(self, model: Any, inputs: dict[str, Any], *rest: Any, **settings: Any) -> Any:
        """As above us, and stop at a loss that is no number."""
        number = int(inputs["label"]["number"][0])
        state = cast(Any, self).state
        self._clock.step, self._clock.total = state.global_step, state.max_steps
        found = cast(Any, super()).compute_loss(model, inputs, *rest, **settings)
        loss = found[0] if isinstance(found, tuple) else found
        if not bool(torch.isfinite(loss)):
            qids, step = self._examples.qids(number), state.global_step + 1
            raise BackendError(
                f"the loss is {float(loss.detach())} at step {step} (batch {number}). The last checkpoint is whole; a "
                "lower learning rate, bf16 instead of fp16, or max_grad_norm are the usual remedies. Its queries: "
                f"{', '.join(qids)}"
            )
        return found

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """With what the loss told since the last time."""
        cast(Any, super()).log({**logs, **self._metrics.take()} if "loss" in logs else logs, start_time)

    # --- the loss's own parameters and state ---

    def get_decay_parameter_names(self, model: Any) -> list[str]:
        """Without the scales that a loss trains, as logarithms: decay would pull them towards 1."""
        return [name for name in cast(Any, super()).get_decay_parameter_names(model) if not name.endswith("log_scale")]

    def get_optimizer_cls_and_kwargs(self, args: Any, model: Any = None) -> tuple[Any, Any]:
        """The trainer's parameter groups, with our optimiser where one is asked for."""
        chosen, settings = cast(Any, super()).get_optimizer_cls_and_kwargs(args, model)
        if self._optimizer is None:
            return chosen, settings
        kept = {name: settings[name] for name in ("lr", "optimizer_dict") if name in settings}
        return self._optimizer[0], {**kept, **self._optimizer[1]}

    def create_optimizer(self, model: Any = None) -> Any:
        """Also average and clip the gradients of the loss's own parameters just before each step."""
        optimizer = cast(Any, super()).create_optimizer(model)
        trainer = cast(Any, self)
        own = own_parameters(trainer.loss)
        if own and trainer.args.fp16:
            raise ConfigError("this loss trains parameters of its own, which fp16 does not scale; use trainer.bf16")
        if own and not getattr(self, "_hooked", False):
            self._hooked = True
            optimizer.register_step_pre_hook(lambda *_: _average_and_clip(own, trainer.args.max_grad_norm))
        return optimizer

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        trainer = cast(Any, self)
        with nullcontext() if trainer.args.push_to_hub else _without_card(trainer.model):
            super()._save(output_dir, state_dict)
        state = {name: value.detach().cpu().contiguous().clone() for name, value in own_state(trainer.loss).items()}
        if state:
            save_file(state, str(Path(output_dir or trainer.args.output_dir) / LOSS_FILE))

    def _load_from_checkpoint(self, checkpoint_path: str, *wrapped: Any) -> None:
        super()._load_from_checkpoint(checkpoint_path, *wrapped)
        loss = cast(Any, self).loss
        expected = own_state(loss)
        if expected:
            state = load_file(str(Path(checkpoint_path) / LOSS_FILE))
            if state.keys() != expected.keys():
                raise ConfigError(f"{checkpoint_path}/{LOSS_FILE} is not of this loss: other names of values")
            loss.load_state_dict(state, strict=False)  # the model's own weights were loaded above

    def _load_best_model(self) -> None:
        """Without the silence above us: a best model that does not load is an error."""
        trainer = cast(Any, self)
        _LOG.info("best checkpoint: %s (%s)", trainer.state.best_model_checkpoint, trainer.state.best_metric)
        trainer._load_from_checkpoint(trainer.state.best_model_checkpoint)


class BiEncoderTrainer(_Loop, SentenceTransformerTrainer):
    pass


class CrossEncoderLoop(_Loop, CrossEncoderTrainer):
    pass


class SparseEncoderLoop(_Loop, SparseEncoderTrainer):
    pass


def _start_worker(number: int) -> None:
    """A forked process has no threads of the tokenizer's pool: with parallelism asked for it would wait for them."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def own_parameters(loss: Any) -> list[Tensor]:
    """Trained parameters of a loss that are not the model's."""
    return [value for name, value in loss.named_parameters() if value.requires_grad and not name.startswith("model.")]


def _average_and_clip(parameters: list[Tensor], norm: float | None) -> None:
    if dist.is_initialized() and dist.get_world_size() > 1:
        for parameter in parameters:
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            dist.all_reduce(gradient)
            parameter.grad = gradient / dist.get_world_size()
    if norm:
        torch.nn.utils.clip_grad_norm_(parameters, norm)


@contextmanager
def _without_card(model: Any) -> Iterator[None]:
    """A checkpoint has no model card, which takes longer to write than a small model; what is trained has one."""
    save = model.save_pretrained
    if "create_model_card" not in inspect.signature(save).parameters:
        yield
        return
    model.save_pretrained = functools.partial(save, create_model_card=False)
    try:
        yield
    finally:
        del model.save_pretrained
