"""Text, token by token: which token comes next, and when a text ends."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from .language_model import Generation, Sampling

__all__ = ["Ending", "Row", "decode", "draw", "generations"]

Step = Callable[[list[int], list[int]], torch.Tensor]


@dataclass(frozen=True)
class Ending:
    """When a text is over.

    Attributes:
        tokenizer: turns ids into text.
        tokens: ids that end a text.
        sampling: lengths and stop strings.
    """

    tokenizer: Any
    tokens: frozenset[int]
    sampling: Sampling

    def text(self, ids: Sequence[int]) -> str:
        """The text of these ids without special tokens, cut before the first stop string."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        found = [at for at in map(text.find, self.sampling.stop) if at >= 0]
        return text[: min(found)] if found else text

    def reached(self, ids: Sequence[int]) -> bool:
        """Whether these ids end the text."""
        if ids[-1] in self.tokens:
            return True
        if not self.sampling.stop or len(ids) < self.sampling.min_new_tokens:
            return False
        text = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return any(stop in text for stop in self.sampling.stop)


@dataclass(eq=False)
class Row:
    """One text in the making.

    Attributes:
        generator: its own randomness.
        ids: what has been generated.
        done: whether it is over.
    """

    generator: torch.Generator
    ids: list[int] = field(default_factory=list)
    done: bool = False

    @classmethod
    def seeded(cls, seed: int, prompt: Sequence[int], sample: int) -> Row:
        """A row whose draws depend on the seed, its prompt and its number among the samples, and on nothing else."""
        digest = hashlib.sha256(f"{seed} {sample} {' '.join(map(str, prompt))}".encode()).digest()
        return cls(torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1))


def draw(logits: torch.Tensor, sampling: Sampling, rows: Sequence[Row]) -> list[int]:
    """The next token of each row.

    Args:
        logits: (rows, vocabulary) float32.
        sampling: temperature, top_p and top_k.
        rows: whose randomness is used, when there is any.
    """
    if sampling.temperature == 0:
        return logits.argmax(dim=-1).tolist()
    kept, tokens = logits.sort(dim=-1, descending=True, stable=True)
    if sampling.top_k is not None:
        kept, tokens = kept[:, : sampling.top_k], tokens[:, : sampling.top_k]
    chances = (kept.double() / sampling.temperature).softmax(dim=-1)
    before = chances.cumsum(dim=-1) - chances
    reach = chances.where(before < sampling.top_p, torch.zeros_like(chances)).cumsum(dim=-1)
    points = torch.stack([torch.rand((), generator=row.generator, dtype=torch.float64) for row in rows])
    marks = points.to(reach.device)[:, None] * reach[:, -1:]
    at = torch.searchsorted(reach, marks, right=True).clamp(max=reach.shape[1] - 1)
    return tokens.gather(1, at)[:, 0].tolist()


def decode(first: torch.Tensor, step: Step, rows: Sequence[Row], ending: Ending) -> None:
    """Generate until every row is done.

    Args:
        first: (rows, vocabulary) float32 logits of the first new token.
        step: (rows that go on, by their place in the last call; their last tokens) → logits (rows that go on, V).
        rows: receive their tokens.
        ending: when a row is done.
    """
    sampling = ending.sampling
    active, logits = list(rows), first
    for at in range(sampling.max_new_tokens):
        if at < sampling.min_new_tokens and ending.tokens:
            logits = logits.clone()
            logits[:, sorted(ending.tokens)] = -torch.inf
        for row, token in zip(active, draw(logits, sampling, active), strict=True):
            row.ids.append(token)
            row.done = ending.reached(row.ids)
        keep = [place for place, row in enumerate(active) if not row.done]
        if not keep or at + 1 == sampling.max_new_tokens:
            return
        active = [active[place] for place in keep]
        logits = step(keep, [row.ids[-1] for row in active])


def generations(rows: Sequence[Row], samples: int, ending: Ending) -> list[list[Generation]]:
    """What the rows say, `samples` of them for each prompt."""
    said = [Generation(ending.text(row.ids), tuple(row.ids), "stop" if row.done else "length") for row in rows]
    return [said[at : at + samples] for at in range(0, len(said), samples)]
