"""Pointwise rerankers whose model thinks and then writes a score: ERank's integers, Retro*'s rubric."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from ...errors import ConfigError
from .base import Usage
from .chat import Message, Prompt
from .language_model import Generation, Sampling
from .lockstep import Answer, Effort
from .pointwise import Pair, PointwiseReranker
from .pointwise_tokens import PairPrompt, pair_prompts
from .reading import PromptWriter, Reading
from .scores import ScoreFormat, WrittenScore

if TYPE_CHECKING:
    from .language_model import LanguageModel

__all__ = ["ERankReranker", "RetroReranker", "WrittenScoreModel"]

Weight = Literal["none", "probability"]


@dataclass(frozen=True, eq=False)
class WrittenScoreModel:
    """Scores a pair by what the model writes, averaged over samples.

    score = Σ_i s_i / n over the n samples that can be read. Each that cannot counts as malformed and is left out (the
    published code of Retro* counts it as 0, which is a sure "irrelevant"); a pair without any has score 0.

    Attributes:
        name: the method's.
        writer: renders prompts.
        prompt: in which words.
        format: where the score stands.
        sampling: how the model writes.
        weight: "probability" multiplies a sample's score by the model's probability of writing it there (ERank).
    """

    name: str
    writer: PromptWriter
    prompt: PairPrompt
    format: ScoreFormat
    sampling: Sampling
    weight: Weight = "none"

    def identity(self) -> dict[str, Any]:
        return {
            "reranker": self.name,
            "model": self.writer.model.identity(),
            "prompt": [message.content for message in self.prompt("{query}", "{document}")],
            "sampling": vars(self.sampling),
            "weight": self.weight,
            "reading": self.writer.identity(),
        }

    def score(self, pairs: Sequence[Pair], /) -> list[Answer[float]]:
        room = self.sampling.max_new_tokens
        prompts = pair_prompts(self.writer, pairs, self.prompt, room=room)
        said = self.writer.model.generate(prompts, self.sampling)
        read = [[self.format.read(each.text) for each in samples] for samples in said.values]
        values = [[float(each.value) for each in samples if each is not None] for samples in read]
        usages = [
            usage + Usage(malformed=len(samples) - len(parsed))
            for usage, samples, parsed in zip(said.usages, read, values, strict=True)
        ]
        if self.weight == "probability":
            usages = self._weigh(prompts, said.values, read, values=values, usages=usages)
        means = [float(np.mean(parsed)) if parsed else 0.0 for parsed in values]
        return [Answer(mean, usage) for mean, usage in zip(means, usages, strict=True)]

    def _weigh(
        self,
        prompts: Sequence[Prompt],
        said: Sequence[Sequence[Generation]],
        read: Sequence[Sequence[WrittenScore | None]],
        *,
        values: list[list[float]],
        usages: list[Usage],
    ) -> list[Usage]:
        """Multiply `values` by the probability of the score's tokens where they stand; the cost with that call's."""
        renderer = self.writer.renderer
        rows: list[int] = []
        given: list[Prompt] = []
        scores: list[tuple[int, ...]] = []
        for row, (samples, found) in enumerate(zip(said, read, strict=True)):
            for sample, score in zip(samples, found, strict=True):
                if score is not None:
                    before, answer = _split(renderer.tokenizer, sample, score)
                    rows.append(row)
                    given.append(Prompt((*prompts[row].ids, *before), prompts[row].shared))
                    scores.append(answer)
        if not rows:
            return usages
        answers = self.writer.model.continuation_log_probs(given, scores)
        parsed: dict[int, list[float]] = {}
        for row, chance, usage in zip(rows, np.exp(answers.values).tolist(), answers.usages, strict=True):
            parsed.setdefault(row, []).append(chance)
            usages[row] += usage
        for row, chances in parsed.items():
            values[row] = [value * chance for value, chance in zip(values[row], chances, strict=True)]
        return usages


def _split(tokenizer: Any, sample: Generation, score: WrittenScore) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The sample's tokens before the score, and the score's own.

    A token that holds a digit of the score belongs to it. Places are found by the length of decoded beginnings.
    """

    def length(count: int) -> int:
        return len(tokenizer.decode(sample.ids[:count], skip_special_tokens=True))

    counts = range(len(sample.ids) + 1)
    start = bisect_right(counts, score.start, key=length) - 1
    stop = bisect_left(counts, score.end, key=length)
    return sample.ids[:start], sample.ids[start:stop]


