"""Training: configuration, examples, methods, and the trainer over them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...lazy import lazy_names

if TYPE_CHECKING:
    from .config import TrainConfig, load_config, print_config
    from .data import make_table, open_table
    from .examples import RoleRuns, TrainingTable
    from .methods import METHODS, Method
    from .soup import make_soup
    from .trainer import train

_HOMES = {
    "METHODS": "methods",
    "Method": "methods",
    "RoleRuns": "examples",
    "TrainConfig": "config",
    "TrainingTable": "examples",
    "load_config": "config",
    "make_soup": "soup",
    "make_table": "data",
    "open_table": "data",
    "print_config": "config",
    "train": "trainer",
}

__all__ = [
    "METHODS",
    "Method",
    "RoleRuns",
    "TrainConfig",
    "TrainingTable",
    "load_config",
    "make_soup",
    "make_table",
    "open_table",
    "print_config",
    "train",
]

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
