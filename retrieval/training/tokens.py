"""A collection's documents as one memory-mapped row of token ids, written once for a collection and a tokenizer.

tokens.bin    uint16 or uint32, every document after the other, without special tokens
offsets.bin   int64, documents + 1: document i is tokens offsets[i]:offsets[i + 1]
meta.json     types, counts, fingerprint, and which ids may take the place of others
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ... import progress
from ...errors import ConfigError, DataError
from ...files import atomic_folder, cache_dir, read_json, write_json
from ..encoders.fingerprint import tokenizer_fingerprint
from ..sampling.crops import Replacements

if TYPE_CHECKING:
    from ...eval.collection import Collection

__all__ = ["TokenReport", "TokenTable", "open_tokens", "ordinary_range"]

_LOG = logging.getLogger(__name__)
_FORMAT = 1
_BLOCK = 1024


@dataclass(frozen=True)
class TokenReport:
    """What was tokenised."""

    documents: int
    tokens: int
    without_tokens: int

    def lines(self) -> list[str]:
        """One line for each count that a user should see."""
        told = [f"{self.documents} documents, {self.tokens} tokens"]
        return told + ([f"{self.without_tokens} documents without a token"] if self.without_tokens else [])


class TokenTable:
    """The files above, memory-mapped.

    Attributes:
        name: of the collection.
        tokens: (n,) uint16 or uint32.
        offsets: (documents + 1,) int64.
        replacements: ids for augmentations that put other tokens.
        report: the counts.
        fingerprint: of documents and tokenizer.
    """

    def __init__(self, folder: Path, collection: Collection) -> None:
        meta = read_json(folder / "meta.json")
        self.name, self._ids = collection.name, collection.documents.ids
        self.tokens: np.ndarray = np.memmap(folder / "tokens.bin", dtype=meta["dtype"], mode="r")
        self.offsets: np.ndarray = np.memmap(folder / "offsets.bin", dtype=np.int64, mode="r")
        self.replacements = Replacements(**meta["replacements"])
        self.report = TokenReport(**meta["report"])
        self.fingerprint: str = meta["fingerprint"]

    def __repr__(self) -> str:
        return f"TokenTable({self.name!r}: {self.report.lines()[0]})"

    def document_id(self, row: int) -> str:
        """The id of a document by its row."""
        return self._ids[row]


def open_tokens(collection: Collection, tokenizer: Any) -> TokenTable:
    """Tokenise a collection's documents, or map what an earlier call wrote for the same documents and rules.

    Args:
        tokenizer: a transformers tokenizer; special tokens are left out, nothing is cut.

    Raises:
        DataError: no document has a token.
    """
    fingerprint = hashlib.sha256(
        f"tokens {_FORMAT}\n{collection.documents.fingerprint}\n{tokenizer_fingerprint(tokenizer)}".encode()
    ).hexdigest()[:32]
    folder = cache_dir() / "tokens" / fingerprint
    if not folder.exists():
        _build(collection, tokenizer, folder)
    table = TokenTable(folder, collection)
    for line in table.report.lines():
        _LOG.info("%s: %s", collection.name, line)
    return table


def _build(collection: Collection, tokenizer: Any, folder: Path) -> None:
    """Write beside the final name, then rename; whoever is second throws its own away."""
    with atomic_folder(folder, or_discard=True) as temporary:
        dtype = np.dtype(np.uint16 if len(tokenizer) <= 1 << 16 else np.uint32)
        report = _write(collection, tokenizer, temporary, dtype)
        if not report.tokens:
            raise DataError(f"{collection.name}: none of its {report.documents} documents has a token to train on")
        meta = {
            "fingerprint": folder.name,
            "dtype": dtype.name,
            "replacements": asdict(_replacements(tokenizer)),
            "report": asdict(report),
        }
        write_json(temporary / "meta.json", meta)


def _write(collection: Collection, tokenizer: Any, folder: Path, dtype: np.dtype[Any]) -> TokenReport:
    """Both row files, a block of documents at a time."""
    documents, total, without = collection.documents, 0, 0
    with (
        open(folder / "tokens.bin", "wb") as tokens,
        open(folder / "offsets.bin", "wb") as offsets,
        progress.task("tokenise", len(documents)) as advance,
    ):
        offsets.write(np.zeros(1, np.int64).tobytes())
        for start in range(0, len(documents), _BLOCK):
            texts = documents.texts(slice(start, start + _BLOCK))
            rows = tokenizer(texts, add_special_tokens=False, truncation=False, padding=False, verbose=False)
            lengths = np.array([len(row) for row in rows["input_ids"]], dtype=np.int64)
            tokens.write(b"".join(np.asarray(row, dtype=dtype).tobytes() for row in rows["input_ids"]))
            offsets.write((total + np.cumsum(lengths)).tobytes())
            total += int(lengths.sum())
            without += int((lengths == 0).sum())
            advance(len(texts))
        for handle in (tokens, offsets):
            handle.flush()
            os.fsync(handle.fileno())
    return TokenReport(len(documents), total, without)


def _replacements(tokenizer: Any) -> Replacements:
    special = set(tokenizer.all_special_ids)
    first, last = ordinary_range(special, len(tokenizer))
    mask = tokenizer.mask_token_id
    return Replacements(-1 if mask is None else int(mask), first, last)


def ordinary_range(special: Iterable[int], size: int) -> tuple[int, int]:
    """The longest run of ids in [0, size) without a special one, as (first, last).

    Raises:
        ConfigError: every id is special.
    """
    bounds = [-1, *sorted(number for number in set(special) if 0 <= number < size), size]
    runs = [(before + 1, after - 1) for before, after in itertools.pairwise(bounds)]
    first, last = max(runs, key=lambda run: run[1] - run[0])
    if last < first:
        raise ConfigError("the tokenizer has special tokens only; there is nothing to train on")
    return first, last
