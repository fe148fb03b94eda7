"""What a search shows a person: documents with their texts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import RtkError
from ..eval.collection import Documents, open_collection
from ..indexes.manifest import Manifest
from .search import Retriever

if TYPE_CHECKING:
    from ..eval.collection import Collection

__all__ = ["Found", "FoundDocument", "search_documents"]


@dataclass(frozen=True)
class FoundDocument:
    """One document of an answer; `title` and `text` are None where the collection cannot be opened."""

    rank: int
    id: str
    score: float
    title: str | None = None
    text: str | None = None


@dataclass(frozen=True)
class Found:
    """An answer.

    Attributes:
        query: what was asked.
        documents: best first.
        note: why there are no texts, or what is uncertain about them; None when all is well.
    """

    query: str
    documents: tuple[FoundDocument, ...]
    note: str | None = None


def search_documents(retriever: Retriever, text: str, k: int = 10, *, collection: Collection | None = None) -> Found:
    """Search for one text and bring the documents along.

    Args:
        retriever: what to search.
        text: the query.
        k: how many documents.
        collection: where texts come from; None opens the one that the index was built from, as its manifest says.
    """
    hits = retriever.search([text], k)
    valid = hits.rows[0] >= 0
    ids, scores = retriever.ids.take(hits.rows[0][valid]), hits.scores[0][valid].tolist()
    documents, note = _documents(retriever.manifest, collection)
    found: list[FoundDocument] = []
    lost = 0
    rows = documents.rows(ids).tolist() if documents is not None else [-1] * len(ids)
    for rank, (name, score, row) in enumerate(zip(ids, scores, rows, strict=True), start=1):
        if documents is None or row < 0:
            lost += documents is not None
            found.append(FoundDocument(rank, name, score))
            continue
        document = documents[row]
        found.append(FoundDocument(rank, name, score, document.title, document.text))
    if lost:
        note = f"{lost} of the documents found are not in the collection" + (f"; {note}" if note else "")
    return Found(text, tuple(found), note)


def _documents(manifest: Manifest | None, collection: Collection | None) -> tuple[Documents | None, str | None]:
    """The documents, and a note where they are missing or others than those indexed."""
    record: dict[str, Any] = dict(manifest.collection or {}) if manifest is not None else {}
    if collection is None:
        if not record.get("spec"):
            return None, "no texts: the index does not say which collection it was built from; give the collection"
        try:
            collection = open_collection(record["spec"])
            documents = collection.documents
        except (RtkError, OSError) as error:
            return None, f"no texts: the collection {record['spec']!r} cannot be opened ({error}); give the collection"
    else:
        documents = collection.documents
    if record.get("fingerprint") not in (None, documents.fingerprint):
        return documents, f"the collection {collection.name} has changed since it was indexed; texts may differ"
    return documents, None
