"""Contriever: crops and momentum contrast against the authors' numbers, their properties, and training end to end."""

from __future__ import annotations

import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from rtk.errors import ConfigError
from rtk.retrieval.losses.contrastive import in_batch_scores, info_nce
from rtk.retrieval.losses.moco import momentum_update, queue_loss, queue_scores, random_queue, write_queue
from rtk.retrieval.sampling.crops import (
    Chunking,
    Cropping,
    CropSampler,
    Replacements,
    chunk_count,
    crop_pair,
    delete_tokens,
    mask_tokens,
    permuted,
    random_crop,
    replace_tokens,
    source_probabilities,
)

GOLDENS = json.loads((Path(__file__).parent / "goldens" / "contriever.json").read_text())
DATA, LOSSES = GOLDENS["data"], GOLDENS["losses"]
BERT = Replacements(mask=103, first=999, last=30521)


class Published:
    """The published code's sources: Python's `random` for crops and replacements, numpy's global one for the rest."""

    def __init__(self, seed: int) -> None:
        self._python, self._numpy = random.Random(seed), np.random.RandomState(seed)

    def uniform(self, low: float, high: float, /) -> float:
        return self._python.uniform(low, high)

    def integer(self, low: int, high: int, /) -> int:
        return self._python.randint(low, high)

    def uniforms(self, count: int, /) -> np.ndarray:
        return self._numpy.rand(count)


def double(values: object) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


# --- crops ---


@pytest.mark.parametrize("case", DATA["crops_query_then_key_as_start_token_and_length"], ids=lambda case: case["seed"])
def test_published_crops(case: dict):
    source, chunk = Published(case["seed"]), np.arange(1000, 1256)
    for name in ("query", "key"):
        crop = random_crop(chunk, case["ratio_min"], case["ratio_max"], source)
        assert [crop[0], len(crop)] == case[name]


def test_published_dataset_of_chunks():
    expected, tokens = DATA["dataset"], np.arange(2000, 2040)
    source, length = Published(expected["seed_python_and_numpy"]), expected["chunk_length"]
    offset = source.integer(0, length - 1)
    assert offset == expected["offset"]
    assert chunk_count(len(tokens), offset, length) == expected["length"]
    cropping = Cropping(ratio_min=0.25, ratio_max=0.75, augmentation="none")
    for number, item in enumerate(expected["items"]):
        chunk = tokens[offset + number * length : offset + (number + 1) * length]
        for crop, name in zip(crop_pair(chunk, cropping, BERT, source), ("q_tokens", "k_tokens"), strict=True):
            assert [101, *crop.tolist(), 102] == item[name]


@pytest.mark.parametrize("name", ["mask", "replace", "delete"])
def test_published_augmentations(name: str):
    given = DATA["augmentations"]
    tokens, source = np.arange(5000, 5012), Published(given["seed"])
    result = {
        "mask": lambda: mask_tokens(tokens, given["p"], source, given["mask_id"]),
        "replace": lambda: replace_tokens(tokens, given["p"], source, BERT),
        "delete": lambda: delete_tokens(tokens, given["p"], source),
    }[name]()
    assert result.tolist() == given["results"][name]
    assert tokens.tolist() == list(range(5000, 5012))


@pytest.mark.parametrize("exponent", ["0.0", "0.5", "1.0"])
def test_published_probabilities_of_sources(exponent: str):
    expected = DATA["dataset_probabilities_for_sizes_900_100"][exponent]
    assert source_probabilities([900, 100], float(exponent)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 64, 1000, 4097])
