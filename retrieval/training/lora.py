"""Low-rank adapters (Hu et al. 2022) through peft, on every transformer of a model that is trained.

peft puts the adapters in, sentence-transformers passes them on; what neither has is here: adapters on every route of a
model, a new head trained beside them, checkpoints that hold just what is trained, and merging in place.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from sentence_transformers.base.modules import Transformer
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...errors import ConfigError
from ...extras import require
from .blocks import Lora

__all__ = [
    "TRAINED_FILE",
    "AdapterCheckpoints",
    "add_lora",
    "has_adapters",
    "load_trained",
    "merge_lora",
    "save_trained",
]

TRAINED_FILE = "trained.safetensors"
_PURPOSE = "training with low-rank adapters (lora)"


def add_lora(model: nn.Module, block: Lora, *, checkpointing: bool = False) -> None:
    """Put adapters on the transformers of `model`, in place; their own weights are frozen.

    A classification head is trained whole: it is new, or about to be another. Modules after the transformer (a
    projection) stay trained as they were.

    Args:
        checkpointing: activations will be computed twice, which needs inputs that take a gradient.

    Raises:
        MissingExtra: peft is not installed.
        ConfigError: no layer has the names that were given, or none are known for the architecture.
    """
    peft = require("peft", "peft", _PURPOSE)
    networks = [module.model for module in model.modules() if isinstance(module, Transformer)]
    if isinstance(model, PreTrainedModel):
        networks = [model]
    if not networks:
        raise ConfigError("lora: the model has no transformer to put adapters on")
    targets = list(block.target_modules) if isinstance(block.target_modules, tuple) else block.target_modules
    for network in networks:
        settings = peft.LoraConfig(
            r=block.rank,
            lora_alpha=block.alpha,
            lora_dropout=block.dropout,
            target_modules=targets,
            modules_to_save=_heads(network) or None,
        )
        try:
            network.add_adapter(settings)
        except ValueError as error:
            raise ConfigError(f"lora.target_modules: {block.target_modules!r}: {error}") from error
        if checkpointing:
            network.enable_input_require_grads()


def _heads(network: Any) -> list[str]:
    """Names of the modules with weights beside the network's base model; a language model's own head is not new, and a
    copy of it would lose its tie to the word embeddings."""
    prefix = network.base_model_prefix
    if not isinstance(getattr(network, prefix, None), nn.Module) or network.get_output_embeddings() is not None:
        return []
    others = (item for item in network.named_children() if item[0] != prefix)
    return [name for name, child in others if next(child.parameters(), None) is not None]


def has_adapters(model: nn.Module) -> bool:
    """Whether a transformer of `model` has adapters on it."""
    return any(getattr(module, "_hf_peft_config_loaded", False) for module in model.modules())


def merge_lora(model: nn.Module) -> None:
    """Add every adapter's product to the weights under it and take it away, in place.

    The model is then what it was before `add_lora` but for its values: it saves and loads without peft.

    Raises:
        MissingExtra: peft is not installed.
        ValueError: a merged weight is not finite.
    """
    require("peft", "peft", _PURPOSE)
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    for parent, name, child in list(_children(model)):
        if isinstance(child, BaseTunerLayer):
            child.merge(safe_merge=True)
            setattr(parent, name, child.get_base_layer())
        elif isinstance(child, ModulesToSaveWrapper):
            setattr(parent, name, child.modules_to_save[child.active_adapters[0]])
    for module in cast(Any, model).modules():
        if getattr(module, "_hf_peft_config_loaded", False):
            module._hf_peft_config_loaded = False
            del module.peft_config


def _children(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    for parent in model.modules():
        for name, child in parent.named_children():
            yield parent, name, child


def save_trained(model: nn.Module, folder: Path) -> None:
    """Write the parameters that take a gradient: all that a checkpoint of a model with adapters must hold."""
    values = {name: value.detach().cpu().contiguous().clone() for name, value in _trained(model).items()}
    save_file(values, folder / TRAINED_FILE)


def load_trained(model: nn.Module, folder: Path) -> None:
    """Read what `save_trained` wrote into a model made in the same way.

    Raises:
        ConfigError: it was written for other adapters.
    """
    values, trained = load_file(folder / TRAINED_FILE), _trained(model)
    if values.keys() != trained.keys() or any(values[name].shape != value.shape for name, value in trained.items()):
        raise ConfigError(f"{folder / TRAINED_FILE} is of other adapters than this configuration's")
    with torch.no_grad():
        for name, value in trained.items():
            value.copy_(values[name])


def _trained(model: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


class AdapterCheckpoints:
    """Mixed into a trainer of transformers: checkpoints of a model with adapters, which it writes but cannot read."""

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        trainer = cast(Any, self)
        cast(Any, super())._save(output_dir, state_dict)
        if has_adapters(trainer.model):
            save_trained(trainer.model, Path(output_dir or trainer.args.output_dir))

    def _load_from_checkpoint(self, checkpoint_path: str, *wrapped: Any) -> None:
        model = cast(Any, self).model
        if has_adapters(model):
            load_trained(model, Path(checkpoint_path))
        else:
            cast(Any, super())._load_from_checkpoint(checkpoint_path, *wrapped)
