"""The one contract of language models: token ids in; logits, log-probabilities or text out, and what it cost.

Rerankers are written against `LanguageModel`, never against an engine. There are two engines: transformers (the
reference, here on any device; decoders and encoder-decoders) and vLLM (extra `vllm`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypeVar, runtime_checkable

import numpy as np

from ...errors import BackendError, ConfigError, nearest
from .base import Usage
from .chat import ChatRenderer, Encoded, Message, Piece, Prompt, share_prefix
from .model_names import refuse_encoder

__all__ = [
    "ENGINES",
    "Answers",
    "ChatRenderer",
    "Encoded",
    "Generation",
    "LanguageModel",
    "Message",
    "Piece",
    "Prompt",
    "PromptError",
    "Sampling",
    "check_lengths",
    "is_encoder_decoder",
    "load_language_model",
    "named",
    "needs_encoder_decoder",
    "share_prefix",
]

T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True, eq=False)
class Answers(Generic[T_co]):
    """What a call gave.

    Attributes:
        values: the answers, along the prompts.
        usages: what each prompt cost, along the prompts. A token that several prompts share and that was computed once
            counts as read for the first of them and as cached for the others.
    """

    values: T_co
    usages: tuple[Usage, ...]

    @property
    def usage(self) -> Usage:
        """The sum."""
        return sum(self.usages, Usage())


@dataclass(frozen=True)
class Sampling:
    """How text is generated.

    Attributes:
        max_new_tokens: at most so many.
        min_new_tokens: no end before so many.
        temperature: 0 takes the likeliest token at each step.
        top_p: only the likeliest tokens that together reach this probability are drawn from.
        top_k: only so many of the likeliest are drawn from; None for all.
        samples: answers for each prompt.
        seed: the same prompt, seed and sample number give the same text, whatever else is in the call (transformers).
        stop: the text ends before the first of these.
    """

    max_new_tokens: int = 256
    min_new_tokens: int = 0
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int | None = None
    samples: int = 1
    seed: int = 0
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        checks = {
            f"max_new_tokens {self.max_new_tokens}: at least 1": self.max_new_tokens >= 1,
            f"min_new_tokens {self.min_new_tokens}: 0 to max_new_tokens": 0
            <= self.min_new_tokens
            <= self.max_new_tokens,
            f"temperature {self.temperature}: at least 0": self.temperature >= 0,
            f"top_p {self.top_p}: above 0, at most 1": 0 < self.top_p <= 1,
            f"top_k {self.top_k}: at least 1, or None": self.top_k is None or self.top_k >= 1,
            f"samples {self.samples}: at least 1": self.samples >= 1,
            "an empty stop string would end every text at once": "" not in self.stop,
        }
        problems = [expected for expected, right in checks.items() if not right]
        if problems:
            raise ConfigError("this sampling cannot be", problems)


@dataclass(frozen=True, slots=True)
class Generation:
    """One generated answer.

    Attributes:
        text: without special tokens, cut before a stop string.
        ids: all tokens that were generated, the end token included.
        finish: "stop" (an end token or stop string) or "length".
    """

    text: str
    ids: tuple[int, ...]
    finish: Literal["stop", "length"]


class PromptError(BackendError):
    """The model cannot answer a prompt.

    Attributes:
        prompt: its number in the call.
        reason: why.
    """

    def __init__(self, prompt: int, reason: str) -> None:
        self.prompt, self.reason = prompt, reason
        super().__init__(f"prompt {prompt}: {reason}")


@contextmanager
def named(name: Callable[[int], str]) -> Iterator[None]:
    """Inside, an error about a prompt says what the prompt is about.

    Args:
        name: the number of a prompt → the query, and the document if there is one.
    """
    try:
        yield
    except PromptError as error:
        raise BackendError(f"{name(error.prompt)}: {error.reason}") from error


@runtime_checkable
class LanguageModel(Protocol):
    """What rerankers ask of a language model. Results depend on the prompt alone, not on what it was batched with.

    An engine may also say by `encoder_decoder` whether its prompts go to an encoder and its answers come from a decoder
    (T5 and its kin). What such an answer begins with is then in `Prompt.begun`.
    """

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of transformers."""
        ...

    @property
    def context_length(self) -> int:
        """Tokens of prompt and answer together, at most."""
        ...

    def identity(self) -> dict[str, Any]:
        """What makes the model's answers what they are, in a few JSON values."""
        ...

    def next_token_logits(self, prompts: Sequence[Prompt], tokens: Sequence[int], /) -> Answers[np.ndarray]:
        """(n, len(tokens)) float32: the logits of these token ids after each prompt. Nothing is generated."""
        ...

    def continuation_log_probs(
        self, prompts: Sequence[Prompt], continuations: Sequence[Sequence[int]], /
    ) -> Answers[np.ndarray]:
        """(n,) float64: Σ_t log P(continuation_t | prompt, continuation_<t), in nats, one continuation a prompt."""
        ...

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling, /) -> Answers[list[list[Generation]]]:
        """`sampling.samples` answers for every prompt."""
        ...


