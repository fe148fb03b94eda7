"""How a collection's own evaluation differs: settings that a folder states, and documents it excludes."""

from __future__ import annotations

import json
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from ..errors import ConfigError, DataError, nearest
from .collection import Conventions
from .lines import field_text, find_file, read_jsonl, read_lines
from .presets import PRESETS

__all__ = ["IDENTICAL_IDS", "folder_conventions", "read_excluded", "read_settings"]

IDENTICAL_IDS = frozenset({"arguana", "quora"})
"""BEIR's collections whose queries are documents of the corpus, under the same id."""

_SETTINGS: dict[str, tuple[type, str]] = {
    "name": (str, "a string"),
    "drop_identical_ids": (bool, "true or false"),
    "preset": (str, "the name of an evaluation preset"),
    "excluded": (str, "a file in this folder"),
}
_SETTINGS_FILES = ("rtk.yaml", "collection.json")


def read_settings(folder: Path) -> dict[str, Any]:
    """Read the optional `rtk.yaml` or `collection.json` of a collection's folder.

    Keys: `name`, `drop_identical_ids`, `preset`, `excluded` (a file beside it; `excluded.tsv` and `excluded.jsonl` are
    found without).

    Raises:
        ConfigError: both files, a file that cannot be parsed, unknown keys (with the nearest known one) and values of
            the wrong type, all at once.
    """
    found = [folder / name for name in _SETTINGS_FILES if (folder / name).is_file()]
    if len(found) == 2:
        raise ConfigError(f"{folder} has both {_SETTINGS_FILES[0]} and {_SETTINGS_FILES[1]}; keep one")
    if not found:
        return {}
    path = found[0]
    settings = _parse(path)
    problems = [
        f"unknown key {key!r}{nearest(str(key), _SETTINGS)}; known: {', '.join(_SETTINGS)}"
        if key not in _SETTINGS
        else f"{key} is {value!r}, expected {_SETTINGS[key][1]}"
        for key, value in settings.items()
        if key not in _SETTINGS or not isinstance(value, _SETTINGS[key][0])
    ]
    preset = settings.get("preset")
    if isinstance(preset, str) and preset not in PRESETS:
        problems.append(f"unknown preset {preset!r}{nearest(preset, PRESETS)}; there are {', '.join(PRESETS)}")
    if problems:
        raise ConfigError(f"{path}: bad settings", problems)
    return settings


def _parse(path: Path) -> dict[Any, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        settings = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (yaml.YAMLError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    if settings is None:
        return {}
    if not isinstance(settings, dict):
        raise ConfigError(f"{path} must hold keys with values ({', '.join(_SETTINGS)})")
    return settings


def folder_conventions(folder: Path, settings: Mapping[str, Any]) -> Conventions:
    """The conventions of a folder: what its settings say, else BEIR's for a folder of that name."""
    path: Path | None
    if "excluded" in settings:
        path = folder / settings["excluded"]
    else:
        found = [found for name in ("excluded.tsv", "excluded.jsonl") if (found := find_file(folder, name))]
        if len(found) == 2:
            raise DataError("excluded.tsv and excluded.jsonl are both there; keep one", path=folder)
        path = found[0] if found else None
    return Conventions(
        drop_identical_ids=settings.get("drop_identical_ids", folder.resolve().name.lower() in IDENTICAL_IDS),
        excluded=read_excluded(path) if path else {},
        preset=settings.get("preset"),
    )


def read_excluded(path: Path) -> Mapping[str, tuple[str, ...]]:
    """Read the documents to leave out of each query's results.

    Two forms, by suffix: `.tsv` with columns query-id and corpus-id (header optional), `.jsonl` with
    {"_id": query id, "excluded": [document ids]}; each may be gzip.

    Raises:
        DataError: a line of another form, or anything `read_lines` refuses.
    """
    excluded: dict[str, dict[str, None]] = {}
    pairs = _tsv_pairs(path) if ".tsv" in path.suffixes else _jsonl_pairs(path)
    for qid, document in pairs:
        excluded.setdefault(qid, {})[document] = None
    return types.MappingProxyType({qid: tuple(documents) for qid, documents in excluded.items()})


def _tsv_pairs(path: Path) -> Iterator[tuple[str, str]]:
    for number, line in read_lines(path):
        cells = line.split("\t")
        if number == 1 and cells[:1] == ["query-id"]:
            continue
        if len(cells) != 2 or not all(cells):
            raise DataError(
                f"{len(cells)} tab-separated columns, expected 2: query-id, corpus-id", path=path, line=number
            )
        yield cells[0], cells[1]


def _jsonl_pairs(path: Path) -> Iterator[tuple[str, str]]:
    for number, entry in read_jsonl(path):
        qid = field_text(entry, "_id", path=path, line=number)
        documents = entry.get("excluded")
        if not isinstance(documents, list) or not all(isinstance(document, str) for document in documents):
            raise DataError("field 'excluded' must be a list of document ids (strings)", path=path, line=number)
        yield from ((qid, document) for document in documents)
