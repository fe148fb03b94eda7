"""Rerankers by two tokens' logits (yes and no; ProRank's 1 and 0) in training: a CrossEncoder over a causal language
model, asked in the words of our reranker.

What is trained and saved is a stock sentence-transformers CrossEncoder (a language model and `LogitScore`). While
training, its prompts are those of the reranker, token by token. In the saved tokenizer the chat template also
writes them for a pair, so that plain sentence-transformers asks the same of ordinary texts; only text that looks like a
marker stays text in ours alone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, cast

import torch
from sentence_transformers.base.modules import Transformer
from sentence_transformers.cross_encoder import CrossEncoder
from sentence_transformers.cross_encoder.modules import LogitScore

from ...errors import ConfigError
from ..rerankers.engine_transformers import context_of
from ..rerankers.pointwise_tokens import LogitModel, ProRankReranker, YesNoReranker
from ..rerankers.reading import Reading
from .config import TrainConfig
from .language_models import language_tokenizer
from .list_examples import padded
from .list_prompts import Reader

__all__ = ["PromptedCrossEncoder", "load_yes_no", "pair_template"]

_QUERY, _DOCUMENT = "\ue010", "\ue011"


class PromptedCrossEncoder(CrossEncoder):
    """A CrossEncoder whose pairs are written by a reranker of ours; saved, it is a stock CrossEncoder.

    Attributes:
        asking: the scorer of a reranker whose prompts are read; None is sentence-transformers' own way.
    """

    asking: LogitModel | None = None

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **settings: Any) -> dict[str, Any]:
        """(query, document) pairs → what the language model reads, padded on the left."""
        if self.asking is None:
            return super().preprocess(inputs, prompt=prompt, **settings)
        pairs = [("", str(query), str(document)) for query, document in inputs]
        ids = [torch.tensor(each.ids) for each in self.asking.prompts(pairs)]
        mask = padded([torch.ones_like(each) for each in ids], 0)
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        return {"input_ids": padded(ids, 0), "attention_mask": mask, "position_ids": positions,
                "modality": "message", "logits_to_keep": 1}  # fmt: skip


def load_yes_no(path: str, config: TrainConfig) -> PromptedCrossEncoder:
    """A causal language model as a reranker by two answers, yes or no, or 1 or 0 (`prompt.reranker`).

    Raises:
        ConfigError: it does not load as a causal language model, or the answers are not one token each.
    """
    try:
        network = Transformer(path, transformer_task="text-generation")
    except (OSError, ValueError) as error:
        raise ConfigError(f"model: {path!r} does not load as a causal language model: {error}") from error
    block, tokenizer = config.prompt_block, language_tokenizer(config)
    reading = Reading(block.words, block.tokens, block.template, block.thinking, block.double_bos)
    reader: Any = Reader(tokenizer, block.context or context_of(network.model, tokenizer))
    if block.reranker == "prorank":
        asking = ProRankReranker(reader, reading=reading, instruction=block.instruction).logits
    else:
        yes, no = block.positive_answer, block.negative_answer
        asking = YesNoReranker(reader, reading=reading, yes=yes, no=no, instruction=block.instruction).logits
    cast(Any, network.tokenizer).chat_template = pair_template(asking, tokenizer)
    # The ways to read a text were found before the template was there.
    network.modality_config, network.module_output_name = network.infer_modalities(network.model, network.processor)
    relevant, other = asking.tokens
    model = PromptedCrossEncoder(modules=cast(Any, [network, LogitScore(relevant, other)]))
    model.asking = asking
    return model


def pair_template(asking: LogitModel, tokenizer: Any) -> str:
    """The tokenizer's chat template with a branch for pairs (roles query and document), which writes what our reranker
    asks of them; without a chat template there is only that branch."""
    renderer, reading = asking.writer.renderer, asking.writer.reading
    line = "\n" if reading.template == "plain" else ""
    text = "".join(piece.text for piece in renderer.pieces(asking.prompt(_QUERY, _DOCUMENT), continuation=line))
    if reading.template == "plain" or reading.double_bos:
        bos = tokenizer.bos_token or ""
        own = tokenizer("x")["input_ids"][:1] == [tokenizer.bos_token_id] and reading.template == "plain"
        text = bos * (int(own) + int(reading.double_bos)) + text
    for slot, role in ((_QUERY, "q"), (_DOCUMENT, "d")):
        text = text.replace(slot, f"\ue012{role}\ue012")
    parts = text.split("\ue012")
    written = "".join(
        f"{{{{ {part if at % 2 else json.dumps(part, ensure_ascii=False)} }}}}" for at, part in enumerate(parts) if part
    )
    cut = "" if reading.words is None else (
        f"{{% set p = d.split(none, {reading.words}) %}}"
        f"{{% set d = d if p|length <= {reading.words} else d[:d|length - p[-1]|length].rstrip() %}}"
    )  # fmt: skip
    own_template = tokenizer.chat_template or "{{ raise_exception('this model reads pairs of query and document') }}"
    return (
        "{% if messages|length == 2 and messages[0]['role'] == 'query' and messages[1]['role'] == 'document' %}"
        "{% set q = messages[0]['content'] %}{% set d = messages[1]['content'] %}"
        f"{cut}{written}{{% else %}}{str(own_template).removesuffix(chr(10))}{{% endif %}}"
    )
