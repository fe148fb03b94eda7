"""Recipes: whole experiments as one file, run command by command, and held against the numbers to expect."""

from __future__ import annotations

from .recipe import Expectation, Recipe, Step, TableSpec, Variant, find_recipe, list_recipes
from .runner import Result, run_recipe

__all__ = [
    "Expectation",
    "Recipe",
    "Result",
    "Step",
    "TableSpec",
    "Variant",
    "find_recipe",
    "list_recipes",
    "run_recipe",
]