def is_encoder_decoder(model: Any) -> bool | None:
    """Whether prompts go to an encoder and answers come from a decoder; None where the engine does not say."""
    return getattr(model, "encoder_decoder", None)


def needs_encoder_decoder(model: Any, reranker: str, instead: str) -> None:
    """Refuse a decoder.

    Args:
        model: the language model.
        reranker: which reranker it is for.
        instead: the reranker that asks decoders the same.

    Raises:
        ConfigError: with both.
    """
    if is_encoder_decoder(model) is False:
        raise ConfigError(
            f"reranker {reranker!r} reads the first word that the decoder of a T5 says, and its prompt is what T5 was "
            f"trained with; {getattr(model, 'name', 'this model')} is a decoder without an encoder. Take a checkpoint "
            f"of T5, or reranker {instead!r}, which asks decoders"
        )


def check_lengths(prompts: Sequence[Prompt], room: Sequence[int] | int, context_length: int) -> None:
    """Refuse prompts that the model cannot read whole.

    Args:
        prompts: what is to be read.
        room: tokens that must fit after each (or all).
        context_length: of the model.

    Raises:
        ConfigError: with the prompt's number.
    """
    rooms = [room] * len(prompts) if isinstance(room, int) else list(room)
    for at, (prompt, more) in enumerate(zip(prompts, rooms, strict=True)):
        if len(prompt) + more > context_length:
            raise ConfigError(
                f"prompt {at} has {len(prompt)} tokens and needs room for {more} more; the model reads "
                f"{context_length}. Cut the documents or take fewer"
            )


def _transformers(model: Any, **settings: Any) -> LanguageModel:
    from .engine_transformers import load_transformers

    return load_transformers(model, **settings)


def _vllm(model: Any, **settings: Any) -> LanguageModel:
    from .engine_vllm import load_vllm

    return load_vllm(model, **settings)


ENGINES = {"transformers": _transformers, "vllm": _vllm}
"""Name → loader (model, **settings)."""

_SETTINGS = {
    "transformers": ("batch_tokens", "context_length", "name", "share_prefixes"),
    "vllm": ("context_length", "engine_options"),
}


def load_language_model(
    model: Any,
    engine: str = "transformers",
    *,
    device: str | None = None,
    dtype: str | None = None,
    **settings: Any,
) -> LanguageModel:
    """Load a language model.

    Args:
        model: a path or hub id; for "transformers" also a pair (model, tokenizer) that is loaded already. A
            `LanguageModel` comes back as it is.
        engine: "transformers" or "vllm".
        device: where it runs; None takes what there is.
        dtype: of the weights ("float32", "bfloat16", "auto"); None is float32 for transformers and "auto" for vLLM.
        settings: what the engine takes (`batch_tokens`, `context_length`, …).

    Raises:
        ConfigError: no such engine, a setting that it does not take or that cannot be, or the name of an encoder.
        BackendError: the model cannot be loaded.
        MissingExtra: the engine is not installed.
    """
    if engine not in ENGINES:
        raise ConfigError(f"no engine {engine!r}{nearest(engine, ENGINES)}; there are {', '.join(sorted(ENGINES))}")
    if not isinstance(model, str | Path | tuple):
        if isinstance(model, LanguageModel):
            given = {"device": device, "dtype": dtype, **settings}
            late = [name for name, value in given.items() if value is not None]
            if late:
                raise ConfigError(f"the language model is loaded already: {', '.join(late)} cannot change it")
            return model
        raise BackendError(f"{type(model).__name__} is no language model: give a path, a hub id or (model, tokenizer)")
    refuse_encoder(model, "language model")
    known = _SETTINGS[engine]
    unknown = [f"unknown setting {each!r}{nearest(each, known)}" for each in settings if each not in known]
    if unknown:
        raise ConfigError(f"engine {engine!r} takes {', '.join(known)}", unknown)
    return ENGINES[engine](model, device=device, dtype=dtype, **settings)
