"""Teachers that score all documents of the batch on the fly, and the terms that learn from them.

This is the second teacher of TAS-Balanced (Hofstätter et al. 2021, section 3.3). Scores are
Σ_i max_j q_i · d_j over the real tokens of the pair; the published code masks the documents of a batch along the wrong
axis, so that pair (i, j) is scored with the padding of document i. A dense or a sparse encoder is a teacher with one
vector a text. Several unlike ones teach together as in `ensemble` (Geng et al., arXiv 2411.04403).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed as dist
from sentence_transformers.util import maxsim
from sentence_transformers.util.distributed import get_rank, get_world_size
from torch import Tensor, nn

from ...errors import ConfigError
from ..encoders.sides import Task, transformer_of
from .batch import DenseBatch, DenseTerm, Scorer
from .context import LossContext
from .distillation import in_batch_margin_mse, kl_distillation, teacher_grades
from .ensemble import ensemble_targets
from .gathering import mean_over_all
from .options import (
    InBatchEnsembleOptions,
    InBatchKLOptions,
    InBatchLambdaOptions,
    InBatchTeacherOptions,
    LossOptions,
)
from .ranking import Lambda, lambda_sums, list_net

if TYPE_CHECKING:
    from ..encoders.adapters import DenseAdapter, MultiVectorAdapter, SparseAdapter

__all__ = ["IN_BATCH_TEACHER_TERMS", "InBatchTeacher", "late_interaction_scores"]


def late_interaction_scores(
    queries: Sequence[Tensor] | Tensor,
    documents: Sequence[Tensor] | Tensor,
    query_mask: Tensor | None = None,
    document_mask: Tensor | None = None,
    *,
    mean: bool = False,
) -> Tensor:
    """MaxSim of every query with every document: s_ij = Σ_t max_u q_it · d_ju over the real tokens of that pair.

    Args:
        queries: B tensors (tokens, dim), or one padded (B, tokens, dim).
        documents: D tensors (tokens, dim), or one padded (D, tokens, dim).
        query_mask: (B, tokens), where padded: False tokens add nothing.
        document_mask: (D, tokens), where padded: False tokens are never the maximum.
        mean: divide by the number of the query's tokens (MeanMaxSim).

    Returns:
        (B, D) float32, without gradient, whatever precision the caller computes in; in chunks of bounded memory.
    """
    device = documents[0].device
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        given = (_wide(queries), _wide(documents))
        return maxsim(*given, a_mask=query_mask, b_mask=document_mask, length_normalize=mean)


def _wide(vectors: Sequence[Tensor] | Tensor) -> Any:
    return vectors.float() if isinstance(vectors, Tensor) else [tokens.float() for tokens in vectors]


class InBatchTeacher:
    """A frozen encoder; deliberately no module, so that no loss trains, saves or moves it.

    Args:
        model: path or hub id of a sentence-transformers MultiVectorEncoder, SentenceTransformer or SparseEncoder, or
            "minilm".
        query_length, document_length: most tokens of each side, where the model's own limit is not lower, and where
            there is something to cut: no side without a network, no queries that are expanded to a width of their own.
        chunk: texts encoded at once.

    Raises:
        ConfigError: no such model, or one that compares vectors by a distance.
    """

    def __init__(
        self, model: str, *, query_length: int | None = None, document_length: int | None = None, chunk: int = 32
    ) -> None:
        from ..encoders.adapters import MultiVectorAdapter, as_encoder
        from ..encoders.load import load_encoder

        encoder = load_encoder(model)
        if not isinstance(encoder, MultiVectorAdapter) and encoder.similarity not in ("dot", "cosine"):
            raise ConfigError(
                f"the in-batch teacher {model!r} compares by {encoder.similarity}; expected dot or cosine, whose "
                "margins a student can be held against"
            )
        cut = as_encoder(
            encoder.model,
            query_length=_cut(encoder, "query", query_length),
            document_length=_cut(encoder, "document", document_length),
            name=model,
        )
        self.encoder = cast("MultiVectorAdapter | DenseAdapter | SparseAdapter", cut)
        self.encoder.model.requires_grad_(False)
        self.chunk = chunk

    def scores(self, queries: Sequence[str], documents: Sequence[Sequence[str]], device: torch.device) -> Tensor:
        """Scores of this process's queries with the documents of all processes.

        Every process encodes its own texts; queries, which are short, are sent around and scored where the documents
        are, and the scores are gathered.

        Args:
            queries: B texts.
            documents: (B, 1 + k) texts.

        Returns:
            (B, D) float32; columns are all positives by process, then all first negatives, and so on.
        """
        if self.encoder.model.device != device:
            self.encoder.model.to(device)
        width = len(documents[0])
        columns = [row[number] for number in range(width) for row in documents]
        asked = self._tokens(queries, query=True)
        read = self._tokens(columns, query=False)
        mean = self.encoder.similarity == "meanmaxsim"
        if get_world_size() == 1:
            return late_interaction_scores(asked, read, mean=mean)
        everyone, mask = _gathered(asked)
        here = late_interaction_scores(everyone, read, mask, mean=mean)  # (all queries, our documents)
        parts = [torch.empty_like(here) for _ in range(get_world_size())]
        dist.all_gather(parts, here)
        size = len(queries)
        mine = slice(get_rank() * size, (get_rank() + 1) * size)
        by_column = torch.stack([part[mine].view(size, width, size) for part in parts], dim=2)
        return by_column.reshape(size, -1)  # (B, 1 + k, processes, B) by its last three

    def _tokens(self, texts: Sequence[str], *, query: bool) -> list[Tensor]:
        """The vectors (tokens, dim) of each text, on the model's device; of dense and sparse encoders one, (1, dim)."""
        side = self.encoder.query if query else self.encoder.document
        arguments = {"batch_size": self.chunk, "show_progress_bar": False, **side.arguments()}
        model = cast(Any, self.encoder.model)
        if self.encoder.kind == "multi-vector":
            return cast("list[Tensor]", model.encode(list(texts), **arguments))
        if self.encoder.kind == "sparse":
            arguments["convert_to_sparse_tensor"] = False
        dense = cast(Tensor, model.encode(list(texts), convert_to_tensor=True, **arguments)).float()
        if self.encoder.kind == "sparse":
            dense = dense.relu()  # weights of a learned table that are below 0 count as 0 in a search too
        if self.encoder.similarity == "cosine":
            dense = nn.functional.normalize(dense, dim=-1)
        return list(dense.unsqueeze(1))


