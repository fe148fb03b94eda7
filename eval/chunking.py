"""Long documents: overlapping chunks of tokens to index, and MaxP to bring a run over chunks back to documents.

A chunk's id is `DOCUMENT#NUMBER`, counted from 0. The number has digits only, so the last "#" always separates it,
whatever the document's own id contains.

MaxP scores a document by its best passage (Dai and Callan, 2019, "Deeper Text Understanding for IR with Contextual
Neural Language Modeling", section 3.2).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..errors import ConfigError, DataError
from ..ids import Ids
from .documents import Document, Documents, cached_documents
from .run import Run

__all__ = [
    "ChunkedDocuments",
    "Chunking",
    "TokenOffsets",
    "chunk_documents",
    "max_passage",
    "parent_ids",
    "token_offsets",
]

Offsets = Callable[[Sequence[str]], Sequence[Sequence[tuple[int, int]]]]
"""Texts to the (start, end) character positions of each token, special tokens left out."""

_SEPARATOR = "#"
_SUFFIX = "#[0-9]+$"
_TEXTS_AT_ONCE = 256


@dataclass(frozen=True)
class TokenOffsets:
    """A tokenizer as chunking needs it.

    Attributes:
        identity: a name that changes when the tokens would; it is part of the chunks' cache key.
        offsets: texts to token positions.
    """

    identity: str
    offsets: Offsets


@dataclass(frozen=True)
class Chunking:
    """How documents are cut.

    Attributes:
        size: tokens a chunk, special tokens not counted.
        overlap: tokens that a chunk shares with the one before it.
        repeat_title: every chunk has the document's title, whose tokens count towards `size` (but never take more
            than half of it from the text). Otherwise the title stands at the start of the first chunk only.
    """

    size: int = 256
    overlap: int = 64
    repeat_title: bool = False

    def __post_init__(self) -> None:
        limit = self.size // 2 if self.repeat_title else self.size
        if self.size < 1 or not 0 <= self.overlap < max(limit, 1):
            raise ConfigError(
                f"chunks of {self.size} tokens cannot overlap by {self.overlap}: size must be at least 1 and overlap "
                f"from 0 to below {'half the size (titles are repeated)' if self.repeat_title else 'the size'}"
            )

    def windows(self, tokens: int, title_tokens: int = 0) -> list[tuple[int, int]]:
        """The chunks of a text of `tokens` tokens as (start, stop); every token is in one, the last is never a mere
        part of its predecessor, and a text without tokens has one empty chunk."""
        size = max(self.size - title_tokens, self.size // 2, 1) if self.repeat_title else self.size
        starts = range(0, max(tokens - self.overlap, 1), size - self.overlap)
        return [(start, min(start + size, tokens)) for start in starts]


def token_offsets(tokenizer: Any) -> TokenOffsets:
    """Return `TokenOffsets` of a Hugging Face fast tokenizer, its name or folder, or `TokenOffsets` themselves.

    Raises:
        ConfigError: a slow tokenizer, which knows no positions, or something else.
    """
    if isinstance(tokenizer, TokenOffsets):
        return tokenizer
    if isinstance(tokenizer, str | Path):
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(str(tokenizer))
    if not getattr(tokenizer, "is_fast", False):
        raise ConfigError(
            f"{type(tokenizer).__name__} gives no token positions; chunking takes a Hugging Face fast tokenizer, its "
            "name, or TokenOffsets(identity, function) for one of your own"
        )
    rules = tokenizer.backend_tokenizer.to_str().encode("utf-8")
    return TokenOffsets(hashlib.sha256(rules).hexdigest(), partial(_fast_offsets, tokenizer))


def _fast_offsets(tokenizer: Any, texts: Sequence[str]) -> list[list[tuple[int, int]]]:
    encoded = tokenizer(
        list(texts), add_special_tokens=False, return_offsets_mapping=True, truncation=False, padding=False,
        return_attention_mask=False, return_token_type_ids=False, verbose=False,
    )  # fmt: skip
    return encoded["offset_mapping"]


class ChunkedDocuments(Documents):
    """Chunks as documents: the same interface, memory-mapped, and the way back to the documents they are cut from.

    Attributes:
        parents: (chunks,) int64, memory-mapped: the row of each chunk's document.
        originals: the documents.
        settings: how they are cut, for the records of what is made of them.
    """

    def __init__(self, folder: Path, originals: Documents, settings: Mapping[str, Any]) -> None:
        super().__init__(folder, path=f"{originals.path} (chunks)")
        self.originals, self.settings = originals, settings
        self.parents: np.ndarray = np.load(folder / "parents.npy", mmap_mode="r")


def chunk_documents(documents: Documents, tokenizer: Any, chunking: Chunking | None = None) -> ChunkedDocuments:
    """Cut documents into chunks, once: they are kept in the cache like a corpus.

    Args:
        documents: the corpus.
        tokenizer: see `token_offsets`.
        chunking: sizes; default 256 tokens with 64 in common.

    Raises:
        ConfigError: a tokenizer without positions.
    """
    chunking = chunking or Chunking()
    tokens = token_offsets(tokenizer)
    parents: list[np.ndarray] = []
    settings = {**asdict(chunking), "tokenizer": tokens.identity}
    folder = cached_documents(
        ("chunks", documents.fingerprint, *settings.items()),
        lambda: _chunks(documents, tokens.offsets, chunking, parents),
        source=f"{documents.path} in chunks of {chunking.size} tokens",
        finish=lambda folder: np.save(folder / "parents.npy", np.concatenate([np.zeros(0, np.int64), *parents])),
    )
    return ChunkedDocuments(folder, documents, settings)


def _chunks(
    documents: Iterable[Document], offsets: Offsets, chunking: Chunking, parents: list[np.ndarray]
) -> Iterator[Document]:
    """Yield the chunks in order and append to `parents` the rows of their documents, a batch at a time."""
    stream, row = iter(documents), 0
    while batch := list(islice(stream, _TEXTS_AT_ONCE)):
        texts = [document.text if chunking.repeat_title else document.full_text for document in batch]
        titles = offsets([document.title for document in batch]) if chunking.repeat_title else [()] * len(batch)
        counts: list[int] = []
        for document, text, spans, title in zip(batch, texts, offsets(texts), titles, strict=True):
            pieces = _cut(text, spans, chunking.windows(len(spans), len(title)))
            heading = document.title if chunking.repeat_title else ""
            yield from (
                Document(f"{document.id}{_SEPARATOR}{place}", heading, piece) for place, piece in enumerate(pieces)
            )
            counts.append(len(pieces))
        parents.append(np.repeat(np.arange(row, row + len(batch), dtype=np.int64), counts))
        row += len(batch)


def _cut(text: str, spans: Sequence[tuple[int, int]], windows: Sequence[tuple[int, int]]) -> list[str]:
    """The text of each window. A chunk reaches to the start of the next token, so what a tokenizer drops stays in."""
    pieces: list[str] = []
    for start, stop in windows:
        begin = spans[start][0] if start else 0
        end = spans[stop][0] if stop < len(spans) else len(text)
        pieces.append(text[begin:end].strip())
    return [piece for piece in pieces if piece] or [""]


def parent_ids(chunk_ids: Ids) -> Ids:
    """The document id of each chunk id.

    Raises:
        DataError: an id that is not some document's id with "#" and digits behind it.
    """
    found = pc.match_substring_regex(chunk_ids.array, f"(?s).{_SUFFIX}")
    if len(chunk_ids) and not pc.all(found).as_py():
        bad = chunk_ids[int(np.flatnonzero(~np.asarray(found))[0])]
        raise DataError(f"{bad!r} is no chunk id; chunk ids end in '#' and the chunk's number")
    return Ids(pc.replace_substring_regex(chunk_ids.array, pattern=_SUFFIX, replacement=""))


def max_passage(run: Run, chunks: ChunkedDocuments | None = None, *, k: int | None = None) -> Run:
    """Return the run over documents in which each has the score of its best chunk (MaxP).

    Further columns are those of the best chunk. A query keeps as many documents as its chunks come from, so ask the
    search for several times k chunks to end with k documents.

    Args:
        run: over chunk ids, in either order; the first chunk of a document is its best.
        chunks: what the ids belong to; then an id that is none of its chunks is refused. Without it the ids
            themselves say their document.
        k: keep this many documents of each query.

    Raises:
        DataError: an id that is no chunk.
    """
    parents = parent_ids(run.vocabulary) if chunks is None else _parents_in(chunks, run.vocabulary)
    encoded = pc.dictionary_encode(parents.array)
    documents, to_document = Ids(encoded.dictionary), np.asarray(encoded.indices, dtype=np.int32)
    codes = to_document[run.codes]
    lists = run.query_rows
    if "list_id" in run.columns:  # several lists of one query stay apart
        numbers = np.unique(run.columns["list_id"], return_inverse=True)[1]
        lists = lists * (int(numbers.max(initial=0)) + 1) + numbers
    pairs = lists * max(len(documents), 1) + codes
    first = np.sort(np.unique(pairs, return_index=True)[1])
    offsets = np.searchsorted(first, run.offsets).astype(np.int64)
    columns = {name: values[first] for name, values in run.columns.items()}
    best = Run.from_codes(
        run.qids, offsets, documents, codes[first], run.scores[first], columns=columns, order=run.order, tag=run.tag
    )
    return best if k is None else best.top(k)


def _parents_in(chunks: ChunkedDocuments, ids: Ids) -> Ids:
    rows = chunks.rows(ids)
    if (rows < 0).any():
        raise DataError(f"{ids[int(np.flatnonzero(rows < 0)[0])]!r} is no chunk of {chunks.originals.path}")
    return Ids(chunks.originals.ids.array.take(pa.array(chunks.parents[rows])))
