"""The query side and the document side of a sentence-transformers model: modules, prompt and maximum length of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

from sentence_transformers.base.modules import Normalize, Router, Transformer
from sentence_transformers.sparse_encoder.modules import SparseStaticEmbedding
from torch import nn

from ...errors import ConfigError

__all__ = [
    "PROMPT_NAMES",
    "Side",
    "Task",
    "keep_length",
    "normalises",
    "prompt_of",
    "side",
    "side_modules",
    "transformer_of",
]

Task = Literal["query", "document"]

PROMPT_NAMES: Mapping[Task, tuple[str, ...]] = {"query": ("query",), "document": ("document", "passage", "corpus")}


@dataclass(frozen=True)
class Side:
    """How one side of a model is used.

    Attributes:
        task: "query" or "document", what the model calls the side.
        prompt: put before every text; None for none.
        length: maximum number of tokens, prompt and special tokens included; None where the model knows no limit.
        own_length: whether `length` was asked for and must be passed on to the model.
    """

    task: Task
    prompt: str | None
    length: int | None
    own_length: bool

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments for the model's own `encode`."""
        asked: dict[str, Any] = {"task": self.task, "prompt": self.prompt}
        if self.own_length:
            asked["processing_kwargs"] = {"text": {"max_length": self.length}}
        return asked


def side(model: Any, task: Task, *, length: int | None = None, prompts: Mapping[str, str] | None = None) -> Side:
    """The side of `model` for `task`, with the model's own prompt and length where none is given.

    Args:
        model: a SentenceTransformer, SparseEncoder or MultiVectorEncoder.
        task: which side.
        length: maximum number of tokens; None keeps the model's.
        prompts: replaces the model's own prompts; keys as there ("query", "document"); "" for none.

    Raises:
        ConfigError: a length that the model cannot keep.
    """
    transformer = transformer_of(model, task)
    if length is not None:
        _check_length(transformer, task, length)
    return Side(
        task=task,
        prompt=prompt_of(model, task, prompts),
        length=length if length is not None else _own_length(model, transformer, task),
        own_length=length is not None,
    )


def keep_length(model: Any, task: Task, length: int) -> None:
    """Let the model itself cut the texts of a side at `length` tokens, or where its positions end; it is saved so.

    Plain sentence-transformers reads it too, in `encode_query` and `encode_document`. A side that has no place for it,
    such as static dense embeddings, stays as it is.
    """
    first = next(iter(side_modules(model, task)), None)
    if isinstance(first, Transformer):
        setattr(first, f"{task}_length", min(length, _positions(first) or length))
    elif isinstance(first, SparseStaticEmbedding):
        cast(Any, first.tokenizer).model_max_length = length  # of its own, no other side's


def side_modules(model: Any, task: Task) -> list[nn.Module]:
    """The modules that a text of that side passes through, a Router replaced by its route."""
    modules: list[nn.Module] = []
    for module in model.children():
        if isinstance(module, Router):
            modules.extend(module.sub_modules[_route(module, task)].children())
        else:
            modules.append(module)
    return modules


def normalises(model: Any, task: Task) -> bool:
    """Whether the side's vectors end at length 1: its products then lie within ±1, whatever the similarity's name."""
    modules = side_modules(model, task)
    return bool(modules) and isinstance(modules[-1], Normalize)


def transformer_of(model: Any, task: Task) -> Transformer | None:
    """The Transformer module that reads the side's texts, or None (static embeddings, bags of words)."""
    modules = side_modules(model, task)
    return modules[0] if modules and isinstance(modules[0], Transformer) else None


def _route(router: Router, task: Task) -> str:
    """The route of a text, in the Router's own order: mapped pairs, then a name."""
    for key in ((task, "text"), (task, None), (None, "text"), (None, None)):
        if key in router.route_mappings:
            return router.route_mappings[key]
    for name in (task, "text", router.default_route):
        if name is not None and name in router.sub_modules:
            return name
    raise ConfigError(
        f"the model's Router has no route for a {task} of text; its routes: {', '.join(router.sub_modules)}"
    )


def prompt_of(model: Any, task: Task, prompts: Mapping[str, str] | None = None) -> str | None:
    """What stands before every text of a side: from `prompts`, or the model's own under any of its names."""
    known = model.prompts if prompts is None else prompts
    for name in PROMPT_NAMES[task]:
        if name in known:
            return known[name] or None
    if prompts is None and model.default_prompt_name is not None:
        return known.get(model.default_prompt_name) or None
    return None


def _own_length(model: Any, transformer: Transformer | None, task: Task) -> int | None:
    first = next(iter(side_modules(model, task)), None)
    if isinstance(first, SparseStaticEmbedding):
        length = cast(Any, first.tokenizer).model_max_length
    elif transformer is None:
        length = getattr(model, "max_seq_length", None)
    else:
        expansion = transformer.query_expansion if task == "query" else None
        declared = (transformer.processing_kwargs or {}).get("text", {}).get("max_length")
        by_task = transformer.query_length if task == "query" else transformer.document_length
        length = (expansion or {}).get("length") or declared or by_task or transformer.max_seq_length
    return length if isinstance(length, int) and length < 1 << 30 else None  # tokenizers say 1e30 for "no limit"


def _check_length(transformer: Transformer | None, task: Task, length: int) -> None:
    if length < 1:
        raise ConfigError(f"{task}_length is {length}, expected at least 1 token")
    if transformer is None:
        raise ConfigError(f"{task}_length is {length}, but the model's {task} side has no transformer to cut texts for")
    positions = _positions(transformer)
    if positions is not None and positions < length:
        raise ConfigError(f"{task}_length is {length}, but the model has positions for {positions} tokens only")
    expansion = transformer.query_expansion if task == "query" else None
    width = None if expansion is None else expansion.get("length")
    if width is not None and length != width:
        raise ConfigError(
            f"query_length is {length}, but the model expands every query to {width} tokens; leave query_length out"
        )


def _positions(transformer: Transformer) -> int | None:
    """How many tokens it has positions for, where it says so."""
    positions = getattr(transformer.config, "max_position_embeddings", None)
    return positions if isinstance(positions, int) and positions > 0 else None
