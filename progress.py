"""Progress, without printing from library code.

Library code asks for a task and advances it; who listens is set once by the command line. The default listens to
nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol, TypeVar

__all__ = ["Advance", "Listener", "listen", "task", "track"]

T = TypeVar("T")
Advance = Callable[[int], None]


class Listener(Protocol):
    """Opens a task and returns a context manager that yields the function that advances it."""

    def __call__(self, description: str, total: int | None, /) -> AbstractContextManager[Advance]: ...


def _silent(description: str, total: int | None, /) -> AbstractContextManager[Advance]:
    return nullcontext(lambda amount: None)


_listener: Listener = _silent


@contextmanager
def listen(listener: Listener) -> Iterator[None]:
    """Send progress to `listener` inside the block."""
    global _listener
    before, _listener = _listener, listener
    try:
        yield
    finally:
        _listener = before


def task(description: str, total: int | None = None) -> AbstractContextManager[Advance]:
    """Open a task: `with task("encode", 100) as advance: advance(10)`."""
    return _listener(description, total)


def track(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Yield `items`, advancing a task by one for each."""
    with task(description, total) as advance:
        for item in items:
            yield item
            advance(1)
