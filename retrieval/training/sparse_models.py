"""Loading a sparse encoder for training: its masked-LM head is checked, and its modules follow the configuration."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from sentence_transformers import SparseEncoder
from sentence_transformers.base.modules import Router, Transformer
from sentence_transformers.sparse_encoder.modules import SpladePooling
from sentence_transformers.util import load_file_path
from torch import nn
from transformers import AutoConfig, AutoModelForMaskedLM

from ...errors import ConfigError
from ...files import read_json
from ..encoders.inference_free import query_module
from ..encoders.lean_head import pool_under_head
from ..encoders.own_modules import load_sparse
from ..encoders.sides import side_modules, transformer_of
from ..encoders.top_terms import TopTerms

if TYPE_CHECKING:
    from .blocks import Sparse
    from .config import TrainConfig

__all__ = [
    "check_masked_lm",
    "has_masked_lm",
    "load_sparse_encoder",
    "random_weights",
    "shape_encoder",
    "stock_modules",
]

_REMEDY = (
    "Take a checkpoint that was saved with its masked-LM head (…ForMaskedLM), or make one of this encoder: rtk train "
    "with method: masked-lm."
)


def load_sparse_encoder(path: str, config: TrainConfig) -> SparseEncoder:
    """The model at `path` as a SPLADE encoder, as `config.sparse` wants it.

    Raises:
        ConfigError: it does not load, has no masked-LM head or not all weights of it, or cannot be what the block asks
            for.
    """
    try:
        if _is_saved_encoder(path):
            for folder in _heads(path):
                _check_weights(path, folder)
        else:
            check_masked_lm(path)
        model = load_sparse(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"model: {config.model!r} does not load as a SparseEncoder: {error}") from error
    _check_modules(model, config.model)
    model = shape_encoder(model, config.sparse_block)
    model.similarity_fn_name = "dot"
    return model


def _is_saved_encoder(path: str) -> bool:
    """Whether sentence-transformers saved it; what its modules are is looked at after loading."""
    return load_file_path(path, "modules.json") is not None


def has_masked_lm(path: str) -> bool:
    """Whether a checkpoint was saved with a masked-LM head: a transformer's own, or a sparse encoder's."""
    if _is_saved_encoder(path):
        return bool(_heads(path))
    return any(name.endswith("ForMaskedLM") for name in _architectures(path))


def _heads(path: str) -> list[str]:
    """The folders, within a saved encoder's, of the masked language models that read its texts: the first module's, or
    those of a Router's routes."""
    first = _json(path, "modules.json")[0]
    routes = _json(path, "router_config.json", first["path"]).get("types", {})
    kinds = {PurePosixPath(first["path"], route).as_posix(): kind for route, kind in routes.items()}
    kinds = kinds or {first["path"]: first["type"]}
    return [folder for folder, kind in kinds.items() if _is_masked_lm(path, folder, kind)]


def _is_masked_lm(path: str, folder: str, kind: str) -> bool:
    """By the task it was saved with; before sentence-transformers 5.4 such a module was a class of its own."""
    task = _json(path, "sentence_bert_config.json", folder).get("transformer_task")
    return task == "fill-mask" or kind.endswith(".MLMTransformer")


def _json(path: str, name: str, folder: str = "") -> Any:
    """What a file of a saved encoder holds; nothing where it is not there."""
    found = load_file_path(path, name, subfolder=folder)
    return {} if found is None else read_json(found)


def check_masked_lm(path: str) -> None:
    """Refuse a checkpoint without a trained masked-LM head, which would begin as random weights, or as none at all.

    sentence-transformers makes mean pooling with a fresh SparseAutoEncoder of an encoder without one, silently.

    Raises:
        ConfigError: says what is missing, and what to do.
    """
    if not has_masked_lm(path):
        raise ConfigError(
            f"model: {path!r} is a {' + '.join(_architectures(path)) or 'model of unknown architecture'} without a "
            f"masked-LM head, which gives the weights of the vocabulary's terms. {_REMEDY}"
        )
    _check_weights(path)


def _check_weights(path: str, folder: str = "") -> None:
    """Refuse a masked language model whose file lacks weights; `folder` is its place in a saved encoder."""
    lacking = _missing_weights(path, folder)
    if lacking:
        raise ConfigError(f"model: {lacking}. They would begin at random. {_REMEDY}")


def _missing_weights(path: str, folder: str = "") -> str | None:
    """Which weights of a masked language model its file lacks, as a sentence; None where there are all."""
    network, found = AutoModelForMaskedLM.from_pretrained(path, subfolder=folder, output_loading_info=True)
    if not found["missing_keys"]:
        return None
    place = f"{path!r} ({folder})" if folder else repr(path)
    names = ", ".join(sorted(found["missing_keys"])[:8])
    return f"{place} calls itself {type(network).__name__}, but lacks weights of it: {names}"


