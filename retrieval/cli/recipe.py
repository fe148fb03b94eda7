"""`rtk recipe`: published experiments as one file, run command by command."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...errors import ConfigError
from .console import emit, emit_json, session, table
from .options import Json, Quiet

if TYPE_CHECKING:
    from ..experiments import Recipe

__all__ = ["NAME", "app"]

NAME = "recipe"
UNEXPECTED = 5
"""Exit code of a recipe that ran whole and whose numbers lie outside of what was expected."""

Name = Annotated[str, typer.Argument(help="A name of `rtk recipe list`, or the YAML of your own.", show_default=False)]
Variant = Annotated[str, typer.Option("--variant", help="Which way to run it.")]

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="""Published experiments: every command, and the numbers to expect.

[dim]Examples:[/dim]

  rtk recipe list

  rtk recipe run adore --variant small collection=data/nfcorpus --out runs/adore
""",
)


@app.command("list")
def list_(json: Json = False) -> None:
    """The recipes that come with rtk.

    [dim]Examples:[/dim]

      rtk recipe list

      rtk recipe list --json
    """
    from ..experiments import list_recipes

    found = list_recipes()
    if json:
        emit_json({name: recipe.model_dump(mode="json") for name, recipe in found.items()})
        return
    rows = [(name, ", ".join(recipe.variants), recipe.title) for name, recipe in found.items()]
    emit(table(("name", "variants", "what"), rows))


@app.command(no_args_is_help=True)
def show(name: Name, variant: Annotated[str | None, typer.Option("--variant", help="Only this one.")] = None) -> None:
    """What a recipe does: its commands and the numbers to expect.

    [dim]Examples:[/dim]

      rtk recipe show tas-b

      rtk recipe show adore --variant small
    """
    from ..experiments import find_recipe

    recipe = find_recipe(name)
    chosen = [variant] if variant else list(recipe.variants)
    parts = [recipe.title, recipe.paper, recipe.notes.strip(), *(_shown(recipe, each) for each in chosen)]
    emit("\n\n".join(part for part in parts if part))


def _shown(recipe: Recipe, name: str) -> str:
    import yaml

    variant = recipe.variant(name)
    lines = [f"## {name}: {variant.about.strip()}", *([f"needs: {variant.needs.strip()}"] if variant.needs else [])]
    lines += [f"value {key}={value}" for key, value in variant.values.items()]
    lines += [f"seeds: {' '.join(map(str, variant.seeds))}"]
    lines += [*([f"sets: {' '.join(variant.sets)}"] if variant.sets else []), ""]
    for step in variant.steps:
        if step.run is not None:
            lines.append(f"{step.name}: rtk {step.run}")
        else:
            text = yaml.safe_dump(step.train, sort_keys=False, allow_unicode=True)
            lines += [f"{step.name}: rtk train with", *(f"    {line}" for line in text.splitlines())]
    lines += [
        "",
        *(
            f"expected: {f'mean of {len(variant.sets)} sets, ' if spec.over_sets else ''}{spec.split}: {item.row}, "
            f"{item.measure}: {item.value} ± {item.tolerance} ({item.source})"
            for spec in variant.tables
            for item in spec.expect
        ),
    ]
    return "\n".join(lines).rstrip()


@app.command(no_args_is_help=True)
def run(
    name: Name,
    values: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME=VALUE]...", help="In place of the variant's values.")
    ] = None,
    variant: Variant = "small",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Where everything goes (default: runs/NAME-VARIANT).")
    ] = None,
    seeds: Annotated[str | None, typer.Option("--seeds", help="Such as 1,2,3, in place of the variant's.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the commands and stop.")] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run the whole chain and compare with the numbers to expect; a stopped one goes on where it was.

    Exit code 5: it ran, and a number lies outside of its tolerance.

    [dim]Examples:[/dim]

      rtk recipe run adore --variant small collection=data/nfcorpus

      rtk recipe run my-recipe.yaml --variant small --seeds 1,2,3 --dry-run
    """
    with session(quiet=quiet):
        from ..experiments import find_recipe, run_recipe

        recipe = find_recipe(name)
        out = out or Path("runs") / f"{Path(name).stem}-{variant}"
        given, chosen = _values(values or []), _seeds(seeds)
        if dry_run:
            emit("\n".join(_dry(recipe, variant, given, chosen, out)))
            return
        result = run_recipe(recipe, variant, out, values=given, seeds=chosen)
    if json:
        outcomes = [outcome.to_dict() for outcome in result.outcomes]
        emit_json({"out": str(out), "as_expected": result.as_expected, "outcomes": outcomes})
    else:
        emit(f"{result.report}\n\nwritten: {out} (the table: {out / 'table.md'})")
    if not result.as_expected:
        raise typer.Exit(UNEXPECTED)


def _dry(recipe: Any, variant: str, given: dict[str, str], seeds: list[int] | None, out: Path) -> list[str]:
    from ..experiments.runner import fill_names, plan_commands

    chosen = recipe.variant(variant)
    names = fill_names(chosen, given, out)
    lines: list[str] = []
    for command in plan_commands(chosen, names, seeds or chosen.seeds):
        lines += [f"# {command.key}", command.text]
        lines += [f"#   {line}" for line in command.config[1].splitlines()] if command.config else []
    return lines


def _values(items: list[str]) -> dict[str, str]:
    bad = [f"{item!r} is not NAME=VALUE" for item in items if not item.partition("=")[0] or "=" not in item]
    if bad:
        raise ConfigError("bad values:", bad)
    return {name: value for name, _, value in (item.partition("=") for item in items)}


def _seeds(text: str | None) -> list[int] | None:
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() for part in parts):
        raise ConfigError(f"--seeds {text!r}: expected whole numbers with commas, such as 1,2,3")
    return [int(part) for part in parts]
