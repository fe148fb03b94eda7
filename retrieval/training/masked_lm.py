"""Method masked-lm: an encoder gets a masked-LM head, or one that has it goes on, trained on a collection's documents.

What comes out is a SparseEncoder that method splade starts from.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import save_model
from sentence_transformers import SentenceTransformer, SparseEncoder
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sparse_encoder.modules import SpladePooling

from ...errors import ConfigError
from ...eval.collection import open_collection
from ..encoders.masked_head import shift_to_active, with_masked_head
from ..losses.masked_lm import IGNORED, Masking, hide_tokens
from ..losses.sparse_options import MaskedLmOptions
from ..sampling import BatchKey
from .batches import Row
from .blocks import TokenSampling
from .config import TrainConfig
from .crop_examples import CropCollator, CropExamples, open_token_tables
from .sparse_models import has_masked_lm, random_weights
from .tokens import ordinary_range

__all__ = ["MaskedCollator", "MaskedExamples", "load_masked_lm", "masked_collator", "save_as_sparse"]

_LOG = logging.getLogger(__name__)
_SAMPLE = 256
_HIDE = 5  # a stream of random numbers of its own, beside those of `sampling.crops`


def load_masked_lm(path: str, config: TrainConfig) -> SparseEncoder:
    """The masked language model at `path`, or one made of the encoder there; as the only module of a SparseEncoder.

    Raises:
        ConfigError: it does not load, has no mask token, or transformers knows no head for it.
    """
    options = cast(MaskedLmOptions, config.loss[0])
    try:
        if has_masked_lm(path):
            _LOG.info("%s has a masked-LM head, which is trained on", config.model)
            for lacking in random_weights(path):
                _LOG.warning("%s. They begin at random", lacking)
            reader = _existing(path)
        else:
            encoder = SentenceTransformer(path, device="cpu")
            reader = _as_module(*with_masked_head(encoder, _frequencies(config)))
    except (OSError, ValueError) as error:
        raise ConfigError(f"model: {config.model!r} does not load as a transformer: {error}") from error
    if cast(Any, reader.tokenizer).mask_token_id is None:
        raise ConfigError(f"model: the tokenizer of {config.model!r} has no mask token")
    if options.parameters == "head":
        network = cast(Any, reader.model)
        getattr(network, network.base_model_prefix).requires_grad_(False)
    return SparseEncoder(modules=[reader], similarity_fn_name="dot")


def _as_module(network: Any, tokenizer: Any) -> Transformer:
    """The network as sentence-transformers' module, which is made from files only.

    Every process writes its own: transformers' `save_pretrained` writes nothing but on the first.
    """
    with tempfile.TemporaryDirectory() as folder:
        network.config.save_pretrained(folder)
        save_model(network, str(Path(folder) / "model.safetensors"), metadata={"format": "pt"})
        tokenizer.save_pretrained(folder)
        return Transformer(folder, transformer_task="fill-mask")


def _existing(path: str) -> Transformer:
    first = next(SparseEncoder(path, device="cpu").children())
    if not isinstance(first, Transformer):
        raise ConfigError(f"model: the first module of {path!r} is a {type(first).__name__}, not a transformer")
    return first


def _frequencies(config: TrainConfig) -> np.ndarray:
    """How often each token stands in the training documents. (V,) float64."""
    tables = open_token_tables(config)
    size = 1 + max(int(table.tokens.max()) for table in tables)
    return np.sum([np.bincount(table.tokens, minlength=size) for table in tables], axis=0).astype(np.float64)


def save_as_sparse(model: SparseEncoder, config: TrainConfig) -> SparseEncoder:
    """With SPLADE pooling behind it, and with the head's bias shifted to the number of active terms asked for."""
    reader = cast(Transformer, next(model.children()))
    cast(Any, reader.model).requires_grad_(True)
    active = cast(MaskedLmOptions, config.loss[0]).active
    if active is not None:
        length = cast(TokenSampling, config.sampling).chunk_length
        shift = shift_to_active(reader, _sample(config), active, length=length)
        _LOG.info("the head's bias is shifted by %.3f, for about %d active terms a document", shift, active)
    return SparseEncoder(modules=[reader, SpladePooling("max")], device=str(model.device), similarity_fn_name="dot")


def _sample(config: TrainConfig) -> list[str]:
    """Documents of the first collection, evenly spaced."""
    documents = open_collection(config.data.parts()[0].collection).documents
    rows = np.unique(np.linspace(0, len(documents) - 1, min(_SAMPLE, len(documents))).astype(np.int64))
    return list(documents.texts(rows))


# --- batches ---


@dataclass(frozen=True)
class MaskedExamples(CropExamples):
    """Chunks of documents; the column is called query, and the place in the batch stands beside it."""

    def __getitems__(self, key: BatchKey) -> list[Row]:
        slots = range(key.start, key.stop)
        pairs = self.sampler.pairs(self.sampler.draw(key.number), key.number, slots)
        return [
            ({"query": chunk}, {"number": np.int64(key.number), "slot": np.int64(slot)})
            for (chunk, _), slot in zip(pairs, slots, strict=True)
        ]


class MaskedCollator(CropCollator):
    """Hides tokens of the chunks, by seed, batch and place in it; puts `targets` (B, longest) beside them.

    Args:
        tokenizer: the model's.
        probability: that a token is asked for.
        seed: of the run.
    """

    def __init__(self, tokenizer: Any, probability: float, seed: int) -> None:
        super().__init__(tokenizer)
        first, last = ordinary_range(tokenizer.all_special_ids, len(tokenizer))
        self.masking = Masking(int(tokenizer.mask_token_id), first, last, probability)
        self.seed = seed

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        hidden = [
            hide_tokens(columns["query"].astype(np.int64), self.masking, self._generator(side))
            for columns, side in rows
        ]
        batch = super().__call__([({"query": seen}, side) for (seen, _), (_, side) in zip(hidden, rows, strict=True)])
        batch["label"]["targets"] = self._placed([targets for _, targets in hidden], batch["query_attention_mask"])
        return batch

    def _generator(self, side: dict[str, Any]) -> np.random.Generator:
        return np.random.default_rng([self.seed, _HIDE, int(side["number"]), int(side["slot"])])

    def _placed(self, targets: Sequence[np.ndarray], mask: torch.Tensor) -> torch.Tensor:
        """Targets where the tokens stand, between special tokens and padding that are not asked for."""
        placed = torch.full_like(mask, IGNORED)
        for row, values in enumerate(targets):
            start = int(mask[row].argmax()) + len(self.before)
            placed[row, start : start + len(values)] = torch.from_numpy(values)
        return placed


def masked_collator(model: Any, config: TrainConfig) -> MaskedCollator:
    """For rows of chunks.

    Raises:
        ConfigError: a chunk is longer than the model reads.
    """
    block = cast(TokenSampling, config.sampling)
    collator = MaskedCollator(model.tokenizer, block.probability, config.seed)
    longest, limit = block.chunk_length + len(collator.before) + len(collator.after), model.max_seq_length
    if limit is not None and longest > limit:
        raise ConfigError(
            f"sampling.chunk_length: a chunk of {block.chunk_length} has {longest} tokens with special ones, the model "
            f"reads {limit}"
        )
    return collator
