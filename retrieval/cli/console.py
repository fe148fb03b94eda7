"""What the verbs print with: results on stdout, progress and notes on stderr."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import typer

from ... import progress
from ...errors import ConfigError

__all__ = ["emit", "emit_json", "parse_settings", "session", "table"]

SHOW_AFTER = 2.0
"""Seconds of work before a bar appears."""


def emit(text: str) -> None:
    """Write a result to stdout."""
    typer.echo(text)


def emit_json(value: Any) -> None:
    """Write one JSON object to stdout."""
    typer.echo(json.dumps(value, ensure_ascii=False, indent=2, default=str))


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """An aligned plain table; numbers to the right."""
    cells = [[str(value) for value in row] for row in rows]
    widths = [max(len(line[column]) for line in [list(header), *cells]) for column in range(len(header))]
    right = [bool(rows) and all(isinstance(row[column], int | float) for row in rows) for column in range(len(header))]

    def line(values: Sequence[str]) -> str:
        parts = (v.rjust(w) if r else v.ljust(w) for v, w, r in zip(values, widths, right, strict=True))
        return "  ".join(parts).rstrip()

    return "\n".join([line(list(header)), line(["-" * width for width in widths]), *(line(row) for row in cells)])


def parse_settings(settings: Sequence[str] | None) -> dict[str, Any]:
    """`["nprobe=16"]` → `{"nprobe": 16}`; values are YAML scalars."""
    import yaml

    parsed: dict[str, Any] = {}
    bad = []
    for item in settings or ():
        name, sign, value = item.partition("=")
        if not sign or not name:
            bad.append(f"{item!r} is not NAME=VALUE")
            continue
        try:
            parsed[name] = yaml.safe_load(value)
        except yaml.YAMLError:
            bad.append(f"{name}: {value!r} is no YAML value; put quotes around a text with brackets, braces or a colon")
    if bad:
        raise ConfigError("bad --set", bad)
    return parsed


@contextmanager
def session(*, quiet: bool = False) -> Iterator[None]:
    """Show notes and progress on stderr while a verb runs; bars only on a terminal, neither when quiet."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("rtk")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.ERROR if quiet else logging.INFO)
    try:
        with ExitStack() as stack:
            if not quiet and sys.stderr.isatty():
                stack.enter_context(progress.listen(stack.enter_context(_Bars())))
            yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


class _Bars:
    """Progress bars on stderr that appear once a task has taken `SHOW_AFTER` seconds."""

    def __enter__(self) -> _Bars:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
        from rich.progress import TimeRemainingColumn as Remaining

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            Remaining(),
        )
        self._bars = Progress(*columns, console=Console(stderr=True), transient=True)
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    @contextmanager
    def __call__(self, description: str, total: int | None, /) -> Iterator[progress.Advance]:
        started = time.monotonic()
        task = self._bars.add_task(description, total=total, visible=False)

        def advance(amount: int) -> None:
            shown = time.monotonic() - started > SHOW_AFTER
            self._bars.update(task, advance=amount, visible=shown)

        try:
            yield advance
        finally:
            self._bars.remove_task(task)
