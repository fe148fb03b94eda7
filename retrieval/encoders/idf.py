"""IDF of word pieces: the query side of inference-free sparse retrieval (arXiv 2411.04403).

    {"the": 0.1353, "what": 2.7699, "paris": 6.4759, …}      JSON, plain or gzip: the published format

A table that is written here has an entry for every piece of its tokenizer, so that no reader has to guess what a
missing one means, and a record beside it (`FILE.record.json`) that names the tokenizer by its hash.
"""

from __future__ import annotations

import gzip
import json
import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ... import progress
from ..._version import __version__
from ...errors import DataError, IndexMismatch
from ...files import atomic_path, read_json, write_json
from .fingerprint import tokenizer_fingerprint

__all__ = ["IdfTable", "compute_idf", "pieces", "read_idf", "record_path", "special_ids", "uniform_idf"]

_LOG = logging.getLogger(__name__)
_BLOCK = 1024
UNSEEN = 1.0
"""Of a piece without an entry, as in the published table (sentence-transformers' own reader takes 0)."""


@dataclass(frozen=True, eq=False)
class IdfTable:
    """A weight for every piece of a tokenizer.

    Attributes:
        pieces: (V,) the exact pieces, by id.
        idf: (V,) float64; NaN for a piece that has no entry.
        tokenizer: hash of the tokenizer (`tokenizer_fingerprint`).
        source: where it comes from: a collection's name, a file.
        passages: N of the formula; None for a table that was read without a record.
    """

    pieces: tuple[str, ...]
    idf: np.ndarray
    tokenizer: str
    source: str
    passages: int | None = None

    def __len__(self) -> int:
        return len(self.pieces)

    @property
    def unseen(self) -> int:
        """How many pieces have no entry."""
        return int(np.isnan(self.idf).sum())

    def weights(self) -> np.ndarray:
        """(V,) float32, `UNSEEN` for a piece without an entry."""
        return np.where(np.isnan(self.idf), UNSEEN, self.idf).astype(np.float32)

    def save(self, path: str | Path) -> None:
        """Write the table in the published format, an entry for every piece, and its record beside it."""
        path = Path(path)
        entries = dict(zip(self.pieces, np.where(np.isnan(self.idf), UNSEEN, self.idf).tolist(), strict=True))
        data = json.dumps(entries, ensure_ascii=False, indent=0).encode()
        with atomic_path(path) as temporary:
            temporary.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
        record = {"tokenizer": self.tokenizer, "pieces": len(self), "unseen": self.unseen, "passages": self.passages}
        write_json(record_path(path), {**record, "source": self.source, "rtk": __version__})


def record_path(path: str | Path) -> Path:
    """Where the record of a table lies."""
    return Path(path).with_name(f"{Path(path).name}.record.json")


def pieces(tokenizer: Any) -> tuple[str, ...]:
    """The exact piece of every id, never a decoded text: decoding is not injective. (V,)."""
    return tuple(tokenizer.convert_ids_to_tokens(list(range(len(tokenizer)))))


def special_ids(tokenizer: Any) -> np.ndarray:
    """The ids that are no words: [CLS], [SEP], [PAD], [MASK], [UNK], and what else the tokenizer calls special."""
    return np.unique(np.asarray(tokenizer.all_special_ids, dtype=np.int64))


def compute_idf(texts: Iterable[str], tokenizer: Any, *, source: str = "texts", total: int | None = None) -> IdfTable:
    """idf(t) = ln(1 + (N − df + ½) / (df + ½)) of every piece that occurs in `texts`.

    N and df count texts with at least one ordinary token; special tokens, the unknown one among them, are left out and
    have no entry. Texts are not cut.

    Args:
        texts: the collection's, each as it is encoded (title and text joined).
        tokenizer: of the document encoder.
        source: what they are called in the record.
        total: how many there are, for the progress bar.

    Raises:
        DataError: no text has an ordinary token.
    """
    frequencies, passages = np.zeros(len(tokenizer), dtype=np.int64), 0
    special = special_ids(tokenizer)
    with progress.task("count pieces", total) as advance:
        for block in _blocks(texts):
            rows = tokenizer(block, add_special_tokens=False, truncation=False, padding=False, verbose=False)
            counted, having = _document_frequencies(rows["input_ids"], special, len(frequencies))
            frequencies += counted
            passages += having
            advance(len(block))
    if not passages:
        raise DataError(f"{source}: none of its texts has an ordinary token to count")
    idf = np.log1p((passages - frequencies + 0.5) / (frequencies + 0.5))
    idf[frequencies == 0] = np.nan
    table = IdfTable(pieces(tokenizer), idf, tokenizer_fingerprint(tokenizer), source, passages)
    _LOG.info("IDF of %s: %d passages, %d of %d pieces occur", source, passages, len(table) - table.unseen, len(table))
    return table


