"""Terms over the scores of a whole batch: InfoNCE with its variants, and STAR."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from ...errors import ConfigError
from .batch import DenseBatch, Scorer
from .context import LossContext
from .contrastive import add_hardness, direction_scores, guide_mask, in_batch_scores, info_nce_costs
from .gathering import gather_constant, gather_with_gradient, mean_over_all
from .mixing import MixDraw, draw_mixes, mix_list, mix_pairs
from .options import DIRECTIONS, InfoNCEOptions, LossOptions, ScoredOptions
from .star import star_sums
from .telling import tell_batch, tell_quantiles

__all__ = ["InfoNCE", "Star"]


class InfoNCE(nn.Module):
    """InfoNCE over in-batch documents and hard negatives, with everything that `InfoNCEOptions` can add.

    Raises:
        ConfigError: the guide does not load.
    """

    def __init__(self, options: LossOptions, context: LossContext) -> None:
        super().__init__()
        self.options = cast(InfoNCEOptions, options)
        self.scorer = Scorer(self.options)
        self.seed = int(getattr(context.config, "seed", 0))
        self.log = context.log
        # In a tuple, because what is registered is trained and saved.
        self.guide: tuple[Any, ...] = (_load_guide(self.options.guide, context),) if self.options.guide else ()
        self._seen: tuple[Any, tuple[Tensor, list[Tensor]]] | None = None

    @property
    def wants_texts(self) -> bool:
        """A guide reads them."""
        return bool(self.guide)

    def forward(self, batch: DenseBatch) -> Tensor:
        return self.by_query(batch).mean()

    def by_query(self, batch: DenseBatch) -> Tensor:
        """The cost of each query of this process alone, for weights to multiply. (B,)."""
        chosen, (positive, pools) = self.options, self._pools(batch)
        joint, gamma = chosen.directions != "symmetric", chosen.gamma
        if gamma:
            with torch.no_grad():
                weights = (-torch.expm1(-info_nce_costs(positive, pools, joint=joint))) ** gamma
            tell_quantiles(self.log, f"{chosen.name}-weight", weights)
        return info_nce_costs(positive, pools, joint=joint, gamma=gamma, detach_weight=chosen.detach_weight)

    def _pools(self, batch: DenseBatch) -> tuple[Tensor, list[Tensor]]:
        """(B,) scores of the positives, and (B, n) scores by direction, −inf where masked."""
        chosen = self.options
        directions = DIRECTIONS[chosen.directions]
        everyone = gather_with_gradient(batch.queries) if len(directions) > 1 else batch.queries
        pools = direction_scores(self.scorer, batch.queries, everyone, batch.documents, batch.own, directions)
        positive = pools[0].gather(1, batch.own[:, :1])
        masks = self._masks(batch, directions)
        if chosen.hardness:
            similarities = pools[0].detach() / self.scorer.scale
            own, kind = batch.own, chosen.hardness_negatives
            pools[0] = add_hardness(pools[0], similarities, own, strength=chosen.hardness, negatives=kind)
        pools = [
            pool if mask is None else pool.masked_fill(~mask, -torch.inf)
            for pool, mask in zip(pools, masks, strict=True)
        ]
        tell_batch(self.log, chosen.name, pools[0], batch.own[:, :1])
        if chosen.mixing:
            pools[0] = torch.cat([pools[0], self._mixed_scores(batch, masks[0])], dim=1)
        return positive.squeeze(1), pools

    def _masks(self, batch: DenseBatch, directions: Sequence[str]) -> list[Tensor | None]:
        """Which columns of each direction's pool may count; the positive always does."""
        masks: list[Tensor | None] = [None] * len(directions)
        if self.options.mask_false_negatives and "allowed" in batch.side:
            masks = _label_masks(batch, directions)
        if self.guide:
            masks = [
                mask if others is None else others & mask
                for mask, others in zip(self._guide_masks(batch, directions), masks, strict=True)
            ]
        holding = ("query-document", "document-query")
        if self.options.against != "batch":
            chosen = _chosen_documents(batch, self.options.against)
            masks = [chosen if mask is None else chosen & mask for mask in masks]
        return [
            mask.scatter(1, batch.own[:, :1], True) if mask is not None and name in holding else mask
            for name, mask in zip(directions, masks, strict=True)
        ]

    def _guide_masks(self, batch: DenseBatch, directions: Sequence[str]) -> list[Tensor]:
        """The pools once more, as the guide scores them, against its score of each positive."""
        texts = batch.side["query_texts"]
        if self._seen is None or self._seen[0] is not texts:  # several truncations of the vectors ask about one batch
            self._seen = texts, _guide_vectors(self.guide[0], batch)
        queries, columns = self._seen[1]
        documents = torch.cat([gather_constant(column) for column in columns])

        def score(first: Tensor, second: Tensor) -> Tensor:
            return in_batch_scores(first, second, similarity="cosine")

        pools = direction_scores(score, queries, gather_constant(queries), documents, batch.own, directions)
        bound = pools[0].gather(1, batch.own[:, :1]).squeeze(1)
        margin, strategy = self.options.guide_margin, self.options.guide_strategy
        return [guide_mask(pool, bound, margin=margin, strategy=strategy) for pool in pools]

    def _mixed_scores(self, batch: DenseBatch, allowed: Tensor | None) -> Tensor:
        """(B, m) scores of each query with its own mixed negatives, one of each kind asked for.

        What may not be a negative is in no mixture; −inf where fewer than two are left to mix.
        """
        chosen, columns = self.options, batch.own[:, 1:]
        count = columns.shape[1]
        if count < 2:
            raise ConfigError(
                f"loss {chosen.name}: mixing needs at least two negatives of each query, there "
                f"{'is' if count == 1 else 'are'} {count}; set sampling.negatives"
            )
        kept = torch.ones_like(columns, dtype=torch.bool) if allowed is None else allowed.gather(1, columns)
        queries = nn.functional.normalize(batch.queries, dim=-1)
        negatives = nn.functional.normalize(batch.documents[columns], dim=-1)
        mixed: list[Tensor] = []
        usable: list[Tensor] = []
        if "pairs" in chosen.mixing:
            draw = self._draw(batch, count)
            mixed.append(mix_pairs(negatives, draw))
            both = torch.stack([draw.first, draw.second], dim=1).to(kept.device)
            usable.append(kept.gather(1, both).all(dim=1))
        if "lists" in chosen.mixing:
            mixed.append(mix_list(queries, negatives, kept, scale=self.scorer.scale))
            usable.append(kept.sum(dim=1) > 1)
        scores = self.scorer.own(batch.queries, torch.stack(mixed, dim=1))
        return scores.masked_fill(~torch.stack(usable, dim=1), -torch.inf)

    def _draw(self, batch: DenseBatch, count: int) -> MixDraw:
        """This process's part of what is drawn for the whole batch."""
        whole = draw_mixes(
            len(batch.documents) // batch.own.shape[1],
            count,
            seed=self.seed,
            number=int(batch.side["number"][0]),
            concentration=self.options.mixing_concentration,
        )
        rows = batch.own[:, 0].cpu()
        return MixDraw(whole.first[rows], whole.second[rows], whole.shares[rows])


