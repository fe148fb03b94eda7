"""In-context reranking: how much attention a query's tokens pay to each document (Chen et al. 2024, ICR).

Two forward passes over one prompt that holds all candidates, none of them generating anything. With Q the positions
from the late instruction to the end, T_D a document's tokens (its label included) and a^{l,h}_{k,j} the attention of
position k to j:

    S_j(q) = Σ_l Σ_h 1/|Q| Σ_{k∈Q} a^{l,h}_{k,j}      C_j = S_j(q) - S_j("N/A")
    score(D) = Σ C_j over {j ∈ T_D : C_j > μ_D - 2 σ_D}   (σ unbiased)

Where paper and code differ the code is followed: the only mean is over the query's positions. Unlike the code, the
attention is the model's own (float32, any head layout), the head never runs, a prompt is tokenized once for each
query, and windows, which the authors advise against, give ordinal scores.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import BackendError, ConfigError
from .base import Request, Result, Usage
from .batching import token_batches
from .chat import ChatRenderer
from .icr_prompt import IcrPrompt, IcrPrompter, Wording
from .listwise import ListwiseReranker, WindowOrder, WindowQuestion
from .lockstep import Answer, Effort, Lockstep, Ranking
from .reading import Reading
from .windows import Schedule

if TYPE_CHECKING:
    from .language_model import LanguageModel

__all__ = ["IcrModel", "IcrReranker", "IcrScores", "Scoring", "Wording"]


@dataclass(frozen=True)
class Scoring:
    """How attention becomes scores. Defaults are the published ones.

    Attributes:
        calibrate: subtract the attention that the content-free query pays; without it one pass is enough.
        deviations: a document's tokens this many standard deviations below its mean do not count; None counts all.
        layers: (first, one past the last) layers that count; None for all. The model stops after the last.
        heads: (layer, head) pairs that count; None for all.
    """

    calibrate: bool = True
    deviations: float | None = 2.0
    layers: tuple[int, int] | None = None
    heads: tuple[tuple[int, int], ...] | None = None

    def __post_init__(self) -> None:
        if self.layers is not None:
            object.__setattr__(self, "layers", _pair("layers", self.layers))
        if self.heads is not None:
            if not isinstance(self.heads, list | tuple):
                raise ConfigError(f"heads: {self.heads!r} is no list of (layer, head) pairs")
            object.__setattr__(self, "heads", tuple(_pair("heads", pair) for pair in self.heads))
        if self.deviations is not None and not self.deviations >= 0:
            raise ConfigError(f"deviations {self.deviations}: expected a number from 0 on, or none")

    def weights(self, layers: int, heads: int) -> np.ndarray:
        """(layers, heads) 1 for what counts, else 0.

        Raises:
            ConfigError: a layer or head that the model does not have, or none left.
        """
        first, stop = self.layers or (0, layers)
        if not 0 <= first < stop <= layers:
            raise ConfigError(f"layers {self.layers}: expected 0 <= first < stop <= {layers}, the model's layers")
        kept = np.zeros((layers, heads), dtype=np.float32)
        kept[first:stop] = 1
        if self.heads is not None:
            wrong = [pair for pair in self.heads if not (0 <= pair[0] < layers and 0 <= pair[1] < heads)]
            if wrong:
                raise ConfigError(f"head {wrong[0]}: the model has {layers} layers of {heads} heads, from 0 on")
            chosen = np.zeros_like(kept)
            chosen[tuple(np.asarray(self.heads, dtype=np.int64).reshape(-1, 2).T)] = 1
            kept *= chosen
        if not kept.any():
            raise ConfigError("no head counts: layers and heads exclude each other")
        return kept


def _pair(name: str, given: object) -> tuple[int, int]:
    pair = tuple(given) if isinstance(given, list | tuple) else ()
    if len(pair) != 2 or not all(isinstance(each, int) for each in pair):
        raise ConfigError(f"{name}: {given!r} is no pair of whole numbers")
    return pair


@dataclass(frozen=True, eq=False)
class IcrScores:
    """What attention says of the documents of a window.

    Attributes:
        values: (n,) float64 scores, calibrated and filtered as asked.
        attention: (n,) float64 attention of the query to the document's tokens, Σ S_j, before anything was done to it.
    """

    values: np.ndarray
    attention: np.ndarray


class IcrModel:
    """Scores windows of documents by attention.

    Args:
        model: a decoder on the transformers engine.
        wording: the prompt.
        reading: how documents are cut; published their first 300 words.
        scoring: how attention becomes scores.

    Raises:
        ConfigError: the model runs on another engine, is an encoder-decoder, or attends in a way not followed here.
    """

    def __init__(
        self,
        model: LanguageModel,
        wording: Wording | None = None,
        reading: Reading | None = None,
        scoring: Scoring | None = None,
    ) -> None:
        from .engine_transformers import TransformersModel
        from .icr_passes import AttentionReader

        if not isinstance(model, TransformersModel):
            raise ConfigError(f"ICR reads attention, which {type(model).__name__} does not show: take a decoder on the "
                              "transformers engine")  # fmt: skip
        self.model, self.scoring, self.reading = model, scoring or Scoring(), reading or Reading()
        if self.reading.double_bos:
            raise ConfigError("double_bos: ICR's prompts begin as the chat template writes them")
        options = {} if self.reading.thinking is None else {"enable_thinking": self.reading.thinking}
        renderer = ChatRenderer(model.tokenizer, template=self.reading.template, options=options)
        self.prompter = IcrPrompter(renderer, wording or Wording(), self.reading, model.context_length)
        self.reader = AttentionReader(model.model, model.decoder.pad)
        self.reader.choose(self.scoring.weights(self.reader.layers, self.reader.heads))

    def identity(self) -> dict[str, Any]:
        """Model, prompt, scoring."""
        return {
            "model": self.model.identity(),
            "wording": asdict(self.prompter.wording),
            "reading": {
                **self.reading.identity(),
                **self.prompter.renderer.identity(),
                "context_length": self.model.context_length,
            },
            "scoring": asdict(self.scoring),
        }

    def score(self, windows: Sequence[WindowQuestion], /) -> list[Answer[IcrScores]]:
        """The scores of each window's documents, windows of any queries in common batches."""
        prompts = [self.prompter.write(window.request.query, window.texts) for window in windows]
        for window, prompt in zip(windows, prompts, strict=True):
            self.reader.check(window.request.qid, len(prompt))
        lengths = np.asarray([len(prompt) for prompt in prompts], dtype=np.int64)
        answers: dict[int, Answer[IcrScores]] = {}
        for rows in token_batches(lengths, self.model.batch_tokens, self.reader.device):
            some = [prompts[row] for row in rows.tolist()]
            found = self.reader.read(some, calibrate=self.scoring.calibrate)
            for row, prompt, (real, free) in zip(rows.tolist(), some, found, strict=True):
                if not np.isfinite(real).all() or (free is not None and not np.isfinite(free).all()):
                    raise BackendError(
                        f"query {windows[row].request.qid!r}: the model's attention is NaN (half precision "
                        "overflowing gives this: try float32)"
                    )
                answers[row] = Answer(self._scores(prompt, real, free), _usage(prompt, free is not None))
        return [answers[row] for row in range(len(windows))]

    def order(self, windows: Sequence[WindowQuestion], /) -> list[Answer[WindowOrder]]:
        """The windows' orders by these scores."""
        return [
            Answer(WindowOrder(tuple(_order(each.value.values)), each.value.values.astype(np.float32)), each.usage)
            for each in self.score(windows)
        ]

    def _scores(self, prompt: IcrPrompt, real: np.ndarray, free: np.ndarray | None) -> IcrScores:
        """Scores from the attention to each position, (positions,) float64."""
        values, attention = [], []
        for start, stop in prompt.documents:
            paid = real[start:stop]
            tokens = paid if free is None else paid - free[start:stop]
            values.append(_filtered(tokens, self.scoring.deviations).sum())
            attention.append(paid.sum())
        return IcrScores(np.asarray(values, dtype=np.float64), np.asarray(attention, dtype=np.float64))


