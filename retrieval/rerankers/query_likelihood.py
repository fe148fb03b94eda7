"""Query likelihood (Sachan et al. 2022, UPR): how likely a model finds the query after having read the document."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ...errors import BackendError, ConfigError
from .chat import Message
from .lockstep import Answer, Effort
from .pointwise import Pair, PointwiseReranker
from .pointwise_tokens import pair_prompts
from .reading import PromptWriter, Reading, count_cuts

if TYPE_CHECKING:
    from .language_model import LanguageModel

__all__ = ["QueryLikelihoodReranker"]


class QueryLikelihoodReranker(PointwiseReranker):
    """Query likelihood (Sachan et al. 2022, UPR): Σ log P(query | document), or its mean over the query's tokens.

    Sums compare within a query only; means are nearer to comparing across queries of different length, and are what
    is reported as calibrated.

    Args:
        model: the language model.
        reading: how documents are shown.
        reduction: "mean" over the query's tokens, or "sum".
        effort: how many queries share a call.
    """

    def __init__(
        self,
        model: LanguageModel,
        *,
        reading: Reading | None = None,
        reduction: Literal["mean", "sum"] = "mean",
        effort: Effort | None = None,
    ) -> None:
        if reduction not in ("mean", "sum"):
            raise ConfigError(f"reduction {reduction!r}: expected 'mean' or 'sum'")
        self.writer = PromptWriter(model, reading)
        super().__init__(_LikelihoodModel(self.writer, reduction), effort=effort, calibrated=reduction == "mean")


@dataclass(frozen=True, eq=False)
class _LikelihoodModel:
    """Scores a pair by the likelihood of the query after the document."""

    writer: PromptWriter
    reduction: str

    def identity(self) -> dict[str, Any]:
        return {
            "reranker": "query-likelihood",
            "model": self.writer.model.identity(),
            "reduction": self.reduction,
            "reading": self.writer.identity(),
        }

    def score(self, pairs: Sequence[Pair], /) -> list[Answer[float]]:
        queries = [self._ids(query) for _, query, _ in pairs]
        # The room of its own query: a longer one of the same call must not shorten this one's document.
        prompts = pair_prompts(self.writer, pairs, _write_a_question, rooms=[len(ids) for ids in queries])
        answers = self.writer.model.continuation_log_probs(prompts, queries)
        lengths = [max(1, len(ids)) for ids in queries] if self.reduction == "mean" else [1] * len(pairs)
        rows = zip(answers.values.tolist(), lengths, count_cuts(prompts, answers.usages), strict=True)
        return [Answer(value / length, usage) for value, length, usage in rows]

    def _ids(self, query: str) -> list[int]:
        tokenizer = self.writer.renderer.tokenizer
        ids = tokenizer(query, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        if not ids:
            raise BackendError(f"the query {query!r} has no tokens whose likelihood could be taken")
        return list(ids)


def _write_a_question(query: str, document: str) -> list[Message]:
    """Sachan et al. 2022; the query follows as the answer."""
    return [Message("user", f"Passage: {document}\nPlease write a question based on this passage.")]
