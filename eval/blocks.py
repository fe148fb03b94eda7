"""Text files of white-space separated columns, read in blocks of whole lines with their line numbers."""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO, cast

from ..errors import DataError

__all__ = ["decode_line", "open_bytes", "read_blocks", "single_spaced", "write_bytes"]

_TO_SPACE = bytes.maketrans(b"\t\r\v\f", b"    ")
_SPACES = re.compile(rb" {2,}")
_EDGES = re.compile(rb" ?\n ?")


@contextmanager
def open_bytes(path: str | Path) -> Iterator[BinaryIO]:
    """Open a file, unpacked when its name ends in .gz, to read bytes.

    Raises:
        DataError: the file is missing, or its gzip data is broken or cut short (also while reading inside the block).
    """
    path = Path(path)
    if not path.is_file():
        raise DataError("no such file", path=path)
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as handle:
            yield cast(BinaryIO, handle)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(
            f"the gzip data is broken or cut short ({error}). Get the file again, or check it with gzip -t", path=path
        ) from error


@contextmanager
def write_bytes(path: Path) -> Iterator[IO[bytes]]:
    """Open `path` for writing bytes, packed when its name ends in .gz; equal content gives equal bytes."""
    if path.suffix != ".gz":
        with open(path, "wb") as handle:
            yield handle
        return
    with open(path, "wb") as raw, gzip.GzipFile("", "wb", 5, raw, mtime=0) as handle:
        yield cast(IO[bytes], handle)


def read_blocks(path: str | Path, size: int = 1 << 24) -> Iterator[tuple[int, bytes]]:
    """Yield (number of the first line, bytes of whole lines), about `size` bytes at a time."""
    line = 1
    rest = b""
    with open_bytes(path) as handle:
        while block := handle.read(size):
            cut = block.rfind(b"\n") + 1
            if not cut:
                rest += block
                continue
            whole = rest + block[:cut]
            rest = block[cut:]
            yield line, whole
            line += whole.count(b"\n")
    if rest:
        yield line, rest


def single_spaced(block: bytes) -> bytes:
    """The block with every stretch of blanks inside a line as one space, and none at the lines' edges."""
    if any(mark in block for mark in (b"\t", b"\r", b"\v", b"\f")):
        block = block.translate(_TO_SPACE)
    if b"  " in block:
        block = _SPACES.sub(b" ", block)
    if b" \n" in block or b"\n " in block or block.startswith(b" ") or block.endswith(b" "):
        block = _EDGES.sub(b"\n", block).strip(b" ")
    return block


def decode_line(line: bytes, path: str | Path, number: int) -> str:
    """The line as text; `DataError` when it is not UTF-8."""
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"byte {error.start + 1} of the line is not UTF-8 ({line[error.start]:#04x}); convert the file to UTF-8",
            path=path,
            line=number,
        ) from error
