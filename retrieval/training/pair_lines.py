"""Reading published pair and triple files in blocks, and saying which line is wrong."""

from __future__ import annotations

import gzip
import io
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NoReturn

import pyarrow as pa
from pyarrow import csv

from ...errors import DataError

__all__ = ["NAMES", "SCORES", "Layout", "blocks", "look", "point_out"]

NAMES = ("query", "positive", "negative")
SCORES = ("teacher_pos", "teacher_neg")
_BLOCK = 1 << 24  # bytes parsed at once
_BLANKS = re.compile(rb"[ \t]+")
_EDGES = re.compile(rb"\t?(\r?\n)\t?")


@dataclass(frozen=True)
class Layout:
    """How the lines look: scored or not, whether a single tab separates the fields, and lines before the first pair."""

    scored: bool
    tabs: bool
    header: int

    @property
    def columns(self) -> tuple[str, ...]:
        return (*(SCORES if self.scored else ()), *NAMES)


def look(path: Path) -> Layout:
    """The layout, by the first line."""
    with open_pairs(path) as handle:
        first = handle.readline()
    fields = first.split()
    if len(fields) in (3, 5):
        scored = len(fields) == 5
        header = scored and not any(map(_is_number, fields[:2]))
        return Layout(scored, first.rstrip(b"\r\n").split(b"\t") == fields, int(header))
    raise DataError(
        f"{len(fields)} fields, expected `teacher_pos teacher_neg qid pos_id neg_id` or `qid pos_id neg_id`",
        path=path,
        line=1,
    )


def open_pairs(path: Path) -> IO[bytes]:
    return gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb")  # type: ignore[return-value]


def blocks(path: Path, layout: Layout) -> Iterator[pa.RecordBatch]:
    """Parsed lines, in order; none is left out, so that a row's number is its line's."""
    types: dict[str, pa.DataType] = {name: pa.string() for name in NAMES} | {name: pa.float64() for name in SCORES}
    with open_pairs(path) as raw:
        for _ in range(layout.header):
            raw.readline()
        source = raw if layout.tabs else _Tabs(raw)
        try:
            yield from csv.open_csv(
                pa.PythonFile(source, mode="r"),
                read_options=csv.ReadOptions(column_names=list(layout.columns), block_size=_BLOCK),
                parse_options=csv.ParseOptions(delimiter="\t", quote_char=False, ignore_empty_lines=False),
                convert_options=csv.ConvertOptions(column_types=types, null_values=[], strings_can_be_null=False),
            )
        except (pa.ArrowInvalid, gzip.BadGzipFile, EOFError) as error:
            point_out(path, layout, error)


class _Tabs(io.RawIOBase):
    """Lines whose fields are separated by any blanks, as lines whose fields are separated by one tab."""

    def __init__(self, raw: IO[bytes]) -> None:
        self._raw, self._rest = raw, b""

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        if not self._rest:
            data = self._raw.read(_BLOCK)
            data += self._raw.readline() if data else b""
            self._rest = _EDGES.sub(rb"\1", b"\n" + _BLANKS.sub(b"\t", data))[1:].rstrip(b"\t")
        taken = self._rest if size < 0 else self._rest[:size]
        self._rest = self._rest[len(taken) :]
        return taken


def point_out(path: Path, layout: Layout, error: Exception) -> NoReturn:
    """Read again, line by line, to say which one is wrong."""
    try:
        with open_pairs(path) as handle:
            for number, line in enumerate(handle, 1):
                fields = line.rstrip(b"\r\n").split(b"\t") if layout.tabs else line.split()
                problem = _problem(fields, layout)
                if problem and number > layout.header:
                    raise DataError(problem, path=path, line=number) from error
    except (gzip.BadGzipFile, EOFError) as broken:
        raise DataError(f"not readable: {broken}", path=path) from error
    raise DataError(f"not readable as lines of {' '.join(layout.columns)}: {error}", path=path) from error


def _problem(fields: list[bytes], layout: Layout) -> str | None:
    wanted = layout.columns
    if len(fields) != len(wanted):
        return f"expected the {len(wanted)} fields {' '.join(wanted)}, as in line 1; found {len(fields)}"
    for name, field in zip(wanted, fields, strict=True):
        if name in SCORES:
            if not _is_number(field):
                return f"{name} {field.decode(errors='replace')!r} is not a number"
            if not math.isfinite(float(field)):
                return f"{name} {field.decode(errors='replace')!r} is not finite"
        else:
            try:
                field.decode()
            except UnicodeDecodeError:
                return f"the {name} id {field!r} is not UTF-8"
    return None


def _is_number(field: bytes) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True
