"""Reinforcement learning of rerankers: prompts as the rerankers send them, rewards by publication, a few steps."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("trl", reason='extra "trl" is not installed')

import torch

from rtk.errors import BackendError, ConfigError, DataError
from rtk.eval.files import write_run
from rtk.eval.run import Run
from rtk.retrieval.losses.language_options import GrpoOptions
from rtk.retrieval.rerankers.base import Candidate, Request
from rtk.retrieval.rerankers.families import load_family
from rtk.retrieval.rerankers.language_model import load_language_model
from rtk.retrieval.training import arguments, policy, policy_rewards
from rtk.retrieval.training.config import load_config
from rtk.retrieval.training.list_examples import open_lists
from rtk.retrieval.training.list_windows import Window
from rtk.retrieval.training.policy import asked_prompts, policy_examples
from rtk.retrieval.training.policy_rewards import REWARDS, Example
from rtk.retrieval.training.trainer import train

DOCUMENTS = ["flow of air", "a <|end|> marker", "gene", "vitamin study"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RTK_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def config(tiny_llama: Path, tmp_path: Path, next_word: tuple[Path, Path]) -> dict[str, Any]:
    folder, run = next_word
    return {
        "method": "grpo",
        "model": str(tiny_llama),
        "data": {"collection": str(folder), "runs": {"first_stage": str(run)}},
        "sampling": {"window": 2},
        "loss": [{"name": "grpo", "reward": "prorank", "generations": 4, "max_new_tokens": 2}],
        "lora": None,
        "trainer": {
            **{"per_device_train_batch_size": 8, "learning_rate": 1e-2, "max_steps": 2, "use_cpu": True},
            **{"bf16": False, "gradient_checkpointing": False, "logging_steps": 1, "save_steps": 1},
        },
        "output": str(tmp_path / "model"),
    }


def rewarded(config: dict[str, Any], name: str, **options: Any) -> dict[str, Any]:
    return {**config, "loss": [{"name": "grpo", "reward": name, "generations": 2, "max_new_tokens": 8, **options}]}


def test_arguments_are_trls_less_those_that_the_loss_has(config: dict, monkeypatch: pytest.MonkeyPatch):
    assert (arguments.argument_names(policy=True) or set()) >= arguments.OWNED_OF_POLICY.keys()
    more = {**config["trainer"], "num_iterations": 2, "steps_per_generation": 2, "scale_rewards": "none"}
    assert load_config({**config, "trainer": more}).trainer["num_iterations"] == 2
    with pytest.raises(ConfigError) as raised:
        load_config({**config, "trainer": {**more, "num_generations": 3, "beta": 0.1, "num_iteration": 2}})
    said = str(raised.value)
    assert "trainer.num_generations: not here: use `generations` of the loss" in said
    assert "trainer.beta: not here" in said
    assert "trainer.num_iteration: unknown key (did you mean 'num_iterations'?)" in said
    monkeypatch.setitem(sys.modules, "trl.trainer.grpo_config", None)
    assert load_config({**config, "trainer": more}).trainer["num_iterations"] == 2  # cannot be known without TRL


@pytest.mark.parametrize("name", sorted(REWARDS))
def test_prompts_are_what_the_reranker_sends(config: dict, name: str, monkeypatch: pytest.MonkeyPatch):
    given = {**rewarded(config, name), "prompt": {"words": 30, "tokens": None, "context": 4000}}
    asked = asked_prompts(load_config(given), "heat", DOCUMENTS, context=4000)
    model = load_language_model(config["model"], device="cpu", context_length=4000)
    sent: list[Any] = []
    method = "next_token_logits" if name == "prorank" else "generate"
    original = getattr(type(model), method)

    def listening(_: Any, prompts: Any, what: Any) -> Any:
        sent.append(list(prompts))
        return original(model, prompts, what)

    monkeypatch.setattr(type(model), method, listening)
    settings = {"presentation": "first-stage", "children": 3} if name == "rank-r1" else {}
    settings |= {} if name == "prorank" else {"max_new_tokens": 8}
    reranker = load_family(name, model, words=30, tokens=None, **settings)
    candidates = tuple(Candidate(str(at), text) for at, text in enumerate(DOCUMENTS))
    list(reranker.rerank([Request("q", "heat", candidates)]))
    assert asked == [prompt.ids for prompt in sent[0]]
    assert len(asked) == (1 if name == "rank-r1" else len(DOCUMENTS))


@pytest.mark.parametrize(("name", "place"), [("erank", "{instruction}"), ("retro", "{relevance}")])
def test_prompts_of_written_scores_take_other_words(config: dict, name: str, place: str, tmp_path: Path):
    """The words that a checkpoint was trained with go on in training as they do in reranking."""
    words = tmp_path / "words.txt"
    words.write_text(f"By {place}: {{query}} | {{document}}")
    given = {**rewarded(config, name), "prompt": {"words": 30, "tokens": None, "context": 4000}}
    given["prompt"] |= {"file": str(words), "instruction": "heat alone"}
    asked = asked_prompts(load_config(given), "heat", DOCUMENTS, context=4000)
    from transformers import AutoTokenizer

    texts = AutoTokenizer.from_pretrained(config["model"]).batch_decode(asked)
    assert all(f"By heat alone: heat | {text}" in shown for text, shown in zip(DOCUMENTS, texts, strict=True))
    words.write_text("{query}")
    with pytest.raises(ConfigError, match="lacks the places"):
        asked_prompts(load_config(given), "heat", DOCUMENTS, context=4000)


def test_what_a_rewards_reranker_has_no_place_for_is_refused(config: dict):
    for name, prompt in [
        ("rank-r1", {"instruction": "x"}),
        ("prorank", {"file": "x"}),
        ("retro", {"reranker": "prorank"}),
        ("erank", {"identifiers": "letters"}),
        ("retro", {"double_bos": True}),
    ]:
        (setting,) = prompt
        with pytest.raises(ConfigError, match=rf"prompt\.{setting}: {name} has no place"):
            load_config({**rewarded(config, name), "prompt": prompt})


@pytest.mark.parametrize("name", sorted(REWARDS))
def test_equal_texts_have_a_prompt_each(config: dict, name: str):
    given = load_config(rewarded(config, name))
    once = asked_prompts(given, "heat", DOCUMENTS, context=4000)
    twice = asked_prompts(given, "heat", [*DOCUMENTS, DOCUMENTS[0]], context=4000)
    assert twice == [*once, once[0]] if name != "rank-r1" else len(twice) == 1


def test_queries_come_shuffled_with_their_prompts_together(config: dict):
    resolved = load_config(
        {**rewarded(config, "erank"), "sampling": {"window": 3, "start": "anywhere", "shuffle": 1.0}}
    )
    examples = policy_examples(resolved, open_lists(resolved), context=2048, queries=9)
    assert [(each.query, each.place) for each in examples] == [(q, p) for q in range(9) for p in range(3)]
    assert all(sum(each.told["relevant"] for each in examples[at : at + 3]) == 1 for at in range(0, 27, 3))
    again = policy_examples(resolved, open_lists(resolved), context=2048, queries=9)
    assert [each.ids for each in again] == [each.ids for each in examples]
    other = load_config({**rewarded(config, "erank"), "sampling": {"window": 3}, "seed": 3})
    assert [each.ids for each in policy_examples(other, open_lists(other), context=2048, queries=9)] != [
        each.ids for each in examples
    ]


def pay(name: str, window: Window, completions: list[list[str]], **options: Any) -> list[list[float]]:
    """The rewards of each prompt's rollouts, two queries at once."""
    reward = REWARDS[name](GrpoOptions(name="grpo", reward=name, **options))
    (asked,) = REWARDS[name].prompts(window)
    told = [(place, each) for place, each in enumerate(asked.told) for _ in completions[place]]
    examples = [Example((), query, place, len(asked.told), each) for query in (0, 1) for place, each in told]
    flat = [text for rollouts in completions for text in rollouts]
    paid = reward(examples, flat * 2)
    assert paid[: len(flat)] == paid[len(flat) :]
    found = iter(paid)
    return [[next(found) for _ in rollouts] for rollouts in completions]


