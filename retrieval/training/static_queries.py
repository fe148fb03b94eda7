"""Method inference-free: queries are looked up in a table of IDF, documents are encoded (Geng et al., 2411.04403)."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from sentence_transformers import SparseEncoder

from ...errors import ConfigError
from ...eval.collection import Collection, open_collection
from ...files import cache_dir
from ..encoders.fingerprint import tokenizer_fingerprint
from ..encoders.idf import IdfTable, compute_idf, read_idf, uniform_idf
from ..encoders.inference_free import inference_free, settle_learned, static_side
from ..encoders.sides import transformer_of
from .config import TrainConfig

__all__ = ["finish_queries", "look_up_queries", "open_table"]

_LOG = logging.getLogger(__name__)
_FORMAT = 1


def look_up_queries(model: SparseEncoder, config: TrainConfig) -> SparseEncoder:
    """The model with a table as its query side; the table's idf lies beside the weights, for losses that want it."""
    block = config.idf_block
    reader = transformer_of(model, "document")
    if reader is None:
        raise ConfigError(f"model: {config.model!r} has no transformer that reads its documents")
    table = open_table(config, reader.tokenizer)
    weighted = block.mode == "weighted"
    made = inference_free(model, uniform_idf(reader.tokenizer) if weighted else table, trainable=block.trainable)
    queries = static_side(made, "query")
    assert queries is not None  # it was just made
    queries.register_buffer("idf", torch.from_numpy(table.weights()).to(queries.weight.device), persistent=False)
    _LOG.info("queries: %d weights of %s%s", len(table), table.source, ", in the loss" if weighted else "")
    return made


def finish_queries(model: SparseEncoder, config: TrainConfig) -> SparseEncoder:
    """A learned table as stock readers take it."""
    if config.idf_block.trainable:
        settle_learned(model)
    return model


def open_table(config: TrainConfig, tokenizer: Any) -> IdfTable:
    """The table that the configuration names.

    Raises:
        DataError: see `read_idf`, `compute_idf`.
        IndexMismatch: a file of another tokenizer.
    """
    source = config.idf_block.table
    if source == "uniform":
        return uniform_idf(tokenizer)
    if source != "collection":
        return read_idf(source, tokenizer)
    return _counted([open_collection(part.collection) for part in config.data.parts()], tokenizer)


def _counted(collections: Sequence[Collection], tokenizer: Any) -> IdfTable:
    """The table of the collections' documents, counted once: processes and resumed runs find it in the cache."""
    parts = [f"idf {_FORMAT}", *(each.documents.fingerprint for each in collections), tokenizer_fingerprint(tokenizer)]
    path = cache_dir() / "idf" / f"{hashlib.sha256(chr(10).join(parts).encode()).hexdigest()[:32]}.json.gz"
    names = " + ".join(each.name for each in collections)
    if not path.is_file():
        total = sum(len(each.documents) for each in collections)
        compute_idf(_texts(collections), tokenizer, source=names, total=total).save(path)
    return replace(read_idf(path, tokenizer), source=names)


def _texts(collections: Sequence[Collection]) -> Iterator[str]:
    for collection in collections:
        for document in collection.documents:
            yield document.full_text
