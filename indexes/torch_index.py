"""Exact dense search with torch, over memory-mapped vectors on the CPU or resident ones on a GPU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from ..errors import ConfigError
from ..ids import Ids, ids_file
from .base import Hits, Options
from .bounds import COUNT, check_numbers
from .dense import check_exclude, check_queries, exclusion_pairs
from .manifest import Manifest
from .plan import BuildPlan, Similarity
from .registry import check_names
from .topk import TopK, largest_norm
from .vectors import Dtype, VectorShards, encode_dtype, normalised

__all__ = ["Placement", "TorchIndex"]

_QUERIES = 256  # queries in one product
_SCORES = 1 << 20  # scores of one product on the CPU: larger blocks meet fewer barriers between threads
_CUDA_BLOCK = 1 << 17  # rows that are copied there at a time
_CUDA_SCORES = 1 << 29  # scores of one product over resident vectors: few kernels, and no copy of the vectors
_HALVES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
Half = Literal["float16", "bfloat16"]


@dataclass(frozen=True)
class Placement:
    """Where vectors are searched, and how they are kept there.

    Attributes:
        device: where products run. On another device than the CPU the vectors are copied there once, in their stored
            dtype, unless `resident` is false; then each search streams them.
        block: rows in one product; None chooses by device. It bounds memory and does not change results.
        resident: keep the vectors on the device.
        precision: on another device than the CPU, resident vectors are kept as "float16" or "bfloat16" whatever they
            are stored as: half the memory and the time, scores of rounded vectors. None keeps the stored type.
    """

    device: str = "cpu"
    block: int | None = None
    resident: bool = True
    precision: Half | None = None

    def __post_init__(self) -> None:
        _check_block(self.block)


class TorchIndex:
    """Exact top-k by inner product.

    Scores are float32, ties go to the lower row, and neither depends on the block size, the threads or the device's
    matrix kernels (see `topk.TopK`).

    Args:
        shards: the document vectors, already of unit length when `similarity` is "cosine".
        ids: row → document id.
        similarity: "cosine" also normalises queries.
        placement: device and memory.
        folder: where they came from.
        owner: kept alive as long as this index, where it owns the memory of `shards`.
    """

    def __init__(
        self,
        shards: VectorShards,
        ids: Ids,
        *,
        similarity: Similarity = "dot",
        placement: Placement | None = None,
        folder: Path | None = None,
        owner: object = None,
    ) -> None:
        if len(shards) != len(ids):
            raise ConfigError(f"{len(shards)} vectors for {len(ids)} document ids; expected one id for each vector")
        self.shards, self.ids, self.folder = shards, ids, folder
        self.similarity: Similarity = similarity
        self.placement = placement or Placement()
        self.device, self._owner = torch.device(self.placement.device), owner
        self._tensors = [_as_tensor(array) for array in shards.arrays]
        self._half = self.device.type != "cpu"  # there half precision is faster, on a CPU it is not
        self._starts = shards.starts[:-1].tolist()
        if self.placement.resident and self.device.type != "cpu":
            self._tensors, self._starts = [_resident(self._tensors, self.device, self.placement.precision)], [0]
        self._largest_norm: float | None = None

    @classmethod
    def from_arrays(
        cls,
        vectors: np.ndarray,
        ids: Sequence[str],
        *,
        similarity: Similarity = "dot",
        dtype: Dtype = "float32",
        device: str = "cpu",
    ) -> TorchIndex:
        """An index in memory: `vectors` (n, dim), one id each; a duplicate id is refused."""
        table = ids if isinstance(ids, Ids) else Ids(ids)
        table.refuse_duplicates("document")
        vectors = check_queries(vectors, None, "document vectors")
        stored = encode_dtype(normalised(vectors) if similarity == "cosine" else vectors, dtype)
        return cls(VectorShards([stored], dtype), table, similarity=similarity, placement=Placement(device))

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def dimension(self) -> int:
        return self.shards.dimension

    def vectors(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """The stored vectors of `rows` as float32 (len(rows), dim)."""
        return self.shards.rows(rows)

    def on(self, device: str | torch.device, *, precision: Half | None = None) -> TorchIndex:
        """The same vectors searched on another device; this index itself where it is there already."""
        if torch.device(device) == self.device:
            return self
        placement = replace(self.placement, device=str(device), precision=precision)
        return TorchIndex(
            self.shards, self.ids, similarity=self.similarity, placement=placement, folder=self.folder,
            owner=self._owner,
        )  # fmt: skip

    @property
    def stored_vectors(self) -> VectorShards:
        """What every dense index that keeps its vectors can give."""
        return self.shards

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        """The vectors that searches see, without a copy to the host where they are resident.

        Args:
            rows: int64 of any shape, on any device; -1 gives a vector of zeros.

        Returns:
            (*rows.shape, dim) float32 on the device of `rows`.
        """
        flat = rows.reshape(-1)
        wanted = flat.clamp(min=0).to(self._tensors[0].device)
        if len(self._tensors) == 1:
            found = self._tensors[0][wanted].float()
        else:
            found = torch.empty((len(flat), self.dimension), dtype=torch.float32, device=wanted.device)
            for start, tensor in zip(self._starts, self._tensors, strict=True):
                mine = (wanted >= start) & (wanted < start + len(tensor))
                found[mine] = tensor[wanted[mine] - start].float()
        found = found.to(rows.device).masked_fill(flat[:, None] < 0, 0.0)
        return found.reshape(*rows.shape, self.dimension)

    def search(
        self,
        queries: np.ndarray,
        k: int,
        /,
        *,
        options: Options | None = None,
        exclude: Sequence[Sequence[int] | np.ndarray] | None = None,
    ) -> Hits:
        """See `Index.search`. Queries are (n, dim); the only option is `block`."""
        checked = check_queries(queries, self.dimension)
        scores, rows = self.topk(torch.from_numpy(checked), k, options=options, exclude=exclude)
        return Hits(rows.cpu().numpy(), scores.cpu().numpy())

    def topk(
        self,
        queries: torch.Tensor,
        k: int,
        /,
        *,
        options: Options | None = None,
        exclude: Sequence[Sequence[int] | np.ndarray] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Search with a tensor, without a copy to the host.

        Args:
            queries: (n, dim) of any float dtype, on any device; no gradient flows.
            k: list length.
            options: `block`.
            exclude: for each query the rows to leave out.

        Returns:
            scores (n, k) float32 and rows (n, k) int64 on this index's device, padded with -inf and -1.
        """
        check_names(options or {}, ("block",), "search options of the torch back-end")
        block = _check_block((options or {}).get("block")) or self.placement.block or self._suitable_block(len(queries))
        queries = queries.detach().to(self.device, torch.float32)
        if queries.ndim != 2 or queries.shape[1] != self.dimension:
            raise ConfigError(f"queries have shape {tuple(queries.shape)}, expected (n, {self.dimension})")
        if k < 0:
            raise ConfigError(f"k is {k}, expected at least 0")
        if self.similarity == "cosine":
            queries = torch.nn.functional.normalize(queries.double(), dim=1).float()
        pairs = exclusion_pairs(check_exclude(exclude, len(queries)), len(self))
        batches = [
            TopK(queries[at : at + _QUERIES], k, self._norm(), self._exclusions(pairs, at), half=self._half)
            for at in range(0, len(queries), _QUERIES)
        ]
        for start, documents in self._blocks(block) if batches else ():
            for batch in batches:
                batch.add(start, documents)
        if not batches:
            return (torch.empty((0, k), device=self.device), torch.empty((0, k), dtype=torch.int64, device=self.device))
        return torch.cat([batch.scores for batch in batches]), torch.cat([batch.rows for batch in batches])

    def _exclusions(
        self, pairs: tuple[np.ndarray, np.ndarray] | None, at: int
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        if pairs is None:
            return None
        mine = (pairs[0] >= at) & (pairs[0] < at + _QUERIES)
        return (torch.from_numpy(pairs[0][mine] - at).to(self.device), torch.from_numpy(pairs[1][mine]).to(self.device))

    def _norm(self) -> float:
        if self.similarity == "cosine":
            return 1.01  # half precision may round a unit vector up
        if self._largest_norm is None:
            self._largest_norm = largest_norm(documents for _, documents in self._blocks(_CUDA_BLOCK))
        return self._largest_norm

    def _suitable_block(self, queries: int) -> int:
        if self.device.type == "cpu":
            return _SCORES // max(16, min(queries, _QUERIES))
        return _CUDA_SCORES // max(16, min(queries, _QUERIES)) if self.placement.resident else _CUDA_BLOCK

    def _blocks(self, size: int) -> Iterator[tuple[int, torch.Tensor]]:
        for first, tensor in zip(self._starts, self._tensors, strict=True):
            for start in range(0, len(tensor), size):
                yield first + start, tensor[start : start + size].to(self.device)


def _check_block(block: int | None) -> int | None:
    """A number of rows, or None for one that suits the device."""
    return None if block is None else check_numbers({"block": block}, {"block": COUNT}, "settings")["block"]


def _as_tensor(array: np.ndarray) -> torch.Tensor:
    if array.dtype == np.uint16:  # bfloat16
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _resident(tensors: Sequence[torch.Tensor], device: torch.device, precision: Half | None) -> torch.Tensor:
    """All shards as one tensor on the device, so that a search is one product; never twice there."""
    dtype = tensors[0].dtype if precision is None else _HALVES[precision]
    whole = torch.empty((sum(map(len, tensors)), tensors[0].shape[1]), dtype=dtype, device=device)
    start = 0
    for tensor in tensors:
        part = whole[start : start + len(tensor)]
        part.copy_(tensor)
        if precision == "float16" and not bool(torch.isfinite(part).all()):
            raise ConfigError("vectors hold values above 65504, which float16 cannot hold; take precision bfloat16")
        start += len(tensor)
    return whole


def read_settings(given: Mapping[str, Any]) -> None:
    """There are none."""
    check_names(given, (), "settings of the torch back-end")


def build_dense(folder: Path, vectors: VectorShards, ids: Ids, plan: BuildPlan) -> dict[str, Any]:
    """Nothing to build: the vector shards are the index."""
    read_settings(plan.settings)
    if plan.keep_vectors is False:
        raise ConfigError("the torch back-end searches the vector shards themselves, so keep_vectors cannot be false")
    return {
        "settings": {},
        "versions": {"torch": str(torch.__version__), "numpy": np.__version__},
        "keep_vectors": True,
    }


def open_folder(folder: Path, manifest: Manifest, settings: Mapping[str, Any]) -> TorchIndex:
    """Open for searching. Settings: those of `Placement`."""
    check_names(settings, tuple(asdict(Placement())), "settings for opening a torch index")
    shards = VectorShards.open(folder / "vectors", manifest.dtype or "float32")
    return TorchIndex(
        shards,
        Ids.load(ids_file(folder)),
        similarity=manifest.similarity or "dot",
        placement=Placement(**settings),
        folder=folder,
    )
