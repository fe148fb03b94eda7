"""Running a recipe: its commands in order, each once, then its table beside the numbers to expect."""

from __future__ import annotations

import logging
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ...errors import BackendError, ConfigError, nearest
from ...files import atomic_path, read_json, write_json
from .recipe import Recipe, Step, Variant, fill, uses, words
from .table import Outcome, make_tables

__all__ = ["Command", "Result", "fill_names", "plan_commands", "run_recipe"]

_LOG = logging.getLogger(__name__)
_STATE = "recipe.json"


@dataclass(frozen=True)
class Command:
    """A step for one seed, ready to run.

    Attributes:
        key: the step's name, with the seed and the set where it is done for each.
        arguments: what follows `rtk`.
        config: contents of the training configuration, and where it goes; None for other verbs.
    """

    key: str
    arguments: tuple[str, ...]
    config: tuple[Path, str] | None = None

    @property
    def text(self) -> str:
        return "rtk " + shlex.join(self.arguments)

    def record(self) -> dict[str, Any]:
        """What the step is; a finished one is done again never, and refused when this changed."""
        return {"command": self.text} | ({"config": self.config[1]} if self.config else {})


@dataclass(frozen=True)
class Result:
    """Where everything is, and what came out.

    Attributes:
        out: the folder.
        report: the tables as text.
        outcomes: measured against expected; empty without expectations.
    """

    out: Path
    report: str
    outcomes: tuple[Outcome, ...]

    @property
    def as_expected(self) -> bool:
        return all(outcome.within for outcome in self.outcomes)


def run_recipe(
    recipe: Recipe,
    variant: str,
    out: str | Path,
    *,
    values: Mapping[str, str] | None = None,
    seeds: Sequence[int] | None = None,
) -> Result:
    """Run what is not done yet, then evaluate.

    Every command is a process of its own, so that it is what a user would have typed; its output goes to
    OUT/logs. A stopped recipe goes on at the command that was stopped, which itself resumes where its verb can.

    Args:
        recipe: see `find_recipe`.
        variant: name of one of its variants.
        out: a folder for everything.
        values: in place of the variant's own, by name.
        seeds: in place of the variant's.

    Raises:
        ConfigError: unknown names; a finished step that would now be another command.
        BackendError: a command failed; the message ends with its last lines.
    """
    chosen, out = recipe.variant(variant), Path(out)
    names = fill_names(chosen, values or {}, out)
    seeds = tuple(seeds or chosen.seeds)
    commands = plan_commands(chosen, names, seeds)
    out.mkdir(parents=True, exist_ok=True)
    state: dict[str, Any] = read_json(out / _STATE) if (out / _STATE).is_file() else {"steps": {}}
    _refuse_changes(commands, state["steps"], out)
    for number, command in enumerate(commands, start=1):
        if state["steps"].get(command.key, {}).get("finished"):
            continue
        _LOG.info("[%d/%d] %s: %s", number, len(commands), command.key, command.text)
        seconds = _run(command, out)
        state["steps"][command.key] = {**command.record(), "finished": True, "seconds": round(seconds, 1)}
        write_json(out / _STATE, state)
    made = make_tables(recipe.title, chosen, names, seeds, out)
    write_json(out / _STATE, {**state, "outcomes": [outcome.to_dict() for outcome in made.outcomes]})
    return Result(out, made.text, made.outcomes)


def plan_commands(variant: Variant, names: Mapping[str, str], seeds: Sequence[int]) -> list[Command]:
    """Every command in the order in which it runs: the whole chain for the first seed, then for the next one what
    depends on it."""
    commands: list[Command] = []
    for number, seed in enumerate(seeds):
        for step in variant.steps:
            if number and not uses("seed", step.run or step.train):
                continue
            sets = variant.sets if uses("set", step.run or step.train) else (None,)
            commands += [_command(step, names, seed, chosen) for chosen in sets]
    return commands


def _command(step: Step, names: Mapping[str, str], seed: int, chosen: str | None) -> Command:
    filled, key = dict(names), step.name
    if uses("seed", step.run or step.train):
        filled, key = {**filled, "seed": str(seed)}, f"{key}, seed {seed}"
    if chosen is not None:
        filled, key = {**filled, "set": chosen}, f"{key}, {chosen}"
    if step.run is not None:
        return Command(key, tuple(words(step.run, filled)))
    path = Path(names["out"]) / "configs" / f"{_file_name(key)}.yaml"
    text = yaml.safe_dump(fill(step.train, filled), sort_keys=False, allow_unicode=True)
    return Command(key, ("train", str(path)), (path, text))


def fill_names(variant: Variant, given: Mapping[str, str], out: Path) -> dict[str, str]:
    """What the names in braces stand for, apart from seed and set; `ConfigError` for a value that the variant lacks."""
    unknown = [
        f"{name}: unknown value{nearest(name, variant.values)}; known: {', '.join(variant.values) or 'none'}"
        for name in given
        if name not in variant.values
    ]
    if unknown:
        raise ConfigError("the recipe has no such values:", unknown)
    return {**variant.values, **given, "out": str(out)}


def _refuse_changes(commands: Sequence[Command], done: Mapping[str, Any], out: Path) -> None:
    """A finished step stands for exactly its command: mixing two versions of a recipe would be no experiment."""
    changed = [
        f"{command.key}: there {done[command.key]['command']}, now {command.text}"
        + (" (or its configuration)" if command.config else "")
        for command in commands
        if command.key in done and any(done[command.key].get(name) != value for name, value in command.record().items())
    ]
    if changed:
        raise ConfigError(f"{out} holds results of other commands; give another --out. These differ:", changed)


def _run(command: Command, out: Path) -> float:
    """Run it; its seconds."""
    if command.config is not None:
        path, text = command.config
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    log = out / "logs" / f"{_file_name(command.key)}.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with log.open("w", encoding="utf-8") as sink:
        sink.write(f"$ {command.text}\n")
        sink.flush()
        code = subprocess.run(
            [sys.executable, "-m", "rtk", *command.arguments], stdout=sink, stderr=subprocess.STDOUT, check=False
        ).returncode
    if code:
        last = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-5:])
        raise BackendError(f"step {command.key!r} failed with exit code {code} (all of it: {log}):\n{last}")
    return time.monotonic() - started


def _file_name(key: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-." else "-" for letter in key)
