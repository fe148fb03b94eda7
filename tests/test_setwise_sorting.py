"""Sorting by comparisons of a few documents, against a true sort and the published code's own comparisons."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtk.errors import ConfigError
from rtk.retrieval.rerankers.lockstep import drive
from rtk.retrieval.rerankers.sorting import sort_plan

GOLDEN = json.loads((Path(__file__).parent / "goldens" / "rerank" / "sorting_and_rewards.json").read_text())


def sort(kind: Any, grade: Sequence[int], k: int, children: int) -> tuple[list[int], list[list[int]]]:
    """Drive a sort with an exact comparator; the order and the sets that it asked for."""
    asked: list[list[int]] = []

    def best(group: Sequence[int]) -> int:
        asked.append(list(group))
        return max(range(len(group)), key=lambda place: grade[group[place]])

    return drive(sort_plan(kind, len(grade), k, children=children), best), asked


@pytest.mark.parametrize("case", GOLDEN["sorts"], ids=lambda case: f"{case['algorithm']}-{case['n']}-{case['k']}")
def test_the_published_sorts(case: dict[str, Any]) -> None:
    kind = "heap" if "heap" in case["algorithm"] else "bubble"
    children = case.get("num_child", 1)
    order, asked = sort(kind, case["relevance"], case["k"], children)
    assert order == case["order"]
    if kind == "heap" or children == 1:
        assert len(asked) == case["comparisons"]
        if case["n"] <= 20:
            assert asked == case.get("sets_compared", case.get("pairs_compared"))
    else:
        assert len(asked) <= case["comparisons"]  # the published one asks for sets of one, and skips what it must not


@given(
    st.sampled_from(["heap", "bubble"]),
    st.integers(0, 60).flatmap(lambda n: st.permutations(list(range(n)))),
    st.integers(1, 70),
    st.integers(1, 20),
)
@settings(deadline=None, max_examples=100)
def test_an_exact_comparator_gives_the_true_top(kind: Any, grade: list[int], k: int, children: int) -> None:
    order, asked = sort(kind, grade, k, children)
    best = sorted(range(len(grade)), key=lambda row: -grade[row])
    assert order[:k] == best[:k]
    assert order[k:] == sorted(best[k:])  # the others keep their first order
    assert all(2 <= len(group) <= children + 1 and len(set(group)) == len(group) for group in asked)


@pytest.mark.parametrize(("children", "most"), [(3, 90), (10, 33), (19, 27)])
def test_heap_sort_costs_what_is_published(children: int, most: int) -> None:
    """About 82, 29 and 23 sets for the top ten of a hundred."""
    grade = [(row * 37) % 100 for row in range(100)]
    _, asked = sort("heap", grade, 10, children)
    assert len(asked) <= most


@pytest.mark.parametrize("wrong", [("quick", 1, 1), ("heap", 0, 1), ("heap", 1, 0)])
def test_a_sort_that_cannot_be_is_refused(wrong: tuple[Any, int, int]) -> None:
    with pytest.raises(ConfigError, match="cannot sort"):
        sort_plan(wrong[0], 3, wrong[1], children=wrong[2])
