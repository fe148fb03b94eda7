"""Pointwise rerankers that read a token's logit: yes or no, graded labels, 0 or 1 (ProRank), true or false (monoT5).
Nothing is generated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ...errors import ConfigError
from .chat import Message, Prompt
from .language_model import needs_encoder_decoder
from .lockstep import Answer, Effort
from .pointwise import Pair, PointwiseReranker
from .reading import PromptWriter, Reading, count_cuts, decoder_tokens, share_by

if TYPE_CHECKING:
    from .language_model import LanguageModel

__all__ = [
    "GradedReranker",
    "LogitModel",
    "MonoT5Reranker",
    "PairPrompt",
    "ProRankReranker",
    "YesNoReranker",
    "first_words",
    "pair_prompts",
]

PairPrompt = Callable[[str, str], list[Message]]
"""(query, document) → messages."""


def first_words(text: str, words: int | None) -> str:
    """The first words of a text as they stand; all of it for None."""
    if words is None:
        return text
    parts = text.split(maxsplit=words)
    return text if len(parts) <= words else text[: len(text) - len(parts[-1])].rstrip()


def pair_prompts(
    writer: PromptWriter,
    pairs: Sequence[Pair],
    prompt: PairPrompt,
    *,
    continuation: str | None = "",
    rooms: Sequence[int] | None = None,
    query_tokens: int | None = None,
) -> list[Prompt]:
    """The prompts of pairs, those of one query knowing what they share.

    Args:
        writer: renders them.
        pairs: what they show.
        prompt: in which words.
        continuation: how the answer begins; see `PromptWriter.write`.
        rooms: for each pair the tokens that must fit after it.
        query_tokens: queries are cut to so many tokens, which `Prompt.cut` says; None leaves them whole.
    """
    made: list[Prompt] = []
    for at, (_, query, document) in enumerate(pairs):
        asked = query if query_tokens is None else writer.renderer.cut(query, query_tokens)

        def messages(shown: Sequence[str], query: str = asked) -> Sequence[Message]:
            return prompt(query, shown[0])

        text = first_words(document, writer.reading.words)
        written = writer.write([text], messages, continuation=continuation, room=rooms[at] if rooms else 0)
        made.append(written if asked == query else replace(written, cut=True))
    return share_by([qid for qid, _, _ in pairs], made)


@dataclass(frozen=True, eq=False)
class LogitModel:
    """Scores a pair from the logits of a few tokens after its prompt.

    Attributes:
        name: the method's.
        writer: renders prompts.
        prompt: in which words.
        tokens: whose logits are read.
        combine: (n, tokens) logits → (n,) scores.
        continuation: how the answer begins; see `PromptWriter.write`.
        labels: what the tokens say, for records.
        query_tokens: what a query is cut to; None leaves it whole.
    """

    name: str
    writer: PromptWriter
    prompt: PairPrompt
    tokens: Sequence[int]
    combine: Callable[[np.ndarray], np.ndarray]
    labels: Sequence[str]
    continuation: str | None = ""
    query_tokens: int | None = None

    def identity(self) -> dict[str, Any]:
        return {
            "reranker": self.name,
            "model": self.writer.model.identity(),
            "prompt": [message.content for message in self.prompt("{query}", "{document}")],
            "labels": list(self.labels),
            "reading": self.writer.identity(),
        }

    def prompts(self, pairs: Sequence[Pair], /) -> list[Prompt]:
        """What the model is asked about each pair; training reads the same."""
        return pair_prompts(
            self.writer, pairs, self.prompt, continuation=self.continuation, query_tokens=self.query_tokens
        )

    def score(self, pairs: Sequence[Pair], /) -> list[Answer[float]]:
        prompts = self.prompts(pairs)
        answers = self.writer.model.next_token_logits(prompts, self.tokens)
        values, usages = self.combine(answers.values), count_cuts(prompts, answers.usages)
        return [Answer(float(value), usage) for value, usage in zip(values, usages, strict=True)]


def log_odds(logits: np.ndarray) -> np.ndarray:
    """z_first − z_second (n,): the log-odds of the first of two answers, which a softmax over both only squashes."""
    return logits[:, 0] - logits[:, 1]


def yes_no(query: str, document: str) -> list[Message]:
    """Liang et al. 2022 (HELM), as used for rerankers by Sun et al. 2023 and Zhuang et al. 2024."""
    return [
        Message("user", f"Passage: {document}\nQuery: {query}\nDoes the passage answer the query? Answer 'Yes' or 'No'")
    ]


class YesNoReranker(PointwiseReranker):
    """Yes or no: the score is z(Yes) − z(No) where the answer begins, the log-odds of relevance.

    Args:
        model: the language model.
        reading: how documents are shown.
        yes: the answer that says relevant.
        no: the other.
        instruction: in front of the prompt, for models that take one.
        effort: how many queries share a call.

    Attributes:
        writer: renders prompts.
        logits: how pairs are asked and read; training asks with it.
    """

    def __init__(
        self,
        model: LanguageModel,
        *,
        reading: Reading | None = None,
        yes: str = "Yes",
        no: str = "No",
        instruction: str | None = None,
        effort: Effort | None = None,
    ) -> None:
        self.writer = PromptWriter(model, reading)
        tokens = self.writer.answer_tokens([yes, no])

        def prompt(query: str, document: str) -> list[Message]:
            (asked,) = yes_no(query, document)
            return [asked] if instruction is None else [Message("user", f"{instruction}\n{asked.content}")]

        self.logits = LogitModel("yes-no", self.writer, prompt, tokens, log_odds, (yes, no))
        super().__init__(self.logits, effort=effort)


class GradedReranker(PointwiseReranker):
    """Graded labels (Zhuang et al. 2024, "Beyond Yes and No"): the rating scale 0 … k, by its expected value.

    score = Σ_g g · softmax(z)_g over the tokens of the grades (RG-S with expected relevance values).

    Args:
        model: the language model.
        reading: how documents are shown.
        most: k, the highest grade; 4 does best in the paper.
        peak: the logit of the highest grade instead (RG-S with peak relevance likelihood).
        effort: how many queries share a call.
    """

    def __init__(
        self,
        model: LanguageModel,
        *,
        reading: Reading | None = None,
        most: int = 4,
        peak: bool = False,
        effort: Effort | None = None,
    ) -> None:
        if not 1 <= most <= 9:
            raise ConfigError(f"grades 0 to {most}: expected a highest grade of 1 to 9, one digit each")
        self.writer = PromptWriter(model, reading)
        labels = [str(grade) for grade in range(most + 1)]

        def prompt(query: str, document: str) -> list[Message]:
            return [
                Message(
                    "user",
                    f"From a scale of 0 to {most}, judge the relevance between the query and the document.\n"
                    f"Query: {query}\nDocument: {document}\nOutput:",
                )
            ]

        tokens = self.writer.answer_tokens(labels)
        combine = _last if peak else expected_grade
        super().__init__(LogitModel("graded", self.writer, prompt, tokens, combine, labels), effort=effort)


def expected_grade(logits: np.ndarray) -> np.ndarray:
    """Σ_g g · softmax(z)_g over the columns (n, k + 1), in float64. (n,)."""
    values = logits.astype(np.float64)
    weights = np.exp(values - values.max(axis=1, keepdims=True))
    return weights @ np.arange(values.shape[1]) / weights.sum(axis=1)


def _last(logits: np.ndarray) -> np.ndarray:
    return logits[:, -1]


class ProRankReranker(PointwiseReranker):
    """ProRank, and mxbai-rerank-v2: the score is z("1") − z("0") at the last position.

    The prompt is that of the released mxbai-rerank-v2 models (Apache 2.0), whose chat has Qwen2.5's own system turn.
    A query may take up to three quarters of the context, the document gets what is left.

    Args:
        model: the language model.
        reading: how documents are shown; published whole, cut to the context.
        instruction: what relevance is, for models that take one.
        effort: how many queries share a call.

    Attributes:
        writer: renders prompts.
        logits: how pairs are asked and read; training asks with it.
    """

    READING: ClassVar[Reading] = Reading(words=None)

    def __init__(
        self,
        model: LanguageModel,
        *,
        reading: Reading | None = None,
        instruction: str | None = None,
        effort: Effort | None = None,
    ) -> None:
        self.writer = PromptWriter(model, reading or self.READING)
        head = "" if instruction is None else f"instruction: {instruction}\n"

        def prompt(query: str, document: str) -> list[Message]:
            return [
                Message(
                    "user",
                    f"{head}query: {query}\ndocument: {document}\n"
                    "You are a search relevance expert who evaluates how well documents match search queries. For each "
                    "query-document pair, carefully analyze the semantic relationship between them, then provide your "
                    "binary relevance judgment (0 for not relevant, 1 for relevant).\nRelevance:",
                )
            ]

        tokens = self.writer.answer_tokens(["1", "0"])
        self.logits = LogitModel("prorank", self.writer, prompt, tokens, log_odds, ("1", "0"),
                                 query_tokens=model.context_length * 3 // 4)  # fmt: skip
        super().__init__(self.logits, effort=effort)


def mono_t5(query: str, document: str) -> list[Message]:
    """Nogueira et al. 2020: no space after the last colon."""
    return [Message("user", f"Query: {query} Document: {document} Relevant:")]


class MonoT5Reranker(PointwiseReranker):
    """monoT5 (Nogueira et al. 2020): one decoder step, log-odds of "true" against "false".

    The published score, log softmax over both at "true", orders the same. Only the document is cut, so that the prompt
    always ends in "Relevant:".

    Args:
        model: an encoder-decoder.
        reading: how documents are shown; published whole, cut to 512 tokens in all.
        true: the word that says relevant; other checkpoints have others.
        false: the word that says not relevant.
        effort: how many queries share a call.

    Raises:
        ConfigError: the model is a decoder, or an answer is not one token.
    """

    READING: ClassVar[Reading] = Reading(words=None, template="plain")

    def __init__(
        self,
        model: LanguageModel,
        *,
        reading: Reading | None = None,
        true: str = "true",
        false: str = "false",
        effort: Effort | None = None,
    ) -> None:
        needs_encoder_decoder(model, "mono-t5", "yes-no")
        self.writer = PromptWriter(model, reading or self.READING)
        tokens = decoder_tokens(model.tokenizer, [true, false])
        logits = LogitModel("mono-t5", self.writer, mono_t5, tokens, log_odds, (true, false), continuation=None)
        super().__init__(logits, effort=effort)