def test_permuted_is_a_permutation_and_another_one_for_another_state(size: int):
    places = np.arange(size)
    first = permuted(places, size, np.random.default_rng(1))
    assert sorted(first.tolist()) == places.tolist()
    assert np.array_equal(permuted(places[size // 2 :], size, np.random.default_rng(1)), first[size // 2 :])
    if size > 60:
        assert not np.array_equal(first, permuted(places, size, np.random.default_rng(2)))
        assert abs(np.corrcoef(places, first)[0, 1]) < 0.3


def rows(*lengths: int) -> Any:
    """A corpus whose token is its own place, in documents of these lengths."""
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return SimpleNamespace(name="rows", tokens=np.arange(offsets[-1]), offsets=offsets)


def sampler(*sources: Any, cropping: Cropping | None = None, **settings: Any) -> CropSampler:
    chunking = Chunking(**{"batch_size": 4, "seed": 3, "length": 10, **settings})
    return CropSampler(sources, chunking, cropping or Cropping(0.2, 0.8, "none"), replacements=BERT)


def test_an_epoch_goes_through_every_chunk_once_and_the_next_behind_another_offset():
    made = sampler(rows(89))
    assert made.batches_per_epoch == 2
    epochs = [np.concatenate([made.draw(number).starts for number in (2 * e, 2 * e + 1)]) for e in range(6)]
    for starts in epochs:
        assert len(set(starts.tolist())) == 8
        assert len(set((starts % 10).tolist())) == 1
    assert len({int(starts[0] % 10) for starts in epochs}) > 2
    assert all(made.draw(number).stops.max() <= 89 for number in range(12))


def test_a_batch_is_a_function_of_seed_and_number_and_slots_can_be_asked_apart():
    made, again = sampler(rows(400)), sampler(rows(400))
    draw = made.draw(5)
    assert np.array_equal(draw.starts, again.draw(5).starts)
    whole = made.pairs(draw, 5, range(4))
    parts = [*again.pairs(draw, 5, range(2)), *again.pairs(draw, 5, range(2, 4))]
    for mine, other in zip(whole, parts, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(mine, other, strict=True))
    other_seed = sampler(rows(400), seed=4)
    assert not np.array_equal(draw.starts, other_seed.draw(5).starts)


def test_both_crops_come_from_the_chunk_and_differ():
    made = sampler(rows(4000), length=100, cropping=Cropping(0.05, 0.5, "none"))
    lengths, equal = [], 0
    for number in range(10):
        draw = made.draw(number)
        for slot, pair in enumerate(made.pairs(draw, number, range(4))):
            for crop in pair:
                assert draw.starts[slot] <= crop[0] <= crop[-1] < draw.stops[slot]
                assert np.array_equal(crop, np.arange(crop[0], crop[0] + len(crop)))
                lengths.append(len(crop))
            equal += int(np.array_equal(*pair))
    assert min(lengths) >= 5
    assert max(lengths) <= 50
    assert equal == 0


def test_deletion_leaves_its_share():
    kept = len(delete_tokens(np.arange(20000), 0.1, Published(0)))
    assert kept == pytest.approx(18000, abs=200)


def test_chunks_can_end_where_their_document_ends():
    source = rows(3, 14, 4, 30, 1, 60)
    made = sampler(source, across_documents=False)
    for number in range(6):
        draw = made.draw(number)
        for start, stop in zip(draw.starts, draw.stops, strict=True):
            assert sum((source.offsets[:-1] <= start) & (stop <= source.offsets[1:])) == 1
            assert stop > start


@pytest.mark.parametrize(
    ("settings", "share"), [({"exponent": 0.0}, 0.5), ({"exponent": 1.0}, 0.9), ({"weights": (1, 3)}, 0.25)]
)
def test_sources_are_drawn_by_size_or_weight(settings: dict, share: float):
    made = sampler(rows(9009), rows(1009), batch_size=50, **settings)
    drawn = np.concatenate([made.draw(number).sources for number in range(60)])
    assert (drawn == 0).mean() == pytest.approx(share, abs=0.03)


def test_too_few_tokens_are_refused():
    with pytest.raises(ConfigError, match="not one chunk of 10"):
        sampler(rows(18), batch_size=1)
    with pytest.raises(ConfigError, match=r"give 3 chunks .* needs 4"):
        sampler(rows(40))


# --- momentum contrast ---


def moco_step(case: dict, query: torch.Tensor, key: torch.Tensor, queue: torch.Tensor) -> tuple[torch.Tensor, int]:
    momentum_update([key], [query], case["momentum"])
    queries, keys = double(case["x_query"]) @ query, double(case["x_key"]) @ key
    if case["normalize"]:
        queries, keys = (torch.nn.functional.normalize(values, dim=1) for values in (queries, keys))
    scores = queue_scores(queries, keys, queue.clone(), temperature=case["temperature"])
    loss = queue_loss(scores, label_smoothing=case["label_smoothing"])
    return loss, write_queue(queue, keys, 0)


@pytest.mark.parametrize("case", LOSSES["moco"], ids=lambda case: f"{case['normalize']}-{case['label_smoothing']}")
def test_published_moco(case: dict):
    query, key = double(case["W_query"]).requires_grad_(), double(case["W_key_before"])
    queue = double(case["queue_before"]).T.contiguous()
    loss, pointer = moco_step(case, query, key, queue)
    loss.backward()
    assert loss.item() == pytest.approx(case["loss"], rel=1e-9)
    torch.testing.assert_close(query.grad, double(case["grad_W_query"]), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(key, double(case["W_key_after"]), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(queue.T, double(case["queue_after"]), rtol=1e-9, atol=1e-12)
    assert pointer == case["queue_ptr_after"]
    for _ in range(2):
        pointer = write_queue(queue, double(case["x_query"])[:, :4], pointer)
    assert pointer == case["queue_ptr_after_3_steps"]
    assert not key.requires_grad


@pytest.mark.parametrize("case", LOSSES["inbatch"], ids=lambda case: f"normalize {case['normalize']}")
def test_published_in_batch_loss(case: dict):
    weights = double(case["W"]).requires_grad_()
    queries, keys = double(case["x_query"]) @ weights, double(case["x_keys_gold_then_negatives"]) @ weights
    similarity = "cosine" if case["normalize"] else "dot"
    scores = in_batch_scores(queries, keys, similarity=similarity, scale=1 / case["temperature"])
    loss = info_nce(scores, torch.arange(len(queries)))
    loss.backward()
    assert loss.item() == pytest.approx(case["loss"], rel=1e-9)
    torch.testing.assert_close(weights.grad, double(case["grad_W"]), rtol=1e-9, atol=1e-12)


def test_queue_loss_equals_its_formula():
    generator = torch.Generator().manual_seed(0)
    queries, keys, queue = (torch.randn(n, 4, generator=generator, dtype=torch.float64) for n in (3, 3, 6))
    every = [torch.cat([keys[i : i + 1], queue]) @ queries[i] / 0.07 for i in range(3)]
    expected = torch.stack([-(scores[0] - scores.exp().sum().log()) for scores in every]).mean()
    assert queue_loss(queue_scores(queries, keys, queue, temperature=0.07)).item() == pytest.approx(expected.item())


def test_the_queue_is_first_in_first_out():
    queue, pointer = torch.zeros(6, 1), 0
    for step in range(5):
        pointer = write_queue(queue, torch.full((2, 1), float(step)), pointer)
    assert queue.flatten().tolist() == [3, 3, 4, 4, 2, 2]
    assert pointer == 4
    with pytest.raises(ValueError, match="whole batches"):
        write_queue(queue, torch.zeros(4, 1), 0)


def test_a_queue_begins_with_unit_vectors_of_its_generator():
    first, again = (random_queue(32, 8, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first, again)
    torch.testing.assert_close(first.norm(dim=1), torch.ones(32))


def test_low_precision_vectors_are_scored_in_float32():
    queries = torch.randn(2, 4).bfloat16()
    assert queue_scores(queries, queries, torch.randn(4, 4), temperature=0.05).dtype == torch.float32
