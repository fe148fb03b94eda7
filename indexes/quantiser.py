"""One way from weights to the whole numbers that impact indexes want, whoever the engine is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix

from ..errors import DataError
from .bounds import ABOVE_ZERO, check_numbers

__all__ = ["Quantiser"]

_TOO_LARGE = 2.0**63  # the first float64 that int64 lacks


@dataclass(frozen=True)
class Quantiser:
    """weight → round(factor · weight), halves to even, computed in float64 on the float32 weight; zeros are dropped.

    The published rules differ: naver's rounds the same way but in float32, Pyserini's own encoder takes 256 / 5 as
    factor and keeps zeros, BMP's truncates. Indexes of different rules must not be mixed, so the factor is recorded.

    Attributes:
        factor: whole units a weight of one becomes.
        limit: larger whole weights are cut to it, and counted; None for none.
    """

    factor: float = 100.0
    limit: int | None = None

    def __post_init__(self) -> None:
        check_numbers({"factor": self.factor}, {"factor": ABOVE_ZERO}, "settings of the quantiser")

    def __call__(self, vectors: csr_matrix) -> tuple[csr_matrix, int]:
        """Whole weights as int64 (n, vocabulary), and how many were cut to the limit.

        Raises:
            DataError: a whole weight that 64 bits do not hold.
        """
        whole = np.rint(vectors.data.astype(np.float64) * self.factor)
        clipped = 0 if self.limit is None else int((whole > self.limit).sum())
        if self.limit is not None:
            whole = np.minimum(whole, self.limit)
        over = ~(whole < _TOO_LARGE)  # NaN too
        if over.any():
            raise DataError(
                f"the weight {vectors.data[over][0]} of term {vectors.indices[over][0]}, times the factor "
                f"{self.factor:g}, is no whole number that 64 bits hold; take a smaller factor"
            )
        result = csr_matrix((whole.astype(np.int64), vectors.indices, vectors.indptr), shape=vectors.shape, copy=True)
        result.eliminate_zeros()
        return result, clipped