def uniform_idf(tokenizer: Any) -> IdfTable:
    """1 for every piece: a query is the set of its tokens (the ablation without IDF, and SPLADE-doc)."""
    names = pieces(tokenizer)
    return IdfTable(names, np.ones(len(names)), tokenizer_fingerprint(tokenizer), "1 everywhere")


def read_idf(path: str | Path, tokenizer: Any) -> IdfTable:
    """Read a table in the published format.

    Args:
        path: JSON of piece → weight, plain or `.gz`; a record beside it is checked.
        tokenizer: the one that the table must fit.

    Raises:
        DataError: not such a file, a piece that the tokenizer lacks or that stands twice, a weight that is negative or
            not a number.
        IndexMismatch: its record names another tokenizer.
    """
    path, names = Path(path), pieces(tokenizer)
    entries = _read_entries(path)
    ids = {name: number for number, name in enumerate(names)}
    unknown = [name for name in entries if name not in ids]
    if unknown:
        raise DataError(
            f"{len(unknown)} of its {len(entries)} pieces are not in the tokenizer's vocabulary ({_shown(unknown)}); "
            "the table is of another tokenizer",
            path=path,
        )
    idf = np.full(len(names), np.nan)
    for name, value in entries.items():
        idf[ids[name]] = value
    own, record = tokenizer_fingerprint(tokenizer), _read_record(path)
    if record.get("tokenizer", own) != own:
        raise IndexMismatch(
            f"the table was made with the tokenizer {record['tokenizer'][:12]}…, this one is {own[:12]}…: they cut "
            "texts differently. Make the table anew with this model (rtk idf)",
            path=path,
        )
    table = IdfTable(names, idf, own, str(path), record.get("passages"))
    if table.unseen:
        _LOG.warning("%s has no entry for %d of %d pieces; they weigh %g", path, table.unseen, len(names), UNSEEN)
    return table


def _blocks(texts: Iterable[str]) -> Iterator[list[str]]:
    iterator = iter(texts)
    while block := list(islice(iterator, _BLOCK)):
        yield block


def _document_frequencies(rows: list[list[int]], special: np.ndarray, size: int) -> tuple[np.ndarray, int]:
    """In how many rows each id is, (size,), and how many rows have any."""
    lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
    ids = np.fromiter((token for row in rows for token in row), dtype=np.int64, count=int(lengths.sum()))
    pairs = np.unique(
        np.repeat(np.arange(len(rows)), lengths)[ordinary := ~np.isin(ids, special)] * size + ids[ordinary]
    )
    return np.bincount(pairs % size, minlength=size), len(np.unique(pairs // size))


def _read_entries(path: Path) -> dict[str, float]:
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        pairs = json.loads(data, object_pairs_hook=lambda found: found)
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"not an IDF table: {error}; expected a JSON object of piece: weight", path=path) from error
    if not isinstance(pairs, list) or not pairs or not all(isinstance(pair, tuple) for pair in pairs):
        raise DataError("not an IDF table: expected a JSON object of piece: weight, with an entry", path=path)
    bad = [f"{name!r}: {value!r}" for name, value in pairs if not _is_weight(value)]
    if bad:
        raise DataError(f"{len(bad)} weights are not finite numbers of at least 0 ({', '.join(bad[:5])})", path=path)
    entries = dict(pairs)
    if len(entries) < len(pairs):
        raise DataError(f"{len(pairs) - len(entries)} pieces stand twice; expected each once", path=path)
    return entries


def _is_weight(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0


def _read_record(path: Path) -> Mapping[str, Any]:
    record = record_path(path)
    return read_json(record) if record.is_file() else {}


def _shown(names: list[str]) -> str:
    return ", ".join(map(repr, names[:5])) + (", …" if len(names) > 5 else "")
