"""Reinforcement learning of rerankers: prompts as the rerankers send them, rewards by publication, a few steps."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("trl", reason='extra "trl" is not installed')

import torch

from rtk.errors import ConfigError
from rtk.eval.files import write_run
from rtk.eval.run import Run
from rtk.retrieval.losses.language_options import GrpoOptions
from rtk.retrieval.rerankers.base import Candidate, Request
from rtk.retrieval.rerankers.families import load_family
from rtk.retrieval.rerankers.language_model import load_language_model
from rtk.retrieval.training.config import load_config
from rtk.retrieval.training.list_examples import open_lists
from rtk.retrieval.training.list_table import Window
from rtk.retrieval.training.policy import asked_prompts, policy_examples
from rtk.retrieval.training.policy_rewards import REWARDS, Example
from rtk.retrieval.training.trainer import train

DOCUMENTS = ["flow of air", "a <|end|> marker", "gene", "vitamin study"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RTK_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def config(tiny_llama: Path, tmp_path: Path, beir_folder: Callable[..., Path]) -> dict[str, Any]:
    words = ["cell", "gene", "protein", "vitamin", "risk", "cancer"]
    folder = beir_folder(
        corpus=[{"_id": f"d{n}", "text": word} for n, word in enumerate(words)],
        queries=[{"_id": f"q{n}", "text": word} for n, word in enumerate(words)],
        qrels={"train": [(f"q{n}", f"d{(n + 1) % 6}", 1) for n in range(6)]},
    )
    falling = -np.arange(6, dtype=np.float32)
    write_run(Run.from_lists((f"q{n}", [f"d{m}" for m in range(6)], falling) for n in range(6)), tmp_path / "all.run")
    return {
        "method": "grpo",
        "model": str(tiny_llama),
        "data": {"collection": str(folder), "runs": {"first_stage": str(tmp_path / "all.run")}},
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
    examples = [Example((), query, place, each) for query in (0, 1) for place, each in told]
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
    found = json.loads((output / "rtk-run.json").read_text())
    assert found["status"] == "finished"
    assert [entry["step"] for entry in found["rewards"]] == [1, 2]
    from safetensors.torch import load_file

    before = load_file(Path(config["model"]) / "model.safetensors")
    after = load_file(output / "model.safetensors")
    assert after.keys() == before.keys()
    paid = any(entry["reward"] > 0 for entry in found["rewards"])
    assert paid == any(not torch.equal(value, before[name]) for name, value in after.items())
    load_family("prorank", str(output), device="cpu")


def test_groups_that_a_batch_cuts_are_refused(config: dict):
    given = {**rewarded(config, "retro"), "trainer": {**config["trainer"], "per_device_train_batch_size": 2}}
    with pytest.raises(ConfigError, match="multiple of 2 prompts x 2 rollouts"):
        train(load_config(given))
    with pytest.raises(ConfigError, match="evaluation"):
        load_config({**config, "evaluation": {"collection": "c"}})
