"""Decoder-only sparse encoders: a causal language model whose head gives the weights (Echo-Mistral-SPLADE, 2408.11119).

The text stands twice in the prompt; the tokens of its second copy have seen all of it, whatever the causal mask hides,
and they alone are pooled: w_j = max over t in the second copy of log(1 + relu(z_tj)). z_t predicts token t + 1, and the
method leaves it so.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import torch
from sentence_transformers import SparseEncoder
from sentence_transformers.base.modules import Transformer
from sentence_transformers.util import load_file_path
from torch import Tensor, nn

from ...errors import ConfigError
from ...files import read_json
from .echo_template import DEFAULT_TEMPLATES, EchoTemplate
from .pooled_head import largest_logits
from .sides import Task

__all__ = ["ECHO_MODULE", "Activation", "EchoTransformer", "is_echo", "make_echo"]

Activation = Literal["relu", "log1p_relu"]
_TEXT = {"text": {"method": "forward", "method_output_name": "logits"}}
_LENGTH = 256
_PROBE = 5
_LOG = logging.getLogger(__name__)


class EchoTransformer(Transformer):
    """A causal language model of transformers as the one module of a SparseEncoder.

    Its head runs on pooled positions only, a few at a time (`pooled_head`). Everything it needs to load again stands in
    its configuration.

    Args:
        model_name_or_path: a folder or hub id with a causal language model, or one that this class saved.
        templates: for "query" and "document" (see `EchoTemplate`); DEFAULT_TEMPLATES where not given.
        activation_function: "relu" gives log(1 + relu(z)), "log1p_relu" takes the logarithm twice.
        logit_scale: z is multiplied by it first; hidden_size^-0.25 keeps early weights small (Lion-SP).
        head_chunk: positions at a time; no part of the result.
        kwargs: sentence-transformers' own; `query_length` and `document_length` bound each copy.

    Raises:
        ConfigError: a bad template, a checkpoint without its language-model head or other weights, or a model whose
            logits are more than its head's product, scaled or capped.
    """

    config_keys = [*Transformer.config_keys, "templates", "activation_function", "logit_scale"]  # noqa: RUF012

    def __init__(
        self,
        model_name_or_path: str,
        *,
        templates: Mapping[str, str] | None = None,
        activation_function: Activation = "relu",
        logit_scale: float = 1.0,
        head_chunk: int = 16,
        **kwargs: Any,
    ) -> None:
        settings: dict[str, Any] = {**kwargs, "transformer_task": "text-generation", "modality_config": _TEXT}
        settings |= {name: kwargs.get(name) or _LENGTH for name in ("query_length", "document_length")}
        settings["module_output_name"] = "sentence_embedding"
        super().__init__(model_name_or_path, **settings)
        self.templates = {**DEFAULT_TEMPLATES, **(templates or {})}
        self._parsed = {task: EchoTemplate.parse(text) for task, text in self.templates.items()}
        if activation_function not in ("relu", "log1p_relu"):
            raise ConfigError(f"activation_function is {activation_function!r}, expected 'relu' or 'log1p_relu'")
        self.activation_function, self.logit_scale, self.head_chunk = activation_function, logit_scale, head_chunk
        if self.tokenizer is None:
            raise ConfigError(f"{model_name_or_path} has no tokenizer of texts")
        self.tokenizer.padding_side = "right"
        if not isinstance(self.model.get_output_embeddings(), nn.Linear):
            raise ConfigError(f"{type(self.model).__name__} has no linear language-model head to take weights from")

    def _load_model(self, model_name_or_path: str, *arguments: Any, **settings: Any) -> Any:
        """As above us; weights that the files lack would be random ones, others at each load."""
        loaded: Any = super()._load_model(model_name_or_path, *arguments, **settings, output_loading_info=True)
        model, found = loaded
        if found["missing_keys"]:
            raise ConfigError(
                f"{model_name_or_path!r} lacks weights of {type(model).__name__}: "
                f"{', '.join(sorted(found['missing_keys'])[:8])}. They would be random, and others at each load. Take "
                "a checkpoint that was saved with its language-model head (…ForCausalLM)"
            )
        return model

    @property
    def head(self) -> nn.Linear:
        """The language model's own, V entries wide."""
        return cast(nn.Linear, self.model.get_output_embeddings())

    @property
    def pooling_strategy(self) -> str:
        """How positions become a vector, as other sparse encoders call it."""
        return "max"

    def copy_of(self, text: str, task: Task) -> list[int]:
        """The tokens of a whole text as its second copy has them, which is what is pooled."""
        return self._parsed[task].copy_of(text, self.tokenizer)

    def preprocess(
        self, inputs: Sequence[Any], prompt: str | None = None, processing_kwargs: Any = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Prompts with both copies: `input_ids`, `attention_mask` and `pool_mask`, (n, width), padded on the right.

        Raises:
            ConfigError: what is to be encoded is no text, or longer than the model has positions for.
        """
        if not all(isinstance(text, str) for text in inputs):
            raise ConfigError("an echo encoder encodes texts; got other kinds of input")
        task = "query" if kwargs.get("task") == "query" else "document"
        asked = ((processing_kwargs or {}).get("text") or {}).get("max_length") or kwargs.get("max_length")
        length = asked or (self.query_length if task == "query" else self.document_length)
        features: dict[str, Any] = dict(
            self._parsed[task].render(list(inputs), self.tokenizer, length=length, prompt=prompt)
        )
        width, positions = features["input_ids"].shape[1], getattr(self.config, "max_position_embeddings", None)
        if isinstance(positions, int) and width > positions:
            raise ConfigError(
                f"two copies of {length} tokens and their prompt make {width}, and the model has positions for "
                f"{positions}; give a {task} length of {length - (width - positions + 1) // 2} at most"
            )
        return {**features, "modality": "text"}

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Write `sentence_embedding`, (n, V) float32, not negative; a text without a pooled token has zeros."""
        decoder: Any = self.model.get_decoder()
        states = decoder(
            input_ids=features["input_ids"], attention_mask=features["attention_mask"], use_cache=False
        ).last_hidden_state
        states, valid = pooled_positions(states, features["pool_mask"].bool())
        products = largest_logits(states, valid, self.head.weight, self.head.bias, chunk=self.head_chunk)
        logits = _own_logits(products, self.config)  # monotone, so it may follow the maximum
        weights = torch.log1p(torch.relu(self.logit_scale * logits))
        features["sentence_embedding"] = weights.log1p() if self.activation_function == "log1p_relu" else weights
        return features

    def get_embedding_dimension(self) -> int:
        """V, the head's number of entries."""
        return int(self.head.weight.shape[0])


def pooled_positions(states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The states at pooled positions, moved to the front of each row.

    Args:
        states: (B, T, H).
        mask: (B, T) bool.

    Returns:
        (B, P, H) with P the largest number of pooled positions, and which of them are one, (B, P) bool.
    """
    width = max(int(mask.sum(dim=1).max()), 1)
    order = mask.long().argsort(dim=1, descending=True, stable=True)[:, :width]
    return states.gather(1, order[..., None].expand(-1, -1, states.shape[2])), mask.gather(1, order)


ECHO_MODULE = f"{EchoTransformer.__module__}.{EchoTransformer.__name__}"
"""What `modules.json` calls it."""


def make_echo(model: str, *, device: str | None = None, check: bool = True, **settings: Any) -> SparseEncoder:
    """A SparseEncoder over a causal language model.

    Args:
        model: folder or hub id.
        device: where it goes.
        check: compare a few logits with the head's product, once for a new model.
        settings: of `EchoTransformer`.

    Raises:
        ConfigError: see `EchoTransformer`.
    """
    try:
        module = EchoTransformer(model, **settings)
    except (OSError, ValueError) as error:
        raise ConfigError(f"model: {model!r} does not load as a causal language model: {error}") from error
    if check:
        _check_head(module)
    _warn_of_spaces(module)
    return SparseEncoder(modules=[module], similarity_fn_name="dot", device=device)


def is_echo(path: str | Path, *, revision: str | None = None) -> bool:
    """Whether a saved model is one of `make_echo`'s, by its own list of modules."""
    found = load_file_path(str(path), "modules.json", revision=revision)
    return found is not None and any(module["type"] == ECHO_MODULE for module in read_json(found))


def _warn_of_spaces(module: EchoTransformer) -> None:
    """A byte-level tokenizer cuts the first word of a text otherwise than the same word within it."""
    tokenizer: Any = module.tokenizer
    alone, after = tokenizer.tokenize("a"), tokenizer.tokenize(" a")
    if alone == after or alone != ["a"] or len(after) != 1:
        return
    for task, text in module.templates.items():
        if "{echo}" in text and " {echo}" not in text:
            _LOG.warning(
                "the %s template %r has no space before {echo}: this tokenizer makes %r of a word there and %r of it "
                "within a text", task, text, alone[0], after[0],
            )  # fmt: skip


@torch.no_grad()
def _check_head(module: EchoTransformer) -> None:
    """Some architectures change their logits beyond the head; weights computed without it would be others."""
    network: Any = module.model
    ids = torch.arange(1, 1 + _PROBE, device=network.device)[None]
    training = network.training
    network.eval()
    try:
        expected = network(input_ids=ids).logits.float()
        found = module.head(network.get_decoder()(input_ids=ids).last_hidden_state).float()
    finally:
        network.train(training)
    if not torch.allclose(expected, _own_logits(found, module.config), rtol=1e-2, atol=1e-3):
        raise ConfigError(
            f"the logits of {type(network).__name__} are more than its head's product with the last states, neither "
            "scaled as Granite and Cohere are nor capped as Gemma is; weights taken from the head would not be its own"
        )


def _own_logits(products: Tensor, config: Any) -> Tensor:
    """What an architecture makes of its head's products: Granite divides them, Cohere multiplies, Gemma caps them.

    A configuration that means something else by these names does not pass `_check_head`.
    """
    text = config.get_text_config()
    for name, power in (("logits_scaling", -1), ("logit_scale", 1)):
        factor = getattr(text, name, None)
        if isinstance(factor, int | float):
            products = products * factor**power
    cap = getattr(text, "final_logit_softcapping", None)
    return cap * torch.tanh(products / cap) if cap else products
