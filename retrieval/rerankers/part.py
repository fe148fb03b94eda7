"""The part file of a reranking: finished queries on disk, so that a stopped job goes on where it was."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from ...errors import ConfigError, DataError
from ...files import fsync_dir
from .base import Usage

__all__ = ["Finished", "PartFile", "open_part", "part_path"]

log = logging.getLogger(__name__)

_FORMAT = 2
_SHOWN = 80  # characters of a value that differs
_SAME = "scores"  # most methods' raw values are the scores themselves: said once


@dataclass(frozen=True, eq=False)
class Finished:
    """The outcome of one query, small enough for millions of lines.

    Attributes:
        row: the query's row in the run.
        order: (n,) int32, positions of the candidates in their new order.
        scores: (n,) float32 along `order`.
        raw: (n,) float32 along `order`, or None.
        calibrated, usage, error: as in `Result`.
    """

    row: int
    order: np.ndarray
    scores: np.ndarray
    raw: np.ndarray | None
    calibrated: bool
    usage: Usage
    error: str | None

    def to_json(self) -> str:
        record = {
            "row": self.row,
            "order": self.order.tolist(),
            "scores": _digits(self.scores),
            "raw": None if self.raw is None else _SAME if np.array_equal(self.raw, self.scores) else _digits(self.raw),
            "calibrated": self.calibrated,
            "usage": list(astuple(self.usage)),
            "error": self.error,
        }
        return json.dumps(record, ensure_ascii=False)

    @classmethod
    def from_json(cls, line: str) -> Finished:
        record = json.loads(line)
        scores = np.asarray(record["scores"], dtype=np.float32)
        given = record["raw"]
        raw = None if given is None else scores if given == _SAME else np.asarray(given, dtype=np.float32)
        return cls(record["row"], np.asarray(record["order"], dtype=np.int32), scores, raw, record["calibrated"],
                   Usage(*record["usage"]), record["error"])  # fmt: skip


def _digits(values: np.ndarray) -> list[float]:
    """Nine significant digits, which bring every float32 back exactly."""
    return [float(f"{value:.9g}") for value in values.tolist()]


@dataclass(eq=False)
class PartFile:
    """An open part file: what is finished already, and where to add more."""

    path: Path
    finished: tuple[Finished, ...]
    handle: IO[str]
    synced: float = 0.0

    def add(self, finished: Finished) -> None:
        """Append an outcome: safe from a killed process at once, from a power cut within a second."""
        self.handle.write(finished.to_json() + "\n")
        self.handle.flush()
        if time.monotonic() - self.synced > 1:
            os.fsync(self.handle.fileno())
            self.synced = time.monotonic()

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)


def part_path(out: str | Path) -> Path:
    """Where the part file of an output lies."""
    out = Path(out)
    return out.with_name(f"{out.name}.part.jsonl")


@contextmanager
def open_part(path: Path, header: dict[str, Any], *, fresh: bool = False) -> Iterator[PartFile]:
    """Open or make a part file for the job that `header` describes, and lock it.

    Args:
        path: the file.
        header: the job's settings and fingerprints, JSON values.
        fresh: drop what another job left instead of refusing it.

    Raises:
        ConfigError: the file belongs to another job (which settings differ), or is being written right now.
        DataError: a line of it is broken; a last line cut short by a stop is dropped.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+", encoding="utf-8") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"{path} is being written by another process; wait for it or give another --out"
            ) from None
        wanted = json.loads(json.dumps({"rtk_rerank_part": _FORMAT, **header}))
        finished = _read(path, handle, wanted, fresh=fresh)
        if handle.tell() == 0:
            handle.write(json.dumps(wanted, ensure_ascii=False) + "\n")
            handle.flush()
            fsync_dir(path.parent)
        yield PartFile(path, tuple(finished), handle)


def _read(path: Path, handle: IO[str], wanted: dict[str, Any], *, fresh: bool) -> list[Finished]:
    """Read what is there; the handle then stands at the end, at 0 when the file is to be begun."""
    handle.seek(0)
    lines = handle.readlines()
    if lines and not lines[-1].endswith("\n"):
        log.warning("%s: the last line was cut short by a stop; its query is done again", path)
        handle.truncate(len("".join(lines[:-1]).encode()))
        lines.pop()
    if not lines:
        handle.truncate(0)
        handle.seek(0)
        return []
    try:
        there = json.loads(lines[0])
        finished = [Finished.from_json(line) for line in lines[1:]]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"not a part file of a reranking ({error}); remove it", path=path) from error
    if there == wanted:
        handle.seek(0, os.SEEK_END)
        return finished
    if not fresh:
        _refuse(path, there, wanted)
    log.warning("%s: %d queries of a job with other settings are dropped (overwrite)", path, len(finished))
    handle.truncate(0)
    handle.seek(0)
    return []


def _refuse(path: Path, there: Any, wanted: dict[str, Any]) -> None:
    raise ConfigError(
        f"{path} holds finished queries of another job. Give another --out, --overwrite, or remove it.",
        _differences(there if isinstance(there, dict) else {}, wanted),
    )


def _differences(there: dict[str, Any], wanted: dict[str, Any], within: str = "") -> list[str]:
    """What differs, and nothing else; settings inside others as "reranker.reading.words"."""
    lines: list[str] = []
    for name in sorted({*there, *wanted}):
        was, now = there.get(name, _ABSENT), wanted.get(name, _ABSENT)
        if was == now:
            continue
        if isinstance(was, dict) and isinstance(now, dict) and was.keys() & now.keys():
            lines += _differences(was, now, f"{within}{name}.")
        else:
            lines.append("{}{}: was {}, is now {}".format(within, name, *_where_they_differ(was, now)))
    return lines


class _Absent:
    def __repr__(self) -> str:
        return "not there"


_ABSENT = _Absent()


def _where_they_differ(was: Any, now: Any) -> tuple[str, str]:
    """Both values; of long ones (prompts, chat templates) the part from a little before the first difference on."""
    one, other = repr(was), repr(now)
    if max(len(one), len(other)) <= _SHOWN:
        return one, other
    same = next((at for at, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), len(one))
    start = max(0, same - _SHOWN // 4)
    return _excerpt(one, start), _excerpt(other, start)


def _excerpt(text: str, start: int) -> str:
    stop = start + _SHOWN
    return f"{'…' if start else ''}{text[start:stop]}{'…' if stop < len(text) else ''}"
