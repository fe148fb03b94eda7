"""The vLLM engine (extra `vllm`): the same contract on vLLM's public `LLM` class."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import BackendError, ConfigError
from ...extras import require
from .base import Usage
from .chat import Prompt
from .checks import check_counts
from .language_model import Answers, Generation, PromptError, Sampling, check_lengths
from .model_names import why_not

__all__ = ["VllmModel", "load_vllm"]

_MOST_TOKENS = 256
"""How many logits a call may ask for: vLLM fixes it when the engine is made."""


class VllmModel:
    """A vLLM engine behind the contract `LanguageModel`.

    Logits come from one sampled token that is restricted to the wanted ids, with the engine's `logprobs_mode` at
    "processed_logits": what is reported are then exactly their logits, in float32, before any temperature. The token
    itself comes out of the prefill's logits and costs no further forward: it is not counted as generated.
    vLLM shares prefixes by itself; `Prompt.shared` is not needed, and what it reports as cached is.

    Args:
        engine: `vllm.LLM`, made as `load_vllm` makes it.
        parameters: `vllm.SamplingParams`.
        name: what the model is called in records.

    Raises:
        ConfigError: the engine reports something else, or runs an encoder-decoder.
    """

    encoder_decoder = False

    def __init__(self, engine: Any, parameters: Any, *, name: str) -> None:
        self.engine, self.name, self._parameters = engine, name, parameters
        self.tokenizer = engine.get_tokenizer()
        self._settings = engine.llm_engine.model_config
        if self._settings.logprobs_mode != "processed_logits":
            raise ConfigError(
                f"the vLLM engine reports {self._settings.logprobs_mode!r}; make it with "
                "logprobs_mode='processed_logits' (load_language_model does)"
            )
        if getattr(self._settings, "is_encoder_decoder", False):
            raise ConfigError(f"{name} is an encoder-decoder; the vLLM engine asks decoders: take engine=transformers")

    @property
    def context_length(self) -> int:
        """One less than vLLM's own: a token has to be drawn after every prompt, even if nothing is wanted of it."""
        return int(self._settings.max_model_len) - 1

    def identity(self) -> dict[str, Any]:
        """Engine, its version, name and precision. vLLM keeps no copy of the weights to take a fingerprint of."""
        from importlib.metadata import version

        dtype = str(self._settings.dtype).removeprefix("torch.")
        return {"engine": "vllm", "version": version("vllm"), "model": self.name, "dtype": dtype}

    def next_token_logits(self, prompts: Sequence[Prompt], tokens: Sequence[int], /) -> Answers[np.ndarray]:
        """See `LanguageModel`.

        Raises:
            ConfigError: more tokens than the engine reports.
            PromptError: a wanted token is missing from what the engine reports, or its logit is not finite.
        """
        wanted = list(dict.fromkeys(int(token) for token in tokens))
        if len(wanted) > _MOST_TOKENS:
            raise ConfigError(f"{len(wanted)} tokens: the engine reports at most {_MOST_TOKENS} logits a prompt")
        asked = {"max_tokens": 1, "temperature": 0.0, "allowed_token_ids": wanted, "logprobs": len(wanted)}
        made = self._ask(prompts, [self._parameters(**asked)] * len(prompts))
        values = np.zeros((len(prompts), len(tokens)), dtype=np.float32)
        for row, output in enumerate(made):
            found = {int(token): float(entry.logprob) for token, entry in output.outputs[0].logprobs[0].items()}
            lost = [token for token in wanted if token not in found]
            if lost:
                raise PromptError(row, f"vLLM reported no logit for token {lost[0]}")
            values[row] = [found[int(token)] for token in tokens]
            if not np.isfinite(values[row]).all():
                raise PromptError(row, f"the model gave {values[row][~np.isfinite(values[row])][0]}")
        return Answers(values, tuple(map(_usage, made)))

    def continuation_log_probs(
        self, prompts: Sequence[Prompt], continuations: Sequence[Sequence[int]], /
    ) -> Answers[np.ndarray]:
        """See `LanguageModel`: the engine reports the log-probability of every token that it reads."""
        whole = [
            replace(prompt, ids=(*prompt.ids, *map(int, more)))
            for prompt, more in zip(prompts, continuations, strict=True)
        ]
        parameters = self._parameters(max_tokens=1, temperature=0.0, prompt_logprobs=0)
        made = self._ask(whole, [parameters] * len(whole))
        values = np.zeros(len(prompts), dtype=np.float64)
        for row, (output, prompt, joined) in enumerate(zip(made, prompts, whole, strict=True)):
            steps = zip(output.prompt_logprobs[len(prompt) :], joined.ids[len(prompt) :], strict=True)
            values[row] = math.fsum(float(step[token].logprob) for step, token in steps)
            if math.isnan(values[row]):
                raise PromptError(row, "the model gave NaN")
        return Answers(values, tuple(map(_usage, made)))

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling, /) -> Answers[list[list[Generation]]]:
        """See `LanguageModel`. A seed gives the same samples on the same engine and batch, which is vLLM's promise."""
        parameters = self._parameters(
            n=sampling.samples,
            max_tokens=sampling.max_new_tokens,
            min_tokens=sampling.min_new_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k or 0,
            seed=sampling.seed if sampling.temperature > 0 else None,
            stop=list(sampling.stop) or None,
            skip_special_tokens=True,
        )
        made = self._ask(prompts, [parameters] * len(prompts), room=sampling.max_new_tokens)
        said: list[list[Generation]] = []
        usages: list[Usage] = []
        for output in made:
            answers = [
                Generation(each.text, tuple(each.token_ids), "length" if each.finish_reason == "length" else "stop")
                for each in output.outputs
            ]
            said.append(answers)
            usages.append(_usage(output) + Usage(generated_tokens=sum(len(each.ids) for each in answers)))
        return Answers(said, tuple(usages))

    def _ask(self, prompts: Sequence[Prompt], parameters: list[Any], *, room: int = 0) -> list[Any]:
        """The engine's outputs, along the prompts.

        Raises:
            ConfigError: a prompt that does not fit.
            BackendError: the engine failed, or answered fewer prompts.
        """
        check_lengths(prompts, room, self.context_length)
        if not prompts:
            return []
        given = [{"prompt_token_ids": list(prompt.ids)} for prompt in prompts]
        try:
            made = self.engine.generate(given, parameters, use_tqdm=False)
        except Exception as error:  # EngineDeadError and its kin have no base class but this one
            said = f"{type(error).__name__}: {error}"
            raise BackendError(f"vLLM failed on a call of {len(prompts)} prompts: {said}") from error
        if len(made) != len(prompts):
            raise BackendError(f"vLLM answered {len(made)} of {len(prompts)} prompts")
        return made