@dataclass(frozen=True)
class _Scored(Ranking):
    """A ranking by values that are not the model's raw ones."""

    scores: np.ndarray | None = None

    def result(self, request: Request, usage: Usage) -> Result:
        made = Ranking.result(self, request, usage)
        if self.scores is None:
            return made
        scores = np.asarray(self.scores, dtype=np.float32)[list(self.order)]
        return Result(made.qid, made.ids, scores, made.raw, self.calibrated, made.usage)


class IcrReranker:
    """ICR as a reranker.

    All candidates are in one prompt; scores are then calibrated attention, and `calibrated` is true: they have a zero
    (what "N/A" would get) and a unit (attention, summed over heads and layers). Raw values are the attention before
    calibration. Without calibration, or over windows, whose calibrations differ, scores are ordinal: 1 / rank.

    Args:
        model: a decoder on the transformers engine.
        wording: the prompt.
        reading: how documents are cut; published their first 300 words.
        scoring: how attention becomes scores.
        schedule: windows, for lists that do not fit into one prompt; None puts all candidates into one.
        effort: how many queries share a call; by default 4 on CPU, else 16.
    """

    def __init__(
        self,
        model: LanguageModel,
        *,
        wording: Wording | None = None,
        reading: Reading | None = None,
        scoring: Scoring | None = None,
        schedule: Schedule | None = None,
        effort: Effort | None = None,
    ) -> None:
        self.model = IcrModel(model, wording, reading, scoring)
        self.schedule = schedule
        self.effort = effort or Effort(in_flight=4 if self.model.reader.device.type == "cpu" else 16)

    def identity(self) -> dict[str, Any]:
        """Method, model, prompt, scoring and windows."""
        windows = None if self.schedule is None else vars(self.schedule)
        return {"reranker": "icr", **self.model.identity(), "schedule": windows}

    def rerank(self, requests: Iterable[Request], /) -> Iterator[Result]:
        """Two passes a list. A query without candidates costs nothing."""
        if self.schedule is not None:
            windowed = ListwiseReranker(self.model, self.schedule.plan, self.effort, self.identity())
            yield from windowed.rerank(requests)
            return
        yield from Lockstep(self._ranking, self.model.score, self.effort).results(requests)

    def _ranking(self, request: Request) -> Generator[Sequence[WindowQuestion], Sequence[IcrScores], Ranking]:
        places = tuple(range(len(request.candidates)))
        if not places:
            return Ranking(())
        (found,) = yield [WindowQuestion(request, places)]
        calibrated = self.model.scoring.calibrate
        scores = found.values if calibrated else None
        return _Scored(_order(found.values), found.attention.astype(np.float32), calibrated, scores=scores)


def _order(values: np.ndarray) -> list[int]:
    """Places by falling value, ties in the order given. float32, in which results keep them, decides what ties."""
    return np.argsort(-values.astype(np.float32), kind="stable").tolist()


def _filtered(tokens: np.ndarray, deviations: float | None) -> np.ndarray:
    """The tokens above mean - deviations x (unbiased) standard deviation; all of one or two equal ones."""
    if deviations is None or len(tokens) < 2:
        return tokens
    return tokens[tokens > tokens.mean() - deviations * tokens.std(ddof=1)]


def _usage(prompt: IcrPrompt, calibrated: bool) -> Usage:
    """The prompt once; for the second pass what asks, the rest being cached. Equal prompts are read once."""
    cut = int(prompt.cut is not None)
    if not calibrated or prompt.real == prompt.free:
        return Usage(1, len(prompt.real), cut=cut)
    return Usage(2, len(prompt.free) + len(prompt.real) - prompt.start, prompt.start, cut=cut)
