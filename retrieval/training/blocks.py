"""The blocks of a training configuration, as they stand in the YAML."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from ...errors import DataError
from ...eval.split_part import parse_split
from ..losses.sparse_options import ActiveLimits

__all__ = [
    "Block",
    "CropSampling",
    "Curriculum",
    "Data",
    "Evaluation",
    "Lengths",
    "Lora",
    "Matryoshka",
    "Optimizer",
    "Part",
    "Prompts",
    "QuerySampling",
    "RandomSampling",
    "Runs",
    "Source",
    "Sparse",
    "TokenSampling",
    "TopicSampling",
]


def _written_well(split: str) -> str:
    """A part of a split that cannot be, before any model is loaded for it."""
    try:
        parse_split(split)
    except DataError as error:
        raise ValueError(str(error)) from error
    return split


Split = Annotated[str, AfterValidator(_written_well)]
"""A split or a part of one (`eval.split_part`)."""


class Block(BaseModel):
    """A part of the configuration: plain values, nothing unknown."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Runs(Block):
    """Run files by role. Relative paths are relative to the working directory.

    Attributes:
        negatives: what negatives are drawn from.
        teachers: scores, each a column by its file's stem.
        first_stage: ranks and scores of a first stage.
        labels: graded labels.
        pool: only what it lists can be a positive; other documents judged relevant are no negatives either.
    """

    negatives: tuple[str, ...] = ()
    teachers: tuple[str, ...] = ()
    first_stage: str | None = None
    labels: str | None = None
    pool: str | None = None

    @field_validator("negatives", "teachers", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    def files(self) -> list[tuple[str, str]]:
        """(role, path) of every file."""
        pairs = [("negatives", path) for path in self.negatives] + [("teachers", path) for path in self.teachers]
        return pairs + [(role, path) for role in ("first_stage", "labels", "pool") if (path := getattr(self, role))]


class Source(Block):
    """A collection's split with what belongs to it.

    Attributes:
        split: the queries and judgments that are used.
        positive_grade: judgments of at least this grade are positives.
        runs: negatives, teacher scores, first-stage scores and graded labels.
        pairs: a published file of scored pairs or of triples, instead of `runs` (see `pair_files`); its scores are a
            teacher by the file's stem.
        unknown_pairs: a line of it with an id that the split or the collection lacks is an error, or is left out.
        differing_scores: two scores of one (query, document) in it are an error, or are averaged.
        max_missing_scores: the largest share of documents that a teacher may have left unscored.
        lists: a published file of permutations or, without a collection, of conversations, for listwise language models
            instead of `runs` (see `list_table`).
        index: a dense index of this collection, for losses that search it while they train (ADORE).
        shuffle_judgments: a control: the judged documents are dealt out anew by this seed over all judgments, so that
            what is learned then is not relevance. Of lists, each one's target order is shuffled.
    """

    split: Split = "train"
    positive_grade: PositiveInt = 1
    runs: Runs = Runs()
    pairs: str | None = None
    unknown_pairs: Literal["error", "count"] = "error"
    differing_scores: Literal["error", "mean"] = "error"
    max_missing_scores: float = Field(0.05, ge=0, le=1)
    lists: str | None = None
    index: str | None = None
    shuffle_judgments: NonNegativeInt | None = None

    @model_validator(mode="after")
    def _pairs_are_not_shuffled(self) -> Source:
        if self.pairs is not None and self.shuffle_judgments is not None:
            raise ValueError("shuffle_judgments: is about a collection's judgments; a pair file has its own positives")
        return self


class Part(Source):
    """One collection of a mixture; `weight` is its share of the batches, None everywhere means by examples."""

    collection: str
    weight: PositiveFloat | None = None


class Data(Source):
    """Either one collection, or a `mixture` of several."""

    collection: str | None = None
    mixture: tuple[Part, ...] = ()

    def parts(self) -> tuple[Part, ...]:
        """The collections, whichever way they were given."""
        if self.mixture or self.collection is None:
            return self.mixture
        return (Part(**{name: getattr(self, name) for name in Part.model_fields if name != "weight"}),)


class Lengths(Block):
    """Most tokens of a query and of a document, in training and in the model that is saved; None is the model's own."""

    query: PositiveInt | None = None
    document: PositiveInt | None = None


class Prompts(Block):
    """What stands before every query and every document, in training and in the model that is saved; None is the
    model's own, "" is none."""

    query: str | None = None
    document: str | None = None


class QuerySampling(Block):
    """Every query once an epoch, shuffled; the loss finds the documents itself."""


class RandomSampling(Block):
    """Shuffled examples, each with negatives drawn uniformly from its run.

    Attributes:
        unit: what an epoch goes through once: every query with one of its positives drawn, or every (query, positive).
        negatives: drawn for each example; None is 1 with a negatives run and 0 without.
        missing_negatives: a query with fewer negatives than wanted gets random documents, or is left out.
        deduplicate: exchange examples between batches so that no text stands twice in one.
        group_by_length: batches of texts of like length, which saves padding; negatives that are drawn are not sorted.
    """

    unit: Literal["query", "pair"] = "query"
    negatives: NonNegativeInt | None = None
    missing_negatives: Literal["random", "drop"] = "random"
    deduplicate: bool = True
    group_by_length: bool = False


class TopicSampling(Block):
    """TAS-Balanced: batches of one topic, pairs balanced over teacher margins (see `sampling.topic_aware`).

    Attributes:
        strategy: "tas-balanced" takes both steps; "tas" draws pairs uniformly, "balanced" draws queries from all
            topics, "random" does both. What is not used needs no teacher or no clusters.
        clusters: how many to make before training, or a file of one cluster a line.
        cluster_encoder: makes the queries' vectors for that; None is the configuration's `model`, as it is loaded.
        cluster_metric: "l2" k-means, or "inner-product", spherical k-means.
        cluster_iterations, cluster_seed: of the k-means.
        unknown_queries: ids in the file that the split lacks are an error, or are left out and counted.
        clusters_per_batch: n; each gives ⌈batch / n⌉ queries (⌊ ⌋ in the paper, which takes one cluster more for the
            rest where n does not divide the batch).
        topic_per: one topic over all processes, or one for each rank.
        margin_bins: h.
        teacher: score columns whose margins are balanced, averaged; None is all of them.
        deduplicate: no query twice in a batch, by text.
    """

    strategy: Literal["tas-balanced", "tas", "balanced", "random"] = "tas-balanced"
    clusters: PositiveInt | str = 2000
    cluster_encoder: str | None = None
    cluster_metric: Literal["l2", "inner-product"] = "l2"
    cluster_iterations: PositiveInt = 10
    cluster_seed: NonNegativeInt = 42
    unknown_queries: Literal["error", "count"] = "error"
    clusters_per_batch: PositiveInt = 1
    topic_per: Literal["batch", "rank"] = "batch"
    margin_bins: PositiveInt = 10
    teacher: str | tuple[str, ...] | None = None
    deduplicate: bool = True
    negatives: Literal[1] = 1


class CropSampling(Block):
    """Contriever's independent crops of chunks of documents (see `sampling.crops`).

    Attributes:
        chunk_length: tokens in a chunk; chunks begin behind an offset that is drawn anew in every epoch.
        ratio_min, ratio_max: bounds of a crop's length as a share of its chunk's.
        augmentation: what happens to each token of a crop with `probability`.
        across_documents: chunks run over the ends of documents, as published; else a chunk is cut down to the document
            that holds its middle, which suits collections of short documents.
        size_exponent: of several collections, each example draws one with p ∝ (number of its chunks)^exponent: 0 is the
            same for all. Weights under data.mixture go before.
    """

    chunk_length: PositiveInt = 256
    ratio_min: float = Field(0.05, gt=0, le=1)
    ratio_max: float = Field(0.5, gt=0, le=1)
    augmentation: Literal["none", "delete", "replace", "mask"] = "delete"
    probability: float = Field(0.1, ge=0, lt=1)
    across_documents: bool = True
    size_exponent: float = Field(0.0, ge=0)

    @model_validator(mode="after")
    def _ordered(self) -> CropSampling:
        if self.ratio_min > self.ratio_max:
            raise ValueError(f"ratio_min {self.ratio_min} is above ratio_max {self.ratio_max}")
        return self


class TokenSampling(Block):
    """Chunks of documents with hidden tokens, for masked-LM training.

    Attributes:
        chunk_length: tokens in a chunk, special ones not counted; chunks begin behind an offset that is drawn anew in
            every epoch.
        probability: that a token is asked for; of those 80% are masked, 10% become another, 10% stay.
        across_documents: chunks run over the ends of documents; else a chunk is cut down to the document that holds
            its middle.
    """

    chunk_length: PositiveInt = 126
    probability: float = Field(0.15, gt=0, lt=1)
    across_documents: bool = False


class Matryoshka(Block):
    """Losses over the first dimensions of the vectors (Kusupati et al. 2022), summed by weight.

    Attributes:
        dims: how many dimensions, the full number among them.
        weights: one for each of `dims`; None is 1 each.
    """

    dims: tuple[PositiveInt, ...]
    weights: tuple[PositiveFloat, ...] | None = None

    @model_validator(mode="after")
    def _one_weight_each(self) -> Matryoshka:
        if not self.dims or len(set(self.dims)) < len(self.dims):
            raise ValueError("dims are different numbers, at least one")
        if self.weights is not None and len(self.weights) != len(self.dims):
            raise ValueError(f"{len(self.weights)} weights for {len(self.dims)} dims")
        return self


class Curriculum(Block):
    """What looks hard to the first stage (data.runs.first_stage) weighs little at first (MacAvaney et al. 2020).

    Attributes:
        difficulty: by the rank, the score within the query's list, or its place in the density of the list's scores.
        weighting: a query by positive and hardest negative, or each document by its own label (binary-cross-entropy).
        end: the epoch from which on all weigh 1; 0 never fades.
        batches_per_epoch: how many batches such an epoch has.
        anti: the hard ones first.
        reduction: weigh each cost, or multiply the batch's mean cost by its mean weight as the published code does.
    """

    difficulty: Literal["reciprocal-rank", "normalised-score", "kde"] = "reciprocal-rank"
    weighting: Literal["pairwise", "pointwise"] = "pairwise"
    end: NonNegativeInt = 20
    batches_per_epoch: PositiveInt = 32
    anti: bool = False
    reduction: Literal["per_sample", "batch_mean_product"] = "per_sample"


class Optimizer(Block):
    """LAMB (You et al. 2020), for large batches; learning rate, weight decay and schedule come from `trainer`.

    Attributes:
        max_norm: bound of a tensor's norm in its trust ratio; STAR's authors have 10, the paper none.
        bias_correction: as in the paper; STAR's authors go without.
    """

    name: Literal["lamb"]
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: PositiveFloat = 1e-6
    max_norm: PositiveFloat | None = None
    bias_correction: bool = True


class Lora(Block):
    """Low-rank adapters (Hu et al. 2022) through peft.

    Attributes:
        rank: of the two factors.
        alpha: the update counts alpha / rank.
        dropout: on the adapters' input.
        target_modules: names of the layers; None is peft's choice for the architecture, "all-linear" is all of them.
        merge: write a plain model with the adapters merged in; else a model that needs peft to load.
    """

    rank: PositiveInt = 16
    alpha: PositiveFloat = 32.0
    dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: tuple[str, ...] | str | None = None
    merge: bool = True


class Sparse(Block):
    """How a masked language model's logits become a sparse vector, by side.

    Attributes:
        pooling: over a text's tokens; None is the model's own, or "max" (SPLADE v2 and later; "sum" is v1).
        activation: log(1 + relu(z)), or its logarithm log(1 + log(1 + relu(z))); None is the model's own, or "relu".
        chunk: the head runs over so many tokens at a time under a running maximum, instead of over all of them: less
            memory and time, the same result. None is sentence-transformers' own way; a sum needs that.
        query: "bag" has no network at query time: each word piece of the query weighs 1 (SPLADE-doc).
        expansion: which sides get terms that are not in the text; others keep the weights of their own word pieces
            (SPLADE-lexical).
        top_query, top_document: keep so many of a text's largest weights, in training too.
        ratio_query, ratio_document: keep weights above this share of the text's largest.
        active: when the training is ended.
    """

    pooling: Literal["max", "sum"] | None = None
    activation: Literal["relu", "log1p_relu"] | None = None
    chunk: PositiveInt | None = None
    query: Literal["model", "bag"] = "model"
    expansion: Literal["both", "query", "document", "none"] = "both"
    top_query: PositiveInt | None = None
    top_document: PositiveInt | None = None
    ratio_query: float | None = Field(default=None, gt=0, lt=1)
    ratio_document: float | None = Field(default=None, gt=0, lt=1)
    active: ActiveLimits = ActiveLimits()

    @model_validator(mode="after")
    def _bags_are_as_they_are(self) -> Sparse:
        if self.query == "bag" and self.expansion == "query":
            raise ValueError("expansion: a bag of the query's own word pieces has none; take document, or none")
        if self.query == "bag" and (self.top_query or self.ratio_query):
            raise ValueError("top_query, ratio_query: the weights of a bag of word pieces are all the same")
        return self


class Evaluation(Block):
    """Evaluation on a dev split while training; the best checkpoint is kept.

    Attributes:
        collection, split: what is searched or reranked.
        measure: any name that `rtk eval` knows; larger must be better.
        every: steps between evaluations.
        patience: stop after this many evaluations without gain; None never stops early.
        run: candidates to rerank (needed for a cross-encoder); without it a bi-encoder searches the whole collection.
        depth: candidates or hits for each query.
        at_start: also evaluate before the first step.
    """

    collection: str
    split: Split = "dev"
    measure: str = "nDCG@10"
    every: PositiveInt = 500
    patience: PositiveInt | None = None
    run: str | None = None
    depth: PositiveInt = 100
    batch_size: PositiveInt = 64
    at_start: bool = Field(True)
