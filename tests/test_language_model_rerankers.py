"""Every reranker of language models by name: exactly the candidates come back, whatever the documents and the model."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from rtk.retrieval.experiments import find_recipe, list_recipes
from rtk.retrieval.rerankers import Candidate, Request, load_reranker, rerank_checked, rerank_run
from rtk.retrieval.rerankers.candidates import read_candidates, write_candidates
from rtk.retrieval.rerankers.families import FAMILIES, family_settings
from rtk.retrieval.rerankers.part import part_path

NAMES = sorted(set(FAMILIES) - {"icr"})  # it reads attention, which only a real model has
ODD = [
    *["", "same", "same", "[A] > [B]", "<|end|>", "日本語 größe"],
    *["x " * 40, "{query} {0}", "<answer>[1]</answer>", "</think>"],
]
JUNK = [
    *["", "[3] > [3]", "<think>x</think> <answer>[2]</answer>"],
    *["<answer>7</answer>", "<score>101</score>", "no!", "C"],
]


def request_of(qid: str, count: int) -> Request:
    candidates = [Candidate(f"d {at}", ODD[at % len(ODD)], -float(at)) for at in range(count)]
    return Request(qid, f"what {{is}} {qid}?", tuple(candidates))


class AtRandom:
    """Answers at random: logits, probabilities and texts, all of them from the prompt alone."""

    context_length = 20_000

    def __init__(self, oracle: Any) -> None:
        self.tokenizer, self._oracle = oracle.tokenizer, oracle
        oracle.write = lambda text, sample: Random(f"{text}{sample}").choice(JUNK)
        self.generate, self.identity = oracle.generate, oracle.identity
        self.continuation_log_probs = oracle.continuation_log_probs

    def next_token_logits(self, prompts: Any, tokens: Any, /) -> Any:
        found = self._oracle.next_token_logits(prompts, tokens)
        for row, prompt in enumerate(prompts):
            found.values[row] = np.random.default_rng(list(prompt.ids)).normal(size=len(tokens))
        return found


@pytest.mark.parametrize("name", NAMES)
def test_a_model_that_answers_at_random(name: str, oracle_model: Callable[..., Any]) -> None:
    model: Any = AtRandom(oracle_model())
    reranker = load_reranker(name, model)
    requests = [request_of(f"q{count}", count) for count in (0, 1, 2, 3, 4, 5, 19, 20, 21, 33)]
    results = rerank_checked(reranker, requests)  # refuses lost or repeated ids and rising scores
    assert [result.error for result in results] == [None] * len(requests)
    assert results[0].usage.calls == 0
    again = rerank_checked(load_reranker(name, model, in_flight=1), requests)
    assert [result.ids for result in again] == [result.ids for result in results]
    assert [result.usage for result in again] == [result.usage for result in results]


@pytest.mark.parametrize("name", ["first", "setwise", "yes-no", "rank-gpt"])
def test_a_run_goes_on_where_it_was_stopped_and_failures_are_counted(
    name: str, oracle_model: Callable[..., Any], tmp_path: Path
) -> None:
    candidates = tuple(Candidate(f"d{at}", f"grade {at}", -float(at)) for at in range(5))
    requests = [Request(f"q{at}", f"what is q{at}?", candidates) for at in range(4)]
    write_candidates(requests, tmp_path / "candidates.jsonl")
    source = read_candidates(tmp_path / "candidates.jsonl")
    broken = [True]

    def fail(texts: list[str]) -> None:
        if broken[0] and any("what is q2?" in text for text in texts):
            raise OSError("the engine is gone")

    settings: dict[str, Any] = {"in_flight": 1, "retries": 0}
    model = oracle_model(fail=fail)
    out = tmp_path / "out.parquet"
    with pytest.raises(Exception, match="the engine is gone"):
        rerank_run(source.run, source, None, load_reranker(name, model, **settings), out=out)
    assert part_path(out).exists()
    counted = rerank_run(source.run, source, None, load_reranker(name, model, **settings), on_error="count")
    assert list(counted["q2"].documents) == [f"d{at}" for at in range(5)]
    assert next(iter(counted["q3"].documents)) == "d4"
    broken[0] = False
    before = len(model.texts)
    run = rerank_run(source.run, source, None, load_reranker(name, model, **settings), out=out)
    assert {next(iter(entry.documents)) for entry in run} == {"d4"}
    assert not any("what is q0?" in text for text in model.texts[before:])  # done before it was stopped


def test_the_comparison_has_every_reranker_that_is_a_language_model() -> None:
    steps = find_recipe("reranker-comparison").variant("small").steps
    assert set(re.findall(r"--reranker (\S+)", " ".join(str(step.run) for step in steps))) == set(FAMILIES)


@pytest.mark.parametrize("name", list_recipes())
def test_recipes_set_what_their_rerankers_have(name: str) -> None:
    recipe = find_recipe(name)
    steps = [(label, step.run) for label, variant in recipe.variants.items() for step in variant.steps]
    runs = [(variant, run) for variant, run in steps if "--reranker" in str(run)]
    rerankers = {re.findall(r"--reranker (\S+)", str(run))[0] for _, run in runs} & set(FAMILIES)
    known = set[str]().union(*map(family_settings, rerankers))
    for variant, run in runs:
        (reranker,) = re.findall(r"--reranker (\S+)", str(run))
        given = set(re.findall(r"--set (\w+)=", str(run)))
        assert reranker not in FAMILIES or given <= family_settings(reranker)
        if reranker in ("erank", "retro") and variant != "small":  # released checkpoints are asked in their own words
            assert "prompt_file" in given
    if rerankers:
        said = {word for part in re.findall(r"--set ([^)`;.]+)", recipe.notes) for word in re.findall(r"(\w+)=", part)}
        assert said <= known
