"""The blocks of a training configuration that only language models have: which lists they see, and in which words."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt, model_validator

from .blocks import Block

__all__ = ["ListSampling", "Prompting"]


class ListSampling(Block):
    """Every query once an epoch, shuffled, with a window of its list.

    Windows hold documents of two levels at least; a list for which there is none is left out and counted (see
    `list_windows.Windows`).

    Attributes:
        window: most documents that the model sees together.
        smallest: windows have between so many documents and `window`, drawn uniformly for each batch; None is always
            `window`.
        depth: the list is cut to its first so many candidates; None keeps all.
        start: the window at the list's top, or one that begins anywhere.
        shuffle: the share of windows whose documents are shown in a random order, in place of the first stage's.
    """

    window: PositiveInt = Field(20, ge=2)
    smallest: PositiveInt | None = Field(None, ge=2)
    depth: PositiveInt | None = Field(None, ge=2)
    start: Literal["top", "anywhere"] = "top"
    shuffle: float = Field(0.0, ge=0, le=1)

    @model_validator(mode="after")
    def _ordered(self) -> ListSampling:
        if self.smallest is not None and self.smallest > self.window:
            raise ValueError(f"smallest {self.smallest} is above window {self.window}")
        return self


class Prompting(Block):
    """What the model is asked, exactly as the reranker of the same name asks it.

    Attributes:
        wording: a listwise prompt (`rerankers.prompts`).
        identifiers: what documents are called; FIRST's are letters.
        words, tokens: how much of a document is shown; None is all of it.
        template: the tokenizer's chat template, or "plain" texts one after the other.
        thinking: for chat templates that know `enable_thinking`; None leaves it to the template.
        double_bos: begin with BOS twice, as FIRST's and rank_llm's code did.
        context: tokens of prompt and answer; None is what the model and its tokenizer say.
        reranker: of method yes-no: which reranker asks; `prorank` has answers of its own, 1 and 0.
        positive_answer, negative_answer: of reranker yes-no, quoted in YAML.
        instruction: what relevance is, in the place that the reranker has for it: in front of the prompt, ERank's
            {instruction}, Retro*'s {relevance}. Lists have none, nor has Rank-R1.
        file: the user turn of ERank or Retro* in other words (`prompt_file` of these rerankers).
        end: whether the answer's end is learned too (FullRank's was not, so that its length had to be forced).
    """

    wording: str = "rank-zephyr"
    identifiers: Literal["letters", "numbers"] = "numbers"
    words: PositiveInt | None = 300
    tokens: PositiveInt | None = None
    template: Literal["chat", "plain"] = "chat"
    thinking: bool | None = None
    double_bos: bool = False
    context: PositiveInt | None = None
    reranker: Literal["yes-no", "prorank"] = "yes-no"
    positive_answer: str = "Yes"
    negative_answer: str = "No"
    instruction: str | None = None
    file: str | None = None
    end: bool = True
