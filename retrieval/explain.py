"""Why a document has its score: which terms met, and with what; and what a text was expanded to.

Terms are named by their exact pieces, never by decoded text: several ids may decode to one string.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ..errors import ConfigError
from ..indexes.bm25s_index import Bm25sIndex

__all__ = ["Expansion", "Match", "Term", "expand", "explain", "explain_bm25"]

Task = Literal["query", "document"]


@dataclass(frozen=True)
class Term:
    """A term that query and document share.

    Attributes:
        piece: the exact piece of the vocabulary.
        query, document: its weight on each side.
        in_query, in_document: whether the text itself has it, or it was added by expansion.
    """

    piece: str
    query: float
    document: float
    in_query: bool
    in_document: bool

    @property
    def contribution(self) -> float:
        """query · document, what it adds to the score."""
        return self.query * self.document


@dataclass(frozen=True)
class Match:
    """A query and a document: the terms that met, greatest contribution first; of equal ones by piece."""

    terms: tuple[Term, ...]

    @property
    def score(self) -> float:
        """The sum of the contributions."""
        return math.fsum(term.contribution for term in self.terms)


@dataclass(frozen=True)
class Expansion:
    """A term of a text's vector.

    Attributes:
        piece: the exact piece.
        weight: its weight.
        in_text: whether the text itself has it.
    """

    piece: str
    weight: float
    in_text: bool


def explain(encoder: Any, query: str, document: str) -> Match:
    """The terms of `query` and `document` that met, by a sparse encoder.

    Raises:
        ConfigError: the encoder is none whose dimensions are terms.
    """
    vocabulary = _Vocabulary(encoder)
    asked, found = encoder.encode_query([query]), encoder.encode_document([document])
    both = np.intersect1d(asked.indices, found.indices)
    weights = [dict(zip(vector.indices.tolist(), vector.data.tolist(), strict=True)) for vector in (asked, found)]
    words = vocabulary.of_text(query, "query"), vocabulary.of_text(document, "document")
    return _match(
        Term(vocabulary.piece(n), weights[0][n], weights[1][n], n in words[0], n in words[1]) for n in both.tolist()
    )


def explain_bm25(index: Bm25sIndex, query: str, row: int) -> Match:
    """The terms of `query` in the document of that row: how often the query has each, and its BM25 score there."""
    terms: list[Term] = []
    for name, times in Counter(index.analyzer(query)).items():
        number = index.vocabulary.get(name)
        if number is None:
            continue
        part = slice(int(index.postings.bounds[number]), int(index.postings.bounds[number + 1]))
        rows = index.postings.rows[part]
        at = int(np.searchsorted(rows, row))
        if at < len(rows) and rows[at] == row:
            terms.append(Term(name, float(times), float(index.postings.scores[part][at]), True, True))
    return _match(terms)


def expand(encoder: Any, text: str, *, task: Task = "document", k: int | None = 20) -> tuple[Expansion, ...]:
    """The terms of a text's vector, heaviest first; of equal ones by piece.

    Args:
        encoder: a sparse one.
        text: what is encoded.
        task: as a query, or as a document.
        k: how many; None is all.

    Raises:
        ConfigError: the encoder is none whose dimensions are terms.
    """
    vocabulary = _Vocabulary(encoder)
    vector = encoder.encode_query([text]) if task == "query" else encoder.encode_document([text])
    words = vocabulary.of_text(text, task)
    pairs = zip(vector.indices.tolist(), vector.data.tolist(), strict=True)
    found = [Expansion(vocabulary.piece(number), weight, number in words) for number, weight in pairs]
    return tuple(sorted(found, key=lambda item: (-item.weight, item.piece))[:k])


def _match(terms: Iterable[Term]) -> Match:
    return Match(tuple(sorted(terms, key=lambda term: (-term.contribution, term.piece))))


class _Vocabulary:
    """What a sparse encoder's dimensions are called.

    Raises:
        ConfigError: they are not the pieces of a tokenizer.
    """

    def __init__(self, encoder: Any) -> None:
        from .encoders.adapters import SparseAdapter
        from .encoders.idf import pieces

        if not isinstance(encoder, SparseAdapter):
            raise ConfigError(
                f"{getattr(encoder, 'name', type(encoder).__name__)} is no sparse encoder: the dimensions of its "
                "vectors are no terms that could be shown"
            )
        self._readers = {task: _reader(encoder, task) for task in ("query", "document")}
        if _is_latent(encoder):
            raise ConfigError(f"{encoder.name} is sparse over learned dimensions, which have no names")
        self._pieces = pieces(self._readers["document"].tokenizer)

    def piece(self, number: int) -> str:
        """The exact piece; `#number` for an entry of the head that no piece has."""
        return self._pieces[number] if number < len(self._pieces) else f"#{number}"

    def of_text(self, text: str, task: Task) -> set[int]:
        """The pieces of the whole text, also where the encoder cuts it."""
        from .encoders.echo import EchoTransformer

        reader = self._readers[task]
        if isinstance(reader, EchoTransformer):
            return set(reader.copy_of(text, task))
        return set(reader.tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"])


def _reader(encoder: Any, task: Any) -> Any:
    """The module that cuts a side's texts into pieces."""
    from .encoders.inference_free import static_side
    from .encoders.sides import transformer_of

    reader = transformer_of(encoder.model, task) or static_side(encoder.model, task)
    if reader is None or reader.tokenizer is None:
        raise ConfigError(f"the {task} side of {encoder.name} has no tokenizer whose pieces could be shown")
    return reader


def _is_latent(encoder: Any) -> bool:
    from sentence_transformers.sparse_encoder.modules import SparseAutoEncoder

    return any(isinstance(module, SparseAutoEncoder) for module in encoder.model.modules())