def _cut(encoder: MultiVectorAdapter | DenseAdapter | SparseAdapter, task: Task, wanted: int | None) -> int | None:
    """How many tokens of a side to read, None for as many as the model itself does."""
    reader = transformer_of(encoder.model, task)
    if wanted is None or reader is None or (task == "query" and reader.query_expansion):
        return None
    own = (encoder.query if task == "query" else encoder.document).length
    return wanted if own is None else min(wanted, own)


def _gathered(tokens: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Padded token vectors (all queries, longest, dim) of all processes, and which of them are real."""
    device = tokens[0].device
    longest = torch.tensor(max(map(len, tokens)), device=device)
    dist.all_reduce(longest, dist.ReduceOp.MAX)
    padded = torch.zeros(len(tokens), int(longest), tokens[0].shape[1], device=device)
    mask = torch.zeros(len(tokens), int(longest), device=device)
    for row, vectors in enumerate(tokens):
        padded[row, : len(vectors)] = vectors
        mask[row, : len(vectors)] = 1
    values = []
    for tensor in (padded, mask):
        parts = [torch.empty_like(tensor) for _ in range(get_world_size())]
        dist.all_gather(parts, tensor)
        values.append(torch.cat(parts))
    return values[0], values[1].bool()


class _InBatchTeacherTerm(nn.Module):
    """A cost of the student's (B, D) scores against the teachers'.

    Args:
        cost: (student, teacher, own columns) → a scalar.
        teachers: their paths or hub ids.
        join: (K, B, D) scores of the teachers → (B, D); None for a single one.
    """

    wants_texts = True

    def __init__(
        self,
        cost: Callable[[Tensor, Tensor, Tensor], Tensor],
        options: InBatchTeacherOptions | InBatchEnsembleOptions,
        context: LossContext,
        teachers: Sequence[str],
        join: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.scorer = Scorer(options)
        lengths = getattr(context.config, "lengths", None)
        self._teachers = [
            InBatchTeacher(
                teacher,
                query_length=getattr(lengths, "query", None),
                document_length=getattr(lengths, "document", None),
                chunk=options.chunk,
            )
            for teacher in teachers
        ]
        self._cost, self._join, self._log, self._name = cost, join, context.log, options.name
        self._last: tuple[Tensor, Tensor] | None = None

    def forward(self, batch: DenseBatch) -> Tensor:
        student = self.scorer(batch.queries, batch.documents)
        teacher = self._scores(batch)
        for name, scores in (("student", student), ("teacher", teacher)):
            right = scores.argmax(dim=1) == batch.own[:, 0]
            self._log(f"{self._name}-{name}-accuracy", right.float().mean().item())
        return self._cost(student, teacher, batch.own)

    def _scores(self, batch: DenseBatch) -> Tensor:
        """The teachers' scores of the batch; asked for once where several truncations of the vectors ask."""
        number = batch.side["number"]
        if self._last is None or self._last[0] is not number:
            texts, device = cast(Any, batch.side), batch.queries.device
            columns = [
                teacher.scores(texts["query_texts"], texts["document_texts"], device) for teacher in self._teachers
            ]
            self._last = number, columns[0] if self._join is None else self._join(torch.stack(columns))
        return self._last[1]


def _one(
    options: LossOptions, context: LossContext, cost: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> _InBatchTeacherTerm:
    chosen = cast(InBatchTeacherOptions, options)
    return _InBatchTeacherTerm(cost, chosen, context, [chosen.teacher])


def _margin_mse(options: LossOptions, context: LossContext) -> DenseTerm:
    return _one(options, context, in_batch_margin_mse)


def _list_net(options: LossOptions, context: LossContext) -> DenseTerm:
    return _one(options, context, lambda student, teacher, own: list_net(student, teacher))


def _lambda(options: LossOptions, context: LossContext) -> DenseTerm:
    chosen = cast(InBatchLambdaOptions, options)
    settings = Lambda(chosen.scheme, chosen.k, chosen.mu, chosen.sigma)

    def cost(student: Tensor, teacher: Tensor, own: Tensor) -> Tensor:
        grades, known = teacher_grades(teacher)
        return mean_over_all(*lambda_sums(student, grades, known, settings))

    return _one(chosen, context, cost)


def _kl(options: LossOptions, context: LossContext) -> DenseTerm:
    chosen = cast(InBatchKLOptions, options)

    def cost(student: Tensor, teacher: Tensor, own: Tensor) -> Tensor:
        return kl_distillation(
            student, teacher, temperature=chosen.temperature, teacher_temperature=chosen.teacher_temperature
        )

    return _one(chosen, context, cost)


def _ensemble(options: LossOptions, context: LossContext) -> DenseTerm:
    """See `ensemble.ensemble_distillation`; a query's candidates are all documents of the batch."""
    chosen = cast(InBatchEnsembleOptions, options)

    def join(columns: Tensor) -> Tensor:
        targets, dropped = ensemble_targets(columns, scale=chosen.teacher_scale)
        context.count(f"{chosen.name}-constant-teachers", int(dropped.sum()))
        return targets

    def cost(student: Tensor, teacher: Tensor, own: Tensor) -> Tensor:
        return kl_distillation(student, teacher)

    return _InBatchTeacherTerm(cost, chosen, context, chosen.teachers, join)


IN_BATCH_TEACHER_TERMS: dict[str, Callable[[LossOptions, LossContext], DenseTerm]] = {
    "in-batch-ensemble-kl": _ensemble,
    "in-batch-kl": _kl,
    "in-batch-lambda": _lambda,
    "in-batch-listnet": _list_net,
    "in-batch-margin-mse": _margin_mse,
}
