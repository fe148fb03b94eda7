"""From what a person names (a model or an index, texts or ids) to an explanation."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, DataError
from .explain import Expansion, Match, expand, explain, explain_bm25

if TYPE_CHECKING:
    from ..eval.collection import Collection

__all__ = ["Asked", "Explained", "Explainer", "open_explainer"]


@dataclass(frozen=True)
class Asked:
    """A query or a document, by its text or by its id; neither is none."""

    text: str | None = None
    id: str | None = None

    def __post_init__(self) -> None:
        if self.text is not None and self.id is not None:
            raise ConfigError(f"give a text or an id, not both: {self.text!r} and {self.id!r}")

    def __bool__(self) -> bool:
        return self.text is not None or self.id is not None


@dataclass(frozen=True)
class Explained:
    """What was found: a match, or one text's expansion."""

    match: Match | None = None
    expansion: tuple[Expansion, ...] = ()

    def to_dict(self, k: int) -> dict[str, Any]:
        """Plain values, with the first k terms; `count` is how many there are, `score` the sum over all of them."""
        if self.match is None:
            return {"terms": [asdict(term) for term in self.expansion[:k]], "count": len(self.expansion)}
        terms = [{**asdict(term), "contribution": term.contribution} for term in self.match.terms[:k]]
        return {"score": self.match.score, "terms": terms, "count": len(self.match.terms)}


@dataclass(frozen=True)
class Explainer:
    """A sparse encoder or a BM25 index, and where ids are looked up.

    Attributes:
        encoder: of queries and documents; None for BM25.
        index: the BM25 index; None for an encoder.
        spec: the collection's, None where none is known.
    """

    encoder: Any = None
    index: Any = None
    spec: str | None = None

    def explain(self, query: Asked, document: Asked) -> Explained:
        """Query and document: the terms that met. One of them alone: its expansion.

        Raises:
            ConfigError: neither is given, or what is asked for cannot be told of this model or index.
            DataError: an id that the collection or the index lacks.
        """
        if not query and not document:
            raise ConfigError("give a query, a document, or both, by text or by id")
        if self.index is not None:
            return Explained(explain_bm25(self.index, self._query(query), self._row(document)))
        if query and document:
            return Explained(explain(self.encoder, self._query(query), self._document(document)))
        if query:
            return Explained(expansion=expand(self.encoder, self._query(query), task="query", k=None))
        return Explained(expansion=expand(self.encoder, self._document(document), k=None))

    @cached_property
    def _collection(self) -> Collection:
        if self.spec is None:
            raise ConfigError("ids are looked up in a collection: give --collection, or texts")
        from ..eval import open_collection

        return open_collection(self.spec)

    def _query(self, asked: Asked) -> str:
        if asked.id is None:
            if asked.text is None:
                raise ConfigError("BM25 has no expansions: give a query and a document")
            return asked.text
        queries = self._collection.queries()
        if asked.id not in queries:
            raise DataError(f"no query {asked.id!r} in {self._collection.name}")
        return queries.get(asked.id)

    def _document(self, asked: Asked) -> str:
        if asked.id is None:
            return asked.text or ""
        documents = self._collection.documents
        row = int(documents.rows([asked.id])[0])
        if row < 0:
            raise DataError(f"no document {asked.id!r} in {self._collection.name}")
        return documents[row].full_text

    def _row(self, asked: Asked) -> int:
        """The row of a document in the BM25 index, whose statistics the score needs."""
        if asked.id is None:
            raise ConfigError("BM25 scores the documents of its index: give --document-id")
        row = int(self.index.ids.rows([asked.id])[0])
        if row < 0:
            raise DataError(f"no document {asked.id!r} in this index", path=self.index.folder)
        return row


def open_explainer(what: str | Path, collection: str | None = None, *, device: str | None = None) -> Explainer:
    """An explainer of a sparse model, or of what an index was made with.

    Args:
        what: a model (see `load_encoder`), or an index folder.
        collection: where ids are looked up; None is the index's own.
        device: where the encoder runs.

    Raises:
        ConfigError: an index of another kind or engine.
        IndexMismatch: the index's encoder cannot be loaded here, or is another by now than the one that made it.
    """
    if not (Path(what) / "manifest.json").is_file():
        from .encoders.load import load_encoder

        return Explainer(load_encoder(what, device=device), spec=collection)
    from ..indexes.bm25s_index import Bm25sIndex
    from ..indexes.manifest import read_manifest
    from ..indexes.registry import open_index
    from .belonging import check_encoder, load_declared_encoder

    manifest = read_manifest(what)
    spec = collection or (manifest.collection or {}).get("spec")
    if manifest.kind == "sparse":
        encoder = load_declared_encoder(manifest, None, device=device)
        assert encoder is not None  # only BM25 goes without
        check_encoder(encoder, manifest, what)
        return Explainer(encoder, spec=spec)
    index = open_index(what)
    if not isinstance(index, Bm25sIndex):
        raise ConfigError(
            f"{what} is a {manifest.kind} index of {manifest.backend}; explained are sparse ones, and BM25 of bm25s"
        )
    return Explainer(index=index, spec=spec)
