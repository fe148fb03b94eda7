"""Contriever's data: two independent crops of one chunk of text are a positive pair (Izacard et al. 2022, section 3).

A corpus is one long row of token ids. An epoch cuts it into chunks of equal length behind a random offset; from each
chunk two crops are drawn, of independent length and place (they may overlap, which rewards lexical match), and tokens
of each are deleted, replaced or masked at random. Everything is a function of (seed, batch number, slot).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from ...errors import ConfigError

__all__ = [
    "Augmentation",
    "Chunking",
    "CropDraw",
    "CropSampler",
    "Cropping",
    "GeneratorRandomness",
    "Randomness",
    "Replacements",
    "TokenRow",
    "chunk_count",
    "crop_pair",
    "delete_tokens",
    "mask_tokens",
    "permuted",
    "random_crop",
    "replace_tokens",
    "source_probabilities",
]

Augmentation = Literal["none", "delete", "replace", "mask"]

_OFFSET, _ORDER, _SOURCE, _CROP = 1, 2, 3, 4  # streams of random numbers, so that one setting does not move another


class Randomness(Protocol):
    """Where crops take their random numbers from."""

    def uniform(self, low: float, high: float, /) -> float: ...

    def integer(self, low: int, high: int, /) -> int:
        """Both ends included."""
        ...

    def uniforms(self, count: int, /) -> np.ndarray:
        """(count,) float64 in [0, 1)."""
        ...


class GeneratorRandomness:
    """Random numbers of a numpy generator."""

    def __init__(self, generator: np.random.Generator) -> None:
        self._generator = generator

    def uniform(self, low: float, high: float, /) -> float:
        return float(self._generator.uniform(low, high))

    def integer(self, low: int, high: int, /) -> int:
        return int(self._generator.integers(low, high, endpoint=True))

    def uniforms(self, count: int, /) -> np.ndarray:
        return self._generator.random(count)


@dataclass(frozen=True)
class Replacements:
    """What takes the place of tokens: the mask, or any id from `first` to `last`, both included."""

    mask: int
    first: int
    last: int


@dataclass(frozen=True)
class Cropping:
    """How a chunk becomes a pair; the published values of pre-training.

    Attributes:
        ratio_min, ratio_max: bounds of a crop's length as a share of its chunk's.
        augmentation: what happens to each token of a crop with `probability`.
    """

    ratio_min: float = 0.05
    ratio_max: float = 0.5
    augmentation: Augmentation = "delete"
    probability: float = 0.1


def random_crop(tokens: np.ndarray, ratio_min: float, ratio_max: float, randomness: Randomness) -> np.ndarray:
    """⌊n·ratio⌋ tokens (at least one) from a random place, ratio ~ U(ratio_min, ratio_max); a view of `tokens` (n,)."""
    length = int(len(tokens) * randomness.uniform(ratio_min, ratio_max))
    length = min(max(length, 1), len(tokens))
    start = randomness.integer(0, len(tokens) - length)
    return tokens[start : start + length]


def delete_tokens(tokens: np.ndarray, probability: float, randomness: Randomness) -> np.ndarray:
    """Each token is left out with `probability`; none may remain."""
    return tokens[randomness.uniforms(len(tokens)) >= probability]


def mask_tokens(tokens: np.ndarray, probability: float, randomness: Randomness, mask: int) -> np.ndarray:
    """Each token becomes `mask` with `probability`."""
    return np.where(randomness.uniforms(len(tokens)) < probability, np.asarray(mask, tokens.dtype), tokens)


def replace_tokens(
    tokens: np.ndarray, probability: float, randomness: Randomness, replacements: Replacements
) -> np.ndarray:
    """Each token becomes a random one of `replacements` with `probability`."""
    chosen = np.flatnonzero(randomness.uniforms(len(tokens)) < probability)
    result = tokens.copy()
    result[chosen] = [randomness.integer(replacements.first, replacements.last) for _ in chosen]
    return result


_AUGMENTATIONS: Mapping[Augmentation, Callable[[np.ndarray, float, Randomness, Replacements], np.ndarray]] = {
    "none": lambda tokens, probability, randomness, replacements: tokens,
    "delete": lambda tokens, probability, randomness, replacements: delete_tokens(tokens, probability, randomness),
    "replace": replace_tokens,
    "mask": lambda tokens, probability, randomness, replacements: mask_tokens(
        tokens, probability, randomness, replacements.mask
    ),
}


def crop_pair(
    chunk: np.ndarray, cropping: Cropping, replacements: Replacements, randomness: Randomness
) -> tuple[np.ndarray, np.ndarray]:
    """Two independent crops of a chunk, each augmented; without special tokens."""
    first, second = (random_crop(chunk, cropping.ratio_min, cropping.ratio_max, randomness) for _ in range(2))
    change = _AUGMENTATIONS[cropping.augmentation]
    return (
        change(first, cropping.probability, randomness, replacements),
        change(second, cropping.probability, randomness, replacements),
    )


def chunk_count(tokens: int, offset: int, length: int) -> int:
    """Whole chunks of `length` behind `offset`; chunk i is offset + i·length up to the next."""
    return max((tokens - offset) // length, 0)


def source_probabilities(sizes: Sequence[float], exponent: float) -> np.ndarray:
    """p_i ∝ size_i^exponent: 0 is the same for all, 1 by size. (sources,) float64."""
    powers = np.asarray(sizes, dtype=np.float64) ** exponent
    return powers / powers.sum()


def permuted(places: np.ndarray, size: int, generator: np.random.Generator) -> np.ndarray:
    """The values of a random permutation of range(size) at `places`, without holding the permutation.

    A four-round Feistel network over the next power of four, walked until the value lies inside.

    Args:
        places: (n,) int64 in [0, size).
        generator: gives the permutation; one of equal state gives the same.
    """
    half = max(1, (max(size - 1, 1).bit_length() + 1) // 2)
    low = np.uint64((1 << half) - 1)
    keys = generator.integers(0, 2**64, 4, dtype=np.uint64, endpoint=False)
    values = places.astype(np.uint64)
    outside = np.ones(len(values), dtype=bool)
    while outside.any():
        values[outside] = _feistel(values[outside], keys, half, low)
        outside = values >= np.uint64(size)
    return values.astype(np.int64)


def _feistel(values: np.ndarray, keys: np.ndarray, half: int, low: np.uint64) -> np.ndarray:
    shift = np.uint64(half)
    left, right = values >> shift, values & low
    for key in keys:
        mixed = (right + key) * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
        left, right = right, left ^ ((mixed >> np.uint64(32)) & low)
    return (left << shift) | right


class TokenRow(Protocol):
    """A pre-tokenised corpus.

    Attributes:
        name: for messages.
        tokens: (n,) integers, all documents in one row.
        offsets: (documents + 1,) int64; document i is offsets[i]:offsets[i + 1].
    """

    @property
    def name(self) -> str: ...

    @property
    def tokens(self) -> np.ndarray: ...

    @property
    def offsets(self) -> np.ndarray: ...


@dataclass(frozen=True)
class CropDraw:
    """The chunks of a batch: tokens start:stop of source s, each (B,) int64."""

    sources: np.ndarray
    starts: np.ndarray
    stops: np.ndarray

    def __len__(self) -> int:
        return len(self.sources)


@dataclass(frozen=True)
class Chunking:
    """Settings of `CropSampler`.

    Attributes:
        batch_size: over all processes.
        seed: of everything drawn.
        length: tokens in a chunk.
        across_documents: chunks run over the ends of documents, as published; else a chunk is cut down to the document
            that holds its middle.
        weights: shares of the sources; None is by `exponent`.
        exponent: a source is drawn with p ∝ (number of its chunks)^exponent.
    """

    batch_size: int
    seed: int
    length: int = 256
    across_documents: bool = True
    weights: Sequence[float] | None = None
    exponent: float = 0.0


class CropSampler:
    """Chunks of pre-tokenised corpora and the crops of each.

    One source: an epoch goes through its chunks in a random order, once. Several: each example draws its source, then
    a chunk of it, with replacement; an epoch is as many batches as the sources have chunks for together.

    Args:
        sources: pre-tokenised corpora.
        chunking: see `Chunking`.
        cropping: see `Cropping`.
        replacements: for the augmentations that put other tokens.

    Raises:
        ConfigError: a source has not one chunk, or all together not one batch.
    """

    def __init__(
        self, sources: Sequence[TokenRow], chunking: Chunking, cropping: Cropping, *, replacements: Replacements
    ) -> None:
        self.sources, self.chunking, self.cropping, self.replacements = sources, chunking, cropping, replacements
        # The offset takes up to length − 1 tokens: so many chunks there are in every epoch.
        self._sizes = [chunk_count(len(source.tokens), chunking.length - 1, chunking.length) for source in sources]
        for source, size in zip(sources, self._sizes, strict=True):
            if not size:
                raise ConfigError(
                    f"{source.name} has {len(source.tokens)} tokens, not one chunk of {chunking.length} behind any "
                    "offset; lower sampling.chunk_length or give more documents"
                )
        if sum(self._sizes) < chunking.batch_size:
            raise ConfigError(
                f"the collections give {sum(self._sizes)} chunks of {chunking.length} tokens, a batch (all processes "
                f"together) needs {chunking.batch_size}; lower trainer.per_device_train_batch_size or "
                "sampling.chunk_length, or give more documents"
            )
        shares = source_probabilities(chunking.weights or self._sizes, 1.0 if chunking.weights else chunking.exponent)
        self.probabilities = shares
        self._bounds = np.cumsum(shares)[:-1]

    @property
    def batch_size(self) -> int:
        return self.chunking.batch_size

    @property
    def batches_per_epoch(self) -> int:
        return sum(self._sizes) // self.batch_size

    def draw(self, number: int, /) -> CropDraw:
        """The chunks of batch `number`."""
        epoch, place = divmod(number, self.batches_per_epoch)
        if len(self.sources) == 1:
            places = place * self.batch_size + np.arange(self.batch_size)
            which = np.zeros(self.batch_size, dtype=np.int64)
            chunks = permuted(places, self._sizes[0], self._generator(_ORDER, epoch))
        else:
            uniform = self._generator(_SOURCE, number).random((2, self.batch_size))
            which = np.searchsorted(self._bounds, uniform[0], side="right")
            chunks = (uniform[1] * np.asarray(self._sizes)[which]).astype(np.int64)
        starts = self._offsets(epoch)[which] + chunks * self.chunking.length
        stops = starts + self.chunking.length
        if not self.chunking.across_documents:
            starts, stops = self._inside(which, starts, stops)
        return CropDraw(which, starts, stops)

    def pairs(self, draw: CropDraw, number: int, slots: range) -> list[tuple[np.ndarray, np.ndarray]]:
        """The two crops of each of the batch's `slots`, without special tokens."""
        found: list[tuple[np.ndarray, np.ndarray]] = []
        for slot in slots:
            source = self.sources[int(draw.sources[slot])]
            chunk = np.asarray(source.tokens[int(draw.starts[slot]) : int(draw.stops[slot])])
            randomness = GeneratorRandomness(self._generator(_CROP, number, slot))
            found.append(crop_pair(chunk, self.cropping, self.replacements, randomness))
        return found

    def documents(self, draw: CropDraw) -> list[tuple[int, int]]:
        """(source, document row) of the middle of each chunk."""
        middles = (draw.starts + draw.stops) // 2
        return [
            (source, int(np.searchsorted(self.sources[source].offsets, middle, side="right")) - 1)
            for source, middle in zip(draw.sources.tolist(), middles.tolist(), strict=True)
        ]

    def _generator(self, *stream: int) -> np.random.Generator:
        return np.random.default_rng([self.chunking.seed, *stream])

    def _offsets(self, epoch: int) -> np.ndarray:
        return self._generator(_OFFSET, epoch).integers(0, self.chunking.length, len(self.sources))

    def _inside(self, which: np.ndarray, starts: np.ndarray, stops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rows = [row for _, row in self.documents(CropDraw(which, starts, stops))]
        offsets = [self.sources[source].offsets for source in which.tolist()]
        first = np.array([own[row] for own, row in zip(offsets, rows, strict=True)], dtype=np.int64)
        last = np.array([own[row + 1] for own, row in zip(offsets, rows, strict=True)], dtype=np.int64)
        return np.maximum(starts, first), np.minimum(stops, last)