def test_each_reward_pays_for_what_it_was_published_for():
    window = Window("q", ("a", "b"), (1, 0), np.asarray([0.0, 1.0], np.float32))
    said = ["<think>x</think><answer>[2]</answer>", "<think>x</think><answer>[1]</answer>", "[2]"]
    assert pay("rank-r1", window, [said]) == [[1.0, 0.0, 0.0]]
    assert pay("prorank", window, [["0", "1", "x"], ["0", "1", "yes"]]) == [[1.5, 0.5, 0.0], [0.5, 1.5, 0.0]]
    low, high = "<answer>2</answer>", "<answer>9</answer>"
    (bad, good), (first, broken) = pay("erank", window, [[high, low], [low, "?"]])
    assert bad == -1.0
    assert good == pytest.approx(1 - 0.04)
    assert first == 0.5  # below the wrong document's 9
    assert broken == -1.0
    written = [[f"<score>{score}</score>" for score in scores] for scores in ((90, 10), (50, 5))]
    assert pay("retro", window, written, alpha=0.0) == [[1.0, 0.5], [0.5, 1.0]]


def test_a_few_steps(config: dict):
    output = train(load_config(config))
    found = record(output)
    assert found["status"] == "finished"
    assert [entry["step"] for entry in found["rewards"]] == [1, 2]
    before, after = saved(Path(config["model"])), saved(output)
    assert after.keys() == before.keys()
    paid = any(entry["reward"] > 0 for entry in found["rewards"])
    assert paid == any(not torch.equal(value, before[name]) for name, value in after.items())
    load_family("prorank", str(output), device="cpu")


