"""ICR's prompt: documents first, the query last, and where every token of a document stands."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ...errors import BackendError, ConfigError
from .chat import ChatRenderer, Encoded, Piece
from .reading import Reading, even_cut

__all__ = ["IcrPrompt", "IcrPrompter", "Wording"]

log = logging.getLogger(__name__)

_LEAD = " Here are some paragraphs:"
_INSTRUCTIONS = {
    "ie": "Please find information that are relevant to the following query in the paragraphs above.",
    "qa": "Please answer the following question based on the information in the paragraphs above.",
}


@dataclass(frozen=True)
class Wording:
    """How the prompt is worded. Defaults are the published ones (Chen et al. 2024, and the authors' code).

    Attributes:
        instruction: "ie" asks to find information, "qa" to answer the question (published for multi-hop questions and
            for trec-covid, fiqa, webis-touche2020, dbpedia-entity and nq).
        reverse: the best candidate of the first stage last, next to the query.
        separator: between paragraphs; published space and two line breaks for Llama 3, two line breaks for Mistral.
        content_free: the query that asks nothing.
        markers: what stands before and after the user's turn; None finds it in the chat template and, as the authors
            do, leaves out white space at its end.
    """

    instruction: Literal["ie", "qa"] = "ie"
    reverse: bool = True
    separator: str = " \n\n"
    content_free: str = "N/A"
    markers: tuple[str, str] | None = None

    def __post_init__(self) -> None:
        if self.instruction not in _INSTRUCTIONS:
            raise ConfigError(f"instruction {self.instruction!r}: expected 'ie' or 'qa'")
        if self.markers is not None:
            markers = tuple(self.markers) if isinstance(self.markers, list | tuple) else ()
            if len(markers) != 2 or not all(isinstance(each, str) for each in markers):
                raise ConfigError(
                    f"markers {self.markers!r}: expected what stands before and what stands after, two texts"
                )
            object.__setattr__(self, "markers", markers)


@dataclass(frozen=True, eq=False)
class IcrPrompt:
    """The two prompts of a query, equal up to `start`.

    Attributes:
        free: ids with the content-free query.
        real: ids with the query.
        start: the first position of the late instruction; from it to the end is what asks.
        documents: half-open ranges of positions, one a document in the order given, the label included.
        cut: tokens that every document was cut to so that the prompt fits; None when it fitted.
    """

    free: tuple[int, ...]
    real: tuple[int, ...]
    start: int
    documents: tuple[tuple[int, int], ...]
    cut: int | None = None

    def __len__(self) -> int:
        return max(len(self.free), len(self.real))


class IcrPrompter:
    """Writes ICR's prompts, in time linear in their length.

    Args:
        renderer: of the model's tokenizer.
        wording: what they say.
        reading: how documents are cut.
        limit: tokens that the model reads.

    Attributes:
        cut: how many prompts were written with their documents shortened to fit the context. The first is logged;
            what reranking counts is `Usage.cut`, in which a prompt that is asked again is one.
    """

    def __init__(self, renderer: ChatRenderer, wording: Wording, reading: Reading, limit: int) -> None:
        self.renderer, self.wording, self.reading, self.limit = renderer, wording, reading, limit
        found = wording.markers or renderer.user_markers()
        self._before, self._after = (found[0].rstrip(), found[1].rstrip()) if wording.markers is None else found
        self.cut = 0

    def write(self, query: str, texts: Sequence[str]) -> IcrPrompt:
        """The prompts of a query over documents in the first stage's order.

        Raises:
            ConfigError: longer than the context, and to be refused, or not even one token of each document fits.
        """
        shown = [self._shown(text) for text in texts]
        prompt = self._prompt(query, shown, None)
        if len(prompt) <= self.limit:
            return prompt
        too_long = f"the prompt of {len(texts)} documents has {len(prompt)} tokens, the model reads {self.limit}: "
        if self.reading.overlong == "refuse":
            raise ConfigError(too_long + "show fewer words or fewer documents")
        counts = self.renderer.count(shown)
        most = even_cut(counts, self.limit - len(prompt) + int(counts.sum()))
        while most > 0:
            prompt = self._prompt(query, [self.renderer.cut(text, most) for text in shown], most)
            if len(prompt) <= self.limit:
                if not self.cut:
                    log.warning("%seach was cut to %d tokens (said once)", too_long, most)
                self.cut += 1
                return prompt
            most -= max(1, (len(prompt) - self.limit) // max(1, len(texts)))
        raise ConfigError(too_long + "no documents cut alike fit; take fewer of them")

    def _shown(self, text: str) -> str:
        if self.reading.words is not None:
            text = " ".join(text.split(" ")[: self.reading.words])
        text = text.strip()
        return text if self.reading.tokens is None else self.renderer.cut(text, self.reading.tokens)

    def _prompt(self, query: str, shown: Sequence[str], cut: int | None) -> IcrPrompt:
        order = list(range(len(shown)))[:: -1 if self.wording.reverse else 1]
        separator = Piece(self.wording.separator)
        pieces = [Piece(self._before, markers=True), Piece(_LEAD)]
        for label, place in enumerate(order, start=1):
            pieces += [separator, Piece(f"[{label}] {shown[place]}")]
        asking = len(pieces) + 1
        pieces += [separator, Piece(_INSTRUCTIONS[self.wording.instruction]), separator, Piece("Query: ")]
        after = Piece(self._after, markers=True)
        free = self.renderer.encode([*pieces, Piece(self.wording.content_free), after])
        real = self.renderer.encode([*pieces, Piece(query), after])
        start = _common_start(free, real, asking)
        documents: list[tuple[int, int]] = [(0, 0)] * len(shown)
        for at, place in enumerate(order):
            documents[place] = real.span(3 + 2 * at)
        return IcrPrompt(free.ids, real.ids, start, tuple(documents), cut)


def _common_start(free: Encoded, real: Encoded, asking: int) -> int:
    """The position of the late instruction's first token, which both prompts have in the same place."""
    start = real.span(asking)[0]
    if free.ids[:start] != real.ids[:start] or free.span(asking)[0] != start:
        differs = np.flatnonzero(np.asarray(free.ids[:start]) != np.asarray(real.ids[:start]))
        raise BackendError(
            f"the tokenizer cuts the documents differently before different queries (first at token {differs[:1]}): "
            "nothing could be computed once for both"
        )
    return start
