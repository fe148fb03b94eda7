"""Exact inner-product top-k in blocks, on tensors.

Each block is one matrix product, whose scores only choose candidates: everything within the rounding error of such a
product of a lower bound of the k-th best is scored again in float64 and rounded to float32. So the result does not
depend on the block size, the number of threads or the matrix kernel, equal vectors get equal scores, and ties go to
the lower row.

Choosing reads the block's scores once, for the maximum of every group of rows: the k-th largest group maximum cannot
lie above the k-th best score, so only groups that reach it (or the k-th best of the blocks before) are looked into.
Half-precision vectors on an accelerator are multiplied as they are: a search reads the matrix once, and the wider
rounding error costs a few more candidates.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

__all__ = ["TopK"]

_UNIT = 2.0**-24  # rounding unit of float32
_HALF_UNITS = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
_PAIRS = 1 << 14  # candidates scored at once
_GROUP = 64  # rows whose maximum is looked at first


@dataclass
class TopK:
    """The running k best of a batch of queries; feed it blocks in row order.

    Args:
        queries: (n, dim) float32.
        k: list length.
        largest_norm: an upper bound of the length of any document vector that will come, for the error bound.
        exclude: (query, row) pairs that must not be returned, each (pairs,) int64, sorted by row; None for none.
        half: multiply half-precision blocks in their own type. It changes the time, not the result.
    """

    queries: torch.Tensor
    k: int
    largest_norm: float
    exclude: tuple[torch.Tensor, torch.Tensor] | None = None
    half: bool = False

    def __post_init__(self) -> None:
        count, dimension = self.queries.shape
        device = self.queries.device
        self.scores = torch.full((count, self.k), -torch.inf, device=device)
        self.rows = torch.full((count, self.k), -1, dtype=torch.int64, device=device)
        self._exact_queries = self.queries.double()
        norms = self._exact_queries.norm(dim=1)
        self._norms = norms.clamp(min=torch.finfo(torch.float32).tiny).float()
        # Products are of unit queries, which no half precision overflows or flushes to zero.
        self._unit = (self._exact_queries / self._norms[:, None]).float()
        self._slack = torch.where(norms > 0, 2 * (dimension + 8) * _UNIT * self.largest_norm, 0.0).float()

    def add(self, start: int, block: torch.Tensor) -> None:
        """Take in rows start:start + len(block). `block` is (rows, dim) of any float dtype on the queries' device."""
        if not len(block) or not len(self.queries) or not self.k:
            return
        half = self.half and block.dtype in _HALF_UNITS
        with torch.autocast(block.device.type, enabled=False):  # else float32 products would be rounded in training
            product = self._half_product(block) if half else self._product(block)
        # A query's rounding and a score's, each one unit; twice that again for what kernels sum in half precision.
        extra = 8 * _HALF_UNITS[block.dtype] * self.largest_norm if half else 0.0
        self._mask_excluded(product, start, len(block))
        query, row = self._candidates(product, self._slack + extra)
        if len(query):
            self._merge(query, row + start, self._exact(query, row, block))

    def _product(self, block: torch.Tensor) -> torch.Tensor:
        """Cosines times lengths in float32, (n, rows)."""
        if block.device.type == "cpu":
            return torch.mm(block.to(torch.float32), self._unit.T).T
        return torch.mm(self._unit, block.to(torch.float32).T)

    def _half_product(self, block: torch.Tensor) -> torch.Tensor:
        queries = self._unit.to(block.dtype)
        if block.device.type == "cuda":
            return torch.mm(queries, block.T, out_dtype=torch.float32)
        return torch.mm(queries, block.T).float()

    def _mask_excluded(self, product: torch.Tensor, start: int, size: int) -> None:
        if self.exclude is None:
            return
        queries, rows = self.exclude
        bounds = torch.tensor([start, start + size], device=rows.device)
        first, last = torch.searchsorted(rows, bounds).tolist()
        product[queries[first:last], rows[first:last] - start] = -torch.inf

    def _candidates(self, product: torch.Tensor, slack: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(query, row) of the scores that could belong to the k best, in that order."""
        rows = product.shape[1]
        bound = self.scores[:, -1] / self._norms - slack
        if rows <= self.k:
            return _positions((product >= bound[:, None]) & (product > -torch.inf))
        whole = rows // _GROUP * _GROUP
        groups = product[:, :whole].unflatten(1, (-1, _GROUP))
        maxima = _group_maxima(product[:, :whole])
        if maxima.shape[1] >= self.k:
            bound = torch.maximum(bound, maxima.topk(self.k, dim=1).values[:, -1] - slack)
        elif bool(torch.isinf(bound).any()):
            bound = torch.maximum(bound, product.topk(self.k, dim=1).values[:, -1] - slack)
        query, group = _positions((maxima >= bound[:, None]) & (maxima > -torch.inf))
        values = groups[query, group]
        at, place = _positions((values >= bound[query, None]) & (values > -torch.inf))
        query, row = query[at], group[at] * _GROUP + place
        if whole == rows:
            return query, row
        last = product[:, whole:]
        tail_query, tail_row = _positions((last >= bound[:, None]) & (last > -torch.inf))
        return _in_order(torch.cat([query, tail_query]), torch.cat([row, tail_row + whole]))

    def _exact(self, query: torch.Tensor, row: torch.Tensor, block: torch.Tensor) -> torch.Tensor:
        parts = [
            (self._exact_queries[query[at : at + _PAIRS]] * block[row[at : at + _PAIRS]].double()).sum(dim=1).float()
            for at in range(0, len(query), _PAIRS)
        ]
        return torch.cat(parts)

    def _merge(self, query: torch.Tensor, row: torch.Tensor, score: torch.Tensor) -> None:
        """Put candidates, given in order of (query, row), into the lists. Their rows come after all rows so far, so a
        stable sort by score alone breaks ties by row."""
        counts = torch.bincount(query, minlength=len(self.queries))
        column = torch.arange(len(query), device=query.device) - (counts.cumsum(0) - counts)[query]
        width = int(counts.max())
        scores = torch.full((len(self.queries), width), -torch.inf, device=score.device)
        rows = torch.full((len(self.queries), width), -1, dtype=torch.int64, device=row.device)
        scores[query, column] = score
        rows[query, column] = row
        scores, rows = torch.cat([self.scores, scores], dim=1), torch.cat([self.rows, rows], dim=1)
        self.scores, order = (part[:, : self.k] for part in scores.sort(dim=1, descending=True, stable=True))
        self.rows = rows.gather(1, order)


def _positions(mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Row and column of every true entry of a matrix, in order."""
    query, row = mask.nonzero(as_tuple=True)
    return query, row


def _group_maxima(product: torch.Tensor) -> torch.Tensor:
    """(n, rows) → (n, rows / _GROUP), reading along the memory: on the CPU the products are transposed, and reducing
    across it would take longer than the product."""
    if product.stride(0) == 1:
        return product.T.unflatten(0, (-1, _GROUP)).amax(dim=1).T
    return product.unflatten(1, (-1, _GROUP)).amax(dim=2)


def _in_order(query: torch.Tensor, row: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Two runs of pairs, each in order and the second with the higher rows, as one."""
    order = query.argsort(stable=True)
    return query[order], row[order]


def largest_norm(blocks: Iterable[torch.Tensor]) -> float:
    """The greatest length among the rows of all blocks, 0.0 for none."""
    return max((float(block.float().norm(dim=1).max()) for block in blocks if len(block)), default=0.0)
