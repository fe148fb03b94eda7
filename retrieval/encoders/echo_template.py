"""The prompt that holds a text twice, and which of its tokens are pooled (echo embeddings, arXiv 2402.15449)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...errors import ConfigError, nearest

__all__ = ["DEFAULT_TEMPLATES", "EchoTemplate"]

_PLACES = ("bos", "prompt", "text", "echo", "eos")
_POOLED = ("echo", "eos")
DEFAULT_TEMPLATES = {
    "query": "{bos}{prompt}Query:{text}\nSame query:{echo}{eos}",
    "document": "{bos}{prompt}Passage:{text}\nSame passage:{echo}{eos}",
}
"""For tokenizers that add a space by themselves (Llama 2, Mistral); byte-level ones (GPT-2, Llama 3, Qwen) cut "word"
and " word" differently and want `: {text}` and `: {echo}`, where the space then goes with the text."""


@dataclass(frozen=True)
class EchoTemplate:
    """A template, cut into its pieces; each is tokenised by itself, so that a copy is the same tokens in both places.

    `{text}` is the copy that is read, `{echo}` the copy that is pooled; `{bos}` and `{eos}` are the tokenizer's own
    tokens, nothing where it has none; `{prompt}` is the encoder's prompt, if any. Pooled are the second copy and the
    closing token, nothing else. A template without `{text}` shows the text once: the control.

    Attributes:
        source: as it was written.
        pieces: (kind, literal) in order; a literal's kind is "".

    Raises:
        ConfigError: an unknown place, no `{echo}`, places twice or out of order.
    """

    source: str
    pieces: tuple[tuple[str, str], ...]

    @classmethod
    def parse(cls, source: str) -> EchoTemplate:
        """Read a template."""
        pieces: list[tuple[str, str]] = []
        for part in re.split(r"(\{\w+\})", source):
            name = part[1:-1] if re.fullmatch(r"\{\w+\}", part) else ""
            if name and name not in _PLACES:
                raise ConfigError(f"template {source!r}: unknown place {part}{nearest(name, _PLACES)}")
            if part:
                pieces.append((name, "" if name else part))
        places = [name for name, _ in pieces if name]
        if places != [name for name in _PLACES if name in places] or "echo" not in places:
            raise ConfigError(
                f"template {source!r}: expected {{echo}}, and before it where wanted {{bos}}, {{prompt}}, {{text}}, "
                "behind it {eos}, each once and in this order"
            )
        return cls(source, tuple(_spaced(pieces)))

    def render(
        self, texts: Sequence[str], tokenizer: Any, *, length: int | None, prompt: str | None = None
    ) -> dict[str, torch.Tensor]:
        """Tokens of the whole prompts.

        Args:
            texts: what stands in both copies. What looks like a special token in them stays text.
            tokenizer: of transformers.
            length: each copy is cut to so many tokens.
            prompt: stands at `{prompt}`.

        Returns:
            `input_ids`, `attention_mask` and `pool_mask`, each (n, width) int64, padded on the right.
        """
        if prompt and not any(kind == "prompt" for kind, _ in self.pieces):
            raise ConfigError(f"template {self.source!r} has no {{prompt}}, but a prompt is given: {prompt!r}")
        rows: list[list[int]] = [[] for _ in texts]
        masks: list[list[int]] = [[] for _ in texts]
        for kind, literal in self.pieces:
            for row, mask, tokens in zip(
                rows, masks, _tokens(kind, literal, texts, tokenizer, length, prompt), strict=True
            ):
                row += tokens
                mask += [int(kind in _POOLED)] * len(tokens)
        padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        return {
            "input_ids": _padded(rows, padding),
            "attention_mask": _padded([[1] * len(row) for row in rows], 0),
            "pool_mask": _padded(masks, 0),
        }

    def copy_of(self, text: str, tokenizer: Any) -> list[int]:
        """The tokens of `{echo}`, uncut."""
        literal = next(literal for kind, literal in self.pieces if kind == "echo")
        return _tokens("echo", literal, [text], tokenizer, None, None)[0]


def _spaced(pieces: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """A space between a literal and a copy goes with the copy: it belongs to its first token."""
    result = list(pieces)
    for at, (kind, _) in enumerate(pieces):
        if at and kind in ("text", "echo") and not pieces[at - 1][0] and pieces[at - 1][1].endswith(" "):
            result[at - 1], result[at] = ("", pieces[at - 1][1][:-1]), (kind, " ")
    return [piece for piece in result if piece != ("", "")]


def _tokens(
    kind: str, literal: str, texts: Sequence[str], tokenizer: Any, length: int | None, prompt: str | None
) -> list[list[int]]:
    """One piece's tokens for every text."""
    if kind in ("text", "echo"):
        return _cut([literal + text for text in texts], tokenizer, length)
    if kind in ("bos", "eos"):
        number = tokenizer.bos_token_id if kind == "bos" else tokenizer.eos_token_id
        return [[] if number is None else [number]] * len(texts)
    words = literal if not kind else prompt or ""
    return (_cut([words], tokenizer, None) if words else [[]]) * len(texts)


def _cut(texts: list[str], tokenizer: Any, length: int | None) -> list[list[int]]:
    found = tokenizer(
        texts,
        add_special_tokens=False,
        truncation=length is not None,
        max_length=length,
        padding=False,
        return_attention_mask=False,
        split_special_tokens=True,
        verbose=False,
    )
    return found["input_ids"]


def _padded(rows: list[list[int]], value: int) -> torch.Tensor:
    width = max(map(len, rows), default=0)
    return torch.tensor([row + [value] * (width - len(row)) for row in rows], dtype=torch.int64).view(len(rows), width)
