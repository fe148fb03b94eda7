"""The selection model of coupled estimation: how likely a document was to be selected for judging.

A second cross-encoder, a few numbers that the first stage gave, or both: the sum of a cross-encoder's logit and a small
network's. What the pool of a test collection contains is decided by rank and score, which texts alone hardly show.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ...errors import ConfigError
from ...files import atomic_path, read_json, write_json
from ..encoders.heads import set_head_dropout
from .batch import Side
from .context import Autocast
from .modules import candidate_scores

if TYPE_CHECKING:
    from .context import LossContext
    from .options import CetOptions

__all__ = ["FEATURES_ONLY", "FeatureHead", "SelectionModel", "load_selection", "make_selection"]

FEATURES_ONLY = "features"
"""As `selection_model`: no second cross-encoder, the features alone."""

Feature = Literal["rank", "score"]
_COLUMNS: dict[str, str] = {"rank": "first_rank", "score": "first_stage"}
_UNRANKED = 1000.0
_WEIGHTS, _SETTINGS = "features.safetensors", "features.json"


class FeatureHead(nn.Module):
    """A network of one hidden layer over first-stage features; it begins at 0 everywhere.

    The rank enters as its logarithm, the score standardised over the training table; both are 0 for a document that
    the first stage did not find, for which a further input is 1.

    Args:
        features: of "rank" and "score", each once.
        centre, spread: mean and standard deviation of the known scores.
        hidden: units.
    """

    def __init__(self, features: Sequence[str], *, centre: float = 0.0, spread: float = 1.0, hidden: int = 16) -> None:
        super().__init__()
        self.features = tuple(features)
        self.centre, self.spread = centre, spread
        self.hidden = nn.Linear(len(self.features) + 1, hidden)
        self.out = nn.Linear(hidden, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def inputs(self, side: Side) -> Tensor:
        """`first_rank` and `first_stage` (B, N), NaN where not found → (B, N, features + 1) float32."""
        device = self.out.weight.device
        columns = [side[_COLUMNS[name]].to(device).float() for name in self.features]
        found = torch.stack([~column.isnan() for column in columns]).all(dim=0)
        scaled = [self._scaled(name, column) for name, column in zip(self.features, columns, strict=True)]
        known = [torch.where(found, values, values.new_zeros(())) for values in scaled]
        return torch.stack([*known, (~found).float()], dim=-1)

    def _scaled(self, name: str, values: Tensor) -> Tensor:
        if name == "rank":
            return 1 - 2 * values.clamp(1, _UNRANKED).log() / math.log(_UNRANKED)  # 1 at the top, −1 at rank 1000
        return (values - self.centre) / self.spread

    def forward(self, side: Side) -> Tensor:
        """(B, N) logits."""
        return self.out(torch.tanh(self.hidden(self.inputs(side)))).squeeze(-1)

    def save(self, folder: Path) -> None:
        """Write weights and settings into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_path(folder / _WEIGHTS) as temporary:
            save_file({name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}, temporary)
        settings = {"features": list(self.features), "centre": self.centre, "spread": self.spread}
        write_json(folder / _SETTINGS, {**settings, "hidden": self.hidden.out_features})

    @classmethod
    def load(cls, folder: Path) -> FeatureHead:
        settings = read_json(folder / _SETTINGS)
        head = cls(settings.pop("features"), **settings)
        head.load_state_dict(load_file(str(folder / _WEIGHTS)))
        return head


class SelectionModel(nn.Module):
    """g(q, d): the sum of a cross-encoder's logit and a feature head's; either may be missing.

    Attributes:
        encoder: a sentence-transformers CrossEncoder, or None.
        head: or None.

    Args:
        autocast: mixed precision for the cross-encoder.
    """

    def __init__(
        self, encoder: nn.Module | None, head: FeatureHead | None, *, autocast: Autocast | None = None
    ) -> None:
        super().__init__()
        self._autocast = autocast or Autocast()
        if encoder is None and head is None:
            raise ConfigError("a selection model needs a cross-encoder, features, or both")
        self.encoder, self.head = encoder, head

    def forward(self, inputs: Sequence[Any], side: Side, **preprocessing: Any) -> Tensor:
        """(queries, documents of each query) and the batch's `Side` → (B, N) logits."""
        parts: list[Tensor] = []
        if self.encoder is not None:
            with self._autocast():
                scores = candidate_scores(self.encoder, inputs, **preprocessing)
            parts.append(scores.to(torch.promote_types(torch.float32, scores.dtype)))
        if self.head is not None:
            parts.append(self.head(side))
        return torch.stack(parts).sum(dim=0)

    def save(self, folder: Path) -> None:
        """Write a folder that CrossEncoder loads, where there is one, with the features' head beside it."""
        if self.encoder is not None:
            cast(Any, self.encoder).save_pretrained(str(folder))
        if self.head is not None:
            self.head.save(folder)


def load_selection(folder: str | Path, *, device: str | None = None) -> SelectionModel:
    """The selection model that training wrote beside its result (OUTPUT/selection)."""
    from sentence_transformers import CrossEncoder

    folder = Path(folder)
    head = FeatureHead.load(folder) if (folder / _SETTINGS).is_file() else None
    saved = any((folder / name).is_file() for name in ("config.json", "adapter_config.json"))
    encoder = CrossEncoder(str(folder), device=device) if saved else None
    if head is not None and device is not None:
        head = head.to(device)
    return SelectionModel(encoder, head)


def make_selection(options: CetOptions, context: LossContext) -> SelectionModel:
    """The selection model before training.

    Raises:
        ConfigError: features without a first-stage run, or a model that does not load.
    """
    encoder = _encoder(options, context)
    device = next(context.model.parameters()).device
    return SelectionModel(encoder, _head(options, context), autocast=context.autocast).to(device)


def _encoder(options: CetOptions, context: LossContext) -> nn.Module | None:
    if options.selection_model == FEATURES_ONLY:
        return None
    if options.selection_model is None:
        return copy.deepcopy(context.model)
    from sentence_transformers import CrossEncoder

    length = getattr(context.model, "max_seq_length", None)
    try:
        model = CrossEncoder(options.selection_model, num_labels=1, max_length=length)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"loss cet: selection_model {options.selection_model!r} does not load as a CrossEncoder: {error}"
        ) from error
    dropout = getattr(context.config, "head_dropout", None)
    if dropout is not None:
        set_head_dropout(model, dropout)
    lora = getattr(context.config, "lora", None)
    if lora is not None:
        from ..training.lora import add_lora  # the trainer imports the losses

        add_lora(model, lora)
    return model


def _head(options: CetOptions, context: LossContext) -> FeatureHead | None:
    if not options.selection_features:
        return None
    known: list[Tensor] = []
    for table in context.tables:
        if "first_rank" not in table.scores:
            raise ConfigError(
                f"loss cet: selection_features need the first stage's run, and {table.name} has none; give "
                "data.runs.first_stage"
            )
        scores = torch.from_numpy(table.scores["first_stage"].copy()).double()
        known.append(scores[~scores.isnan()])
    scores = torch.cat(known) if known else torch.zeros(0)
    enough = len(scores) > 1 and float(scores.std()) > 0
    centre, spread = (float(scores.mean()), float(scores.std())) if enough else (0.0, 1.0)
    return FeatureHead(options.selection_features, centre=centre, spread=spread)
