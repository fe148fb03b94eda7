"""The blocks of a configuration that say how sparse queries are looked up, and how a causal model sees a text twice."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import PositiveFloat, PositiveInt, model_validator

from ..losses.sparse_options import IdfFlopsOptions
from .blocks import Block

if TYPE_CHECKING:
    from .config import TrainConfig

__all__ = ["Echo", "Idf", "sparse_query_problems"]


class Idf(Block):
    """Queries without a network: each of their word pieces weighs what a table says (method inference-free).

    A string is short for its `mode`.

    Attributes:
        table: "collection" counts pieces in the training collection; "uniform" is 1 everywhere, the ablation; else a
            file in the published format (`rtk idf`).
        mode: "matching" puts idf into the query's vector, as released: terms of high idf withstand the penalty. In
            "weighted" a query is 0 and 1, and the loss idf-flops has the idf: with power 2 it is the same objective, of
            contributions idf · w instead of w, which the network then learns.
        trainable: the table is trained too.
        learning_rate: its own; None is the trainer's.
    """

    table: str = "collection"
    mode: Literal["matching", "weighted"] = "matching"
    trainable: bool = False
    learning_rate: PositiveFloat | None = None

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return {"mode": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _a_rate_of_something(self) -> Idf:
        if self.learning_rate is not None and not self.trainable:
            raise ValueError("learning_rate: the table is not trained; give trainable: true, or leave it out")
        return self


class Echo(Block):
    """How a causal language model encodes (method echo-splade); see `encoders.echo_template` for the templates.

    Attributes:
        query, document: templates; None is the model's own, or the usual one.
        logit_scale: logits are multiplied by it before the relu; "hidden-size" is hidden_size^-0.25 (Lion-SP); None is
            the model's own, or 1.
        head_chunk: positions at which the head runs at once: memory, no part of the result.
    """

    query: str | None = None
    document: str | None = None
    logit_scale: PositiveFloat | Literal["hidden-size"] | None = None
    head_chunk: PositiveInt = 16


def sparse_query_problems(config: TrainConfig) -> list[str]:
    """Whether `idf` and `echo`, the method and the losses go together."""
    static, echo = config.method == "inference-free", config.method == "echo-splade"
    problems: list[str] = []
    if config.idf is not None and not static:
        problems.append(f"idf: is for method inference-free; {config.method!r} encodes its queries")
    if config.echo is not None and not echo:
        problems.append(f"echo: is for method echo-splade; {config.method!r} trains no causal language model")
    weighted = [number for number, item in enumerate(config.loss) if isinstance(item, IdfFlopsOptions)]
    problems += [f"loss.{number}: 'idf-flops' goes with method inference-free" for number in weighted if not static]
    if static:
        problems += _static_problems(config, bool(weighted))
    sparse = config.sparse_block
    if echo and (sparse.query != "model" or sparse.expansion != "both"):
        problems.append("sparse.query, sparse.expansion: method 'echo-splade' encodes both sides; leave them out")
    if echo and (sparse.pooling == "sum" or sparse.chunk):
        problems.append("sparse.pooling, sparse.chunk: method 'echo-splade' takes the maximum; see echo.head_chunk")
    return problems


def _static_problems(config: TrainConfig, weighted: bool) -> list[str]:
    problems: list[str] = []
    block = config.idf_block
    if config.sparse_block.query != "model" or config.sparse_block.expansion not in ("both", "document"):
        problems.append("sparse.query, sparse.expansion: the queries of method inference-free follow from idf")
    if block.mode == "weighted" and not weighted:
        problems.append("loss: idf.mode weighted puts idf into the loss; take idf-flops in place of flops")
    if block.mode == "weighted" and block.trainable:
        problems.append("idf.trainable: with mode weighted the table is a constant of the loss")
    if block.table not in ("collection", "uniform") and not Path(block.table).is_file():
        problems.append(f"idf.table: there is no file {block.table} (or collection, uniform)")
    if config.mini_batch_size and not block.trainable:
        problems.append("mini_batch_size: cached gradients need queries that take one; leave it out")
    problems += [
        f"loss.{number}.side: queries are looked up, there is nothing to regularise; take document"
        for number, item in enumerate(config.loss)
        if getattr(item, "side", "document") != "document"
    ]
    return problems
