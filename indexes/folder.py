"""The folder of an index while it changes: one builder at a time, and readers never see a half-written one.

A new index is built in its own folder, which is no index until manifest.json is there. An index that exists is replaced
or updated in a folder beside it (`.NAME.building`), and the two are exchanged in one step when the new one is whole.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from ..errors import ConfigError
from ..files import final_name, fsync_dir
from .manifest import BUILDING, LOCK, MANIFEST

__all__ = ["State", "clear", "exchange", "lock", "remove", "state"]

State = Literal["absent", "empty", "index", "building", "other"]
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def state(folder: Path) -> State:
    """What `folder` is: an index (it may still hold building.json), an unfinished one, or something not ours."""
    if not folder.exists():
        return "absent"
    if not folder.is_dir():
        return "other"
    # A builder that was killed while it wrote its first file leaves the beginning of that, and is no obstacle.
    names = {path.name for path in folder.iterdir() if final_name(path.name) != BUILDING} - {LOCK}
    if MANIFEST in names:
        return "index"
    if BUILDING in names:
        return "building"
    return "other" if names else "empty"


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Hold `folder` (made if need be) for one builder; the kernel frees it when the process ends, however it ends.

    Raises:
        ConfigError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            raise ConfigError(
                f"{folder} is being written by another process; wait for it, or give another output folder"
            ) from None
        if _same_file(descriptor, path):
            break
        os.close(descriptor)  # its holder finished and removed it between our open and our lock
    try:
        yield
    finally:
        if _same_file(descriptor, path):
            path.unlink()
        os.close(descriptor)


def _same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def exchange(first: Path, second: Path) -> None:
    """Swap two folders by name: in one step where the kernel can (Linux), else in three renames."""
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "renameat2"):
        names = os.fsencode(first), os.fsencode(second)
        if libc.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0:
            fsync_dir(first.parent)
            return
        number = ctypes.get_errno()
        if number not in (errno.ENOSYS, errno.EINVAL):
            raise OSError(number, os.strerror(number), str(first))
    aside = first.with_name(f".{first.name}.aside")
    first.rename(aside)
    second.rename(first)
    aside.rename(second)
    fsync_dir(first.parent)


def clear(folder: Path) -> None:
    """Empty a folder that is an index or an unfinished one, its marker last, so that a cut leaves it recognisable.

    Raises:
        ConfigError: it is neither; nothing is deleted.
    """
    if state(folder) == "other":
        raise ConfigError(
            f"{folder} is neither an index nor an unfinished one, so it is not replaced. "
            "Remove it, or give another output"
        )
    markers = {MANIFEST, BUILDING}
    for path in sorted(folder.iterdir()):
        if path.name in markers or path.name == LOCK:
            continue
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    for name in sorted(markers):
        (folder / name).unlink(missing_ok=True)


def remove(folder: Path) -> None:
    """Remove a folder as `clear` does, and the folder itself."""
    if state(folder) == "absent":
        return
    clear(folder)
    (folder / LOCK).unlink(missing_ok=True)
    folder.rmdir()
