"""Reading published lists line by line: objects, lists of ids, and the order that an answer gives."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from typing import Any

from ...errors import DataError
from ..rerankers.identifiers import Identifiers
from ..rerankers.permutations import parse_permutation

__all__ = ["answer", "records", "strings"]


def records(path: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of a JSON-lines file, gzip allowed; a JSON array counts as a line each."""
    opener = gzip.open if path.endswith(".gz") else open
    with opener(path, "rt", encoding="utf-8") as stream:
        if path.removesuffix(".gz").endswith(".json"):
            found = _parsed(stream.read(), path, 1)
            if not isinstance(found, list):
                raise DataError("expected a JSON array of objects; one object a line goes into .jsonl", path=path)
            lines = [(line, each) for line, each in enumerate(found, start=1)]
        else:
            lines = ((line, _parsed(text, path, line)) for line, text in enumerate(stream, start=1) if text.strip())
        for line, record in lines:
            if not isinstance(record, dict):
                raise DataError("expected a JSON object", path=path, line=line)
            yield line, record


def _parsed(text: str, path: str, line: int) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise DataError(f"not JSON: {error}", path=path, line=line) from error


def strings(record: dict[str, Any], key: str, path: str, line: int) -> list[str]:
    """The ids under a key of an object."""
    value = record.get(key)
    if not isinstance(value, list):
        raise DataError(f"expected a list of ids under {key!r}", path=path, line=line)
    return [str(each) for each in value]


def answer(text: str) -> tuple[str, tuple[int, ...]]:
    """The kind of identifiers and the places named; nothing unless these are the first so many, each once."""
    for kind in ("letters", "numbers"):
        count = text.count("[")
        read = parse_permutation(text, count, Identifiers(kind)) if count else None
        if read is not None and read.well_formed:
            return kind, read.order
    return "numbers", ()
