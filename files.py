"""Writing files so that a reader never sees half of one."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import ConfigError, OutputExists

__all__ = [
    "atomic_folder",
    "atomic_path",
    "cache_dir",
    "check_output",
    "final_name",
    "fsync_dir",
    "read_json",
    "sha256_file",
    "write_json",
]

_TEMPORARY = re.compile(r"\.\d+\.tmp\.(.+)", re.DOTALL)


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success fsync it and rename it over `path`, else remove it.

    The temporary name keeps the suffixes of `path`, so that writers which look at them (numpy, gzip) do the same thing.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        yield temporary
        with open(temporary, "rb") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
        fsync_dir(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(folder: Path, *, or_discard: bool = False) -> Iterator[Path]:
    """Yield an empty folder beside `folder`; on success rename it to `folder`, else remove it.

    Args:
        folder: must not be there by then.
        or_discard: it may be, made by another process that was quicker; what was written here is then thrown away.
    """
    temporary = _temporary(folder)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        if not (or_discard and folder.exists()):
            os.rename(temporary, folder)
            fsync_dir(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def final_name(name: str) -> str | None:
    """What a file or folder of this name was to be called when it was whole; None if it is nobody's remains."""
    found = _TEMPORARY.fullmatch(name)
    return found and found[1]


def _temporary(path: Path) -> Path:
    """Beside `path`, hidden, of this process, with its suffixes; `final_name` reads it."""
    return path.with_name(f".{os.getpid()}.tmp.{path.name}")


def fsync_dir(path: Path) -> None:
    """Make a rename inside `path` survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: str | Path) -> Any:
    return json.loads(Path(path).read_text(encoding="utf-8"))


def sha256_file(path: str | Path) -> str:
    """Hex sha256 of a file's bytes."""
    import hashlib

    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def check_output(path: str | Path, *, overwrite: bool, folder_with: str | None = None) -> Path:
    """Return `path` ready to be written; refuse an existing one unless `overwrite`.

    Files are left in place (the atomic rename replaces them). A folder is removed, since a writer would add to it, but
    only one that is empty or holds `folder_with`, by which it is known as an earlier output of the same writer.

    Raises:
        OutputExists: it is there, and not to be replaced.
        ConfigError: it is a folder that somebody else made.
    """
    path = Path(path)
    if not path.exists():
        return path
    if not overwrite:
        raise OutputExists(path)
    if path.is_dir():
        if any(path.iterdir()) and not (folder_with and (path / folder_with).exists()):
            raise ConfigError(
                f"{path} is a folder that this command did not make, so it is not replaced. "
                "Remove it, or give another output"
            )
        shutil.rmtree(path)
    return path


def cache_dir() -> Path:
    """Where derived files live: `$RTK_CACHE`, else `$XDG_CACHE_HOME/rtk`, else `~/.cache/rtk`."""
    base = os.environ.get("RTK_CACHE")
    return Path(base) if base else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rtk"
