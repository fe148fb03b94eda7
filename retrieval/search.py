"""A retriever: an index and the encoder of its queries, checked to belong together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from ..errors import ConfigError
from ..eval.run import Run
from ..ids import Ids
from ..indexes.base import Hits, Index, Options
from ..progress import task
from .belonging import check_belonging, load_declared_encoder, manifest_of
from .passages import PassageIndex
from .pipelines import Composable

if TYPE_CHECKING:
    from ..eval.collection import Collection, Queries
    from ..indexes.manifest import Manifest
    from .encoders.base import Encoder

__all__ = ["Retriever", "excluded_documents", "hits_to_run"]

_QUERIES = 1024  # texts that are encoded and searched together

Exclude = Mapping[str, Sequence[str]]
"""For a query id the documents that must not be found for it."""


@dataclass(frozen=True, eq=False)
class Retriever(Composable):
    """Texts in, documents out.

        retriever = Retriever.open("scifact.index")
        run = retriever.run(collection.queries("test"), k=100)

    An index over chunks is searched for documents: each has the score of its best chunk (MaxP), and lists are k
    documents long where there are so many.

    Attributes:
        encoder: encodes queries; None for an index that takes texts (BM25).
        index: what is searched.
        options: the engine's search-time settings for every search (`nprobe`, `efSearch`, …).
        manifest: the index's; read from the index's folder where it is not given, None for an index in memory.
        name: what runs are called; the index's folder by default.

    Raises:
        IndexMismatch: the encoder does not declare the index's document side, is missing, or is one too many; the
            message names both.
    """

    encoder: Encoder | None
    index: Index
    options: Options = field(default_factory=dict)
    manifest: Manifest | None = None
    name: str = ""

    def __post_init__(self) -> None:
        if self.manifest is None:
            object.__setattr__(self, "manifest", manifest_of(self.index))
        if not self.name:
            folder = getattr(self.index, "folder", None)
            object.__setattr__(self, "name", type(self.index).__name__ if folder is None else Path(folder).name)
        check_belonging(self.encoder, self.index, self.manifest)

    @classmethod
    def open(
        cls,
        path: str | Path,
        model: Encoder | str | Path | None = None,
        *,
        device: str | None = None,
        query_length: int | None = None,
        options: Options | None = None,
        **settings: Any,
    ) -> Retriever:
        """Open an index folder with the encoder of its queries.

        Args:
            path: the index.
            model: the encoder, or what `load_encoder` takes; None loads the one that the manifest names.
            device: where the encoder runs.
            query_length: tokens that queries are cut to; None is what the index was built with, or the model's own.
            options: the engine's search-time settings.
            settings: how to open the index, by its engine (`mmap`, `threads`, …).
        """
        from ..indexes.manifest import read_manifest
        from ..indexes.registry import open_index

        index = open_index(path, **settings)
        manifest = read_manifest(path)
        encoder = load_declared_encoder(manifest, model, device=device, query_length=query_length)
        return cls(encoder, index, options or {}, manifest, Path(path).name)

    @cached_property
    def _passages(self) -> PassageIndex | None:
        """How to get from chunks to documents; None for an index over whole documents."""
        collection = self.manifest.collection if self.manifest is not None else None
        return PassageIndex.over(self.index) if collection and collection.get("chunking") else None

    @property
    def chunked(self) -> bool:
        """Whether the index is over chunks of documents."""
        return self._passages is not None

    @property
    def ids(self) -> Ids:
        """The ids that the rows of this retriever's hits stand for."""
        if self._passages is not None:
            return self._passages.documents
        ids = self.index.ids
        return ids if isinstance(ids, Ids) else Ids(ids)

    def search(
        self,
        texts: Sequence[str],
        k: int,
        /,
        *,
        options: Options | None = None,
        exclude: Sequence[Sequence[int] | np.ndarray] | None = None,
    ) -> Hits:
        """The k best documents for each text. Rows are rows of `ids`.

        Args:
            texts: the queries.
            k: list length; lists are shorter where there is no more to find.
            options: search-time settings, over those of the retriever.
            exclude: for each text the rows of `ids` that must not be found.
        """
        if k < 1:
            raise ConfigError(f"k is {k}; expected at least 1")
        queries: Any = list(texts) if self.encoder is None else self.encoder.encode_query(texts)
        return self.search_encoded(queries, k, options=options, exclude=exclude)

    def search_encoded(
        self,
        queries: Any,
        k: int,
        /,
        *,
        options: Options | None = None,
        exclude: Sequence[Sequence[int] | np.ndarray] | None = None,
    ) -> Hits:
        """As `search`, for queries in the form that the index takes: vectors, or texts for BM25."""
        merged = {**self.options, **(options or {})}
        if self._passages is not None:
            return self._passages.search(queries, k, options=merged, exclude=exclude)
        return self.index.search(queries, k, options=merged or None, exclude=exclude)

    def run(
        self,
        queries: Queries,
        k: int,
        *,
        tag: str | None = None,
        exclude: Exclude | None = None,
        options: Options | None = None,
    ) -> Run:
        """Search every query.

        Args:
            queries: ids and texts.
            k: list length.
            tag: the run's name.
            exclude: for a query id the documents that must not be found (`excluded_documents`).
            options: search-time settings, over those of the retriever.
        """
        ids, rows = self.ids, self.excluded_rows(queries, exclude)
        parts: list[Hits] = []
        with task("search", len(queries)) as advance:
            for start in range(0, len(queries), _QUERIES):
                texts = queries.texts[start : start + _QUERIES]
                left_out = None if rows is None else rows[start : start + _QUERIES]
                parts.append(_small(self.search(texts, k, options=options, exclude=left_out)))
                advance(len(texts))
        return hits_to_run(queries.ids, parts, ids, tag=tag or self.name)

    def excluded_rows(self, queries: Queries, exclude: Exclude | None) -> list[np.ndarray] | None:
        """The rows to leave out for each query; unknown documents cannot be found anyway."""
        if not exclude:
            return None
        empty = np.zeros(0, dtype=np.int64)
        rows = [self.ids.rows(exclude[qid]) if qid in exclude else empty for qid in queries.ids]
        return [found[found >= 0] for found in rows]


