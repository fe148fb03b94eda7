"""What a recipe is: a YAML file with the commands of an experiment and the numbers to expect of it.

    title: ADORE
    paper: Zhan et al., SIGIR 2021, arXiv 2104.08051
    variants:
      small:
        about: all-MiniLM-L6-v2 on nfcorpus
        values: {collection: data/nfcorpus}
        seeds: [1, 2, 3]
        steps:
          - {name: index, run: "index {collection} --retriever minilm --out {out}/zero"}
          - name: train
            train: {method: adore, model: minilm, output: "{out}/{seed}/adore", seed: "{seed}"}
          - {name: search, run: "search {out}/zero -m {out}/{seed}/adore -c {collection} --out {out}/{seed}/adore.trec"}
        tables:
          - collection: "{collection}"
            measures: [nDCG@10, R@100]
            rows: {ADORE: "{out}/{seed}/adore.trec"}
            expect:
              - {row: ADORE, measure: nDCG@10, value: 0.36, tolerance: 0.01, source: measured here}

`run` is a command of `rtk` without the word; `train` is a training configuration, which is written to a file and given
to `rtk train`. Texts may hold {out}, {seed} and the names under `values`; a step or row with {seed} is done for each
seed. Nothing is said twice: what the chain does is what a user would type. A variant with `sets: [nfcorpus, scifact]`
does what holds {set} for each of them. A table whose collection holds it, "beir/{set}", is of the mean over them; in
any other a row that is named with {set} stands for one of each.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from string import Formatter
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, ValidationError, model_validator

from ...errors import ConfigError, DataError, nearest

__all__ = ["Expectation", "Recipe", "Step", "TableSpec", "Variant", "fill", "find_recipe", "list_recipes", "uses"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Step(_Part):
    """One command: `run`, the words after `rtk`, or `train`, a training configuration."""

    name: str
    run: str | None = None
    train: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _one_of_two(self) -> Step:
        if (self.run is None) == (self.train is None):
            raise ValueError(f"step {self.name!r}: give either run or train")
        return self


class Expectation(_Part):
    """A number to expect, how far off is still the same, and who says so."""

    row: str
    measure: str
    value: float
    tolerance: PositiveFloat
    source: str


class TableSpec(_Part):
    """What is evaluated: runs by row name, the rows that the others are held against, and what should come out.

    With {set} in the collection and in every row, measured and expected is the mean over the variant's sets; with
    {set} in a row and its name only, there is such a row for each of them.
    """

    collection: str
    split: str = "test"
    measures: tuple[str, ...]
    rows: dict[str, str]
    baselines: tuple[str, ...] = ()
    expect: tuple[Expectation, ...] = ()

    @model_validator(mode="after")
    def _names_are_rows(self) -> TableSpec:
        unknown = [name for name in self.baselines if name not in self.rows]
        if unknown:
            raise ValueError(f"baselines that are no rows: {', '.join(unknown)}")
        for item in self.expect:
            if item.row not in self.rows or item.measure not in self.measures:
                raise ValueError(f"expect: the table has no {item.measure} of {item.row!r}")
        over = {name: self.over_sets or uses("set", name) for name in self.rows}
        strange = [name for name, place in self.rows.items() if uses("set", place) != over[name]]
        if strange:
            raise ValueError(f"{{set}} is in every row of a collection with {{set}}, or in a row and its name: "
                             f"{', '.join(strange)}")  # fmt: skip
        if self.over_sets and self.baselines:
            raise ValueError("baselines: a mean over sets is held against none; leave them out")
        if several := [name for name in (*self.baselines, *(item.row for item in self.expect)) if uses("set", name)]:
            raise ValueError(f"baselines, expect: name one row, not one for each set: {', '.join(several)}")
        return self

    def with_rows_of(self, sets: Sequence[str]) -> TableSpec:
        """The table with each row that is named with {set} written out for every one of them."""
        rows = {
            name.replace("{set}", chosen): place.replace("{set}", chosen)
            for name, place in self.rows.items()
            for chosen in (sets if uses("set", name) else ("{set}",))
        }
        return self.model_copy(update={"rows": rows})

    @property
    def over_sets(self) -> bool:
        return uses("set", self.collection)


class Variant(_Part):
    """One way to run a recipe.

    Attributes:
        values: what the names in braces stand for, where none is given.
        sets: what {set} stands for, one after the other.
    """

    about: str
    needs: str = ""
    values: dict[str, str] = Field(default_factory=dict[str, str])
    seeds: tuple[int, ...] = (42,)
    sets: tuple[str, ...] = ()
    steps: tuple[Step, ...]
    tables: tuple[TableSpec, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _consistent(self) -> Variant:
        names = [step.name for step in self.steps]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"steps of the same name: {', '.join(twice)}")
        known = {"out", "seed", *self.values} | ({"set"} if self.sets else set())
        texts = [leaf for step in self.steps for leaf in _leaves(step.run or step.train)]
        texts += [text for table in self.tables for text in (table.collection, *table.rows.values())]
        unknown = sorted({name for text in texts for name in _names(text)} - known)
        if unknown:
            raise ValueError(f"unknown names in braces: {', '.join(unknown)}; known: {', '.join(sorted(known))}")
        return self


class Recipe(_Part):
    """A published experiment."""

    title: str
    paper: str = ""
    notes: str = ""
    variants: dict[str, Variant]

    def variant(self, name: str) -> Variant:
        """The variant of that name; `ConfigError` with the known ones otherwise."""
        if name not in self.variants:
            known = ", ".join(self.variants)
            raise ConfigError(f"{self.title} has no variant {name!r}{nearest(name, self.variants)}; it has {known}")
        return self.variants[name]


def list_recipes() -> dict[str, Recipe]:
    """The recipes that come with rtk, by name."""
    folder = resources.files("rtk.recipes")
    found = sorted(item.name for item in folder.iterdir() if item.name.endswith(".yaml"))
    return {name.removesuffix(".yaml"): _parse(folder.joinpath(name).read_text("utf-8"), name) for name in found}


def find_recipe(name: str) -> Recipe:
    """A recipe by name, or one's own by the path of its file.

    Raises:
        ConfigError: there is none; its contents are not a recipe.
        DataError: the file is not readable as YAML.
    """
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
        if not path.is_file():
            raise ConfigError(f"{path} is not a file; give the YAML of a recipe, or a name of `rtk recipe list`.")
        return _parse(path.read_text(encoding="utf-8"), path)
    known = list_recipes()
    if name not in known:
        raise ConfigError(f"there is no recipe {name!r}{nearest(name, known)}; known: {', '.join(known)}")
    return known[name]


def _parse(text: str, where: str | Path) -> Recipe:
    try:
        value = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else None
        raise DataError(f"not valid YAML: {error.problem}", path=where, line=line) from error
    try:
        return Recipe.model_validate(value)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()]
        raise ConfigError(f"{where} is not a recipe:", problems) from error


def fill(value: Any, names: Mapping[str, str]) -> Any:
    """Put values for the names in braces, at any depth; doubled braces become single ones.

    A text that is one name alone becomes YAML ("{seed}" → 1).
    """
    if isinstance(value, str):
        used = _names(value)
        text = value.format_map(names)
        return yaml.safe_load(text) if len(used) == 1 and value == f"{{{used[0]}}}" else text
    if isinstance(value, Mapping):
        return {key: fill(item, names) for key, item in value.items()}
    return [fill(item, names) for item in value] if isinstance(value, list | tuple) else value


def words(command: str, names: Mapping[str, str]) -> list[str]:
    """The command's arguments; a value with blanks stays one of them."""
    return [word.format_map(names) for word in shlex.split(command)]


def uses(name: str, value: Any) -> bool:
    """Whether the name in braces stands in it, at any depth."""
    return any(name in _names(text) for text in _leaves(value))


def _leaves(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    items: Sequence[Any] = list(value.values()) if isinstance(value, Mapping) else value
    return [leaf for item in items for leaf in _leaves(item)] if isinstance(items, list | tuple) else []


def _names(text: str) -> list[str]:
    return [name for _, name, _, _ in Formatter().parse(text) if name]
