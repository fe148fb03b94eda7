"""What each loss can be told: plain values, checked before torch is imported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from .language_options import FirstOptions, GrpoOptions, YesNoOptions
from .option_base import Family, LossOptions, ScoredOptions, TeacherOptions
from .sparse_options import FlopsOptions, IdfFlopsOptions, MaskedLmOptions, RegulariserOptions

__all__ = [
    "DIRECTIONS",
    "LOSSES",
    "Family",
    "LossEntry",
    "LossOptions",
    "ScoredOptions",
    "TeacherOptions",
]

DIRECTIONS: dict[str, tuple[str, ...]] = {
    "forward": ("query-document",),
    "symmetric": ("query-document", "document-query"),
    "expanded": ("query-document", "query-query", "positive-positive"),
    "joint": ("query-document", "query-query", "document-query", "document-document"),
}
"""Which scores InfoNCE's softmax goes over."""


class InfoNCEOptions(ScoredOptions):
    """InfoNCE and what can be added to it.

    Attributes:
        against: what a positive is held against: all documents of the "batch"; "positives-and-own", the other queries'
            positives and the query's own negatives (SPLADE v2, ++); "negatives", those of every query, but no other
            positive (naver's HF trainer, OpenSearch); "own", the query's own only.
        mask_false_negatives: labelled positives of the query and copies of its positive are no negatives.
        gamma: a query costs (1 − p)^gamma times as much, p the probability of its positive (KaLM-Embedding-V2: 0.5).
        detach_weight: that weight carries no gradient.
        directions: "forward" is query → documents; "symmetric" averages it with document → queries; "expanded" is one
            softmax over documents, other queries, and the positive's scores with other positives (KaLM, GISTEmbed);
            "joint" is one over both ways and over query → queries and document → documents.
        hardness: α of a penalty that adds α · similarity to the scores of the negatives that `hardness_negatives`
            names (9 is usual for in-batch ones, 5 for the query's own hard ones).
        guide: a model whose scores tell false negatives: what it scores above the positive, less `guide_margin`
            (or that share of the positive's score, if the strategy is relative), is no negative (GISTEmbed).
        mixing: extra negatives made of the query's own hard ones: of two at random ("pairs"), of all by their
            similarity to the query ("lists"). The share of the first of two is drawn from Beta(c, c).
    """

    against: Literal["batch", "positives-and-own", "negatives", "own"] = "batch"
    mask_false_negatives: bool = True
    gamma: NonNegativeFloat = 0.0
    detach_weight: bool = True
    directions: Literal["forward", "symmetric", "expanded", "joint"] = "forward"
    hardness: NonNegativeFloat = 0.0
    hardness_negatives: Literal["in-batch", "hard", "all"] = "in-batch"
    guide: str | None = None
    guide_margin: float = 0.0
    guide_strategy: Literal["absolute", "relative"] = "absolute"
    mixing: tuple[Literal["pairs", "lists"], ...] = ()
    mixing_concentration: PositiveFloat = 2.0

    @field_validator("mixing", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _chosen_documents_are_forward(self) -> InfoNCEOptions:
        if self.against != "batch" and self.directions != "forward":
            raise ValueError(f"against: {self.against} is about query → documents; take directions: forward")
        return self

    @model_validator(mode="after")
    def _mixed_vectors_are_normalised(self) -> InfoNCEOptions:
        if self.mixing and self.similarity != "cosine":
            raise ValueError("mixed negatives are normalised, which fits similarity: cosine only")
        return self


class MarginMSEOptions(ScoredOptions, TeacherOptions):
    """Margins are those of the teacher's logits: with cosine the scale is learned unless told otherwise.

    `pairs`: the positive with each negative, or "all" ordered pairs of a query's documents, each with itself among them
    (naver's HF trainer), which is 2 / n² times the sum over unordered pairs.
    """

    pairs: Literal["positive", "all"] = "positive"

    @model_validator(mode="before")
    @classmethod
    def _cosines_learn_their_scale(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("similarity", "cosine") == "cosine":
            return {"learn_scale": True, **values}
        return values


class KLOptions(ScoredOptions, TeacherOptions):
    """KL(teacher ‖ student) over a query's candidates; the teacher's temperature is the student's where it is None."""

    temperature: PositiveFloat = 1.0
    teacher_temperature: PositiveFloat | None = None


class EnsembleOptions(ScoredOptions, TeacherOptions):
    """KL against the mean of unlike teachers, each brought to [0, 1] within its list; `teacher_scale` is S."""

    teacher_scale: PositiveFloat = 30.0


class PlackettLuceOptions(ScoredOptions, TeacherOptions):
    """PLD; `temperature` is of the teacher's weights only."""

    temperature: PositiveFloat = 1.0


class DynamicContrastiveOptions(ScoredOptions, TeacherOptions):
    """DCD.

    Attributes:
        alpha: share of the distillation; the rest is the loss against the labels (all of it is, in "wsl").
        temperature: T of the squared errors.
        hardest: keep so many negatives, those with the highest teacher scores; None keeps all.
        variant: "wsl" has weighted soft labels instead of weights by the teacher's entropy.
        published: reproduce the published code, where the weights of the distillation cancel.
    """

    alpha: float = Field(0.2, ge=0, le=1)
    temperature: PositiveFloat = 1.0
    hardest: PositiveInt | None = None
    variant: Literal["dcd", "wsl"] = "dcd"
    published: bool = False


class AdoreOptions(LossOptions):
    """ADORE over the live top k of a frozen index (data.index).

    Attributes:
        k: documents that each step's search returns.
        metric_cut: ranks beyond it count nothing; None is k. (In the published code None makes every weight 0.)
        metric: what a pair is weighted by: the change of reciprocal rank, as published, or of nDCG by grades.
        scale: multiplies the index's similarity; None is 20 for a cosine index or a model that normalises its vectors,
            and 1 for free dot products. At scale 1, scores within ±1 are too flat to learn from.
        precision: on a GPU the document vectors are kept in this type; None is the one they are stored in.
    """

    k: PositiveInt = 200
    metric_cut: PositiveInt | None = None
    metric: Literal["rr", "ndcg"] = "rr"
    scale: PositiveFloat | None = None
    precision: Literal["float16", "bfloat16"] | None = None


class MocoOptions(ScoredOptions):
    """Momentum contrast (Contriever); the values of its pre-training.

    Attributes:
        similarity, scale: as published: dot products over a temperature of 0.05, no normalisation.
        queue_size: keys that are negatives; a multiple of the batch over all processes.
        momentum: m of θ_k ← m θ_k + (1 − m) θ.
        label_smoothing: of the cross-entropy.
        key_encoder_train: dropout in the key encoder too, as the published code has it whatever it means to.
        queue_seed: of the random vectors that the queue begins with.
    """

    similarity: Literal["cosine", "dot"] = "dot"
    scale: PositiveFloat | None = 20.0
    queue_size: PositiveInt = 131072
    momentum: float = Field(0.9995, ge=0, lt=1)
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    key_encoder_train: bool = True
    queue_seed: int = Field(0, ge=0)

    @field_validator("learn_scale")
    @classmethod
    def _fixed_scale(cls, value: bool) -> bool:
        if value:
            raise ValueError("false: the queue's keys were written under a fixed temperature")
        return value


class CetOptions(LossOptions):
    """Coupled estimation of relevance and selection for judging.

    Attributes:
        temperature: T of the inverse-propensity weights 1 + e^{logit / T}; 10 as in the authors' run, whose program has
            2 as its default.
        weight_cap: no weight above this; None as published.
        self_normalise: divide the weights by their mean over the batch; off as published.
        selection_model: path or hub id of the cross-encoder that the selection model begins as; None is a copy of the
            model in training, "features" is none at all.
        selection_features: what else the selection model sees of data.runs.first_stage.
        feature_learning_rate: of the small network over these, which starts at 0 and would hardly leave it at a
            transformer's rate; None is the trainer's.
    """

    temperature: PositiveFloat = 10.0
    weight_cap: float | None = Field(None, ge=1)
    self_normalise: bool = False
    selection_model: str | None = None
    selection_features: tuple[Literal["rank", "score"], ...] = ()
    feature_learning_rate: PositiveFloat | None = 1e-2

    @model_validator(mode="after")
    def _something_to_select_by(self) -> CetOptions:
        if self.selection_model == "features" and not self.selection_features:
            raise ValueError("selection_model: features needs selection_features, such as [rank, score]")
        if len(set(self.selection_features)) < len(self.selection_features):
            raise ValueError("selection_features: each once")
        return self


class BinaryOptions(LossOptions):
    """`positive_weight` multiplies the cost of the positives, against many negatives for each of them."""

    positive_weight: PositiveFloat | None = None


class RankNetOptions(ScoredOptions):
    """`pair_weight`: none, FIRST's inverse sum of ranks, or the difference of the labels."""

    pair_weight: Literal["none", "inverse-rank", "label-difference"] = "none"


class LambdaOptions(ScoredOptions):
    """The lambda framework's weighting scheme, its cut-off and its base-2 or natural logarithm."""

    scheme: Literal["ndcg-loss1", "ndcg-loss2", "lambdarank", "ndcg-loss2++", "ranknet", "ranknet-difference"] = (
        "ndcg-loss2++"
    )
    k: PositiveInt | None = None
    mu: float = Field(10.0, gt=0)
    sigma: float = Field(1.0, gt=0)


class InBatchTeacherOptions(ScoredOptions):
    """A teacher that scores all documents of the batch while training: by late interaction as published, or a vector.

    Attributes:
        weight: 0.75 belongs to the published code's scaling of the in-batch Margin-MSE.
        similarity: the student's; its scores must reach the teacher's margins, as dot products do. A cosine learns its
            scale unless told otherwise.
        teacher: path or hub id of a sentence-transformers MultiVectorEncoder, SentenceTransformer or SparseEncoder.
        chunk: texts that it encodes at once.
    """

    weight: PositiveFloat = 0.75
    similarity: Literal["cosine", "dot"] = "dot"
    teacher: str
    chunk: PositiveInt = 32

    @model_validator(mode="before")
    @classmethod
    def _cosines_learn_their_scale(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("similarity") == "cosine":
            return {"learn_scale": True, **values}
        return values


class InBatchLambdaOptions(InBatchTeacherOptions):
    """The lambda framework's settings, over grades made of the teacher's scores."""

    scheme: Literal["ndcg-loss1", "ndcg-loss2", "lambdarank", "ndcg-loss2++"] = "ndcg-loss2"
    k: PositiveInt | None = None
    mu: float = Field(10.0, gt=0)
    sigma: float = Field(1.0, gt=0)


class InBatchKLOptions(InBatchTeacherOptions):
    """`temperature` of both distributions; `teacher_temperature` where the teacher's logits need another."""

    temperature: PositiveFloat = 1.0
    teacher_temperature: PositiveFloat | None = None


class InBatchEnsembleOptions(ScoredOptions):
    """KL against the mean of unlike teachers over all documents of the batch, each brought to [0, 1] among them.

    Attributes:
        teachers: paths or hub ids of MultiVectorEncoders, SentenceTransformers or SparseEncoders.
        teacher_scale: S.
        chunk: texts that a teacher encodes at once.
    """

    teachers: tuple[str, ...] = Field(min_length=1)
    teacher_scale: PositiveFloat = 30.0
    chunk: PositiveInt = 32


@dataclass(frozen=True)
class LossEntry:
    """A registered loss: who can use it and what it can be told.

    Attributes:
        families: the kinds of model that it trains.
        options: what stands in the configuration.
        alone: it is no term of a sum but a loss of its own (it needs more than one encoding of the batch).
        searches: it searches `data.index` while it trains, which needs a document side that stays as it is.
        costs: the smallest unit whose cost it can tell, for weights (curricula) to multiply; None is the batch.
    """

    families: tuple[Family, ...]
    options: type[LossOptions]
    alone: bool = False
    searches: bool = False
    costs: Literal["query", "document"] | None = None


_VECTORS: tuple[Family, ...] = ("bi-encoder", "sparse-encoder")
_ALL: tuple[Family, ...] = (*_VECTORS, "cross-encoder")
LOSSES: dict[str, LossEntry] = {
    "adore": LossEntry(("bi-encoder",), AdoreOptions, alone=True, searches=True),
    "in-batch-ensemble-kl": LossEntry(_VECTORS, InBatchEnsembleOptions),
    "in-batch-kl": LossEntry(_VECTORS, InBatchKLOptions),
    "in-batch-lambda": LossEntry(_VECTORS, InBatchLambdaOptions),
    "in-batch-listnet": LossEntry(_VECTORS, InBatchTeacherOptions),
    "in-batch-margin-mse": LossEntry(_VECTORS, InBatchTeacherOptions),
    "infonce": LossEntry(_VECTORS, InfoNCEOptions, costs="query"),
    "star": LossEntry(_VECTORS, ScoredOptions),
    "flops": LossEntry(("sparse-encoder",), FlopsOptions),
    "idf-flops": LossEntry(("sparse-encoder",), IdfFlopsOptions),
    "l1": LossEntry(("sparse-encoder",), RegulariserOptions),
    "anti-collapse": LossEntry(("sparse-encoder",), LossOptions),
    "margin-mse": LossEntry(_ALL, MarginMSEOptions, costs="query"),
    "kl": LossEntry(_ALL, KLOptions, costs="query"),
    "ensemble-kl": LossEntry(_ALL, EnsembleOptions, costs="query"),
    "pld": LossEntry(_ALL, PlackettLuceOptions, costs="query"),
    "dcd": LossEntry(_ALL, DynamicContrastiveOptions),
    "cet": LossEntry(("cross-encoder",), CetOptions, alone=True),
    "masked-lm": LossEntry(("sparse-encoder",), MaskedLmOptions, alone=True),
    "first": LossEntry(("language-model",), FirstOptions, alone=True),
    "full-rank": LossEntry(("language-model",), LossOptions, alone=True),
    "yes-no": LossEntry(("cross-encoder",), YesNoOptions, alone=True),
    "grpo": LossEntry(("policy",), GrpoOptions, alone=True),
    "permutation": LossEntry(("language-model",), LossOptions, alone=True),
    "moco": LossEntry(("bi-encoder",), MocoOptions, alone=True),
    "binary-cross-entropy": LossEntry(("cross-encoder",), BinaryOptions, costs="document"),
    "listnet": LossEntry(_ALL, ScoredOptions, costs="query"),
    "listwise-softmax": LossEntry(_ALL, ScoredOptions, costs="query"),
    "pairwise-softmax": LossEntry(_ALL, ScoredOptions, costs="query"),
    "ranknet": LossEntry(_ALL, RankNetOptions, costs="query"),
    "lambda": LossEntry(_ALL, LambdaOptions),
}