class Star(nn.Module):
    """STAR's pairwise loss over the documents of the batch (see `star`)."""

    def __init__(self, options: LossOptions, context: LossContext) -> None:
        super().__init__()
        self.scorer = Scorer(cast(ScoredOptions, options))
        self.log, self.name = context.log, options.name

    def forward(self, batch: DenseBatch) -> Tensor:
        scores = self.scorer(batch.queries, batch.documents)
        allowed = batch.side["allowed"].to(scores.device) if "allowed" in batch.side else None
        counted = torch.ones_like(scores, dtype=torch.bool) if allowed is None else allowed.bool()
        own = batch.own[:, :1]
        tell_batch(self.log, self.name, scores.masked_fill(~counted.scatter(1, own, True), -torch.inf), own)
        return mean_over_all(*star_sums(scores, batch.own[:, 0], allowed))


def _chosen_documents(batch: DenseBatch, against: str) -> Tensor:
    """(B, D) bool: documents that a query's positive is held against, by their place in the batch."""
    queries = len(batch.documents) // batch.own.shape[1]
    positives = torch.arange(len(batch.documents), device=batch.own.device) < queries
    others = {"positives-and-own": positives, "negatives": ~positives, "own": torch.zeros_like(positives)}[against]
    return others.expand(len(batch.own), -1).scatter(1, batch.own, True)


def _label_masks(batch: DenseBatch, directions: Sequence[str]) -> list[Tensor | None]:
    """By labels: a document relevant to a query is no negative of it, nor are two queries that share a document."""
    allowed = batch.side["allowed"].to(batch.queries.device)
    queries = len(batch.documents) // batch.own.shape[1]
    masks: dict[str, Callable[[], Tensor]] = {
        "query-document": lambda: allowed,
        "query-query": lambda: allowed[:, :queries],
        "document-query": lambda: gather_constant(allowed[:, :queries])[:, batch.own[:, 0]].T,
        "document-document": lambda: allowed,
        "positive-positive": lambda: allowed[:, :queries],
    }
    return [masks[name]() for name in directions]


def _load_guide(path: str, context: LossContext) -> Any:
    from sentence_transformers import SentenceTransformer

    try:
        guide = SentenceTransformer(path, device=str(next(context.model.parameters()).device))
    except (OSError, ValueError) as error:
        raise ConfigError(f"guide: {path!r} does not load as a SentenceTransformer: {error}") from error
    return guide.eval().requires_grad_(False)


def _guide_vectors(guide: Any, batch: DenseBatch) -> tuple[Tensor, list[Tensor]]:
    """The guide's vectors of this process's queries (B, dim), and of its documents by column, 1 + k of (B, dim)."""
    texts = cast("list[list[str]]", batch.side["document_texts"])
    settings = {"convert_to_tensor": True, "show_progress_bar": False}
    with torch.no_grad():
        queries = guide.encode_query(batch.side["query_texts"], **settings)
        flat = guide.encode_document([text for row in texts for text in row], **settings)
    device = batch.queries.device
    # encode may answer from inference mode, whose tensors autograd refuses
    queries, flat = queries.to(device).float().clone(), flat.to(device).float().clone()
    return queries, list(flat.view(len(texts), len(texts[0]), -1).unbind(dim=1))