def _usage(output: Any) -> Usage:
    cached = int(output.num_cached_tokens or 0)
    return Usage(1, len(output.prompt_token_ids) - cached, cached)


def load_vllm(
    model: Any,
    *,
    device: str | None = None,
    dtype: str | None = None,
    context_length: int | None = None,
    engine_options: Mapping[str, Any] | None = None,
) -> VllmModel:
    """Make a vLLM engine.

    Args:
        model: a path or hub id.
        device: vLLM takes the devices that it was built for; only None is possible.
        dtype: of the weights; None is "auto".
        context_length: vLLM's `max_model_len`, tokens of prompt and answer; None takes the model's.
        engine_options: more for `vllm.LLM` (`tensor_parallel_size`, `gpu_memory_utilization`, …).

    Raises:
        ConfigError: a device, a loaded model instead of a path, a context length below 1, or options that vLLM does not
            have or that are set already.
        MissingExtra: vLLM is not installed.
        BackendError: the engine cannot be made.
    """
    if device is not None:
        raise ConfigError(f"device {device!r}: vLLM takes the devices that it was built for; leave it out")
    check_counts(context_length=context_length)
    if not isinstance(model, str | Path):
        raise ConfigError("vLLM loads a path or a hub id, not a loaded model")
    settings: dict[str, Any] = {
        "model": str(model),
        "dtype": dtype or "auto",
        "logprobs_mode": "processed_logits",
        "max_logprobs": _MOST_TOKENS,
        "enable_prefix_caching": True,
        **({} if context_length is None else {"max_model_len": context_length}),
    }
    options = _options(engine_options, settings)
    vllm = require("vllm", "vllm", "the vLLM engine")
    try:
        engine = vllm.LLM(**settings, **options)
    except (OSError, ValueError, RuntimeError) as error:
        raise BackendError(f"vLLM cannot load {model}: {why_not(model, error)}") from error
    except TypeError as error:
        if not options:
            raise
        raise ConfigError(f"vLLM does not take engine_options {options}: {error}") from error
    return VllmModel(engine, vllm.SamplingParams, name=str(model))


def _options(given: Mapping[str, Any] | None, taken: Mapping[str, Any]) -> dict[str, Any]:
    """More arguments for `vllm.LLM`.

    Raises:
        ConfigError: not names with values, or one that rtk sets itself.
    """
    if given is None:
        return {}
    if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
        raise ConfigError(
            f"engine_options {given!r}: expected names with values, as in "
            "--set 'engine_options={tensor_parallel_size: 2}'"
        )
    twice = [name for name in given if name in taken]
    if twice:
        raise ConfigError(f"engine_options: rtk sets {', '.join(twice)} itself; dtype and context_length have settings")
    return dict(given)