def _small(hits: Hits) -> Hits:
    """The same hits with rows in four bytes, to be kept until all queries are done."""
    return Hits(hits.rows.astype(np.int32), hits.scores)


def hits_to_run(qids: Ids | Sequence[str], hits: Hits | Iterable[Hits], ids: Ids, *, tag: str = "rtk") -> Run:
    """Turn hits into a run.

    Args:
        qids: the queries, one for each row of `hits`.
        hits: one or several parts, in the order of the queries; padding is left out.
        ids: row → document id.
        tag: the run's name.
    """
    parts = [hits] if isinstance(hits, Hits) else list(hits)
    found = [part.rows >= 0 for part in parts]
    lengths = np.concatenate([np.zeros(0, np.int64), *(mask.sum(axis=1) for mask in found)])
    rows = np.concatenate([np.zeros(0, np.int32), *(part.rows[mask] for part, mask in zip(parts, found, strict=True))])
    scores = np.concatenate(
        [np.zeros(0, np.float32), *(part.scores[mask] for part, mask in zip(parts, found, strict=True))]
    )
    vocabulary, codes = _vocabulary(ids, rows)
    return Run.from_codes(
        qids if isinstance(qids, Ids) else Ids(qids), np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        vocabulary, codes, scores, tag=tag,
    )  # fmt: skip


def _vocabulary(ids: Ids, rows: np.ndarray) -> tuple[Ids, np.ndarray]:
    """The ids that occur and codes into them: a run must not hold on to (or sort) millions of ids for a few hits."""
    used = np.zeros(len(ids), dtype=bool)
    used[rows] = True
    code = np.cumsum(used, dtype=np.int32) - 1
    return Ids(ids.array.filter(pa.array(used))), code[rows].astype(np.int32)


def excluded_documents(collection: Collection, queries: Queries) -> dict[str, list[str]]:
    """What a collection's conventions exclude for these queries: the query's own id (ArguAna), listed ones (BRIGHT)."""
    conventions = collection.conventions
    excluded = {qid: list(conventions.excluded.get(qid, ())) for qid in queries.ids}
    if conventions.drop_identical_ids:
        for qid in queries.ids:
            excluded[qid].append(qid)
    return {qid: documents for qid, documents in excluded.items() if documents}
