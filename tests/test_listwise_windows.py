"""Windows and permutations: every N, whatever the model answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtk.errors import ConfigError
from rtk.retrieval.rerankers.identifiers import Identifiers
from rtk.retrieval.rerankers.lockstep import drive
from rtk.retrieval.rerankers.permutations import format_permutation, parse_permutation
from rtk.retrieval.rerankers.windows import Plan, Schedule, slide, window_bounds

GOLDEN = json.loads((Path(__file__).parent / "goldens" / "rerank" / "listwise_parsing_and_windows.json").read_text())


def finished(plan: Plan, answer: Callable[[Sequence[int]], Sequence[int]]) -> tuple[list[int], list[tuple[int, ...]]]:
    """The order that a plan comes to when every window is answered, and the windows that it asked for."""
    asked: list[tuple[int, ...]] = []

    def noted(window: tuple[int, ...]) -> Sequence[int]:
        asked.append(window)
        return answer(window)

    return drive(plan, noted), asked


def sorts_by(grade: Sequence[int]) -> Callable[[Sequence[int]], list[int]]:
    return lambda window: sorted(range(len(window)), key=lambda place: -grade[window[place]])


def best_first(grade: Sequence[int]) -> list[int]:
    return sorted(range(len(grade)), key=lambda row: -grade[row])


lists = st.integers(0, 130).flatmap(lambda n: st.permutations(list(range(n))))
shapes = st.integers(2, 24).flatmap(lambda w: st.tuples(st.just(w), st.integers(1, w - 1)))


@pytest.mark.parametrize("case", GOLDEN["window_boundaries"], ids=lambda case: f"{case['n']}-{case['window']}")
def test_windows_are_those_of_the_published_code(case: dict[str, Any]) -> None:
    bounds = [list(each) for each in window_bounds(case["n"], case["window"], case["step"])]
    assert bounds == case["rank_llm"] == case["llm_reranker"]


@given(lists, shapes)
@settings(deadline=None, max_examples=50)
def test_one_pass_with_an_exact_model_gets_the_top_right(grade: list[int], shape: tuple[int, int]) -> None:
    window, step = shape
    order, asked = finished(Schedule("sliding", window, step).plan(len(grade)), sorts_by(grade))
    assert sorted(order) == list(range(len(grade)))
    assert order[: window - step] == best_first(grade)[: window - step]
    assert all(1 < len(each) <= window for each in asked)
    expected = -(-max(0, len(grade) - window) // step) + 1
    assert len(asked) in ({expected, expected - 1} if len(grade) > 1 else {0})  # a last window of one is not asked for


@given(lists, shapes)
@settings(deadline=None, max_examples=50)
def test_complete_sorting_with_an_exact_model_gives_the_whole_order(grade: list[int], shape: tuple[int, int]) -> None:
    order, _ = finished(Schedule("complete", *shape).plan(len(grade)), sorts_by(grade))
    assert order == best_first(grade)


def test_labels_over_a_hundred_documents_take_nine_passes() -> None:
    _, asked = finished(Schedule("complete").plan(100), sorts_by(range(100)))
    assert len(asked) == 9 + 8 + 7 + 6 + 5 + 4 + 3 + 2 + 1
    assert sum(len(each) == 20 for each in asked) == len(asked)


@given(lists, shapes)
@settings(deadline=None, max_examples=50)
def test_partitioning_with_an_exact_model_gets_what_is_above_the_pivot_right(
    grade: list[int], shape: tuple[int, int]
) -> None:
    window, pivot = shape
    order, _ = finished(Schedule("top-down", window, 1, pivot=pivot).plan(len(grade)), sorts_by(grade))
    assert sorted(order) == list(range(len(grade)))
    assert order[:pivot] == best_first(grade)[:pivot]


@given(lists, shapes, st.sampled_from(["sliding", "top-down", "complete"]), st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=50)
def test_every_schedule_ends_with_all_documents_whatever_the_model_says(
    grade: list[int], shape: tuple[int, int], kind: Any, random: Any
) -> None:
    window, step = shape
    for budget in (None, window):
        plan = Schedule(kind, window, step, budget=budget).plan(len(grade))
        order, _ = finished(plan, lambda each: random.sample(range(len(each)), len(each)))
        assert sorted(order) == list(range(len(grade)))


def test_windows_of_a_partitioning_round_are_one_call() -> None:
    Schedule("top-down", window=4)  # whose step of 10 is not used
    plan = Schedule("top-down", window=20, step=10).plan(100)
    first = next(plan)
    second = plan.send([list(range(20))])
    assert [len(first), len(second)] == [1, 5]  # 80 documents in windows of 19 and the pivot
    assert {each[0] for each in second} == {9}


def test_a_second_pass_starts_from_the_first_ones_order() -> None:
    grade = list(range(30))
    once, _ = finished(slide(30, 10, 5), sorts_by(grade))
    twice, _ = finished(slide(30, 10, 5, passes=2), sorts_by(grade))
    assert once[:5] == twice[:5] == best_first(grade)[:5]
    assert twice[:10] == best_first(grade)[:10] != once[:10]


@pytest.mark.parametrize(
    "wrong", [{"window": 1}, {"step": 20}, {"step": 0}, {"passes": 0}, {"pivot": 20}, {"budget": 0}, {"kind": "up"}]
)
def test_a_schedule_that_cannot_be_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=str(next(iter(wrong)))):
        Schedule(**wrong)


# What the better rule reads otherwise than the published one, and what it should read
BETTER = {
    "[12] > [1]2 > [3]": [11, 0, 2],  # the 2 outside of the brackets is no identifier
    "[b] > [a]": [1, 0],
    "A ranking: [B] > [C]": [1, 2],
    "I think [B] > [A]": [1, 0],
}


@pytest.mark.parametrize("case", GOLDEN["malformed_outputs"], ids=lambda case: case["output"] or "empty")
def test_outputs_are_read_as_published_or_better(case: dict[str, Any]) -> None:
    read = parse_permutation(case["output"], case["n"], Identifiers("letters" if case["alpha"] else "numbers"))
    better = BETTER.get(case["output"])
    if better is None:
        assert list(read.order) == case["rank_llm_1b3cabb"]
    else:
        assert list(read.order) == better + [each for each in range(case["n"]) if each not in better]
    if "icr_rankgpt_baseline_9117e9f" in case:
        assert read.well_formed == case["icr_rankgpt_baseline_9117e9f"]["well_formed"]


@pytest.mark.parametrize(
    ("output", "order", "read"),
    [
        ("The 3 passages, best first: [2] > [1] > [3]", (1, 0, 2), 3),
        ("<think>[3] is good, 1 is not</think>[2] > [1] > [3]", (1, 0, 2), 3),
        ("[2] > [2] > [2]", (1, 0, 2), 1),
        ("Error: rate limit of [ratio] reached", (0, 1, 2), 0),
        ("[Passage 3] > [Passage 1]", (2, 0, 1), 2),
        ("[\uff11] > [\uff13]", (0, 2, 1), 2),
    ],
)
def test_what_a_model_may_write(output: str, order: tuple[int, ...], read: int) -> None:
    found = parse_permutation(output, 3, Identifiers("numbers"))
    assert (found.order, found.read) == (order, read)
    assert found.well_formed == (output.startswith("<think>"))


def test_a_letter_in_a_bracketed_phrase_is_read_only_as_a_capital_that_stands_alone() -> None:
    assert parse_permutation("[as a b] [B]", 3, Identifiers("letters")).order == (1, 0, 2)


@given(st.text(max_size=60), st.integers(0, 26), st.sampled_from(["letters", "numbers"]))
def test_any_text_gives_a_permutation(text: str, count: int, kind: Any) -> None:
    found = parse_permutation(text, count, Identifiers(kind))
    assert sorted(found.order) == list(range(count))
    assert 0 <= found.read <= count


@given(st.integers(1, 26).flatmap(lambda n: st.permutations(range(n))), st.sampled_from(["letters", "numbers"]))
def test_what_is_written_is_read_back(order: list[int], kind: Any) -> None:
    found = parse_permutation(format_permutation(order, Identifiers(kind)), len(order), Identifiers(kind))
    assert found.order == tuple(order)
    assert found.well_formed


def test_letters_end_at_z() -> None:
    assert Identifiers("letters").labels(26)[-1] == "Z"
    with pytest.raises(ConfigError, match="27 documents"):
        Identifiers("letters").labels(27)
    assert Identifiers("numbers").labels(27)[-1] == "27"
