"""Queries cut out of documents: the inverse cloze task, for training where nobody has asked or judged anything.

A query is a span of words of one document, and that document is its only relevant one (Lee, Chang and Toutanova 2019,
"Latent Retrieval for Weakly Supervised Open Domain Question Answering", Inverse Cloze Task). The paper takes the span
out of nine documents of ten; here documents stay whole, so that what is learned first is that equal words match. That
is what a cross-encoder made of a plain encoder lacks, and learns much sooner so than from judged queries.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from ..errors import ConfigError, DataError
from .beir_write import CollectionParts
from .collection import Collection
from .documents import Document
from .judgments import JudgmentsBuilder

__all__ = ["Cropping", "crop_queries"]


@dataclass(frozen=True)
class Cropping:
    """How queries are cut.

    Attributes:
        shortest, longest: words of a query, each length that the document has words for as likely as the others.
        each: queries of a document.
        within: words of a document, title included, that a query may come from; None takes all. What a model cuts off
            cannot be matched.
        seed: with the document's id the whole source of chance, so that a document's queries depend on no other.
    """

    shortest: int = 3
    longest: int = 8
    each: int = 1
    within: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.shortest <= self.longest:
            raise ConfigError(f"queries of {self.shortest} to {self.longest} words: expected at least 1, ascending")
        if self.each < 1:
            raise ConfigError(f"each is {self.each}, expected at least 1 query of a document")
        if self.within is not None and self.within < self.shortest:
            raise ConfigError(f"within is {self.within} words, fewer than the {self.shortest} of the shortest query")

    def queries(self, document: Document) -> Iterator[tuple[str, str]]:
        """(query id, text) pairs of one document; none if it has fewer words than the shortest query."""
        words = document.full_text.split()[: self.within]
        if len(words) < self.shortest:
            return
        chance = random.Random(f"{self.seed} {document.id}")
        for number in range(self.each):
            length = chance.randint(self.shortest, min(self.longest, len(words)))
            start = chance.randint(0, len(words) - length)
            yield f"{document.id}#{number}", " ".join(words[start : start + length])


def crop_queries(collection: Collection, cropping: Cropping | None = None, *, split: str = "train") -> CollectionParts:
    """The collection's documents with queries cut out of them, each judged relevant (1) for its own document only.

    The same words may stand in other documents, which are then not marked. Documents with fewer words than the shortest
    query have none.

    Args:
        collection: where the documents are; its own queries and judgments are left out.
        cropping: how; three to eight words, one query of every document where nothing is given.
        split: what the judgments are called.

    Raises:
        DataError: no document has words enough.
    """
    how = cropping or Cropping()
    judged = JudgmentsBuilder()
    for document in collection.documents:
        for qid, _ in how.queries(document):
            judged.add(qid, document.id, 1)
    judgments = judged.finish()
    if not len(judgments):
        raise DataError(f"no document of {collection.name} has {how.shortest} words; ask for shorter queries")
    queries = (pair for document in collection.documents for pair in how.queries(document))
    return CollectionParts(collection.documents, queries, {split: judgments})
