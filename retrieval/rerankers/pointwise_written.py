"""Pointwise rerankers whose model thinks and then writes a score: ERank's integers, Retro*'s rubric."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from ...errors import ConfigError
from .base import Usage
from .chat import Message, Prompt
from .language_model import Generation, PromptError, Sampling
from .lockstep import Answer, Effort
from .pointwise import Pair, PointwiseReranker
from .pointwise_tokens import PairPrompt, pair_prompts
from .reading import PromptWriter, Reading, count_cuts
from .scores import ScoreFormat, WrittenScore

if TYPE_CHECKING:
    from .language_model import LanguageModel

__all__ = ["ERankReranker", "RetroReranker", "WrittenScoreModel"]

Weight = Literal["none", "probability"]
_PLACE = re.compile(r"\{(\w+)\}")


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
        prompts = pair_prompts(self.writer, pairs, self.prompt, rooms=[self.sampling.max_new_tokens] * len(pairs))
        said = self.writer.model.generate(prompts, self.sampling)
        read = [[self.format.read(each.text) for each in samples] for samples in said.values]
        values = [[float(each.value) for each in samples if each is not None] for samples in read]
        usages = [
            usage + Usage(malformed=len(samples) - len(parsed))
            for usage, samples, parsed in zip(count_cuts(prompts, said.usages), read, values, strict=True)
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
                    given.append(self.writer.followed(prompts[row], before))
                    scores.append(answer)
        if not rows:
            return usages
        try:
            answers = self.writer.model.continuation_log_probs(given, scores)
        except PromptError as error:  # one prompt here is one sample of a pair
            raise PromptError(rows[error.prompt], error.reason) from error
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

    One user turn; documents are cut to 2,048 tokens as published, queries, which the authors cut to as many, stay
    whole. The wording is ours: a released checkpoint was trained with its own, which goes into `prompt_file`.

    Args:
        model: the language model.
        reading: how documents are shown.
        instruction: what relevance is in this task; the paper's table 7 has one for each benchmark.
        prompt_file: the user turn in other words, with the places {instruction}, {query} and {document}.
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
        prompt_file: str | None = None,
        max_new_tokens: int = 2048,
        fusion: float | None = None,
        effort: Effort | None = None,
    ) -> None:
        self.writer = PromptWriter(model, reading or self.READING)
        wording = _wording(prompt_file, _ERANK, ("instruction", "query", "document"))

        def prompt(query: str, document: str) -> list[Message]:
            return [Message("user", wording.substitute(instruction=instruction, query=query, document=document))]

        written = WrittenScoreModel(
            "erank", self.writer, prompt, ScoreFormat("answer", 10), Sampling(max_new_tokens), "probability"
        )
        super().__init__(written, effort=effort, fusion=fusion)


_ERANK = """How relevant is the document to the query, as a whole number from 0 (not at all) to 10 (perfectly)?
What counts as relevant: {instruction}

Query:
{query}

Document:
{document}

Think first, then give the number alone between the tags:
<think>your thoughts</think><answer>number</answer>"""


class RetroReranker(PointwiseReranker):
    """Retro* (2025): a rubric in five bands, an integer from 0 to 100, averaged over samples.

    The wording is ours: a released checkpoint was trained with its own, which goes into `prompt_file`.

    score = mean of K sampled scores ("mean-score@K"): temperature 0.6, top-k 40, thinking mode off as published. The
    published recipe scores the top 100 once and then the top 30 with K = 16: two runs of `rtk rerank`, the second with
    `--depth 30`. The samples of a prompt share its prefix.

    Args:
        model: the language model.
        reading: how documents are shown; published whole.
        relevance: the task's definition of relevance.
        prompt_file: the user turn in other words, with the places {relevance}, {query} and {document}.
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
        relevance: str = "a document is relevant if it helps to answer the query",
        prompt_file: str | None = None,
        samples: int = 1,
        temperature: float = 0.6,
        top_k: int | None = 40,
        max_new_tokens: int = 4096,
        seed: int = 42,
        effort: Effort | None = None,
    ) -> None:
        if samples > 1 and temperature == 0:
            raise ConfigError("samples above 1 need a temperature above 0: greedy samples are all the same")
        self.writer = PromptWriter(model, reading or self.READING)
        wording = _wording(prompt_file, _RETRO, ("relevance", "query", "document"))

        def prompt(query: str, document: str) -> list[Message]:
            return [Message("user", wording.substitute(relevance=relevance, query=query, document=document))]

        sampling = Sampling(max_new_tokens, temperature=temperature, top_k=top_k, samples=samples, seed=seed)
        written = WrittenScoreModel("retro", self.writer, prompt, ScoreFormat("score", 100), sampling)
        super().__init__(written, effort=effort)


_RETRO = """Judge how relevant a document is to a query. Relevance here: {relevance}

First say what the query needs, then what of it the document has, then decide on a score from 0 to 100:
- 80 to 100: it answers the query directly and fully.
- 60 to 80: it has most of what is asked, with small gaps.
- 40 to 60: it is about the subject and has a part of what is asked.
- 20 to 40: it shares words with the query, but its subject is another.
- 0 to 20: it has nothing to do with the query.

Query:
{query}

Document:
{document}

End with the score alone between the tags: <score>number</score>"""


def _wording(path: str | None, default: str, places: Sequence[str]) -> Wording:
    """The user turn's text, ours or a file's.

    Raises:
        ConfigError: no such file, or a place that is missing.
    """
    if path is None:
        return Wording(default)
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"prompt_file {path!r} cannot be read: {error}") from error
    missing = [f"{{{place}}}" for place in places if f"{{{place}}}" not in text]
    if missing:
        raise ConfigError(f"prompt_file {path!r} lacks the places {', '.join(missing)}")
    return Wording(text)


@dataclass(frozen=True)
class Wording:
    """A text with places in braces; other braces, and braces in what is put in, stay what they are."""

    text: str

    def substitute(self, **values: str) -> str:
        return _PLACE.sub(lambda found: values.get(found.group(1), found.group(0)), self.text)
