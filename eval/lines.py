"""Reading text files line by line, so that whatever is wrong is reported with its file and line."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from ..errors import DataError

__all__ = ["field_text", "find_file", "is_gzip", "open_bytes", "read_jsonl", "read_lines", "read_tsv"]

_KINDS: dict[type, str] = {
    dict: "an object",
    list: "a list",
    str: "a string",
    int: "a number",
    float: "a number",
    bool: "true or false",
}


def is_gzip(path: Path) -> bool:
    """Whether the name says that the file is compressed."""
    return path.suffix == ".gz"


def find_file(folder: Path, name: str) -> Path | None:
    """Return `folder/name` or `folder/name.gz`, whichever is there, or None.

    Raises:
        DataError: both are there, and nothing says which one is meant.
    """
    found = [path for path in (folder / name, folder / f"{name}.gz") if path.is_file()]
    if len(found) == 2:
        raise DataError(f"{name} and {name}.gz are both there; remove the one that is not meant", path=folder)
    return found[0] if found else None


def open_bytes(path: Path) -> BinaryIO:
    """Open a plain or gzip file for reading bytes."""
    if is_gzip(path):
        return cast(BinaryIO, gzip.open(path, "rb"))
    return open(path, "rb")


def read_lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, line without its end) of a UTF-8 file, plain or gzip.

    A byte order mark is dropped. Empty lines at the end of the file are skipped; one before further lines is refused,
    so that line numbers and entries stay in step.

    Raises:
        DataError: no such file, an empty file, an empty line inside, bytes that are not UTF-8, damaged or cut gzip.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError("no such file", path=path)
    number, empty_at = 0, 0
    for number, raw in _raw_lines(path):
        try:
            line = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(
                f"byte {error.start + 1} of the line (0x{raw[error.start]:02x}) is not UTF-8; convert the file, for "
                "example with `iconv -t UTF-8`",
                path=path,
                line=number,
            ) from None
        line = line.rstrip("\r\n")
        if number == 1:
            line = line.removeprefix("\ufeff")
        if not line.strip():
            empty_at = empty_at or number
            continue
        if empty_at:
            raise DataError("empty line; expected an entry on every line", path=path, line=empty_at)
        yield number, line
    if not number or empty_at == 1:
        raise DataError("the file is empty", path=path)


def _raw_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    number = 0
    try:
        with open_bytes(path) as handle:
            for number, raw in enumerate(handle, start=1):
                yield number, raw
    except EOFError:
        raise DataError(
            "the gzip file is cut short after this line; copy or download it again", path=path, line=number
        ) from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(
            f"damaged gzip data after this line ({error}); copy or download the file again", path=path, line=number
        ) from None


def read_jsonl(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, object) of a JSON-lines file. Every line must hold one JSON object.

    Raises:
        DataError: as `read_lines`, and a line that is not a JSON object.
    """
    for number, line in read_lines(path):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:  # a number of thousands of digits is a plain ValueError
            what = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
            raise DataError(
                f"not valid JSON: {what}; expected one JSON object on each line", path=path, line=number
            ) from None
        if not isinstance(value, dict):
            raise DataError(f"expected a JSON object, found {_kind(value)}", path=path, line=number)
        yield number, value


def _kind(value: object) -> str:
    return "null" if value is None else _KINDS[type(value)]


def field_text(entry: dict[str, Any], key: str, *, path: str | Path, line: int, default: str | None = None) -> str:
    """Return the string under `key` of one line's object.

    Args:
        default: stands for a missing or null value; without it such a line is refused.

    Raises:
        DataError: the field is missing or not a string (a JSON number as an id included: 7 and "007" would be one).
    """
    value = entry.get(key)
    if value is None:
        if default is not None:
            return default
        found = f"has no field {key!r}" if key not in entry else f"has null in field {key!r}"
        raise DataError(f"this line {found}; expected a string", path=path, line=line)
    if not isinstance(value, str):
        hint = f'; ids are strings, write "{key}": "{value}"' if key == "_id" and isinstance(value, int) else ""
        raise DataError(f"field {key!r} is {_kind(value)} ({value!r}), expected a string{hint}", path=path, line=line)
    if key == "_id" and not value:
        raise DataError("the _id is empty; every entry needs an id", path=path, line=line)
    if not value.isascii():
        _refuse_surrogates(value, key, path=path, line=line)
    return value


def _refuse_surrogates(value: str, key: str, *, path: str | Path, line: int) -> None:
    """JSON can escape half of a surrogate pair, which is no character and has no UTF-8 form."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"field {key!r} holds the lone surrogate \\u{ord(value[error.start]):04x}, which is no character; "
            "repair the text",
            path=path,
            line=line,
        ) from None


def read_tsv(path: str | Path, columns: int, *, expected: str) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, cells) of a tab-separated file without quoting: quotes in the text are data.

    Args:
        columns: how many cells every line must have.
        expected: their names, for the message.

    Raises:
        DataError: as `read_lines`, and a line with another number of cells.
    """
    for number, line in read_lines(path):
        cells = line.split("\t")
        if len(cells) != columns:
            raise DataError(
                f"{len(cells)} tab-separated columns, expected {columns}: {expected}", path=path, line=number
            )
        yield number, cells
