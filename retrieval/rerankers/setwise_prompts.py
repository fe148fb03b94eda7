"""The prompts of setwise rerankers, each by its source, and reading which document an answer names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from .chat import Message
from .identifiers import Identifiers

__all__ = ["RANK_R1", "SETWISE", "SETWISE_BRACKETS", "SetPrompt", "read_choice"]


@dataclass(frozen=True)
class SetPrompt:
    """A setwise prompt.

    Attributes:
        template: the user turn, with {query} and {documents}.
        document: one document, with {label} and {text}.
        separator: between documents.
        identifiers: what documents are called.
        system: the system turn; None for none.
        continuation: how the answer begins.
    """

    template: str
    document: str
    separator: str
    identifiers: Identifiers
    system: str | None = None
    continuation: str = ""

    def messages(self, query: str, texts: Sequence[str]) -> list[Message]:
        """The turns for these documents."""
        labels = self.identifiers.labels(len(texts))
        shown = [self.document.format(label=label, text=text) for label, text in zip(labels, texts, strict=True)]
        content = self.template.format(query=query, documents=self.separator.join(shown))
        system = [] if self.system is None else [Message("system", self.system)]
        return [*system, Message("user", content)]


SETWISE = SetPrompt(
    template=(
        'Given a query "{query}", which of the following passages is the most relevant one to the query?\n\n'
        "{documents}\n\nOutput only the passage label of the most relevant passage:"
    ),
    document='Passage {label}: "{text}"',
    separator="\n\n",
    identifiers=Identifiers("letters"),
    continuation="Passage",
)
"""Zhuang et al. 2024, figure 1; the answer is begun with "Passage"."""

SETWISE_BRACKETS = SetPrompt(
    template=(
        'Given a query "{query}", which of the following passages is the most relevant one to the query?\n\n'
        "{documents}\n\nOutput only the passage label of the most relevant passage in brackets:"
    ),
    document="[{label}] {text}",
    separator="\n\n",
    identifiers=Identifiers("letters"),
    continuation="[",
)
"""The same with labels in brackets, for tokenizers without a token for " C": wording of our own."""

RANK_R1 = SetPrompt(
    system=(
        "A conversation between User and Assistant. The user asks a question, and the Assistant solves it. The "
        "assistant first thinks about the reasoning process in the mind and then provides the user with the answer. "
        "The reasoning process and answer are enclosed within <think> </think> and <answer> </answer> tags, "
        "respectively, i.e., <think> reasoning process here </think> <answer> answer here </answer>."
    ),
    template=(
        'Given the query: "{query}", which of the following documents is most relevant?\n{documents}\n'
        "After completing the reasoning process, please provide only the label of the most relevant document to the "
        "query, enclosed in square brackets, within the answer tags. For example, if the third document is the most "
        "relevant, the answer should be: <think> reasoning process here </think> <answer>[3]</answer>."
    ),
    document="[{label}] {text}",
    separator="\n",
    identifiers=Identifiers("numbers"),
)
"""Rank-R1 v0.1 (Zhuang et al. 2025), with documents as in its training data ("[i] text")."""


def read_choice(text: str, count: int) -> int | None:
    """The place of the document that `<think>…</think> <answer>[i]</answer>` names; None when it names none.

    The tags are read in any case (the published inference lower-cases the output); the first match counts, as in the
    reward that the model was trained with.
    """
    found = re.search(r"<think>.*?</think>\s*<answer>(.*?)</answer>", text, re.DOTALL | re.IGNORECASE)
    label = None if found is None else re.fullmatch(r"\s*\[(\d{1,6})\]\s*", found.group(1))
    if label is None or not 1 <= int(label.group(1)) <= count:
        return None
    return int(label.group(1)) - 1