def random_weights(path: str) -> list[str]:
    """What of the masked language models at `path`, a saved encoder's or its own, begins at random, a sentence each."""
    folders = _heads(path) if _is_saved_encoder(path) else [""]
    return [lacking for folder in folders if (lacking := _missing_weights(path, folder)) is not None]


def _architectures(path: str) -> list[str]:
    return list(getattr(AutoConfig.from_pretrained(path), "architectures", None) or [])


def _check_modules(model: SparseEncoder, name: str) -> None:
    """A masked language model's logits, pooled over tokens; anything else is no SPLADE encoder."""
    modules = side_modules(model, "document")
    kinds = [type(module).__name__ for module in modules]
    first = modules[0]
    if not isinstance(first, Transformer) or first.transformer_task != "fill-mask":
        raise ConfigError(
            f"model: the document side of {name!r} is {' + '.join(kinds)}, not a masked language model whose logits "
            f"are pooled. {_REMEDY}"
        )
    if not any(isinstance(module, SpladePooling) for module in modules):
        raise ConfigError(f"model: the document side of {name!r} is {' + '.join(kinds)}, without SpladePooling")


def shape_encoder(model: SparseEncoder, block: Sparse) -> SparseEncoder:
    """The encoder with the pooling, the query side, the expansion and the pruning that the block asks for.

    Its transformer is the same object on both sides.

    Raises:
        ConfigError: the model has two sides of its own and shall get others.
    """
    for module in model.modules():
        if isinstance(module, SpladePooling):
            module.pooling_strategy = block.pooling or module.pooling_strategy
            module.activation_function = block.activation or module.activation_function
    if block.chunk is not None:
        _pool_in_chunks(model, block.chunk)
    bag, base = block.query == "bag", list(model.children())
    query_lexical = block.expansion in ("document", "none")
    query = _behind(model, query_lexical, block.top_query, block.ratio_query)
    document_lexical = block.expansion in ("query", "none")
    document = _behind(model, document_lexical, block.top_document, block.ratio_document)
    if not (bag or query or document):
        return model
    if any(isinstance(module, Router) for module in base):
        raise ConfigError(
            "sparse: the model has a query side and a document side of its own; leave query, expansion, top_… and "
            "ratio_… out"
        )
    query = [query_module(model.tokenizer, _ones(model))] if bag else [*base, *query]
    document = [*base, *document]
    alike = block.top_query == block.top_document and block.ratio_query == block.ratio_document
    if not bag and alike and query_lexical == document_lexical:
        modules = document
    else:
        modules = [cast(nn.Module, Router.for_query_document(cast(Any, query), cast(Any, document)))]
    prompts = {name: prompt for name, prompt in model.prompts.items() if prompt is not None}
    return SparseEncoder(modules=modules, device=str(model.device), prompts=prompts)


def _pool_in_chunks(model: SparseEncoder, chunk: int) -> None:
    for side in ("query", "document"):
        modules = side_modules(model, side)
        poolings = [module for module in modules if isinstance(module, SpladePooling)]
        reader = transformer_of(model, side)
        if reader is not None and poolings and "forward" not in vars(cast(Any, reader.model.get_output_embeddings())):
            pool_under_head(reader, poolings[0], chunk=chunk)


def stock_modules(model: SparseEncoder, config: TrainConfig) -> SparseEncoder:
    """The model as plain sentence-transformers loads it, where that can say as much: one number of terms for both
    sides is its own `max_active_dims`. That keeps the same weights; of equal ones across the cut it may take another
    term than `prune` does, which in float32 hardly happens and is the price of a model that needs no loader of ours."""
    name, last = list(model.named_children())[-1]
    if isinstance(last, TopTerms) and last.top is not None and last.ratio is None:
        delattr(model, name)
        model.max_active_dims = last.top
    return model


def _behind(model: SparseEncoder, lexical: bool, top: int | None, ratio: float | None) -> list[nn.Module]:
    """Modules behind the pooling of a side: the text's own word pieces only, and its largest weights."""
    modules: list[nn.Module] = [query_module(model.tokenizer, _ones(model))] if lexical else []
    return modules + ([TopTerms(top, ratio)] if top or ratio else [])


def _ones(model: SparseEncoder) -> np.ndarray:
    """1 for every entry of the masked-LM head."""
    reader = transformer_of(model, "document")
    assert reader is not None  # looked at after loading
    head: Any = reader.model.get_output_embeddings()
    return np.ones(int(head.weight.shape[0]), dtype=np.float32)
