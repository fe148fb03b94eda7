"""One tree of errors.

    RtkError              exit 1  anything rtk stops for
    ├── ConfigError       exit 2  arguments or configuration
    │   └── OutputExists  exit 2  the output is there and --overwrite was not given
    ├── MissingExtra      exit 3  an optional package or program is not installed
    ├── DataError         exit 4  input data: names the file, line and id
    │   └── IndexMismatch exit 4  an index and what is used with it do not belong together
    └── BackendError      exit 1  an engine below us failed

A message says what happened, where (file, line, id), what was expected and what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path

__all__ = [
    "BackendError",
    "ConfigError",
    "DataError",
    "IndexMismatch",
    "MissingExtra",
    "OutputExists",
    "RtkError",
    "nearest",
]


class RtkError(Exception):
    """Base of every error that rtk raises on purpose. `exit_code` is what the command line returns."""

    exit_code = 1


class ConfigError(RtkError):
    """Bad arguments or configuration. `problems` holds every problem found, not only the first."""

    exit_code = 2

    def __init__(self, message: str, problems: Iterable[str] = ()) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join([message, *(f"  - {problem}" for problem in self.problems)]))


class OutputExists(ConfigError):
    """The output is there already."""

    def __init__(self, path: str | Path) -> None:
        super().__init__(f"{path} exists already. Give another --out, or --overwrite to replace it.")


class MissingExtra(RtkError):
    """An optional dependency is missing; the message holds the command that installs it."""

    exit_code = 3


class DataError(RtkError):
    """Bad input data, with its place."""

    exit_code = 4

    def __init__(self, message: str, *, path: str | Path | None = None, line: int | None = None) -> None:
        self.path, self.line = path, line
        place = "" if path is None else f"{path}:{line}: " if line is not None else f"{path}: "
        super().__init__(place + message)


class IndexMismatch(DataError):
    """An index and the encoder, arguments or files used with it do not belong together."""


class BackendError(RtkError):
    """An engine below us (FAISS, Lucene, a model) failed; the cause is chained."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return " (did you mean 'x'?)" for the known name nearest to `name`, or an empty string."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean {found[0]!r}?)" if found else ""
