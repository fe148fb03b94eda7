"""Which documents a listwise model sees together: sliding windows, top-down partitioning, and lists sorted to the end.

A schedule is a generator. It yields rounds: each round is a list of windows (rows of the candidate list, in the order
in which the model sees them) that do not depend on each other; it is sent their permutations, and returns all rows in
their final order. So whoever runs several schedules at once can put the windows of many queries into one model call.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Literal

from ...errors import ConfigError

__all__ = ["Plan", "Schedule", "complete_sort", "slide", "sliding_windows", "top_down", "window_bounds"]

Window = tuple[int, ...]
Order = Sequence[int]
Plan = Generator[list[Window], Sequence[Order], list[int]]
"""Yields rounds of windows, is sent a permutation of 0 … len - 1 for each, returns all rows."""


@dataclass(frozen=True)
class Schedule:
    """How a list is cut into windows.

    Attributes:
        kind: "sliding" goes from the back to the front; "top-down" partitions by a pivot; "complete" slides until the
            whole order is fixed, which is how FullRank's labels are made.
        window: documents that the model sees together.
        step: by how many documents a window moves; what it leaves behind is what one pass gets right at the top. Not
            used by "top-down".
        passes: how often "sliding" goes over the list.
        pivot: "top-down": the rank in the first window of the document that others are compared with; None is half
            the window.
        budget: "top-down": the most candidates that are kept for the next round; None keeps all that beat the pivot.
    """

    kind: Literal["sliding", "top-down", "complete"] = "sliding"
    window: int = 20
    step: int = 10
    passes: int = 1
    pivot: int | None = None
    budget: int | None = None

    def __post_init__(self) -> None:
        slides = self.kind != "top-down"
        problems = [
            f"{name} {value}: {expected}"
            for name, value, wrong, expected in (
                ("window", self.window, self.window < 2, "expected at least 2"),
                ("step", self.step, slides and not 1 <= self.step < self.window, "expected 1 to window - 1: with a "
                 "step as long as the window no document climbs from one window to the next"),
                ("passes", self.passes, self.passes < 1, "expected at least 1"),
                ("pivot", self.pivot, self.pivot is not None and not 1 <= self.pivot < self.window,
                 "expected 1 to window - 1"),
                ("budget", self.budget, self.budget is not None and self.budget < 1, "expected at least 1"),
            )
            if wrong
        ]  # fmt: skip
        if self.kind not in ("sliding", "top-down", "complete"):
            problems.append(f"kind {self.kind!r}: expected 'sliding', 'top-down' or 'complete'")
        if problems:
            raise ConfigError("this window schedule cannot be", problems)

    def plan(self, count: int) -> Plan:
        """The schedule over `count` candidates."""
        if self.kind == "top-down":
            return top_down(count, self.window, pivot=self.pivot, budget=self.budget)
        if self.kind == "complete":
            return complete_sort(count, self.window, self.step)
        return slide(count, self.window, self.step, passes=self.passes)


def window_bounds(count: int, window: int, step: int) -> list[tuple[int, int]]:
    """Half-open bounds, back to front: [N − w, N), then by `step`, the start clamped at 0, ending with the first at 0.

    ⌈(N − w) / s⌉ + 1 windows for N > w, one for N ≤ w, none for N = 0. The last one shrinks where the step does not
    divide N − w, as in RankZephyr's and FIRST's code (RankGPT's loop leaves the head of such lists out). A step as
    long as the window is legal here; a `Schedule` refuses it.
    """
    bounds: list[tuple[int, int]] = []
    stop = count
    while stop > 0:
        start = max(0, stop - window)
        bounds.append((start, stop))
        if start == 0:
            break
        stop -= step
    return bounds


def sliding_windows(count: int, window: int, step: int) -> list[range]:
    """The windows of `window_bounds` as ranges of rows."""
    return [range(*bounds) for bounds in window_bounds(count, window, step)]


def slide(count: int, window: int, step: int, *, passes: int = 1, first: int = 0) -> Plan:
    """Sliding windows over rows `first` … `count` − 1 (Sun et al. 2023, RankGPT). A window of one is not asked for.

    With a model that sorts a window perfectly, a pass puts the best w − s documents at the top, in order.
    """
    order = list(range(count))
    for _ in range(passes):
        yield from _pass(order, window, step, first=first)
    return order


def _pass(order: list[int], window: int, step: int, *, first: int) -> Generator[list[Window], Sequence[Order], None]:
    """One pass over `order` from position `first` on, in place."""
    for start, stop in window_bounds(len(order) - first, window, step):
        places = slice(first + start, first + stop)
        (order[places],) = yield from _sorted_windows([tuple(order[places])])


def _sorted_windows(windows: list[Window]) -> Generator[list[Window], Sequence[Order], list[list[int]]]:
    """The rows of each window in the order that the model gives them; windows of one document are not asked for."""
    asked = [window for window in windows if len(window) > 1]
    orders = iter((yield asked) if asked else ())
    return [[window[at] for at in next(orders)] if len(window) > 1 else list(window) for window in windows]


def complete_sort(count: int, window: int, step: int) -> Plan:
    """Pass after pass over what is not yet fixed; each fixes the next w − s documents, until one window is left.

    The label construction of FullRank (Liu et al. 2024): at 20 / 10 over 100 documents nine passes, the last of which
    sorts the remaining 20. A teacher that sorts windows perfectly gives the complete order.
    """
    order = list(range(count))
    first = 0
    while first < count:
        yield from _pass(order, window, step, first=first)
        if count - first <= window:
            break
        first += window - step
    return order


def top_down(count: int, window: int, *, pivot: int | None = None, budget: int | None = None) -> Plan:
    """Top-down partitioning (Parry et al. 2024, algorithm 1): compare everything with a good document, in parallel.

    Sort the first window, take the document at rank `pivot` (w / 2), and put it into a window with each w − 1 of the
    documents below. What ends up above it joins the documents above it in the first window; these are partitioned
    again, until none was found below; the others stay under them, in the order in which they were met. The windows of
    a round are independent: one model call.

    A round keeps at most `budget` candidates (the paper's is the window; None keeps all). Every round loses at least
    the pivot, so it ends whatever the model answers.
    """
    rank = window // 2 if pivot is None else pivot
    candidates, below = list(range(count)), list[int]()
    while len(candidates) > window:
        (top,) = yield from _sorted_windows([tuple(candidates[:window])])
        chosen = top[rank - 1]
        above, worse = top[: rank - 1], top[rank:]
        rest = candidates[window:]
        parts = [(chosen, *rest[at : at + window - 1]) for at in range(0, len(rest), window - 1)]
        for part in (yield from _sorted_windows(parts)):
            place = part.index(chosen)
            above += part[:place]
            worse += part[place + 1 :]
        found = len(above) >= rank
        if budget is not None:
            above, worse = above[: max(budget, rank - 1)], above[max(budget, rank - 1) :] + worse
        below = [chosen, *worse, *below]
        candidates = above
        if not found:
            return candidates + below
    (candidates,) = yield from _sorted_windows([tuple(candidates)])
    return candidates + below
