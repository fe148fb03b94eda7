"""Recipes: every command once, resumed where stopped, and the numbers held against what was expected."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from rtk.errors import BackendError, ConfigError, DataError
from rtk.eval.measures import Evaluation
from rtk.eval.split_part import parse_split
from rtk.ids import Ids
from rtk.retrieval.experiments import Recipe, find_recipe, list_recipes, run_recipe
from rtk.retrieval.experiments.recipe import fill
from rtk.retrieval.experiments.runner import fill_names, plan_commands
from rtk.retrieval.experiments.table import average

SMALL: dict[str, Any] = {
    "title": "BM25 twice",
    "variants": {
        "small": {
            "about": "a toy",
            "values": {"collection": "tiny", "k": "3"},
            "seeds": [1, 2],
            "steps": [
                {"name": "index", "run": "index {collection} --out {out}/bm25"},
                {"name": "search", "run": "search {out}/bm25 -c {collection} -k {k} --out {out}/{seed}.trec"},
            ],
            "tables": [
                {
                    "collection": "{collection}",
                    "measures": ["nDCG@10"],
                    "rows": {"first": "{out}/1.trec", "each": "{out}/{seed}.trec"},
                    "baselines": ["first"],
                    "expect": [
                        {"row": "each", "measure": "nDCG@10", "value": 1, "tolerance": 0.4, "source": "by hand"}
                    ],
                }
            ],
        }
    },
}


TABLE = {"collection": "c", "measures": ["AP"], "rows": {"a": "b"}}
OVER_SETS = {"collection": "{set}", "rows": {"a": "{set}"}}
EXPECTED = {"row": "a", "measure": "AP", "value": 1, "tolerance": 1, "source": "s"}


def changed(**variant: Any) -> Recipe:
    return Recipe.model_validate({**SMALL, "variants": {"small": {**SMALL["variants"]["small"], **variant}}})


def rtk(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "rtk", *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", list_recipes())
def test_every_recipe_that_comes_with_rtk_is_one_and_its_configurations_are_valid(name: str, tmp_path: Path):
    from rtk.retrieval.training.config import load_config

    recipe = find_recipe(name)
    assert recipe.paper
    for label, variant in recipe.variants.items():
        names = fill_names(variant, {}, tmp_path)
        for command in plan_commands(variant, names, variant.seeds):
            words = shlex.split(command.text)
            for split in (word for before, word in pairwise(words) if before == "--split"):
                assert not set("[]") & set(parse_split(split)[0]), (name, label, command.key, split)
            if command.config is None:
                continue
            values = yaml.safe_load(command.config[1])
            try:
                load_config(values)
            except ConfigError as error:  # files that earlier steps make are not there yet
                missing = [problem for problem in error.problems if "there is no " not in problem]
                assert not missing, (name, label, command.key, missing)


@pytest.mark.parametrize(
    ("name", "variant", "figure"),
    [
        ("splade", "published", 0.487),
        ("splade-distil", "published-v2", 0.499),
        ("splade-distil", "published", 0.507),
        ("inference-free", "published", 0.504),
        ("inference-free", "published-l0", 0.5043),
        ("echo-mistral-splade", "published", 0.5507),
    ],
)
def test_sparse_recipes_search_all_of_beir_for_the_mean_that_they_expect(name: str, variant: str, figure: float):
    chosen = find_recipe(name).variant(variant)
    table = next(table for table in chosen.tables if table.over_sets)
    assert [item.value for item in table.expect] == [figure]
    assert len(set(chosen.sets)) == 13
    texts = [command.text for command in plan_commands(chosen, fill_names(chosen, {}, Path("o")), chosen.seeds)]
    for place in table.rows.values():
        runs = [place.format_map({"out": "o", "seed": "42", "set": each}) for each in chosen.sets]
        assert all(sum(text.endswith(f"--out {run}") for text in texts) == 1 for run in runs)


def test_the_recipe_of_the_documentation_is_one(tmp_path: Path):
    text = (Path(__file__).parent.parent / "docs" / "recipes.md").read_text(encoding="utf-8")
    path = tmp_path / "mine.yaml"
    path.write_text(text.split("```yaml\n")[1].split("```")[0])
    commands = plan_commands(find_recipe(str(path)).variant("small"), {"out": "o", "collection": "c"}, [1, 2])
    assert [command.key for command in commands][-1] == "search two, seed 2"
    assert [command.key for command in commands].count("bm25") == 1


def test_run_resume_change_and_table(beir_folder: Callable[..., Path], tmp_path: Path):
    """One recipe through the program: the table, then nothing is done again, then another command is refused."""
    collection, path, out = beir_folder(), tmp_path / "mine.yaml", tmp_path / "out"
    path.write_text(yaml.safe_dump(SMALL))
    arguments = ("recipe", "run", str(path), f"collection={collection}", "--out", str(out))
    done = rtk(*arguments)
    assert done.returncode == 0, done.stderr
    assert "as expected" in done.stdout
    state = json.loads((out / "recipe.json").read_text())
    assert list(state["steps"]) == ["index", "search, seed 1", "search, seed 2"]
    assert state["outcomes"][0]["within"] is True
    assert "| each |" in (out / "table.md").read_text()
    assert "Over seeds" in (out / "table.md").read_text()
    before = (out / "bm25" / "manifest.json").stat().st_mtime_ns
    again = rtk(*arguments)
    assert again.returncode == 0
    assert again.stdout == done.stdout
    assert (out / "bm25" / "manifest.json").stat().st_mtime_ns == before
    other = rtk(*arguments, "k=2")
    assert other.returncode == 2
    assert "search, seed 1: there rtk search" in other.stderr
    strict = [{"row": "each", "measure": "nDCG@10", "value": 0.1, "tolerance": 0.01, "source": "by hand"}]
    tables = [{**SMALL["variants"]["small"]["tables"][0], "expect": strict}]
    path.write_text(yaml.safe_dump(changed(tables=tables).model_dump(mode="json")))
    outside = rtk(*arguments)
    assert outside.returncode == 5
    assert "OUTSIDE" in outside.stdout
    elsewhere = collection.rename(collection.with_name("other"))
    values = (f"collection={elsewhere}", "k=2")
    different = rtk("recipe", "run", str(path), *values, "--out", str(tmp_path / "elsewhere"))
    assert different.returncode == 0, "a figure of another collection and depth says nothing about this one"
    told = "nothing for other: what the recipe expects was measured with collection=tiny (here other), k=3 (here 2)"
    assert told in different.stdout
    assert json.loads((tmp_path / "elsewhere" / "recipe.json").read_text())["outcomes"] == []


def test_a_chain_over_several_sets_is_held_against_the_mean_of_the_sets(
    beir_folder: Callable[..., Path], tmp_path: Path
):
    beir_folder("one")
    beir_folder("two", qrels={"test": [("q0", "d4", 1)]})  # which has no word of the query
    steps = [
        {"name": "index", "run": "index {folder}/{set} --out {out}/{set}/bm25"},
        {"name": "search", "run": "search {out}/{set}/bm25 -c {folder}/{set} -k 3 --out {out}/{seed}/{set}.trec"},
    ]
    table: dict[str, Any] = {
        "collection": "{folder}/{set}",
        "measures": ["nDCG@10"],
        "rows": {"BM25": "{out}/{seed}/{set}.trec"},
        "expect": [{"row": "BM25", "measure": "nDCG@10", "value": 0.5, "tolerance": 0.5, "source": "by hand"}],
    }
    recipe = changed(values={"folder": str(tmp_path)}, steps=steps, tables=[table], sets=["one", "two"], seeds=[1, 2])
    found = run_recipe(recipe, "small", tmp_path / "out")
    keys = list(json.loads((tmp_path / "out" / "recipe.json").read_text())["steps"])
    assert keys[:4] == ["index, one", "index, two", "search, seed 1, one", "search, seed 1, two"]
    assert len(keys) == 6
    assert {"table-1-one.json", "table-1-two.json"} <= {path.name for path in (tmp_path / "out").iterdir()}
    assert found.outcomes[0].measured == 0.5
    written = (tmp_path / "out" / "table.md").read_text().replace(" ", "")
    assert all(line in written for line in ("|one|1.0000|", "|two|0.0000|", "|mean|0.5000|"))
    rows = {"first": "{out}/1/one.trec", "of {set}": "{out}/{seed}/{set}.trec"}
    own = {"collection": "{folder}/one", "measures": ["nDCG@10"], "rows": rows, "baselines": ["first"]}
    recipe = changed(values={"folder": str(tmp_path)}, steps=steps, tables=[own], sets=["one", "two"], seeds=[1, 2])
    told = run_recipe(recipe, "small", tmp_path / "out").report
    assert all(name in told for name in ("first", "of one", "of two")), "a row for each set"


def test_a_step_that_fails_stops_the_recipe_and_says_why(tmp_path: Path):
    with pytest.raises(BackendError, match=r"(?s)step 'index' failed with exit code 2.*nowhere") as caught:
        run_recipe(changed(), "small", tmp_path / "out", values={"collection": str(tmp_path / "nowhere")})
    assert "logs" in str(caught.value)
    assert not (tmp_path / "out" / "recipe.json").exists()


def test_a_run_that_no_step_made(beir_folder: Callable[..., Path], tmp_path: Path):
    recipe = changed(steps=[])
    with pytest.raises(DataError, match="no step has made it"):
        run_recipe(recipe, "small", tmp_path / "out", values={"collection": str(beir_folder())})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": [{"name": "a"}]}, "give either run or train"),
        ({"steps": [{"name": "a", "run": "x"}, {"name": "a", "run": "y"}]}, "same name: a"),
        ({"steps": [{"name": "a", "run": "index {nothing}"}]}, "unknown names in braces: nothing"),
        ({"tables": [{**TABLE, "baselines": ["z"]}]}, "no rows: z"),
        ({"tables": [{**TABLE, "expect": [{**EXPECTED, "row": "z"}]}]}, "has no AP of 'z'"),
        ({"tables": []}, "at least 1"),
        ({"steps": [{"name": "a", "run": "index {set}"}]}, "unknown names in braces: set"),
        ({"tables": [{**TABLE, "collection": "{set}"}], "sets": ["s"]}, "in a row and its name: a"),
        ({"tables": [{**TABLE, "rows": {"a": "{set}"}}], "sets": ["s"]}, "in a row and its name: a"),
        ({"tables": [{**TABLE, "rows": {"{set}": "{set}"}, "baselines": ["{set}"]}], "sets": ["s"]}, "name one row"),
        ({"tables": [{**TABLE, **OVER_SETS, "baselines": ["a"]}], "sets": ["s"]}, "held against none"),
        ({"stepz": []}, "stepz"),
    ],
)
def test_what_is_not_a_recipe_is_refused(change: dict[str, Any], message: str, tmp_path: Path):
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump({**SMALL, "variants": {"small": {**SMALL["variants"]["small"], **change}}}))
    with pytest.raises(ConfigError) as caught:
        find_recipe(str(path))
    assert message in str(caught.value)


def test_unknown_names_are_refused_with_the_known_ones(tmp_path: Path):
    with pytest.raises(ConfigError, match="no recipe 'ador'"):
        find_recipe("ador")
    with pytest.raises(ConfigError, match=r"no variant 'smal'.*small"):
        changed().variant("smal")
    with pytest.raises(ConfigError, match="colection"):
        run_recipe(changed(), "small", tmp_path, values={"colection": "x"})


def test_braces_are_filled_at_any_depth_and_a_name_alone_keeps_its_type():
    assert fill({"a": ["{seed}", "x-{seed}"], "b": 3}, {"seed": "7"}) == {"a": [7, "x-7"], "b": 3}
    assert fill("Query: {{text}}", {}) == "Query: {text}", "as in a command, also where no name stands"


def test_the_mean_over_seeds_is_query_by_query():
    rules = {"drop_identical_ids": True}
    found = [
        Evaluation("x", Ids(["a", "b"]), {"AP": np.asarray(values)}, dropped=dropped, conventions=rules)
        for dropped, values in enumerate(([0.0, 1.0], [1.0, 1.0]))
    ]
    row = average("row", found)
    assert (row.name, row["AP"].tolist()) == ("row", [0.5, 1.0])
    assert row.to_dict()["conventions"] == rules, "how it was evaluated stays in the report"
    assert row.dropped == 1
    with pytest.raises(DataError, match="different queries"):
        average("row", [found[0], Evaluation("x", Ids(["a", "c"]), {"AP": np.zeros(2)})])


def test_a_terminated_recipe_takes_its_step_with_it(tmp_path: Path):
    """As a scheduler stops a job: a step that goes on would write beside the next start of the recipe."""
    sleeper = tmp_path / "sleeper"
    sleeper.write_text(
        f"#!/bin/sh\necho $$ > {tmp_path}/pid.part\nmv {tmp_path}/pid.part {tmp_path}/pid\nexec sleep 600\n"
    )
    sleeper.chmod(0o755)
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(SMALL))
    program = "import sys; sys.executable = sys.argv[1]; from rtk.retrieval.cli.main import run; run(sys.argv[2:])"
    arguments = ("recipe", "run", str(path), "--out", str(tmp_path / "out"))
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(sleeper), *arguments], stderr=subprocess.PIPE, text=True
    )
    while not (tmp_path / "pid").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.terminate()
    assert process.wait(60) == 143
    assert process.stderr is not None
    assert process.stderr.read().endswith("stopped\n")
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
