"""The reference engine: causal language models of transformers, on CPU or accelerator."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ...errors import BackendError, ConfigError
from .base import Usage
from .chat import Prompt
from .checks import check_counts
from .decoding import Ending, Row, decode, generations
from .language_model import Answers, Generation, PromptError, Sampling, check_lengths
from .model_names import refuse_headless, why_not
from .prefill import Batch, Decoder, plan_batches

if TYPE_CHECKING:
    from .engine_seq2seq import Seq2SeqModel

__all__ = [
    "TransformersModel",
    "checked",
    "context_of",
    "continuation_targets",
    "end_tokens",
    "load_transformers",
    "model_identity",
]


class TransformersModel:
    """A causal language model of transformers behind the contract `LanguageModel`.

    Args:
        model: with a language-model head, in evaluation mode from here on.
        tokenizer: its tokenizer.
        batch_tokens: tokens in a batch, padding included; None takes what suits the device.
        context_length: tokens of prompt and answer; None takes what model and tokenizer say.
        share_prefixes: compute leading ids that prompts share only once.
        name: what the model is called in records.

    Raises:
        ConfigError: `batch_tokens` or `context_length` below 1.
    """

    encoder_decoder = False

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        batch_tokens: int | None = None,
        context_length: int | None = None,
        share_prefixes: bool = True,
        name: str | None = None,
    ) -> None:
        check_counts(batch_tokens=batch_tokens, context_length=context_length)
        self.model, self.tokenizer = model.eval(), tokenizer
        self.batch_tokens, self.share_prefixes = batch_tokens, share_prefixes
        self.name = name or getattr(model.config, "name_or_path", "") or type(model).__name__
        self._context = context_length or context_of(model, tokenizer)
        pad = tokenizer.pad_token_id
        self.decoder = Decoder(model, 0 if pad is None else pad)

    @property
    def context_length(self) -> int:
        return self._context

    def identity(self) -> dict[str, Any]:
        """Engine, name, weights' fingerprint, tokenizer and precision."""
        return model_identity(self.model, self.tokenizer, self.name)

    def next_token_logits(self, prompts: Sequence[Prompt], tokens: Sequence[int], /) -> Answers[np.ndarray]:
        """See `LanguageModel`: prefill only, and of the head only the rows of `tokens`, in float32."""
        check_lengths(prompts, 0, self.context_length)
        values = np.zeros((len(prompts), len(tokens)), dtype=np.float32)
        wanted = torch.tensor(list(tokens), dtype=torch.long)
        more = np.zeros(len(prompts), dtype=np.int64)
        usages = [Usage()] * len(prompts)
        with torch.inference_mode():
            for batch, prefix in self._batches(prompts, more, usages):
                ids = [prompts[row].ids for row in batch.rows]
                last = torch.tensor([[len(each) - 1] for each in ids])
                found = self.decoder.prefill(ids, last, wanted, prefix).logits[:, 0]
                values[batch.rows] = checked(found, batch.rows).cpu().numpy()
        return Answers(values, tuple(usages))

    def continuation_log_probs(
        self, prompts: Sequence[Prompt], continuations: Sequence[Sequence[int]], /
    ) -> Answers[np.ndarray]:
        """See `LanguageModel`: prompt and continuation in one forward, summed in float64."""
        lengths = np.asarray([len(each) for each in continuations], dtype=np.int64)
        check_lengths(prompts, lengths.tolist(), self.context_length)
        values = np.zeros(len(prompts), dtype=np.float64)
        usages = [Usage()] * len(prompts)
        # The head gives a row of the vocabulary for each token of the continuation: 16,384 numbers count as a token.
        more = np.maximum(lengths, lengths * int(self.model.config.get_text_config().vocab_size) // 16_384)
        with torch.inference_mode():
            for batch, prefix in self._batches(prompts, more, usages):
                given = [list(continuations[row]) for row in batch.rows]
                ids = [(*prompts[row].ids, *each) for row, each in zip(batch.rows, given, strict=True)]
                places, targets, real = continuation_targets([len(prompts[row]) for row in batch.rows], given)
                logits = checked(self.decoder.prefill(ids, places, None, prefix).logits, batch.rows, whole=True)
                chosen = logits.log_softmax(-1).gather(-1, targets.to(logits.device)[..., None])[..., 0]
                values[batch.rows] = (chosen.double().cpu() * real).sum(-1).numpy()
        for row, length in enumerate(lengths.tolist()):
            usages[row] += Usage(prompt_tokens=length)
        return Answers(values, tuple(usages))

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling, /) -> Answers[list[list[Generation]]]:
        """See `LanguageModel`. Samples of one prompt share its prefill."""
        check_lengths(prompts, sampling.max_new_tokens, self.context_length)
        ending = Ending(self.tokenizer, end_tokens(self.model, self.tokenizer), sampling)
        said: list[list[Generation]] = [[] for _ in prompts]
        usages = [Usage()] * len(prompts)
        more = np.asarray([sampling.samples * (len(prompt) // 8 + sampling.max_new_tokens) for prompt in prompts])
        with torch.inference_mode():
            for batch, prefix in self._batches(prompts, more, usages):
                for rows in [batch.rows] if self.decoder.gaps else _equal_lengths(batch.rows, prompts):
                    for row, answers in zip(rows, self._generate(prompts, rows, prefix, ending), strict=True):
                        said[row] = answers
                        usages[row] += Usage(generated_tokens=sum(len(each.ids) for each in answers))
        return Answers(said, tuple(usages))

    def _generate(
        self, prompts: Sequence[Prompt], rows: list[int], prefix: Any, ending: Ending
    ) -> list[list[Generation]]:
        from .growing_cache import grow_in_place

        samples = ending.sampling.samples
        ids = [prompts[row].ids for row in rows]
        begun = self.decoder.prefill(ids, torch.tensor([[len(each) - 1] for each in ids]), None, prefix, keep=True)
        first = checked(begun.logits[:, 0], rows, whole=True).repeat_interleave(samples, 0)
        if samples > 1:
            begun.cache.batch_repeat_interleave(samples)
        cache = grow_in_place(begun.cache)
        seen, positions = begun.seen.repeat_interleave(samples, 0), begun.lengths.repeat_interleave(samples)
        numbers = [row for row in rows for _ in range(samples)]
        made = [Row.seeded(ending.sampling.seed, prompts[row].ids, at) for row in rows for at in range(samples)]

        def step(keep: list[int], tokens: list[int]) -> torch.Tensor:
            nonlocal seen, positions, numbers
            if len(keep) < len(seen):
                at = torch.tensor(keep)
                cache.batch_select_indices(at.to(self.decoder.device))
                seen, positions, numbers = seen[at], positions[at], [numbers[place] for place in keep]
            seen = torch.cat([seen, torch.ones((len(keep), 1), dtype=torch.bool)], dim=1)
            logits = self.decoder.step(torch.tensor(tokens), cache, seen, positions)
            positions = positions + 1
            return checked(logits, numbers, whole=True)

        decode(first, step, made, ending)
        return generations(made, samples, ending)

    def _batches(self, prompts: Sequence[Prompt], more: np.ndarray, usages: list[Usage]) -> Iterator[tuple[Batch, Any]]:
        """Batches with the cache of what they share; notes in `usages` what they cost."""
        share = self.share_prefixes and self.decoder.shares
        for group in plan_batches(prompts, more, self.batch_tokens, self.decoder.device, share=share):
            shared = group[0].shared
            prefix = self.decoder.prefix(prompts[group[0].rows[0]].ids[:shared]) if shared else None
            for batch in group:
                for row, usage in batch.usages(prompts).items():
                    usages[row] = usage
                yield batch, prefix


def context_of(model: Any, tokenizer: Any) -> int:
    """Tokens that a model reads: the smaller of what it and its tokenizer say (tokenizers say 10³⁰ for "unknown")."""
    config = model.config.get_text_config()
    said = [getattr(config, "max_position_embeddings", None), getattr(tokenizer, "model_max_length", None)]
    known = [int(each) for each in said if each is not None and 0 < each < 10**9]
    if not known:
        raise BackendError(f"neither {type(model).__name__} nor its tokenizer says its length: give context_length")
    return min(known)


def model_identity(model: Any, tokenizer: Any, name: str) -> dict[str, Any]:
    """Engine, name, fingerprints and precision of a model of transformers."""
    from ..encoders.fingerprint import fingerprint, tokenizer_fingerprint

    return {
        "engine": "transformers",
        "model": name,
        "fingerprint": fingerprint([model]),
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "dtype": str(model.dtype).removeprefix("torch."),
    }


def load_transformers(
    model: Any, *, device: str | None = None, dtype: str | None = None, **settings: Any
) -> TransformersModel | Seq2SeqModel:
    """Load a decoder or an encoder-decoder from a path, a hub id or a pair (model, tokenizer)."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

    check_counts(**{name: settings.get(name) for name in ("batch_tokens", "context_length")})  # before weights are read
    if isinstance(model, tuple):
        loaded, tokenizer = model
        if dtype is not None:
            raise ConfigError(f"dtype {dtype!r}: a loaded model has one already; convert it, or give a path")
    else:
        path = str(model)
        settings.setdefault("name", path)
        if isinstance(dtype, str) and dtype != "auto" and not isinstance(getattr(torch, dtype, None), torch.dtype):
            raise ConfigError(f"dtype {dtype!r}: expected float32, bfloat16, float16 or auto")
        try:
            wide = AutoConfig.from_pretrained(path).is_encoder_decoder
            kind: Any = AutoModelForSeq2SeqLM if wide else AutoModelForCausalLM
            loaded, found = kind.from_pretrained(path, dtype=dtype or "float32", output_loading_info=True)
            tokenizer = AutoTokenizer.from_pretrained(path)
        except (OSError, ValueError) as error:
            raise BackendError(f"cannot load {path} as a language model: {why_not(path, error)}") from error
        refuse_headless(path, loaded, found["missing_keys"])
    if device is not None or isinstance(model, str | Path):
        try:
            loaded = loaded.to(torch.device(device or _any_device()))  # pyright: ignore[reportArgumentType] - a module
        except (RuntimeError, AssertionError) as error:  # torch asserts that it was built for the device
            where = device or _any_device()
            raise BackendError(f"the model cannot be put on {where}: {error}") from error
    if loaded.config.is_encoder_decoder:
        from .engine_seq2seq import Seq2SeqModel

        settings.pop("share_prefixes", None)  # an encoder looks both ways: nothing can be shared
        return Seq2SeqModel(loaded, tokenizer, **settings)
    return TransformersModel(loaded, tokenizer, **settings)


def _any_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def checked(values: torch.Tensor, rows: Sequence[int], *, whole: bool = False) -> torch.Tensor:
    """Logits (B, …) if they are finite numbers.

    Args:
        values: the logits.
        rows: the number of each prompt.
        whole: of a whole vocabulary, in which -inf is a token that is never said.

    Raises:
        PromptError: with the number of the prompt.
    """
    bad = (~(values < torch.inf) if whole else ~values.isfinite()).flatten(1)
    at = bad.any(1).nonzero()
    if len(at):
        row = int(at[0])
        given = float(values.flatten(1)[row][bad[row]][0])
        what = "NaN" if math.isnan(given) else str(given)
        raise PromptError(rows[row], f"the model gave {what} (half precision overflowing gives this: try float32)")
    return values


def end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """The ids that end an answer: the generation configuration's, and the tokenizer's."""
    said = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    named = said if isinstance(said, list) else [said]
    return frozenset(int(each) for each in (*named, tokenizer.eos_token_id) if each is not None)


def continuation_targets(
    starts: Sequence[int], continuations: Sequence[Sequence[int]]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Where the head is needed for continuations, what should follow there, and which of it is no padding.

    Args:
        starts: the position before each continuation's first token, plus one.
        continuations: B lists of ids.

    Returns:
        (B, C) positions, (B, C) ids, (B, C) float64 of 0 and 1; C is at least 1.
    """
    width = max(1, *(len(each) for each in continuations))
    ids = torch.zeros((len(starts), width), dtype=torch.long)
    real = torch.zeros((len(starts), width), dtype=torch.float64)
    for row, each in enumerate(continuations):
        ids[row, : len(each)] = torch.tensor(list(each), dtype=torch.long)
        real[row, : len(each)] = 1
    begin = torch.tensor(list(starts))[:, None] - 1
    places = begin + torch.arange(width)[None, :] * real.long()
    return places, ids, real


def _equal_lengths(rows: Sequence[int], prompts: Sequence[Prompt]) -> list[list[int]]:
    """The rows in groups of one length, for models whose caches cannot have gaps."""
    groups: dict[int, list[int]] = {}
    for row in rows:
        groups.setdefault(len(prompts[row]), []).append(row)
    return list(groups.values())
