"""Batches of windows for language models: written as prompt and answer, padded on the left."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from ..losses.language_options import GrpoOptions
from ..sampling import BatchKey
from .batches import BatchExamples
from .config import TrainConfig
from .list_blocks import ListSampling
from .list_prompts import ListWriter
from .list_table import ListTable, Wanted, conversation_table, file_table, run_table
from .list_windows import Window, Windows

__all__ = ["ListCollator", "ListExamples", "ListRow", "list_collator", "open_lists", "padded"]

_LOG = logging.getLogger(__name__)

ListRow = tuple[Window, int]
"""An example and the number of its batch."""


def open_lists(config: TrainConfig) -> list[ListTable]:
    """The lists of every collection in the configuration, or of a file of conversations.

    Raises:
        DataError: see `list_table`.
    """
    data, sampling = config.data, cast(ListSampling, config.sampling)
    windows, wanted = Windows(sampling, config.seed), _wanted(config)
    if data.lists is not None and data.collection is None:
        tables = [conversation_table(data.lists, sampling.window)]
    else:
        parts = data.parts()
        tables = [run_table(part, wanted) if part.lists is None else file_table(part, wanted) for part in parts]
    for table in tables:
        table.windows = windows
        for line in table.report.lines():
            _LOG.info("%s: %s", table.name, line)
    return tables


def _wanted(config: TrainConfig) -> Wanted:
    most = Windows(cast(ListSampling, config.sampling), config.seed).reach
    if config.preset.family != "policy":
        return Wanted(most=most)
    from .policy_rewards import REWARDS

    reward = REWARDS[cast(GrpoOptions, config.loss[0]).reward]
    return Wanted(max(2, reward.size(config)), most, reward.reference)


class ListExamples(BatchExamples):
    """Windows of lists."""

    def __getitems__(self, key: BatchKey) -> list[Any]:
        draw = self.sampler.draw(key.number)
        table: ListTable = self.tables[draw.part]
        slots = range(key.start, key.stop)
        return [(table.window(int(draw.rows[slot]), key.number, slot, draw.part), key.number) for slot in slots]


class ListCollator:
    """Windows → what a causal language model reads, and what its answers should be.

    Prompt and answer stand at the right end, so that the answers of a batch end at the same position and the head is
    needed for the last T + 1 positions only.
    """

    def __init__(self, writer: ListWriter) -> None:
        self.writer = writer

    def __call__(self, rows: Sequence[ListRow]) -> dict[str, Any]:
        """`input_ids`, `attention_mask`, `position_ids` (B, L); under `label`:

        `targets` (B, T) int64, -100 before the answer; `identifiers` (B, T) int64, whose identifier a token writes;
        `lengths` (B,) int64 of the answers; `levels` (B, N) float32 and `valid` (B, N) bool; `number` (B,).
        """
        written = [self.writer.write(window) for window, _ in rows]
        ids = [torch.tensor([*each.prompt, *each.answer]) for each in written]
        mask = padded([torch.ones_like(each) for each in ids], 0)
        levels = [torch.from_numpy(window.levels) for window, _ in rows]
        label = {
            "targets": padded([torch.tensor(each.answer) for each in written], -100),
            "identifiers": padded([torch.from_numpy(each.numbers) for each in written], 0),
            "lengths": torch.tensor([len(each.answer) for each in written]),
            "levels": padded(levels, 0.0, left=False),
            "valid": padded([torch.ones_like(each, dtype=torch.bool) for each in levels], 0.0, left=False).bool(),
            "number": torch.tensor([number for _, number in rows]),
        }
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        return {"input_ids": padded(ids, 0), "attention_mask": mask, "position_ids": positions, "label": label}


def list_collator(model: Any, config: TrainConfig) -> ListCollator:
    """For lists, in the words that the configuration says."""
    from .language_models import list_writer

    return ListCollator(list_writer(model, config))


def padded(rows: Sequence[Tensor], value: float, *, left: bool = True) -> Tensor:
    """Rows of different lengths as one tensor."""
    side = "left" if left else "right"
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=value, padding_side=side)
