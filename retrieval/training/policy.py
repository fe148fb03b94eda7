"""Reinforcement learning of rerankers by TRL's GRPO trainer (extra `trl`), with the published rewards.

Prompts are those that our rerankers send, token by token: a reranker is asked for its first call, and what it would
send to the model is kept. Everything else is TRL's: rollouts, advantages, the clipped objective, checkpoints.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from transformers import PrinterCallback, set_seed

from ...errors import BackendError, ConfigError
from ...extras import require
from ..losses.language_options import GrpoOptions
from ..rerankers.base import Candidate, Request
from ..rerankers.families import load_family
from . import record
from .arguments import for_this_machine
from .config import TrainConfig
from .language_models import language_tokenizer
from .list_examples import open_lists
from .list_table import ListTable
from .loops import Progress
from .lora import AdapterCheckpoints
from .models import finish_model, load_model
from .policy_rewards import REWARDS, Example, Reward

__all__ = ["asked_prompts", "policy_examples", "train_policy"]

_LOG = logging.getLogger(__name__)
_PURPOSE = "training rerankers by reinforcement learning (method grpo)"


class _Asked(Exception):
    """What a reranker would have sent; ends its work."""


@dataclass(frozen=True)
class _Recorder:
    """A language model that answers nothing."""

    tokenizer: Any
    context_length: int

    def identity(self) -> dict[str, Any]:
        return {}

    def next_token_logits(self, prompts: Sequence[Any], tokens: Sequence[int], /) -> Any:
        raise _Asked(list(prompts))

    def continuation_log_probs(self, prompts: Sequence[Any], continuations: Sequence[Sequence[int]], /) -> Any:
        raise _Asked(list(prompts))

    def generate(self, prompts: Sequence[Any], sampling: Any, /) -> Any:
        raise _Asked(list(prompts))


def asked_prompts(config: TrainConfig, query: str, documents: Sequence[str], *, context: int) -> list[tuple[int, ...]]:
    """The token ids of what the reward's reranker asks first about these documents: one prompt a document, or, of a
    setwise reranker, one prompt with all of them in this order."""
    options, block = cast(GrpoOptions, config.loss[0]), config.prompt_block
    settings: dict[str, Any] = {"words": block.words, "tokens": block.tokens, "template": block.template}
    settings |= {} if block.thinking is None else {"thinking": block.thinking}
    if options.reward == "rank-r1":
        settings |= {"children": max(2, len(documents) - 1), "presentation": "first-stage"}
    if options.reward != "prorank":  # which generates nothing when it reranks
        settings["max_new_tokens"] = options.max_new_tokens
    if block.instruction is not None:
        settings["relevance" if options.reward == "retro" else "instruction"] = block.instruction
    if block.file is not None:
        settings["prompt_file"] = block.file
    recorder = _Recorder(language_tokenizer(config), context - options.max_new_tokens * (options.reward == "prorank"))
    reranker = load_family(options.reward, recorder, **settings)
    candidates = tuple(Candidate(str(at), text) for at, text in enumerate(documents))
    try:
        (failed,) = reranker.rerank([Request("", query, candidates)])
    except _Asked as asked:
        ids = [prompt.ids for prompt in asked.args[0]]
        if options.reward == "rank-r1":
            return ids
        places = {text: at for at, text in enumerate(dict.fromkeys(documents))}  # equal texts are asked about once
        return [ids[places[text]] for text in documents]
    raise ConfigError(f"reranker {options.reward!r} asked nothing about {len(documents)} documents: {failed.error}")


def policy_examples(
    config: TrainConfig, tables: Sequence[ListTable], *, context: int, queries: int, most: int | None = None
) -> list[Example]:
    """The prompts of so many queries, or the first `most` of them, in the order in which they are trained on: queries
    shuffled by the seed (again for each round), the prompts of one query together."""
    reward = REWARDS[cast(GrpoOptions, config.loss[0]).reward]
    places = [(part, row) for part, table in enumerate(tables) for row in range(len(table))]
    examples: list[Example] = []
    for number in range(queries):
        if most is not None and len(examples) >= most:
            break
        round_, at = divmod(number, len(places))
        order = np.random.default_rng([config.seed, round_]).permutation(len(places))
        part, row = places[int(order[at])]
        window = tables[part].window(row, number, 0, part)
        for prompt in reward.prompts(window):
            ids = asked_prompts(config, window.query, prompt.documents, context=context)
            told = zip(ids, prompt.told, strict=True)
            examples += [Example(each, number, place, len(ids), values) for place, (each, values) in enumerate(told)]
    return examples[:most]


def train_policy(config: TrainConfig, *, overwrite: bool = False) -> Path:
    """Train a reranker by reinforcement and return its folder; an interrupted run goes on from its last checkpoint.

    Raises:
        MissingExtra: trl is not installed.
        ConfigError: batches do not hold whole groups, there are fewer prompts than one batch has, or TRL refuses the
            arguments.
        DataError: see `list_examples.open_lists`.
    """
    trl = require("trl", "trl", _PURPOSE)
    from ..rerankers.engine_transformers import context_of

    options = cast(GrpoOptions, config.loss[0])
    reward = REWARDS[options.reward]
    arguments = _arguments(trl, config, options)
    first = arguments.process_index == 0
    checkpoint = record.agreed_checkpoint(config, arguments, overwrite=overwrite)
    tables = open_lists(config)
    set_seed(config.seed)
    model = load_model(config)
    tokenizer = language_tokenizer(config)
    context = config.prompt_block.context or context_of(model, tokenizer)
    size = reward.size(config)
    _check_groups(arguments, options, size)
    queries, most = _amount(arguments, options, size, sum(map(len, tables)))
    examples = policy_examples(config, tables, context=context, queries=queries, most=most)
    examples = _whole_batches(arguments, options, examples)
    trainer = _make_trainer(trl, model, arguments, examples, reward(options))
    if first:
        score = {"similarity": None, "scale": 1.0, "what": f"trained by the reward {options.reward}"}
        record.start(config, cast(Any, tables), processes=arguments.world_size, score=score)
    if checkpoint is not None:
        _LOG.info("resuming from %s", checkpoint)
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    output = Path(config.output)
    if first:
        finish_model(trainer.model, config).save_pretrained(str(output))
        tokenizer.save_pretrained(str(output))
        rewards = [{"step": entry["step"], "reward": entry["reward"]} for entry in trainer.state.log_history
                   if "reward" in entry]  # fmt: skip
        record.finish(config, {"steps": trainer.state.global_step, "rewards": rewards})
    trainer.accelerator.wait_for_everyone()
    return output


def _arguments(trl: Any, config: TrainConfig, options: GrpoOptions) -> Any:
    given = {"report_to": "none", "disable_tqdm": True, "logging_steps": 10, "save_total_limit": 2, **config.trainer}
    given |= {"output_dir": str(Path(config.output) / record.CHECKPOINTS), "seed": config.seed}
    given |= {"num_generations": options.generations, "max_completion_length": options.max_new_tokens}
    given |= {"temperature": options.temperature, "beta": options.beta, "shuffle_dataset": False}
    try:
        return trl.GRPOConfig(**for_this_machine(given), remove_unused_columns=False, logging_nan_inf_filter=False)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"TRL refuses these trainer arguments: {error}") from error


def _check_groups(arguments: Any, options: GrpoOptions, size: int) -> None:
    """A reward over the rollouts of several prompts needs them all on one process, in one call."""
    rollouts = arguments.per_device_train_batch_size * arguments.steps_per_generation
    if rollouts % (size * options.generations):
        raise ConfigError(
            f"trainer.per_device_train_batch_size times gradient_accumulation_steps is {rollouts} rollouts; reward "
            f"{options.reward!r} needs a multiple of {size} prompts x {options.generations} rollouts for each process"
        )


def _amount(arguments: Any, options: GrpoOptions, size: int, available: int) -> tuple[int, int | None]:
    """How many queries the training goes through, and how many prompts at most."""
    if arguments.max_steps > 0:
        rounds = arguments.steps_per_generation * arguments.num_iterations  # passes that one round of rollouts is for
        drawn = -(-arguments.max_steps * arguments.gradient_accumulation_steps // rounds)
        prompts = drawn * arguments.generation_batch_size // options.generations
        return -(-prompts // size), prompts
    epochs, arguments.num_train_epochs = arguments.num_train_epochs, 1  # the rounds are in the examples, each shuffled
    return max(1, int(available * epochs)), None


def _whole_batches(arguments: Any, options: GrpoOptions, examples: list[Example]) -> list[Example]:
    """Without the last prompts that make no whole batch: TRL drops them without a word.

    Raises:
        ConfigError: there is no whole batch.
    """
    size = arguments.generation_batch_size // options.generations
    if len(examples) < size:
        raise ConfigError(
            f"{len(examples)} prompts make no batch, which has {size}, each with {options.generations} rollouts: "
            f"per_device_train_batch_size {arguments.per_device_train_batch_size} x steps_per_generation "
            f"{arguments.steps_per_generation} (or gradient_accumulation_steps) x {arguments.world_size} processes. "
            "Lower these, raise trainer.num_train_epochs, give trainer.max_steps, or more queries"
        )
    left = len(examples) % size
    if left:
        _LOG.warning("the last %d of %d prompts make no whole batch of %d and are left out", left, len(examples), size)
    return examples[: len(examples) - left]


def _make_trainer(trl: Any, model: Any, arguments: Any, examples: list[Example], pay: Reward) -> Any:
    from datasets import Dataset

    class Trainer(AdapterCheckpoints, trl.GRPOTrainer):
        """Prompts stand for token ids that are made already: text of documents never becomes a marker."""

        def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
            return [list(examples[int(prompt)].ids) for prompt in prompts], None, {}

    if not hasattr(trl.GRPOTrainer, "_tokenize_prompts"):
        raise BackendError(f"trl {trl.__version__} prepares prompts in another way; tested with 1.16")
    rows = [{"prompt": str(at), "example": at} for at in range(len(examples))]

    def reward(prompts: list[str], completions: list[str], example: list[int], **_: Any) -> list[float]:
        return pay([examples[at] for at in example], completions)

    make: Any = Trainer  # whose base class type checkers do not see
    trainer = make(
        model=model,
        reward_funcs=reward,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=_fresh_tokenizer(model),
        callbacks=[Progress()],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _fresh_tokenizer(model: Any) -> Any:
    """A tokenizer for TRL, which changes its padding."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model.config.name_or_path, padding_side="left")
