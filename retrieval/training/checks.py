"""What no single block of a training configuration can see: whether the blocks go together."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from ..losses.options import LOSSES
from .blocks import TopicSampling
from .list_checks import list_problems
from .loss_checks import loss_problems
from .methods import METHODS
from .sparse_blocks import sparse_query_problems

if TYPE_CHECKING:
    from .config import TrainConfig

__all__ = ["configuration_problems"]


def configuration_problems(config: TrainConfig) -> list[str]:
    """Everything that no single block can see, as messages."""
    problems: list[str] = []
    data = config.data
    if (data.collection is None) == (not data.mixture) and not (data.lists and not data.mixture):
        problems.append("data: give either `collection` or `mixture` (a list of collections with weights), not both")
    if data.mixture and data.runs.files():
        problems.append("data.runs: with a mixture, each of its collections has its own `runs`")
    weights = [part.weight is None for part in data.mixture]
    if any(weights) and not all(weights):
        problems.append("data.mixture: give a weight to every collection or to none")
    files = [(f"data.runs.{role}", path) for part in data.parts() for role, path in part.runs.files()]
    files += [("evaluation.run", config.evaluation.run)] if config.evaluation and config.evaluation.run else []
    problems += [f"{role}: there is no file {path}" for role, path in files if not Path(path).is_file()]
    if config.preset.family == "cross-encoder":
        if config.evaluation and not config.evaluation.run:
            problems.append("evaluation.run: a cross-encoder reranks; give the run that holds its candidates")
        if (config.lengths.query is None) != (config.lengths.document is None):
            problems.append("lengths: a cross-encoder cuts the pair to query + document tokens; give both or none")
        if config.matryoshka:
            problems.append("matryoshka: is about vectors; a cross-encoder has none")
        if config.mini_batch_size:
            problems.append("mini_batch_size: gradient caching is for bi-encoders; lower the batch size instead")
    alone = [item.name for item in config.loss if LOSSES[item.name].alone]
    if alone and len(config.loss) > 1:
        problems.append(f"loss: {alone[0]!r} stands alone, it cannot be summed with others")
    if alone and (config.mini_batch_size or config.matryoshka):
        problems.append(f"loss: {alone[0]!r} takes neither mini_batch_size nor matryoshka")
    problems += list_problems(config)
    problems += _index_problems(config)
    problems += _curriculum_problems(config)
    problems += _sparse_problems(config)
    problems += sparse_query_problems(config)
    problems += _model_problems(config)
    problems += _crop_problems(config)
    problems += _pair_problems(config)
    problems += loss_problems(config)
    problems += _evaluation_problems(config)
    problems += _own_value_problems(config)
    return problems


def _evaluation_problems(config: TrainConfig) -> list[str]:
    """An evaluation without its checkpoint could not give back the best model, one cut short not its measure."""
    chosen = config.evaluation
    if chosen is None:
        return []
    problems: list[str] = []
    save_steps = config.trainer.get("save_steps", chosen.every)
    if save_steps != chosen.every:
        problems.append(
            f"trainer.save_steps: {save_steps!r}, but a checkpoint is written after every evaluation, so that the best "
            f"one is there (evaluation.every: {chosen.every}); leave it out"
        )
    cutoff = re.search(r"@(\d+)$", chosen.measure)
    if cutoff and chosen.run is None and int(cutoff[1]) > chosen.depth:
        problems.append(
            f"evaluation.measure: {chosen.measure} looks further than evaluation.depth ({chosen.depth}); raise the "
            "depth"
        )
    return problems


def _own_value_problems(config: TrainConfig) -> list[str]:
    """Half precision by scaled gradients, of which values of the loss itself know nothing."""
    own = [item.name for item in config.loss if item.name == "cet" or getattr(item, "learn_scale", False)]
    if own and config.trainer.get("fp16"):
        return [f"trainer.fp16: loss {own[0]} trains values of its own, which fp16 does not scale; use trainer.bf16"]
    return []


def _pair_problems(config: TrainConfig) -> list[str]:
    """Pair files, clusters and teachers, and the sampling that needs them."""
    problems: list[str] = []
    block = config.sampling
    for part in config.data.parts():
        if part.pairs is not None and part.runs.files():
            problems.append("data.pairs: has its own positives, negatives and scores; leave `runs` out")
        if part.pairs is not None and not Path(part.pairs).is_file():
            problems.append(f"data.pairs: there is no file {part.pairs}")
        balanced = isinstance(block, TopicSampling) and "balanced" in block.strategy
        if balanced and part.pairs is None and not part.runs.teachers:
            problems.append(
                "data.runs.teachers: pairs are balanced over a teacher's margins; give its scores (or data.pairs), or "
                "sampling.strategy: tas"
            )
        pairs = isinstance(block, TopicSampling) or (config.method == "star" and bool(getattr(block, "negatives", 0)))
        if pairs and part.pairs is None and not part.runs.negatives:
            problems.append("data.runs.negatives: this method trains on pairs; give the negatives (or data.pairs)")
    if isinstance(block, TopicSampling) and isinstance(block.clusters, str) and not Path(block.clusters).is_file():
        problems.append(f"sampling.clusters: there is no file {block.clusters} (a number makes that many clusters)")
    return problems


def _model_problems(config: TrainConfig) -> list[str]:
    """What is done to the model before it is trained."""
    problems: list[str] = []
    if config.preset.family == "cross-encoder":
        if config.attention:
            problems.append(
                "attention: is for bi-encoders, which pool over all tokens; a cross-encoder has its own head"
            )
        if config.pooling:
            problems.append("pooling: is about vectors; a cross-encoder has its own head")
        if config.drop_normalisation:
            problems.append("drop_normalisation: is about vectors; a cross-encoder has none")
    elif config.head_dropout is not None:
        problems.append("head_dropout: is of a cross-encoder's head; leave it out")
    if config.preset.examples == "queries" and (config.attention or config.pooling or config.drop_normalisation):
        problems.append(
            "attention, pooling, drop_normalisation: the index was made by the model as it is; leave them out"
        )
    if config.prompts:
        problems += _prompt_problems(config)
    if config.attention and config.lora and not config.lora.merge:
        problems.append(
            "lora.merge: an adapter on its own loads onto the causal model; with attention: bidirectional, merge it"
        )
    return problems


def _prompt_problems(config: TrainConfig) -> list[str]:
    if config.preset.family != "bi-encoder":
        return [f"prompts: are for bi-encoders; {config.method!r} trains none"]
    if config.preset.examples == "crops":
        return [f"prompts: method {config.method!r} trains on pieces of documents, which have none"]
    if config.preset.examples == "queries" and config.prompts and config.prompts.document is not None:
        return ["prompts.document: the index was made by the model as it is; leave it out"]
    return []


def _sparse_problems(config: TrainConfig) -> list[str]:
    """Sparse encoders: dot products over a vocabulary, and a block of their own."""
    if config.preset.family != "sparse-encoder":
        wrong = f"sparse: is for sparse encoders (method splade); {config.method!r} trains none"
        return [] if config.sparse is None else [wrong]
    problems = [
        f"loss.{number}.similarity: an inverted index computes dot products; leave it out"
        for number, item in enumerate(config.loss)
        if getattr(item, "similarity", "dot") != "dot"
    ]
    for name in ("matryoshka", "attention", "pooling"):
        if getattr(config, name) and not (name == "attention" and config.method == "echo-splade"):
            problems.append(f"{name}: is for dense vectors{'; see sparse.pooling' if name == 'pooling' else ''}")
    if config.drop_normalisation:
        problems.append("drop_normalisation: is for dense vectors")
    if config.sparse_block.query == "bag":
        if config.mini_batch_size:
            problems.append(
                "mini_batch_size: cached gradients need queries that take one, a bag of word pieces does not"
            )
        problems += [
            f"loss.{number}.side: a bag of word pieces as query has nothing to regularise; take document"
            for number, item in enumerate(config.loss)
            if getattr(item, "side", "document") != "document"
        ]
    return problems


def _crop_problems(config: TrainConfig) -> list[str]:
    """Pre-training on crops sees documents only."""
    problems: list[str] = []
    examples = config.preset.examples
    crops, masked = examples in ("crops", "masked-tokens"), examples == "masked-tokens"
    for number, item in enumerate(config.loss):
        if masked != (item.name == "masked-lm"):
            problems.append(f"loss.{number}: {item.name!r} does not go with method {config.method!r}")
        elif crops and not masked and item.name not in ("moco", "infonce"):
            problems.append(f"loss.{number}: {item.name!r} does not go with crops of documents: take moco or infonce")
        if item.name == "moco" and not crops:
            problems.append(f"loss.{number}: 'moco' goes with method contriever, whose pairs it is made for")
    if not crops:
        return problems
    for part in config.data.parts():
        given = [name for name in ("pairs", "index", "shuffle_judgments") if getattr(part, name) is not None]
        given += ["runs"] if part.runs.files() else []
        problems += [f"data.{name}: this method reads documents only; leave it out" for name in given]
    if masked and config.evaluation:
        problems.append("evaluation: a masked language model is no retriever yet; its accuracy is logged")
    if config.lengths.query or config.lengths.document:
        problems.append("lengths: a crop's length follows from sampling.chunk_length and its ratios; leave lengths out")
    return problems


def _curriculum_problems(config: TrainConfig) -> list[str]:
    block = config.curriculum
    if block is None:
        return []
    alone = [item.name for item in config.loss if LOSSES[item.name].alone]
    if alone:
        return [f"curriculum: loss {alone[0]!r} stands alone and has no costs of queries that could be weighted"]
    problems: list[str] = []
    if any(part.runs.first_stage is None for part in config.data.parts()):
        problems.append("curriculum: says how hard documents are for a first stage; give data.runs.first_stage")
    if block.reduction == "per_sample":
        fitting = ("query", "document") if block.weighting == "pairwise" else ("document",)
        wrong = [item.name for item in config.loss if LOSSES[item.name].costs not in fitting]
        known = ", ".join(name for name, entry in LOSSES.items() if entry.costs in fitting)
        problems += [
            f"curriculum: loss {name!r} has no cost of its own for each {fitting[-1] if len(fitting) == 1 else 'query'}"
            f", which {block.weighting} weights multiply; take one of {known}, or reduction: batch_mean_product"
            for name in wrong
        ]
    return problems


def _index_problems(config: TrainConfig) -> list[str]:
    """A loss that searches while it trains, its method and its index go together."""
    problems: list[str] = []
    method = config.preset
    for number, item in enumerate(config.loss):
        if LOSSES[item.name].searches != (method.examples == "queries"):
            fitting = ", ".join(name for name, known in METHODS.items() if known.examples == "queries")
            problems.append(f"loss.{number}: {item.name!r} does not go with method {method.name!r}; losses that search "
                            f"while they train go with {fitting}, and no others do")  # fmt: skip
    for part in config.data.parts():
        if method.examples != "queries" and part.index is not None:
            problems.append(f"data.index: method {method.name!r} searches no index while it trains; leave it out")
        elif method.examples == "queries" and part.index is None:
            problems.append(f"data.index: required by method {method.name!r}: a dense index of {part.collection}")
        elif part.index is not None and not Path(part.index).is_dir():
            problems.append(f"data.index: there is no folder {part.index}")
    return problems
