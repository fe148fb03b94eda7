"""Encoder-decoders of transformers (T5 and its kin) behind the same contract: prompts go to the encoder, and what their
answers begin with (`Prompt.begun`) to the decoder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from .base import Usage
from .batching import token_batches
from .chat import Prompt
from .checks import check_counts
from .decoding import Ending, Row, decode, generations
from .engine_transformers import checked, context_of, continuation_targets, end_tokens, model_identity
from .language_model import Answers, Generation, Sampling, check_lengths
from .prefill import head_at

__all__ = ["Seq2SeqModel"]


class Seq2SeqModel:
    """An encoder-decoder of transformers as a `LanguageModel`: what follows a prompt is what its decoder says first, or
    says after the prompt's `begun`.

    The encoder attends both ways, so it always gets the mask of its padding; nothing is shared between prompts.

    Args:
        model: with a language-model head, in evaluation mode from here on.
        tokenizer: its tokenizer. Prompts are made with `ChatRenderer(tokenizer, template="plain")`.
        batch_tokens: tokens in a batch, padding included; None takes what suits the device.
        context_length: tokens of a prompt; None takes what model and tokenizer say.
        name: what the model is called in records.

    Raises:
        ConfigError: `batch_tokens` or `context_length` below 1.
    """

    encoder_decoder = True

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        batch_tokens: int | None = None,
        context_length: int | None = None,
        name: str | None = None,
    ) -> None:
        check_counts(batch_tokens=batch_tokens, context_length=context_length)
        self.model, self.tokenizer, self.batch_tokens = model.eval(), tokenizer, batch_tokens
        self.name = name or getattr(model.config, "name_or_path", "") or type(model).__name__
        self._context = context_length or context_of(model, tokenizer)
        self._start = int(model.config.decoder_start_token_id)

    @property
    def context_length(self) -> int:
        return self._context

    def identity(self) -> dict[str, Any]:
        """Engine, name, weights' fingerprint, tokenizer and precision."""
        return model_identity(self.model, self.tokenizer, self.name)

    def next_token_logits(self, prompts: Sequence[Prompt], tokens: Sequence[int], /) -> Answers[np.ndarray]:
        """See `LanguageModel`: one decoder step, of the head only the rows of `tokens`."""
        values = np.zeros((len(prompts), len(tokens)), dtype=np.float32)
        wanted = torch.tensor(list(tokens), dtype=torch.long)
        with torch.inference_mode():
            for rows, encoded in self._batches(prompts):
                given = self._begun(prompts, rows)
                logits = self._decode(given, encoded, _last(given), wanted).logits[:, 0]
                values[rows] = checked(logits, rows).cpu().numpy()
        return Answers(values, _usages(prompts))

    def continuation_log_probs(
        self, prompts: Sequence[Prompt], continuations: Sequence[Sequence[int]], /
    ) -> Answers[np.ndarray]:
        """See `LanguageModel`: the continuation is what the decoder is fed."""
        values = np.zeros(len(prompts), dtype=np.float64)
        with torch.inference_mode():
            for rows, encoded in self._batches(prompts):
                given = [list(continuations[row]) for row in rows]
                begun = self._begun(prompts, rows)
                places, targets, real = continuation_targets([begun.shape[1]] * len(rows), given)
                made = self._decode(torch.cat([begun, targets[:, :-1]], dim=1), encoded, places, None)
                logits = checked(made.logits, rows, whole=True)
                chosen = logits.log_softmax(-1).gather(-1, targets.to(logits.device)[..., None])[..., 0]
                values[rows] = (chosen.double().cpu() * real).sum(-1).numpy()
        return Answers(values, _usages(prompts, [len(each) for each in continuations]))

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling, /) -> Answers[list[list[Generation]]]:
        """See `LanguageModel`. Samples of one prompt share its encoding."""
        ending = Ending(self.tokenizer, end_tokens(self.model, self.tokenizer), sampling)
        said: list[list[Generation]] = [[] for _ in prompts]
        usages = list(_usages(prompts))
        with torch.inference_mode():
            for rows, encoded in self._batches(prompts):
                for row, answers in zip(rows, self._generate(prompts, rows, encoded, ending), strict=True):
                    said[row] = answers
                    usages[row] += Usage(generated_tokens=sum(len(each.ids) for each in answers))
        return Answers(said, tuple(usages))

    def _generate(
        self, prompts: Sequence[Prompt], rows: list[int], encoded: dict[str, Any], ending: Ending
    ) -> list[list[Generation]]:
        samples = ending.sampling.samples
        numbers = [row for row in rows for _ in range(samples)]
        encoded = _selected(encoded, torch.arange(len(rows)).repeat_interleave(samples))
        start = self._begun(prompts, numbers)
        begun = self._decode(start, encoded, _last(start), None, cache=True)
        cache = begun.past_key_values

        def step(keep: list[int], tokens: list[int]) -> torch.Tensor:
            nonlocal encoded, numbers
            if len(keep) < len(numbers):
                at = torch.tensor(keep)
                encoded, numbers = _selected(encoded, at), [numbers[place] for place in keep]
                cache.batch_select_indices(at.to(self.model.device))
            given = torch.tensor(tokens)[:, None]
            made = self._decode(given, encoded, torch.zeros_like(given), None, cache=cache)
            return checked(made.logits[:, 0], numbers, whole=True)

        sources = {row: (*prompts[row].ids, *prompts[row].begun) for row in rows}
        made = [Row.seeded(ending.sampling.seed, sources[row], at) for row in rows for at in range(samples)]
        decode(checked(begun.logits[:, 0], numbers, whole=True), step, made, ending)
        return generations(made, samples, ending)

    def _batches(self, prompts: Sequence[Prompt]) -> Iterator[tuple[list[int], dict[str, Any]]]:
        """Rows of each batch and what the encoder made of them. Answers of a batch begin with equally many tokens."""
        check_lengths(prompts, 0, self.context_length)
        lengths = np.asarray([len(prompt) for prompt in prompts], dtype=np.int64)
        begun = np.asarray([len(prompt.begun) for prompt in prompts], dtype=np.int64)
        for count in np.unique(begun):
            alike = np.flatnonzero(begun == count)
            for part in token_batches(lengths[alike], self.batch_tokens, self.model.device):
                rows = alike[part].tolist()
                yield rows, self._encode(prompts, rows, lengths[rows])

    def _encode(self, prompts: Sequence[Prompt], rows: list[int], lengths: np.ndarray) -> dict[str, Any]:
        """What the encoder makes of some prompts (B of them, `lengths` tokens each), and the mask of their padding."""
        pad = self.tokenizer.pad_token_id or 0
        given = torch.full((len(rows), int(lengths.max())), pad)
        for at, row in enumerate(rows):
            given[at, : len(prompts[row])] = torch.tensor(prompts[row].ids)
        mask = (torch.arange(given.shape[1])[None, :] < torch.from_numpy(lengths)[:, None]).long()
        mask = mask.to(self.model.device)
        hidden = self.model.get_encoder()(input_ids=given.to(self.model.device), attention_mask=mask)
        return {"hidden": hidden[0], "attention_mask": mask}

    def _begun(self, prompts: Sequence[Prompt], rows: Sequence[int]) -> torch.Tensor:
        """(B, C) what the decoder reads first: its start, then how the answers of these prompts begin."""
        return torch.tensor([[self._start, *prompts[row].begun] for row in rows])

    def _decode(
        self, ids: torch.Tensor, encoded: dict[str, Any], places: torch.Tensor, tokens: torch.Tensor | None,
        *, cache: Any = None,
    ) -> Any:  # fmt: skip
        """One forward of the decoder; `cache` is True to begin one, or the one to go on with."""
        begun = None if cache is True or cache is None else cache
        with head_at(self.model, places, tokens):
            return self.model(
                encoder_outputs=(encoded["hidden"],),
                attention_mask=encoded["attention_mask"],
                decoder_input_ids=ids.to(self.model.device),
                past_key_values=begun,
                use_cache=cache is not None,
            )


def _last(ids: torch.Tensor) -> torch.Tensor:
    """(B, 1) the place of the last of (B, C) ids."""
    return torch.full((len(ids), 1), ids.shape[1] - 1)


def _selected(encoded: dict[str, Any], rows: torch.Tensor) -> dict[str, Any]:
    return {name: tensor[rows.to(tensor.device)] for name, tensor in encoded.items()}


def _usages(prompts: Sequence[Prompt], more: Sequence[int] | None = None) -> tuple[Usage, ...]:
    counts = [0] * len(prompts) if more is None else more
    read = zip(prompts, counts, strict=True)
    return tuple(Usage(1, len(prompt) + len(prompt.begun) + extra) for prompt, extra in read)
