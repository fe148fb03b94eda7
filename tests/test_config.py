"""The training configuration: presets, overrides, and every problem told at once."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from rtk.errors import ConfigError, DataError
from rtk.retrieval.training import arguments
from rtk.retrieval.training.config import load_config, print_config
from rtk.retrieval.training.methods import METHODS

MINIMAL = {"method": "contrastive", "model": "minilm", "data": {"collection": "c"}, "output": "out"}


def problems(config: dict, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(config, overrides)
    assert all(problem in str(caught.value) for problem in caught.value.problems)
    return list(caught.value.problems)


def test_the_smallest_configuration_is_filled_in_by_its_method():
    config = load_config(MINIMAL)
    assert [loss.name for loss in config.loss] == ["infonce"]
    assert config.trainer["per_device_train_batch_size"] == 32
    assert config.seed == 42
    assert load_config({**MINIMAL, "method": "cross-encoder"}).sampling.negatives == 7


# What a preset cannot do without, beside a collection.
NEEDED: dict[str, dict[str, object]] = {
    "adore": {"data": {"collection": "c", "index": str(Path(__file__).parent)}},
    "first": {"data": {"collection": "c", "runs": {"first_stage": __file__}}},
    "full-rank": {"data": {"collection": "c", "runs": {"first_stage": __file__}}},
    "grpo": {"data": {"collection": "c", "runs": {"first_stage": __file__}}, "evaluation": None},
    "inference-free": {"data": {"collection": "c", "runs": {"teachers": [__file__]}}},
    "masked-lm": {"evaluation": None},
    "rank-gpt": {"data": {"collection": "c", "lists": __file__}},
    "star": {"data": {"collection": "c", "runs": {"negatives": __file__}}},
    "tas-balanced": {
        "data": {"collection": "c", "runs": {"negatives": __file__, "teachers": [__file__]}},
        "loss": [{"name": "margin-mse", "similarity": "dot"}],
    },
}


@pytest.mark.parametrize("method", METHODS)
def test_the_printed_configuration_reads_back_as_itself(method: str):
    given = {**MINIMAL, "evaluation": {"collection": "c", "run": __file__}, **NEEDED.get(method, {})}
    config = load_config({**given, "method": method})
    assert load_config(yaml.safe_load(print_config(config))) == config


def test_what_is_given_wins_over_the_preset_block_by_block():
    config = load_config({**MINIMAL, "trainer": {"learning_rate": 1e-3}, "loss": [{"name": "infonce", "scale": 5}]})
    assert config.trainer["learning_rate"] == 1e-3
    assert config.trainer["num_train_epochs"] == 1
    assert config.loss[0].scale == 5


def test_overrides_are_yaml_and_reach_into_lists():
    config = load_config(
        MINIMAL, ["trainer.learning_rate=7e-6", "data.split=dev", "loss.0.weight=2", "lengths.query=16", "seed=7"]
    )
    assert config.trainer["learning_rate"] == 7e-6
    assert (config.data.split, config.loss[0].weight, config.lengths.query, config.seed) == ("dev", 2.0, 16, 7)


def test_overrides_that_lead_nowhere_are_problems():
    found = problems(MINIMAL, "trainer", "loss.4.weight=1", "model.x=1")
    assert len(found) == 3
    assert all("override" in problem for problem in found), found


def test_a_part_of_a_split_that_cannot_be_is_refused_before_anything_is_loaded():
    (found,) = problems(MINIMAL, "data.split=train[:0.4%]")
    assert "data.split" in found, found
    assert "a part of a split is written as in" in found, found
    assert load_config(MINIMAL, ["data.split=train[:4%]"]).data.split == "train[:4%]"


def test_a_learning_rate_without_a_dot_is_a_number(tmp_path: Path):
    path = tmp_path / "c.yaml"
    path.write_text("method: contrastive\nmodel: m\ndata: {collection: c}\noutput: o\ntrainer: {learning_rate: 7e-6}\n")
    assert load_config(path).trainer["learning_rate"] == 7e-6


def test_every_problem_is_told_at_once_with_the_nearest_name():
    config = {
        "method": "contrastive",
        "modle": "minilm",
        "data": {"colection": "c", "positive_grade": 0, "runs": {"negatives": "no-such.run"}},
        "lengths": {"query": -3},
        "sampling": {"negativs": 2},
        "loss": [{"name": "infonse"}, {"name": "binary-cross-entropy"}, {"name": "infonce", "scal": 2}],
        "trainer": {"learning_rat": 1, "batch_sampler": "no_duplicates", "output_dir": "x", "max_steps": "many"},
        "output": "o",
    }
    text = "\n".join(problems(config))
    for expected in (
        "modle: unknown key (did you mean 'model'?)",
        "model: required",
        "data.colection: unknown key (did you mean 'collection'?)",
        "data.positive_grade",
        "lengths.query",
        "sampling.negativs: unknown key (did you mean 'negatives'?)",
        "loss.0.name: unknown loss 'infonse' (did you mean 'infonce'?)",
        "loss.1.name: 'binary-cross-entropy' is for a cross-encoder",
        "loss.2.scal: unknown key (did you mean 'scale'?)",
        "trainer.learning_rat: unknown key (did you mean 'learning_rate'?)",
        "trainer.batch_sampler: not here",
        "trainer.output_dir: not here",
        "trainer.max_steps",
    ):
        assert expected in text


def test_a_bare_no_is_told_to_be_a_truth_value():
    (found,) = problems({**MINIMAL, "trainer": {"save_strategy": False}})
    assert found.startswith("trainer.save_strategy: False: a bare yes or no is a truth value in YAML; put it in quotes")
    assert load_config({**MINIMAL, "trainer": {"save_strategy": "no"}}).trainer["save_strategy"] == "no"


@pytest.mark.parametrize("key", ["output_dir", "seed", "batch_sampler", "drop_last", "dataloader_drop_last"])
def test_arguments_that_rtk_owns_are_refused_with_the_reason(key: str):
    found = problems({**MINIMAL, "trainer": {key: 1}})
    assert found == [f"trainer.{key}: not here: {arguments.OWNED[key]}"]


def test_the_names_checked_without_an_import_are_real_arguments():
    known = arguments.argument_names()
    assert known >= arguments.COMMON
    assert {name for name in arguments.OWNED if name not in known} == {"drop_last"}
    assert dataclasses.is_dataclass(METHODS["contrastive"])


def test_unknown_method_names_the_nearest():
    assert "did you mean 'contrastive'?" in problems({**MINIMAL, "method": "contrastiv"})[0]


def test_either_a_collection_or_a_mixture():
    assert "either" in problems({**MINIMAL, "data": {}})[0]
    assert "either" in problems({**MINIMAL, "data": {"collection": "c", "mixture": [{"collection": "d"}]}})[0]
    uneven = {"mixture": [{"collection": "c", "weight": 1}, {"collection": "d"}]}
    assert "every collection or to none" in problems({**MINIMAL, "data": uneven})[0]


def test_files_that_are_not_there_and_missing_candidates():
    found = problems({
        **MINIMAL, "method": "cross-encoder", "evaluation": {"collection": "c"},
        "data": {"collection": "c", "runs": {"negatives": ["a.run", "b.run"], "labels": "l.run"}},
    })  # fmt: skip
    assert sum("there is no file" in problem for problem in found) == 3
    assert any("evaluation.run" in problem for problem in found)


@pytest.mark.parametrize("save_steps", [150, 200, 50, "no"])
def test_checkpoints_are_written_at_evaluations(save_steps: int | str):
    """With fewer of them the best model would be gone."""
    config = {**MINIMAL, "evaluation": {"collection": "c", "every": 100}, "trainer": {"save_steps": save_steps}}
    assert "written after every evaluation" in problems(config)[0]
    assert load_config({**config, "trainer": {"save_steps": 100}}).trainer["save_steps"] == 100


def test_a_measure_that_looks_further_than_the_search_is_refused():
    config = {**MINIMAL, "evaluation": {"collection": "c", "measure": "R@1000"}}
    assert "looks further than evaluation.depth (100)" in problems(config)[0]
    assert load_config(config, ["evaluation.depth=1000"]).evaluation is not None


def test_arguments_that_would_do_nothing_are_refused():
    given = {
        "label_smoothing_factor": 0.1,
        "train_sampling_strategy": "group_by_length",
        "logging_nan_inf_filter": True,
    }
    found = problems({**MINIMAL, "trainer": given})
    assert len(found) == 3
    assert all("not here" in problem for problem in found)
    half = {**MINIMAL, "trainer": {"fp16": True}, "loss": [{"name": "infonce", "learn_scale": True}]}
    assert "use trainer.bf16" in problems(half)[0]


def test_star_without_negatives_is_refused():
    assert "trains on pairs" in problems({**MINIMAL, "method": "star"})[0]
    assert load_config({**MINIMAL, "method": "star", "sampling": {"negatives": 0}}).method == "star"


def test_a_broken_file_is_named_with_its_line(tmp_path: Path):
    path = tmp_path / "c.yaml"
    path.write_text("method: contrastive\ndata: [\n")
    with pytest.raises(DataError, match=r"c\.yaml:3"):
        load_config(path)


def test_checking_a_configuration_does_not_import_torch():
    code = (
        "import sys; from rtk.retrieval.training.config import load_config; "
        f"load_config({MINIMAL!r}, ['trainer.max_steps=3']); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd="/")


def test_a_learned_scale_is_not_accumulated_over_cached_batches():
    given = {"loss": [{"name": "infonce", "learn_scale": True}], "mini_batch_size": 4}
    assert load_config({**MINIMAL, **given})
    assert "learn_scale" in problems({**MINIMAL, **given}, "trainer.gradient_accumulation_steps=2")[0]
