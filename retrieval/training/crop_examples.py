"""Examples of pairs of crops, for pre-training on documents alone: token ids from the file to the model, no texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ...errors import ConfigError
from ..sampling import BatchKey
from ..sampling.crops import Chunking, Cropping, CropSampler
from .batches import BatchExamples, Row
from .blocks import CropSampling
from .config import TrainConfig
from .tokens import TokenTable, open_tokens

__all__ = ["CropCollator", "CropExamples", "crop_collator", "crop_sampler", "open_token_tables", "special_ends"]


def open_token_tables(config: TrainConfig) -> list[TokenTable]:
    """The documents of every collection, tokenised with the model's own tokenizer.

    Raises:
        DataError: see `open_tokens`.
        ConfigError: the model has no tokenizer, or its tokenizer no mask where the sampling needs one.
    """
    from ...eval.collection import open_collection
    from .models import open_tokenizer

    tokenizer = open_tokenizer(config)
    block = config.sampling
    if isinstance(block, CropSampling) and block.augmentation == "mask" and tokenizer.mask_token_id is None:
        raise ConfigError("sampling.augmentation: the model's tokenizer has no mask token; take delete or replace")
    return [open_tokens(open_collection(part.collection), tokenizer) for part in config.data.parts()]


def crop_sampler(
    tables: Sequence[TokenTable], block: CropSampling, batch_size: int, seed: int, weights: Sequence[float] | None
) -> CropSampler:
    """The sampler of a `CropSampling` block over all collections at once."""
    chunking = Chunking(batch_size, seed, block.chunk_length, block.across_documents, weights, block.size_exponent)
    cropping = Cropping(block.ratio_min, block.ratio_max, block.augmentation, block.probability)
    return CropSampler(tables, chunking, cropping, replacements=tables[0].replacements)


@dataclass(frozen=True)
class CropExamples(BatchExamples):
    """Columns query and positive are arrays of token ids; there are no texts to put beside them."""

    tables: Sequence[TokenTable]
    sampler: CropSampler

    def __post_init__(self) -> None:
        if self.texts:
            raise ConfigError("this loss asks another model about the batch's texts; crops of tokens have none")

    def __getitems__(self, key: BatchKey) -> list[Row]:
        draw = self.sampler.draw(key.number)
        side = {"number": np.int64(key.number)}
        return [
            ({"query": query, "positive": positive}, side)
            for query, positive in self.sampler.pairs(draw, key.number, range(key.start, key.stop))
        ]

    def qids(self, number: int) -> list[str]:
        """Ids of the documents that a batch's chunks lie in, for messages."""
        found = self.sampler.documents(self.sampler.draw(number))
        return [self.tables[source].document_id(row) for source, row in found]


class CropCollator:
    """Puts special tokens around token ids and pads them: what the model takes, without a text in between.

    Args:
        tokenizer: the model's.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.before, self.after = special_ends(tokenizer)
        self.padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        self.left = tokenizer.padding_side == "left"
        self.types = "token_type_ids" in tokenizer.model_input_names
        self.valid_label_columns: list[str] = []

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        batch: dict[str, Any] = {}
        for column in rows[0][0]:
            features = self.collate([columns[column] for columns, _ in rows])
            batch |= {f"{column}_{name}": value for name, value in features.items()}
        batch["label"] = {name: torch.from_numpy(np.stack([side[name] for _, side in rows])) for name in rows[0][1]}
        return batch

    def collate(self, rows: Sequence[np.ndarray]) -> dict[str, torch.Tensor]:
        """input_ids and attention_mask (B, longest) int64, and token_type_ids where the model wants them."""
        ends = len(self.before) + len(self.after)
        width = ends + max(len(row) for row in rows)
        ids = np.full((len(rows), width), self.padding, dtype=np.int64)
        mask = np.zeros((len(rows), width), dtype=np.int64)
        for number, row in enumerate(rows):
            whole = np.concatenate([self.before, row.astype(np.int64), self.after])
            place = slice(width - len(whole), width) if self.left else slice(0, len(whole))
            ids[number, place], mask[number, place] = whole, 1
        features = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
        return features | ({"token_type_ids": torch.zeros_like(features["input_ids"])} if self.types else {})


def special_ends(tokenizer: Any) -> tuple[np.ndarray, np.ndarray]:
    """The special tokens that the tokenizer puts before and after one text. Two int64 arrays.

    Raises:
        ConfigError: it puts them elsewhere.
    """
    plain = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    whole = list(tokenizer("a")["input_ids"])
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == plain:
            before, after = whole[:start], whole[start + len(plain) :]
            return np.array(before, dtype=np.int64), np.array(after, dtype=np.int64)
    raise ConfigError("the model's tokenizer changes a text's tokens when it adds special ones; crops cannot follow it")


def crop_collator(model: Any, config: TrainConfig) -> CropCollator:
    """For rows of crops.

    Raises:
        ConfigError: a crop can be longer than the model reads.
    """
    collator, block = CropCollator(model.tokenizer), config.sampling
    assert isinstance(block, CropSampling)
    longest = int(block.chunk_length * block.ratio_max) + len(collator.before) + len(collator.after)
    limit = model.max_seq_length
    if limit is not None and longest > limit:
        raise ConfigError(
            f"sampling: a crop has up to {longest} tokens (ratio_max times chunk_length, and special ones), the model "
            f"reads {limit}; lower sampling.chunk_length or sampling.ratio_max"
        )
    return collator
