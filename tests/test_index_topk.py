"""Exact top-k by blocks and group maxima, against sorting all scores: ties, exclusions, half precision, any block."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from rtk.indexes.topk import TopK, largest_norm

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
SIZES = [(1000, 5, []), (1000, 5, [1, 65, 640]), (4100, 30, [2048]), (40, 60, [7])]


def sorted_hits(queries: torch.Tensor, documents: torch.Tensor, k: int, left_out: np.ndarray | None = None) -> Any:
    """Rows and scores of the k best: float64 sums rounded to float32, ties by row."""
    scores = (queries.double()[:, None, :] * documents.double()[None, :, :]).sum(dim=2).float().numpy()
    if left_out is not None:
        scores = np.where(left_out, -np.inf, scores)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    best = np.take_along_axis(scores, order, axis=1)
    rows = np.where(best == -np.inf, -1, order)
    padding = ((0, 0), (0, k - order.shape[1]))
    return np.pad(rows, padding, constant_values=-1), np.pad(best, padding, constant_values=-np.inf)


def search(queries: torch.Tensor, documents: torch.Tensor, k: int, cuts: list[int], **settings: Any) -> Any:
    found = TopK(queries, k, largest_norm([documents]), **settings)
    for start, stop in pairwise([0, *cuts, len(documents)]):
        found.add(start, documents[start:stop])
    return found.rows.numpy(), found.scores.numpy()


def vectors(count: int, dimension: int, seed: int, *, ties: bool) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    if ties:
        return torch.randint(-1, 2, (count, dimension), generator=generator).float()
    return torch.randn(count, dimension, generator=generator)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(
    ("count", "k", "cuts"), [(1000, 5, []), (1000, 5, [1, 65, 640]), (4100, 30, [2048]), (40, 60, [7])]
)
def test_equals_sorting_all_scores(count: int, k: int, cuts: list[int], ties: bool, dtype: torch.dtype, half: bool):
    documents = vectors(count, 6, 1, ties=ties).to(dtype)
    queries = vectors(9, 6, 2, ties=ties)
    queries[3] = 0  # everything ties
    rows, scores = search(queries, documents, k, cuts, half=half)
    expected_rows, expected_scores = sorted_hits(queries, documents, k)
    np.testing.assert_array_equal(rows, expected_rows)
    np.testing.assert_array_equal(scores, expected_scores)


@pytest.mark.parametrize("half", [False, True])
def test_nearly_equal_scores_are_told_apart_in_half_precision_too(half: bool):
    """Documents that differ in their last bit: products in half precision cannot order them, scoring again can."""
    generator = torch.Generator().manual_seed(3)
    base = torch.randn(64, generator=generator)
    documents = (base[None, :] * (1 + 2e-3 * torch.rand(3000, 1, generator=generator))).to(torch.float16)
    rows, scores = search(base[None, :], documents, 50, [1500], half=half)
    expected_rows, expected_scores = sorted_hits(base[None, :], documents, 50)
    np.testing.assert_array_equal(rows, expected_rows)
    np.testing.assert_array_equal(scores, expected_scores)


@pytest.mark.parametrize("length", [1e-30, 1e-7, 1e6, 1e30])
def test_the_length_of_a_query_does_not_matter_in_half_precision(length: float):
    documents, queries = vectors(2000, 16, 4, ties=False).to(torch.float16), vectors(4, 16, 5, ties=False)
    rows, _ = search(queries * length, documents, 20, [], half=True)
    np.testing.assert_array_equal(rows, sorted_hits(queries, documents, 20)[0])


@pytest.mark.parametrize("count", [300, 64 * 30 + 5])
def test_excluded_rows_never_come_back(count: int):
    documents, queries = vectors(count, 6, 6, ties=True), vectors(3, 6, 7, ties=True)
    left_out = np.random.default_rng(0).random((3, count)) < 0.9
    query, row = np.nonzero(left_out)
    order = np.argsort(row, kind="stable")
    pairs = (torch.from_numpy(query[order]), torch.from_numpy(row[order]))
    rows, scores = search(queries, documents, 25, [100], exclude=pairs)
    expected_rows, expected_scores = sorted_hits(queries, documents, 25, left_out)
    np.testing.assert_array_equal(rows, expected_rows)
    np.testing.assert_array_equal(scores, expected_scores)


def test_mixed_precision_around_it_changes_nothing():
    documents, queries = vectors(3000, 32, 8, ties=False), vectors(5, 32, 9, ties=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rows, scores = search(queries, documents, 40, [1000])
    expected_rows, expected_scores = sorted_hits(queries, documents, 40)
    np.testing.assert_array_equal(rows, expected_rows)
    np.testing.assert_array_equal(scores, expected_scores)


def test_gather_gives_the_vectors_that_searches_see():
    from rtk.ids import Ids
    from rtk.indexes import TorchIndex, VectorShards

    stored = [vectors(count, 4, count, ties=False).numpy() for count in (3, 5)]
    index = TorchIndex(VectorShards(stored), Ids(map(str, range(8))))
    found = index.gather(torch.tensor([[7, -1], [2, 3]]))
    assert found.shape == (2, 2, 4)
    assert (found[0, 1] == 0).all()
    np.testing.assert_array_equal(found.numpy().reshape(4, 4)[[0, 2, 3]], np.concatenate(stored)[[7, 2, 3]])
