"""Exact inner-product top-k in blocks, on tensors.

Each block is one float32 matrix product. Its scores only choose candidates: everything within the rounding error of a
float32 product of the running k-th best is scored again in float64 and rounded to float32. So the result does not
depend on the block size, the number of threads or the matrix kernel, equal vectors get equal scores, and ties go to
the lower row. After the first block few scores pass the running k-th best, so selection costs little beside it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

__all__ = ["TopK"]

_UNIT = 2.0**-24  # rounding unit of float32
_PAIRS = 1 << 14  # candidates scored at once


@dataclass
class TopK:
    """The running k best of a batch of queries; feed it blocks in row order.

    Args:
        queries: (n, dim) float32.
        k: list length.
        largest_norm: an upper bound of the length of any document vector that will come, for the error bound.
        exclude: (query, row) pairs that must not be returned, each (pairs,) int64, sorted by row; None for none.
    """

    queries: torch.Tensor
    k: int
    largest_norm: float
    exclude: tuple[torch.Tensor, torch.Tensor] | None = None

    def __post_init__(self) -> None:
        count, dimension = self.queries.shape
        device = self.queries.device
        self.scores = torch.full((count, self.k), -torch.inf, device=device)
        self.rows = torch.full((count, self.k), -1, dtype=torch.int64, device=device)
        self._exact_queries = self.queries.double()
        self._slack = (2 * (dimension + 8) * _UNIT * self.largest_norm * self._exact_queries.norm(dim=1)).float()

    def add(self, start: int, block: torch.Tensor) -> None:
        """Take in rows start:start + len(block). `block` is (rows, dim) of any float dtype on the queries' device."""
        if not len(block) or not len(self.queries) or not self.k:
            return
        product = (
            torch.mm(block.to(torch.float32), self.queries.T).T
            if block.device.type == "cpu"
            else torch.mm(self.queries, block.to(torch.float32).T)
        )
        self._mask_excluded(product, start, len(block))
        query, row = self._candidates(product)
        if len(query):
            self._merge(query, row + start, self._exact(query, row, block))

    def _mask_excluded(self, product: torch.Tensor, start: int, size: int) -> None:
        if self.exclude is None:
            return
        queries, rows = self.exclude
        bounds = torch.tensor([start, start + size], device=rows.device)
        first, last = torch.searchsorted(rows, bounds).tolist()
        product[queries[first:last], rows[first:last] - start] = -torch.inf

    def _candidates(self, product: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(query, row) of the scores that could belong to the k best, in that order."""
        bound = self.scores[:, -1] - self._slack
        many = 2 * self.k * len(product)
        if product.shape[1] <= self.k or not torch.isinf(bound).any():
            query, row = _positions(product > bound[:, None])
            if product.shape[1] <= self.k or len(query) <= many:
                return query, row
        # The lists are not full yet, or each block beats the ones before it: bound by this block's own k-th best. A
        # strict > would lose it where the slack is 0; >= alone would let excluded entries in.
        bound = torch.maximum(bound, product.topk(self.k, dim=1).values[:, -1] - self._slack)
        return _positions((product >= bound[:, None]) & (product > -torch.inf))

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


def largest_norm(blocks: Iterable[torch.Tensor]) -> float:
    """The greatest length among the rows of all blocks, 0.0 for none."""
    return max((float(block.float().norm(dim=1).max()) for block in blocks if len(block)), default=0.0)
