"""What a configuration of a listwise language model needs, and what it cannot have."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import nearest
from .list_blocks import ListSampling, Prompting

if TYPE_CHECKING:
    from .blocks import Source
    from .config import TrainConfig

__all__ = ["list_problems"]

_LETTERS = 26
_OTHERS = (
    *("mini_batch_size", "matryoshka", "curriculum", "attention", "pooling"),
    *("drop_normalisation", "sparse", "idf", "echo"),
)


_LISTWISE = ("first", "full-rank", "rank-gpt")
_PLACES = {
    **dict.fromkeys(("wording", "identifiers", "end"), _LISTWISE),
    "double_bos": (*_LISTWISE, "yes-no"),
    "instruction": ("yes-no", "prorank", "erank", "retro"),
    "file": ("erank", "retro"),
    "reranker": ("yes-no",),
    "positive_answer": ("yes-no",),
    "negative_answer": ("yes-no",),
}
"""Settings of `prompt` that not every method has a place for: the methods and rewards that have."""


def list_problems(config: TrainConfig) -> list[str]:
    """Messages; none for the other kinds of model."""
    return _problems(config) + _place_problems(config)


def _problems(config: TrainConfig) -> list[str]:
    if config.preset.family not in ("language-model", "policy"):
        problems = [
            f"data.lists: is for listwise language models; method {config.method!r} trains none"
            for part in (config.data, *config.data.mixture)
            if part.lists is not None
        ]
        wrong = config.prompt is not None and config.method != "yes-no"
        if config.method == "yes-no" and (config.lengths.query or config.lengths.document):
            problems.append("lengths: a prompt's document is cut by prompt.words or prompt.tokens; leave lengths out")
        return problems + ([f"prompt: is for language models; method {config.method!r} asks none"] if wrong else [])
    problems = [
        f"{name}: is not for listwise language models; leave it out" for name in _OTHERS if getattr(config, name)
    ]
    if config.lengths.query or config.lengths.document:
        problems.append("lengths: a prompt's documents are cut by prompt.words or prompt.tokens; leave lengths out")
    if config.preset.family == "policy":
        problems += ["evaluation: GRPO logs its reward; rerank with its checkpoints instead"] * bool(config.evaluation)
        problems += ["optimizer: the optimiser is TRL's; leave it out"] * bool(config.optimizer)
        if config.data.lists is not None and config.data.collection is None:
            problems.append("data.lists: rewards need documents apart from each other; give lists of a collection")
        problems += _reward_problems(config)
    elif config.evaluation and not config.evaluation.run:
        problems.append("evaluation.run: a reranker needs candidates; give the run that holds them")
    lone = config.data.lists is not None and config.data.collection is None
    for part in (config.data,) if lone else config.data.parts():
        problems += _data_problems(part, lone=lone, reference=_reward_is(config, "erank"))
    return problems + (_prompt_problems(config) if config.preset.family == "language-model" else [])


def _place_problems(config: TrainConfig) -> list[str]:
    """What the reranker that asks has no place for, which would be left out without a word."""
    if config.prompt is None:
        return []
    # What a printed configuration holds of every setting is not what somebody asked for.
    given = {name for name in _PLACES if getattr(config.prompt, name) != Prompting.model_fields[name].default}
    rewards = [str(reward) for loss in config.loss if (reward := getattr(loss, "reward", None))]
    asking = rewards[0] if rewards else config.method
    problems = [
        f"prompt.{name}: {asking} has no place for it; leave it out"
        for name, homes in _PLACES.items()
        if name in given and asking not in homes
    ]
    if config.prompt.reranker == "prorank" and given & {"positive_answer", "negative_answer"} and not problems:
        problems.append("prompt.positive_answer: ProRank's answers are 1 and 0; leave positive and negative_answer out")
    return problems


def _reward_is(config: TrainConfig, name: str) -> bool:
    return any(getattr(loss, "reward", None) == name for loss in config.loss)


def _reward_problems(config: TrainConfig) -> list[str]:
    sampling = config.sampling
    if not isinstance(sampling, ListSampling) or not _reward_is(config, "erank"):
        return []
    problems = []
    if sampling.smallest is not None:
        problems.append(
            "sampling.smallest: reward erank ranks all rollouts of a query's `window` documents; leave it out"
        )
    if sampling.depth is not None and sampling.depth < sampling.window:
        problems.append(
            f"sampling.depth: reward erank needs {sampling.window} documents (sampling.window) of each list"
        )
    return problems


def _data_problems(part: Source, *, lone: bool, reference: bool) -> list[str]:
    """Args: `reference` says that the teacher of lists is a supervised model's score, beside their target order."""
    problems = [
        f"data.{name}: listwise language models read lists; leave it out"
        for name in ("pairs", "index")
        if getattr(part, name) is not None
    ]
    if part.lists is not None:
        if not Path(part.lists).is_file():
            problems.append(f"data.lists: there is no file {part.lists}")
        if part.runs.files():
            problems.append("data.runs: data.lists has candidates and their order; leave runs out")
        if lone and part.shuffle_judgments is not None:
            problems.append("data.shuffle_judgments: a file of conversations is taken as it is; leave it out")
        return problems
    if part.runs.first_stage is None:
        problems.append("data.runs.first_stage: required: the candidates, in the order in which the model sees them")
    problems += [
        f"data.runs.{name}: the candidates are data.runs.first_stage; leave it out"
        for name in ("negatives", "pool")
        if getattr(part.runs, name)
    ]
    if reference and len(part.runs.teachers) > 1:
        problems.append("data.runs.teachers: one supervised model, whose scores ERank is told; leave out others")
    elif not reference and len(part.runs.teachers) + (part.runs.labels is not None) > 1:
        problems.append("data.runs: a list has one target order: give labels, or one teacher, or neither (judgments)")
    return problems


def _prompt_problems(config: TrainConfig) -> list[str]:
    from ..rerankers.prompts import LIST_PROMPTS

    block, sampling = config.prompt_block, config.sampling
    problems: list[str] = []
    if block.wording not in LIST_PROMPTS:
        known = ", ".join(LIST_PROMPTS)
        problems.append(f"prompt.wording: no listwise prompt {block.wording!r}{nearest(block.wording, LIST_PROMPTS)}; "
                        f"there are {known}")  # fmt: skip
    if isinstance(sampling, ListSampling) and block.identifiers == "letters" and sampling.window > _LETTERS:
        problems.append(f"sampling.window: {_LETTERS} letters cannot name {sampling.window} documents; take numbers")
    if any(loss.name == "full-rank" for loss in config.loss) and block.identifiers != "numbers":
        problems.append("prompt.identifiers: the full-rank reranker writes numbers")
    return problems
