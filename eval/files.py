"""Reading and writing runs by the file's name."""

from __future__ import annotations

import logging
from pathlib import Path

from ..errors import DataError
from .parquet import read_parquet, write_parquet
from .run import Order, Run
from .trec import read_trec, write_trec

__all__ = ["RUN_SUFFIXES", "read_run", "run_name", "write_run"]

log = logging.getLogger(__name__)

RUN_SUFFIXES = (".trec", ".txt", ".run", ".trec.gz", ".txt.gz", ".run.gz", ".parquet")


def run_name(path: str | Path) -> str:
    """What a run in this file is called: the file's name without a run's suffix (`dl19.bm25.trec.gz` → `dl19.bm25`)."""
    name = Path(path).name
    found = max((suffix for suffix in RUN_SUFFIXES if name.endswith(suffix)), key=len, default="")
    return name.removesuffix(found) or name


def read_run(path: str | Path, *, order: Order | None = None) -> Run:
    """Read a run: Parquet when the name ends in .parquet, else TREC's six columns (packed when it ends in .gz).

    Args:
        path: the file.
        order: "score" (trec_eval's way) or "rank" (by the file's rank column, for runs whose printed scores tie). None
            takes what a Parquet run says of itself, and "score" for TREC files.

    Raises:
        DataError: with file and line: see `read_trec` and `read_parquet`.
    """
    if Path(path).suffix == ".parquet":
        return read_parquet(path, order=order)
    return read_trec(path, order=order or "score")


def write_run(run: Run, path: str | Path) -> None:
    """Write a run, atomically, in the form that the file's name asks for: one of `RUN_SUFFIXES`.

    Raises:
        DataError: another suffix; for TREC an id with white space (use .parquet).
    """
    name = Path(path).name
    if not name.endswith(RUN_SUFFIXES):
        raise DataError(
            f"cannot tell the run's form from its name; expected one of {', '.join(RUN_SUFFIXES)}", path=path
        )
    if name.endswith(".parquet"):
        write_parquet(run, path)
        return
    if run.columns:
        log.warning("%s: TREC files have no room for the columns %s; .parquet keeps them", path, ", ".join(run.columns))
    write_trec(run, path)
