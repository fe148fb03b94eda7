"""Live negatives: exact top-k in frozen document vectors while the query encoder learns (ADORE).

The vectors are those of an rtk index, whichever dense engine it is for: any that keeps its vectors will do. On the CPU
they are memory-mapped, so that several processes share them; on a GPU they are resident.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ...errors import ConfigError, DataError, IndexMismatch
from ...ids import Ids
from ...indexes.manifest import Manifest, read_manifest
from ...indexes.registry import open_index
from ...indexes.torch_index import Half, TorchIndex
from ..belonging import check_belonging
from ..encoders.adapters import as_encoder
from ..losses.adore import RankedLists

if TYPE_CHECKING:
    from ..training.examples import TrainingTable

__all__ = ["LiveIndex", "Relevant", "check_indexed_collection", "open_live_index"]

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Relevant:
    """The relevant documents of some queries: `rows` of the index and `grades`, both (B, P), padded with -1 and 0."""

    rows: Tensor
    grades: Tensor


class LiveIndex:
    """A frozen index inside a training loop.

    Args:
        exact: the search over its vectors; it moves to the device of the queries at the first search.
        table: the training table of the same collection.
        fingerprint: of the documents that were indexed, None where the index does not say.
        precision: on a GPU the vectors are kept in this type; None is the one that they are stored in.

    Attributes:
        missing: how many relevant documents of the table the index lacks.

    Raises:
        DataError: the index has none of them.
    """

    def __init__(
        self,
        exact: TorchIndex,
        table: TrainingTable,
        fingerprint: str | None = None,
        *,
        precision: Half | None = None,
    ) -> None:
        self.exact, self.fingerprint = exact, fingerprint
        self._precision: Half | None = precision
        self._offsets = np.concatenate([[0], np.cumsum(table.positives, dtype=np.int64)])
        skipped = np.repeat(table.offsets[:-1] - self._offsets[:-1], table.positives)
        entries = skipped + np.arange(self._offsets[-1])
        self._grades = table.grades[entries].astype(np.float32)
        self._rows = exact.ids.rows(Ids(table.documents.ids.take(table.entries[entries])))
        beside, owners = table.relevant_beside(np.arange(len(table)))
        rows = exact.ids.rows(Ids(table.documents.ids.take(beside)))
        self._beside = np.unique((owners * len(exact.ids) + rows)[rows >= 0])
        self.missing = int((self._rows < 0).sum())
        if self.missing == len(self._rows):
            raise DataError(
                f"none of the {self.missing} relevant documents of {table.name} is in this index; it is of another "
                "collection, or its ids are written differently",
                path=exact.folder,
            )

    @property
    def similarity(self) -> str:
        return self.exact.similarity

    def search(self, queries: Tensor, k: int) -> Tensor:
        """Rows of the exact k best, best first, padded with -1: (B, dim) → (B, k) int64, on the queries' device."""
        return self.on(queries.device).topk(queries, k)[1]

    def on(self, device: torch.device) -> TorchIndex:
        """The search on that device. The vectors are copied there once and stay."""
        self.exact = self.exact.on(device, precision=self._precision)
        return self.exact

    def scores(self, queries: Tensor, rows: Tensor) -> Tensor:
        """The index's similarity to each query's documents, in float32, differentiable in the queries only.

        Args:
            queries: (B, dim).
            rows: (B, N) int64 index rows; -1 scores 0.
        """
        queries = queries.to(torch.promote_types(torch.float32, queries.dtype))
        if self.similarity == "cosine":
            queries = F.normalize(queries, dim=1)
        documents = self.on(queries.device).gather(rows).to(queries.dtype)
        with torch.autocast(queries.device.type, enabled=False):
            return torch.bmm(documents, queries[:, :, None]).squeeze(2)

    def without_unsettled(self, lists: RankedLists, rows: np.ndarray) -> RankedLists:
        """The lists of table rows less the documents that are judged relevant and are no positives (of a lower grade,
        or outside of the pool): they are no negatives, as in every other method. Those behind them move up."""
        if not len(self._beside):
            return lists
        keys = rows[:, None] * len(self.exact.ids) + lists.rows.cpu().numpy()
        unsettled = torch.from_numpy(np.isin(keys, self._beside)).to(lists.rows.device) & (lists.rows >= 0)
        return RankedLists(lists.rows.masked_fill(unsettled, -1), lists.grades)

    def relevant(self, rows: np.ndarray, device: torch.device) -> Relevant:
        """The relevant documents of table rows; those that the index lacks are left out."""
        starts, stops = self._offsets[rows], self._offsets[rows + 1]
        width = int((stops - starts).max(initial=0))
        places = starts[:, None] + np.arange(width)[None, :]
        there = places < stops[:, None]
        places = np.where(there, places, 0)
        found = np.where(there, self._rows[places], -1)
        grades = np.where(found >= 0, self._grades[places], np.float32(0))
        return Relevant(torch.from_numpy(found).to(device), torch.from_numpy(grades).to(device))


def open_live_index(
    path: str | Path, table: TrainingTable, model: Any, *, name: str, precision: Half | None = None
) -> LiveIndex:
    """Open an index to train queries against.

    Args:
        path: a dense index of the table's collection.
        table: the training table.
        model: the model in training (a SentenceTransformer); its document side must have made the index.
        name: what messages call the model.
        precision: see `Placement`.

    Raises:
        ConfigError: no dense index, one that keeps compressed vectors only, or one of chunks.
        IndexMismatch: another document encoder, or another collection; names both.
        DataError: the index has none of the table's relevant documents.
    """
    manifest = check_indexed_collection(path, table)
    opened: Any = open_index(path)
    _check_encoder(model, name, opened, manifest)
    shards = opened.stored_vectors
    if shards is None:
        raise ConfigError(
            f"{path} keeps compressed vectors only; build it with the torch back-end, or faiss with its vectors kept"
        )
    exact = TorchIndex(shards, opened.ids, similarity=manifest.similarity or "dot", folder=Path(path), owner=opened)
    live = LiveIndex(exact, table, (manifest.collection or {}).get("fingerprint"), precision=precision)
    if live.missing:
        _LOG.warning("%s: the index lacks %d relevant documents; they are left out", path, live.missing)
    return live


def _check_encoder(model: Any, name: str, index: Any, manifest: Manifest) -> None:
    length = dict((manifest.encoder or {}).get("lengths") or {}).get("document")
    training = model.training
    encoder = as_encoder(model, document_length=length, name=name)  # puts the model into evaluation mode
    model.train(training)
    check_belonging(encoder, index, manifest)


def check_indexed_collection(path: str | Path, table: TrainingTable) -> Manifest:
    """Read the manifest of an index that must be a dense one of the table's whole documents.

    Raises:
        ConfigError: another kind of index, or one of chunks.
        IndexMismatch: of another collection.
    """
    manifest = read_manifest(path)
    if manifest.kind != "dense":
        raise ConfigError(f"{path} is a {manifest.kind} index; training searches a dense one")
    recorded = manifest.collection or {}
    if recorded.get("chunking"):
        raise ConfigError(f"{path} is an index of chunks; judgments are about documents, so training needs an index of "
                          "whole documents")  # fmt: skip
    indexed = recorded.get("fingerprint")
    if indexed is not None and indexed != table.documents.fingerprint:
        raise IndexMismatch(
            f"it holds the documents of {recorded.get('name')!r} (fingerprint {indexed[:12]}), but the training data "
            f"are about {table.name!r} (fingerprint {table.documents.fingerprint[:12]}). Index the collection that you "
            "train on",
            path=path,
        )
    return manifest
