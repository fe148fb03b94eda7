"""The prompts of listwise rerankers, each by its source, and how passages are put into them.

Prompts are part of a checkpoint: a model is asked in the words that it was trained with. A prompt is a function
(query, passages, identifiers) → messages.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from ...errors import ConfigError, nearest
from .chat import Message
from .identifiers import Identifiers

__all__ = ["LIST_PROMPTS", "ListPrompt", "list_prompt", "passage_text"]

ListPrompt = Callable[[str, Sequence[str], Identifiers], list[Message]]

_RANK_LLM = "You are RankLLM, an intelligent assistant that can rank passages based on their relevancy to the query"
_RANK_GPT = "You are RankGPT, an intelligent assistant that can rank passages based on their relevancy to the query."
_IDENTIFIER = re.compile(r"\[([A-Za-z]+|\d+)\]")


def passage_text(text: str, words: int | None) -> str:
    """A passage as listwise prompts show it: its first words, one space apart, "[B]" and "[2]" in it as "(B)", "(2)".

    A bracketed identifier inside a passage would otherwise read as the beginning of another one.
    """
    found = text.split() if words is None else text.split(maxsplit=words)[:words]
    return _IDENTIFIER.sub(r"(\1)", " ".join(found))


def rank_zephyr(query: str, passages: Sequence[str], identifiers: Identifiers) -> list[Message]:
    """RankVicuna's and RankZephyr's single turn (Pradeep et al. 2023), with which FIRST and FullRank were trained too.

    Letters are announced as "a alphabetical identifier", numbers as "a numerical identifier", as in FIRST's training
    data; windows may have any number of passages, so that the example is that of variable passages.
    """
    kind = "alphabetical" if identifiers.kind == "letters" else "numerical"
    ending = "Only respond with the ranking results, do not say any word or explain."
    return _single_turn(query, passages, identifiers, f"a {kind}", ending, blank=True)


def rank_llm(query: str, passages: Sequence[str], identifiers: Identifiers) -> list[Message]:
    """The same turn as rank_llm has worded it since 2024: FirstMistral's and later checkpoints'."""
    kind = "an alphabetical" if identifiers.kind == "letters" else "a numerical"
    ending = "Answer concisely and directly and only respond with the ranking results, do not say any word or explain."
    return _single_turn(query, passages, identifiers, kind, ending, blank=False)


def _single_turn(
    query: str, passages: Sequence[str], identifiers: Identifiers, kind: str, ending: str, *, blank: bool
) -> list[Message]:
    labels = identifiers.labels(len(passages))
    example = f"[{identifiers.label(1)}] > [{identifiers.label(0)}]"
    lines = [
        f"I will provide you with {len(passages)} passages, each indicated by {kind} identifier []. "
        f"Rank the passages based on their relevance to the search query: {query}.",
        *([""] if blank else []),
        *(f"[{label}] {passage}" for label, passage in zip(labels, passages, strict=True)),
        f"Search Query: {query}.",
        f"Rank the {len(passages)} passages above based on their relevance to the search query. "
        "All the passages should be included and listed using identifiers, in descending order of relevance. "
        f"The output format should be [] > [], e.g., {example}, {ending}",
    ]
    return [Message("system", _RANK_LLM), Message("user", "\n".join(lines))]


def rank_gpt(query: str, passages: Sequence[str], identifiers: Identifiers) -> list[Message]:
    """RankGPT's conversation (Sun et al. 2023): a turn for each passage, each acknowledged."""
    count, labels = len(passages), identifiers.labels(len(passages))
    kind = "number" if identifiers.kind == "numbers" else "letter"
    turns = [
        Message("system", _RANK_GPT),
        Message(
            "user",
            f"I will provide you with {count} passages, each indicated by {kind} identifier []. \n"
            f"Rank the passages based on their relevance to query: {query}.",
        ),
        Message("assistant", "Okay, please provide the passages."),
    ]
    for label, passage in zip(labels, passages, strict=True):
        turns += [Message("user", f"[{label}] {passage}"), Message("assistant", f"Received passage [{label}].")]
    example = f"[{identifiers.label(0)}] > [{identifiers.label(1)}]"
    request = (
        f"Search Query: {query}. \nRank the {count} passages above based on their relevance to the search query. "
        "The passages should be listed in descending order using identifiers. "
        "The most relevant passages should be listed first. "
        f"The output format should be [] > [], e.g., {example}. "
        "Only response the ranking results, do not say any word or explain."
    )
    return [*turns, Message("user", request)]


LIST_PROMPTS: dict[str, ListPrompt] = {"rank-zephyr": rank_zephyr, "rank-llm": rank_llm, "rank-gpt": rank_gpt}
"""Name → prompt."""


def list_prompt(name: str) -> ListPrompt:
    """A listwise prompt by name.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in LIST_PROMPTS:
        raise ConfigError(
            f"no listwise prompt {name!r}{nearest(name, LIST_PROMPTS)}; there are {', '.join(LIST_PROMPTS)}"
        )
    return LIST_PROMPTS[name]