class ERankReranker(PointwiseReranker):
    """ERank (2025): the model thinks, then writes an integer from 0 to 10; score = s · Pr(s) where s is written.

    One user turn; query and document are cut to 2,048 tokens as published. The wording is the model card's, from
    memory: compare it with the checkpoint's before reporting figures.

    Args:
        model: the language model.
        reading: how documents are shown.
        instruction: what relevance is in this task; the paper's table 7 has one for each benchmark.
        max_new_tokens: room for thinking.
        fusion: α of the first stage, see `PointwiseReranker`.
        effort: how many queries share a call.
    """

    READING: ClassVar[Reading] = Reading(words=None, tokens=2048)

    def __init__(
        self,
        model: LanguageModel,
        *,
        reading: Reading | None = None,
        instruction: str = "Given a web search query, retrieve relevant passages that answer the query",
        max_new_tokens: int = 2048,
        fusion: float | None = None,
        effort: Effort | None = None,
    ) -> None:
        self.writer = PromptWriter(model, reading or self.READING)

        def prompt(query: str, document: str) -> list[Message]:
            return [Message("user", _ERANK.format(instruction=instruction, query=query, document=document))]

        written = WrittenScoreModel(
            "erank", self.writer, prompt, ScoreFormat("answer", 10), Sampling(max_new_tokens), "probability"
        )
        super().__init__(written, effort=effort, fusion=fusion)


_ERANK = """Given a query and a document, please give a relevance score of 0~10.
The goal or relevance definition is: {instruction}

Here is the query:
{query}

Here is the document:
{document}

After thinking, directly choose a relevance score from [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10].
- 0 represents completely not related
- 10 means perfectly related.

Desired output format:
<think>put your thinking here</think><answer>Only allows an integer here</answer>

Your output:"""


class RetroReranker(PointwiseReranker):
    """Retro* (2025): a rubric in five bands, an integer from 0 to 100, averaged over samples.

    score = mean of K sampled scores ("mean-score@K"): temperature 0.6, top-k 40, thinking mode off as published. The
    published recipe scores the top 100 once and then the top 30 with K = 16: two runs of `rtk rerank`, the second with
    `--depth 30`. The samples of a prompt share its prefix.

    Args:
        model: the language model.
        reading: how documents are shown; published whole.
        relevance: the task's definition of relevance.
        query_type: what queries are in this task.
        document_type: what documents are.
        samples: K.
        temperature: of sampling.
        top_k: of sampling.
        max_new_tokens: room for the analysis.
        seed: of sampling.
        effort: how many queries share a call.
    """

    READING: ClassVar[Reading] = Reading(words=None, thinking=False)

    def __init__(
        self,
        model: LanguageModel,
        *,
        reading: Reading | None = None,
        relevance: str | None = None,
        query_type: str = "query",
        document_type: str = "document",
        samples: int = 1,
        temperature: float = 0.6,
        top_k: int | None = 40,
        max_new_tokens: int = 4096,
        seed: int = 42,
        effort: Effort | None = None,
    ) -> None:
        if samples > 1 and temperature == 0:
            raise ConfigError("samples above 1 need a temperature above 0: greedy samples are all the same")
        definition = relevance or (
            f"Given a query ({query_type}) and a document ({document_type}), the document is relevant to the query if "
            "the document can help answer the query."
        )
        self.writer = PromptWriter(model, reading or self.READING)

        def prompt(query: str, document: str) -> list[Message]:
            kinds = {"query_type": query_type, "document_type": document_type}
            return [Message("user", _RETRO.format(relevance=definition, query=query, document=document, **kinds))]

        sampling = Sampling(max_new_tokens, temperature=temperature, top_k=top_k, samples=samples, seed=seed)
        written = WrittenScoreModel("retro", self.writer, prompt, ScoreFormat("score", 100), sampling)
        super().__init__(written, effort=effort)


# The checkpoints' input format: the prompt published with Retro* (arXiv 2509.24869, evaluation code 4821a03).
_RETRO = """Here is the **relevance definition** in a retrieval task: {relevance}

Now given a **query** ({query_type}) and a **document** ({document_type}) in this retrieval task, your mission is to \
perform the following steps.

1. Query Analysis: Think to reason and describe what information would be most helpful in answering the query.
2. Document Analysis: Discuss how the information provided by the document fulfills or fails to fulfill the \
requirements implied by the query.
3. Relevance Annotation: Based on the relevance definition and the insights from the previous two steps, clearly \
justify your final relevance annotation result and annotate an integer score from a scale of 0 to 100. Please use the \
following guide:
    - **80-100 (Highly Relevant):** The document directly and comprehensively addresses the query's intent. It is a \
core and authoritative answer.
    - **60-80 (Relevant):** The document substantially addresses the query's intent, providing most of the key \
information, but might miss some minor details.
    - **40-60 (Moderately Relevant):** The document is on-topic and addresses a part of the query's intent, but it is \
not a comprehensive answer.
    - **20-40 (Slightly Relevant):** The document mentions keywords from the query, but its main topic is different. \
It offers very limited value.
    - **0-20 (Irrelevant):** The document does not address the query's intent at all and is off-topic.

After providing your detailed analysis and justification for all the steps above, conclude your entire response with \
the final relevance score. The score must be placed strictly between the <score> tags. There should be no other text \
or explanation inside the tags:
<score>
[From a scale of 0 to 100, annotate the degree of relevance between the query and the document.]
</score>

Query ({query_type}):
[Begin of Query]
{query}
[End of Query]

Document ({document_type}):
[Begin of Document]
{document}
[End of Document]
"""