# --- stopping and going on ---


def saved(output: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(output / "model.safetensors")


def record(output: Path) -> dict[str, Any]:
    return json.loads((output / "rtk-run.json").read_text())


def anything(completions: list[str], labels: list[int]) -> np.ndarray:
    """In place of ProRank's reward, which a random model never earns: something for every answer."""
    return np.asarray([sum(map(ord, text)) % 7 for text in completions], np.float64)


@pytest.mark.parametrize("lora", [None, {"rank": 4, "alpha": 8, "dropout": 0.1, "target_modules": "all-linear"}])
def test_an_interrupted_training_ends_as_an_undisturbed_one(
    config: dict,
    tmp_path: Path,
    lora: dict | None,
    interrupted: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
):
    """Bit for bit, rollouts included: their random numbers are in the checkpoint."""
    if lora:
        pytest.importorskip("peft")
    monkeypatch.setattr(policy_rewards, "prorank_reward", anything)
    config = {**config, "lora": lora, "trainer": {**config["trainer"], "max_steps": 4, "save_steps": 2}}
    whole = train(load_config({**config, "output": str(tmp_path / "whole")}))
    interrupted(load_config(config), 3)
    resumed = train(load_config(config))
    before, ones, twos = saved(Path(config["model"])), saved(whole), saved(resumed)
    assert any(not torch.equal(value, before[name]) for name, value in ones.items())
    assert all(torch.equal(value, twos[name]) for name, value in ones.items())
    assert record(resumed)["rewards"] == record(whole)["rewards"]


_RANKS = """
import json, os, sys
from pathlib import Path
import numpy as np
import torch
torch.set_num_threads(1)
from rtk.retrieval.training import policy_rewards
from rtk.retrieval.training.loops import Progress
from rtk.retrieval.training.trainer import train
policy_rewards.score_rollouts = lambda completions, form: np.asarray([sum(map(ord, text)) % 7 for text in completions])
begun, stopping = [], False
def begin(self, arguments, state, control, **settings):
    begun.append(state.global_step)
    if stopping and state.global_step == 1:
        raise KeyboardInterrupt
Progress.on_step_begin = begin
whole, config = json.loads(Path(sys.argv[1]).read_text())
train(whole)
stopping = True
try:
    train(config)
except KeyboardInterrupt:
    stopping = False
train(config)
Path(sys.argv[2] + os.environ["RANK"]).write_text(json.dumps(begun))
"""


def test_every_process_goes_on_from_the_checkpoint(config: dict, tmp_path: Path, run_on_ranks: Callable[..., None]):
    """ERank's reward, which refuses to be called with a part of a query."""
    given = {**rewarded(config, "erank"), "sampling": {"window": 3}}
    given["trainer"] = {**config["trainer"], "per_device_train_batch_size": 6}
    (tmp_path / "ranks.py").write_text(_RANKS)
    (tmp_path / "ranks.json").write_text(json.dumps([{**given, "output": str(tmp_path / "whole")}, given]))
    run_on_ranks(tmp_path / "ranks.py", tmp_path / "ranks.json", tmp_path / "begun")
    for rank in range(2):
        assert json.loads((tmp_path / f"begun{rank}").read_text()) == [0, 1, 0, 1, 1]
    before, whole, resumed = saved(Path(config["model"])), saved(tmp_path / "whole"), saved(Path(config["output"]))
    assert any(not torch.equal(value, before[name]) for name, value in whole.items())
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


# --- whole queries, whole batches ---


def shortened(config: dict[str, Any], tmp_path: Path, lengths: dict[int, int]) -> dict[str, Any]:
    """With a run in which some queries have fewer candidates."""
    lists = [(f"q{n}", [f"d{(n + m) % 6}" for m in range(lengths.get(n, 6))]) for n in range(6)]
    path = tmp_path / "short.run"
    write_run(Run.from_lists((qid, ids, -np.arange(len(ids), dtype=np.float32)) for qid, ids in lists), path)
    return {**config, "data": {**config["data"], "runs": {"first_stage": str(path)}}}


def test_a_short_list_does_not_shift_the_queries_behind_it(config: dict, tmp_path: Path):
    given = shortened({**rewarded(config, "erank"), "sampling": {"window": 3}}, tmp_path, {2: 2})
    resolved = load_config(given)
    (table,) = open_lists(resolved)
    assert "q2" not in table.ids
    assert table.report.short == 1
    examples = policy_examples(resolved, [table], context=2048, queries=5)
    assert [(each.query, each.place, each.prompts) for each in examples] == [
        (query, place, 3) for query in range(5) for place in range(3)
    ]
    reward = REWARDS["erank"](resolved.loss[0])
    with pytest.raises(BackendError, match="2 of 3 prompts of query number 1"):
        reward(examples[3:5] * 2, ["<answer>3</answer>"] * 4)
    # the others take it as it is: their prompts are paid each by itself, or two at a time
    assert open_lists(load_config({**given, "loss": rewarded(config, "retro")["loss"]}))[0].report.short == 0


def test_settings_under_which_erank_has_no_whole_queries_are_refused(config: dict):
    given = rewarded(config, "erank")
    with pytest.raises(ConfigError) as caught:
        load_config({**given, "sampling": {"window": 4, "smallest": 2, "depth": 3}})
    told = "\n".join(caught.value.problems)
    assert "sampling.smallest: reward erank" in told
    assert "sampling.depth: reward erank needs 4" in told


def test_a_reward_is_paid_for_windows_that_hold_what_is_relevant(config: dict, tmp_path: Path):
    """The relevant document is second in each list but in that of q0, whose list is cut before it."""
    lists = [(f"q{n}", [f"d{(n + m) % 6}" for m in ((0, 2, 3, 4, 5, 1) if n == 0 else range(6))]) for n in range(6)]
    write_run(Run.from_lists((qid, ids, -np.arange(6, dtype=np.float32)) for qid, ids in lists), tmp_path / "far.run")
    given = {**rewarded(config, "rank-r1"), "sampling": {"window": 2, "start": "anywhere", "depth": 4}}
    given["data"] = {**config["data"], "runs": {"first_stage": str(tmp_path / "far.run")}}
    resolved = load_config(given)
    (table,) = open_lists(resolved)
    assert (list(table.ids), table.report.out_of_reach) == ([f"q{n}" for n in range(1, 6)], 1)
    labels = [each.told["label"] for each in policy_examples(resolved, [table], context=2048, queries=25)]
    assert set(labels) == {"[1]", "[2]"}  # by where the window begins


def test_eranks_reward_is_told_the_supervised_models_scores(config: dict, tmp_path: Path):
    raw = np.linspace(0, 10, 36, dtype=np.float32)
    ids = [f"d{m}" for m in range(6)]

    def scored(path: str, values: np.ndarray, documents: list[str] = ids) -> dict[str, Any]:
        count = len(documents)
        run = Run.from_lists((f"q{n}", documents, -np.arange(count, dtype=np.float32)) for n in range(6))
        write_run(run.replace(columns={"raw": values.reshape(6, 6)[:, :count].ravel()}), tmp_path / path)
        runs = {**config["data"]["runs"], "teachers": [str(tmp_path / path)]}
        sampling = {"window": 6, "shuffle": 0.0}
        return {**rewarded(config, "erank"), "sampling": sampling, "data": {**config["data"], "runs": runs}}

    resolved = load_config(scored("sft.parquet", raw))
    (table,) = open_lists(resolved)
    told = {}
    for row, qid in enumerate(table.ids):
        (asked,) = REWARDS["erank"].prompts(table.window(row, 0, 0, 0))
        told[qid] = asked.told
        assert [each["relevant"] for each in asked.told].index(True) == (int(qid[1:]) + 1) % 6  # by judgments
        assert sum(each["relevant"] for each in asked.told) == 1
    assert [each["reference"] for n in range(6) for each in told[f"q{n}"]] == pytest.approx(raw.tolist())
    open_lists(load_config({**scored("sft.parquet", raw), "loss": rewarded(config, "retro")["loss"]}))
    # the reward of a document that is not relevant falls with the distance to its own score
    window = Window("q", ("a", "b"), (1, 0), np.asarray([0.0, 1.0], np.float32), reference=np.asarray([4.0, 9.0]))
    answers = [[f"<answer>{score}</answer>" for score in scores] for scores in ((4, 1), (9, 8))]
    assert pay("erank", window, answers)[0] == pytest.approx([1.0, 1 - 0.09])
    with pytest.raises(DataError, match=r"no score in 6 of 6 lists"):
        open_lists(load_config(scored("cut.parquet", raw, ids[:4])))
    runs = {**config["data"]["runs"], "teachers": config["data"]["runs"]["first_stage"]}
    plain = load_config({**rewarded(config, "erank"), "data": {**config["data"], "runs": runs}})
    with pytest.raises(DataError, match="no column `raw`"):
        open_lists(plain)
    wrong = load_config(scored("logits.parquet", raw * 3))
    with pytest.raises(DataError, match="from 0 to 10"):
        policy_examples(wrong, open_lists(wrong), context=2048, queries=6)


def test_prompts_that_make_no_batch_are_refused_or_said(config: dict, caplog: pytest.LogCaptureFixture):
    given = {**config, "sampling": {"window": 2}, "trainer": {**config["trainer"], "max_steps": -1}}
    trainer = {**given["trainer"], "num_train_epochs": 1, "per_device_train_batch_size": 64}
    with pytest.raises(ConfigError, match="12 prompts make no batch, which has 16"):
        train(load_config({**given, "trainer": trainer}))
    trainer["per_device_train_batch_size"] = 20
    with caplog.at_level("WARNING"):
        output = train(load_config({**given, "trainer": trainer}), overwrite=True)
    assert "the last 2 of 12 prompts make no whole batch of 5 and are left out" in caplog.text
    assert record(output)["steps"] == 2


def test_no_more_prompts_are_written_than_the_steps_need(config: dict, monkeypatch: pytest.MonkeyPatch):
    made: list[int] = []
    original = policy._whole_batches
    monkeypatch.setattr(
        policy,
        "_whole_batches",
        lambda *given: made.append(len(given[-1])) or original(*given),  # type: ignore[func-returns-value]
    )
    train(load_config({**config, "trainer": {**config["trainer"], "max_steps": 3, "gradient_accumulation_steps": 2}}))
    assert made == [3 * 2 * 8 // 4]


def test_groups_that_a_batch_cuts_are_refused(config: dict):
    given = {**rewarded(config, "retro"), "trainer": {**config["trainer"], "per_device_train_batch_size": 2}}
    with pytest.raises(ConfigError, match="multiple of 2 prompts x 2 rollouts"):
        train(load_config(given))
    with pytest.raises(ConfigError, match="evaluation"):
        load_config({**config, "evaluation": {"collection": "c"}})
