"""Sparse encoders whose queries need no network: the set of their word pieces, each with a weight from a table.

    s(q, d) = Σ over t in set(q) of relu(idf_t) · w_d(t)        (Geng et al., arXiv 2411.04403)

They are sentence-transformers' own modules, a Router with SparseStaticEmbedding for queries and a SPLADE encoder for
documents, so plain sentence-transformers loads what is saved here. A piece that stands twice counts once; special
tokens, the unknown one among them, weigh nothing, so a query of nothing else is an empty vector and finds nothing.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from itertools import accumulate, chain
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix
from sentence_transformers import SparseEncoder
from sentence_transformers.base.modules import Router
from sentence_transformers.sparse_encoder.modules import SparseStaticEmbedding
from torch import Tensor, nn

from ...errors import ConfigError, DataError, IndexMismatch
from .fingerprint import cutting_differences, tokenizer_fingerprint
from .idf import IdfTable, pieces, special_ids
from .sides import Task, side_modules, transformer_of

__all__ = [
    "as_learned",
    "check_vocabularies",
    "inference_free",
    "query_module",
    "settle_learned",
    "static_side",
    "static_vectors",
]

_LOG = logging.getLogger(__name__)


def inference_free(
    documents: SparseEncoder, table: IdfTable, *, trainable: bool = False, query_length: int | None = None
) -> SparseEncoder:
    """A Router: queries by `table`, documents as `documents` has them.

    Args:
        documents: a SPLADE encoder; its document modules are taken over, not copied.
        table: fits its tokenizer.
        trainable: the weights are learned; see `as_learned`.
        query_length: queries are cut to so many pieces; None is the tokenizer's own limit.

    Raises:
        ConfigError: there is no masked language model that reads the documents, or its vocabulary is too small.
        IndexMismatch: the table is of another tokenizer.
    """
    reader = transformer_of(documents, "document")
    if reader is None or reader.tokenizer is None:
        raise ConfigError("the documents are not read by a transformer with a tokenizer; expected a SPLADE encoder")
    if table.tokenizer != tokenizer_fingerprint(reader.tokenizer):
        raise IndexMismatch(
            f"the table of {table.source} was made with the tokenizer {table.tokenizer[:12]}…, the documents' is "
            f"{tokenizer_fingerprint(reader.tokenizer)[:12]}…: make the table with this model (rtk idf)"
        )
    _fit_head(reader, len(table))
    queries = query_module(reader.tokenizer, table.weights(), trainable=trainable, length=query_length)
    router = Router.for_query_document([queries], side_modules(documents, "document"))  # pyright: ignore[reportArgumentType]
    prompt = documents.prompts.get("document")
    model = SparseEncoder(
        modules=[router],
        device=str(documents.device),
        similarity_fn_name="dot",
        prompts={"document": prompt} if prompt else None,  # a query's prompt would be words of every query
    )
    if trainable:
        as_learned(queries)
    return model


def query_module(
    tokenizer: Any, weights: np.ndarray, *, trainable: bool = False, length: int | None = None
) -> SparseStaticEmbedding:
    """The query side: (V,) weights, 0 for special tokens, with a tokenizer of its own that cuts at `length`."""
    values = torch.from_numpy(np.array(weights, dtype=np.float32))
    values[torch.from_numpy(special_ids(tokenizer))] = 0
    own = copy.deepcopy(tokenizer)
    own.model_max_length = length or own.model_max_length
    return SparseStaticEmbedding(own, weight=values, frozen=not trainable)


def as_learned(queries: SparseStaticEmbedding) -> None:
    """Let training see relu(weight), and keep special tokens at 0, whatever the optimiser does.

    A stock module has neither: the first is a hook on its output (a query's vector is presence times weight, so the
    relu of one is that of the other), the second a hook on the gradient. `settle_learned` makes both superfluous.
    """
    special = torch.zeros(queries.num_dimensions, dtype=torch.bool)
    special[torch.from_numpy(special_ids(queries.tokenizer))] = True
    queries.register_forward_hook(_relu)
    queries.weight.register_hook(lambda gradient: gradient.masked_fill(special.to(gradient.device), 0))


def settle_learned(model: SparseEncoder) -> int:
    """Write relu(weight) into a learned table, in place, so that readers without the relu have the same weights.

    Returns:
        How many weights were below 0.
    """
    queries = static_side(model, "query")
    if queries is None:
        raise ConfigError("the model's queries are not looked up in a table")
    with torch.no_grad():
        below = int((queries.weight < 0).sum())
        queries.weight.clamp_(min=0)
    if below:
        _LOG.info("%d learned query weights are below 0 and are written as 0", below)
    return below


def static_side(model: SparseEncoder, task: Task) -> SparseStaticEmbedding | None:
    """The table of a side without a network, or None."""
    modules = side_modules(model, task)
    only = modules[0] if len(modules) == 1 else None
    return only if isinstance(only, SparseStaticEmbedding) else None


def static_vectors(
    table: SparseStaticEmbedding, texts: Sequence[str], *, prompt: str | None = None, top: int | None = None
) -> csr_matrix:
    """The set of each text's pieces, weighted: CSR float32 (n, V), made without a tensor of that shape.

    What plain sentence-transformers computes, but for weights below 0 (of a learned table), which count as 0. Of each
    text the `top` largest weights are kept (a model's `max_active_dims`), the lower piece among equal ones.

    Raises:
        DataError: a weight of the table is not finite.
    """
    tokenizer: Any = table.tokenizer
    weights = table.weight.detach().float().cpu().numpy()
    least, most = weights.min(initial=0), weights.max(initial=0)  # NaN if there is one: cheap enough for every query
    if not (np.isfinite(least) and np.isfinite(most)):
        bad = np.flatnonzero(~np.isfinite(weights))
        raise DataError(
            f"{len(bad)} of the {len(weights)} weights of the query table are not finite; the first is "
            f"{weights[bad[0]]}, of the piece {tokenizer.convert_ids_to_tokens(int(bad[0]))!r}. Give the model another "
            "table (rtk idf), or take a checkpoint from before its training went wrong"
        )
    rows = _piece_rows(tokenizer, [prompt + text for text in texts] if prompt else texts)
    found = [sorted(set(row)) for row in rows]
    if top is not None:
        found = [sorted(sorted(row, key=lambda token: -weights[token])[:top]) for row in found]
    offsets = np.array([0, *accumulate(map(len, found))], dtype=np.int32)  # of scipy's own kind, which it does not copy
    columns = np.array(list(chain.from_iterable(found)), dtype=np.int32)
    values = weights[columns]
    if values.min(initial=1) <= 0:
        weighing = values > 0
        offsets = np.concatenate([[0], np.cumsum(weighing)], dtype=np.int32)[offsets]
        columns, values = columns[weighing], values[weighing]
    return csr_matrix((values, columns, offsets), shape=(len(texts), len(weights)))


def _piece_rows(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """The pieces of each text, cut at the tokenizer's limit, without special tokens.

    A fast tokenizer's back end is asked directly: transformers' own call costs twice as much for a query, which is what
    such a query costs in all.
    """
    if not len(texts):
        return []
    limit = tokenizer.model_max_length
    length = limit if limit < 1 << 30 else None  # tokenizers say 1e30 for "no limit"
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return tokenizer(
            list(texts), add_special_tokens=False, truncation=length is not None, max_length=length, padding=False,
            return_attention_mask=False, verbose=False,
        )["input_ids"]  # fmt: skip
    if backend.truncation is not None:  # what an earlier call through transformers left
        backend.no_truncation()
    if backend.padding is not None:
        backend.no_padding()
    rows = [each.ids for each in backend.encode_batch_fast(list(texts), add_special_tokens=False)]
    if length is None:
        return rows
    return [row[-length:] if tokenizer.truncation_side == "left" else row[:length] for row in rows]


def check_vocabularies(model: SparseEncoder, table: SparseStaticEmbedding, dimension: int) -> None:
    """Whether a table of queries numbers pieces, and cuts texts into them, as the documents' vectors have it.

    Raises:
        ConfigError: it does not.
    """
    if table.num_dimensions != dimension:
        raise ConfigError(
            f"the query table has {table.num_dimensions} entries, document vectors have {dimension}: not one vocabulary"
        )
    reader = transformer_of(model, "document")
    if reader is None or reader.tokenizer is None:
        return
    own, others = pieces(table.tokenizer), pieces(reader.tokenizer)
    if own != others:
        differing = next((at for at, pair in enumerate(zip(own, others, strict=False)) if pair[0] != pair[1]), None)
        raise ConfigError(
            "the query side's tokenizer numbers other pieces than the document side's"
            + ("" if differing is None else f": {differing} is {own[differing]!r} there and {others[differing]!r} here")
        )
    differing_rules = cutting_differences(table.tokenizer, reader.tokenizer)
    if differing_rules:
        raise ConfigError(
            "the query side's tokenizer cuts texts into the same pieces by other rules than the document side's, so "
            f"that words in common may not meet: they differ in {', '.join(differing_rules)}. Give the query side the "
            "documents' tokenizer (rtk idf makes its table)"
        )


def _relu(module: nn.Module, inputs: Any, output: dict[str, Tensor]) -> dict[str, Tensor]:
    output["sentence_embedding"] = output["sentence_embedding"].relu()
    return output


def _fit_head(reader: Any, size: int) -> None:
    """A head that was padded to a round number of entries gives up those that no piece has."""
    network = reader.model
    entries = int(network.get_output_embeddings().weight.shape[0])
    if entries > size:
        network.resize_token_embeddings(size)
        _LOG.info("the head's %d entries without a piece are taken off; %d stay", entries - size, size)
    elif entries < size:
        raise ConfigError(f"the tokenizer has {size} pieces, the masked-LM head has entries for {entries}")
