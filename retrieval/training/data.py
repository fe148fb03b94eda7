"""From the configuration's data block to training tables, cached by what went into them."""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...errors import ConfigError, DataError
from ...files import atomic_folder, cache_dir, sha256_file
from .blocks import Part, Runs
from .examples import Columns, RoleRuns, TrainingTable, build_columns, write_table
from .pair_files import PairFile, pair_table
from .teachers import check_teachers

if TYPE_CHECKING:
    from ...eval.collection import Collection
    from ...eval.run import Run

__all__ = ["collection_fingerprint", "make_table", "open_table", "open_tables"]

_LOG = logging.getLogger(__name__)
_FORMAT = 5
_TAKEN = frozenset(
    (
        *("first_stage", "first_rank", "labels", "query", "positives", "documents", "grade", "relevant"),
        *("number", "rows", "part", "document_rows", "allowed", "difficulty", "query_texts", "document_texts"),
    )
)
"""Names of columns and side values that no teacher's file can have."""
_Columns = Callable[[Path], Columns]
"""Makes a table's columns; may leave temporary files in the folder."""


def open_tables(parts: Sequence[Part]) -> list[TrainingTable]:
    """The training table of every collection in the configuration, its teachers' scores looked over.

    Raises:
        DataError: see `build_columns` and `check_teachers`.
    """
    tables = [open_table(part) for part in parts]
    for part, table in zip(parts, tables, strict=True):
        check_teachers(table, most_missing=part.max_missing_scores)
    return tables


def open_table(part: Part) -> TrainingTable:
    """Join one collection with its runs or its pair file, or map what an earlier call joined from the same data.

    Raises:
        DataError: see `build_columns`.
        ConfigError: two teachers of one name.
    """
    from ...eval.collection import open_collection

    collection = open_collection(part.collection)
    fingerprint = _digest(
        collection_fingerprint(collection, part.split),
        f"{part.split} {part.positive_grade}",
        *([] if part.shuffle_judgments is None else [f"shuffled {part.shuffle_judgments}"]),
        *(f"{role} {Path(path).name} {sha256_file(path)}" for role, path in part.runs.files()),
        *_pair_file_key(part),
    )

    def columns(scratch: Path) -> Columns:
        if part.pairs is None:
            return build_columns(
                collection,
                part.split,
                _read(part.runs),
                positive_grade=part.positive_grade,
                shuffle=part.shuffle_judgments,
            )
        pairs = PairFile(Path(part.pairs), _named(part.pairs), part.unknown_pairs, part.differing_scores)
        return Columns(*pair_table(collection, part.split, pairs, scratch))

    if not (_home() / fingerprint).exists():
        _build(collection, part.split, columns, fingerprint)
    return _opened(collection, part.split, fingerprint)


def _pair_file_key(part: Part) -> list[str]:
    if part.pairs is None:
        return []
    rules = f"{part.unknown_pairs} {part.differing_scores}"
    return [f"pairs {Path(part.pairs).name} {rules} {sha256_file(part.pairs)}"]


def make_table(
    collection: Collection, split: str, runs: RoleRuns | None = None, *, positive_grade: int = 1
) -> TrainingTable:
    """As `open_table`, from a collection and runs in memory."""
    runs = runs or RoleRuns()
    named = [*((f"negatives {number}", run) for number, run in enumerate(runs.negatives)), *runs.scores().items()]
    named += [("the pool", runs.pool)] if runs.pool is not None else []
    fingerprint = _digest(
        collection_fingerprint(collection, split),
        f"{split} {positive_grade}",
        *(f"{name} {_run_fingerprint(run)}" for name, run in named),
    )
    if not (_home() / fingerprint).exists():
        made = build_columns(collection, split, runs, positive_grade=positive_grade)
        _build(collection, split, lambda _: made, fingerprint)
    return _opened(collection, split, fingerprint)


def _opened(collection: Collection, split: str, fingerprint: str) -> TrainingTable:
    table = TrainingTable(_home() / fingerprint, collection, split)
    for line in table.report.lines():
        _LOG.info("%s, split %s: %s", collection.name, split, line)
    return table


def _home() -> Path:
    return cache_dir() / "training"


def _build(collection: Collection, split: str, columns: _Columns, fingerprint: str) -> None:
    """Write beside the final name, then rename; whoever is second throws its own away."""
    folder = _home() / fingerprint
    with atomic_folder(folder, or_discard=True) as temporary:
        scratch = temporary / "scratch"
        scratch.mkdir()
        write_table(temporary, columns(scratch), collection, split, fingerprint)
        shutil.rmtree(scratch)


def _read(runs: Runs) -> RoleRuns:
    from ...eval.files import read_run

    teachers: dict[str, Run] = {}
    for path in runs.teachers:
        name = _named(path)
        if name in teachers:
            raise ConfigError(f"data.runs.teachers: {name!r} cannot name a second column; rename the file {path}")
        teachers[name] = read_run(path)
    return RoleRuns(
        tuple(_negatives(path) for path in runs.negatives),
        teachers,
        read_run(runs.first_stage) if runs.first_stage else None,
        read_run(runs.labels) if runs.labels else None,
        read_run(runs.pool) if runs.pool else None,
    )


def _negatives(path: str) -> Run:
    """A run, or the negatives of a hard-negative file (.json, .jsonl, plain or gzip; see `eval.hard_negatives`)."""
    from ...eval.files import read_run
    from ...eval.hard_negatives import read_hard_negatives

    if not path.removesuffix(".gz").endswith((".json", ".jsonl")):
        return read_run(path)
    found = read_hard_negatives(path).negatives
    if found is None:
        raise DataError("no negatives in this file, only scores", path=path)
    return found


def _named(path: str) -> str:
    """The score column of a file: "scores/bert-cat.run.gz" → "bert-cat"."""
    name = Path(path).name.split(".")[0]
    if name in _TAKEN:
        raise ConfigError(f"{name!r} cannot name a teacher's scores; rename the file {path}")
    return name


def _digest(*parts: str) -> str:
    return hashlib.sha256("\n".join((f"training table {_FORMAT}", *parts)).encode()).hexdigest()[:32]


def _array_digest(*arrays: np.ndarray) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _strings_digest(strings: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for text in strings:
        data = text.encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def collection_fingerprint(collection: Collection, split: str) -> str:
    """Of documents, queries and judgments of a split."""
    queries, judgments = collection.queries(split), collection.judgments(split)
    return " ".join(
        (
            collection.documents.fingerprint,
            _strings_digest(list(queries.ids)),
            _strings_digest(queries.texts),
            _strings_digest(list(judgments.qids)),
            _strings_digest(list(judgments.vocabulary)),
            _array_digest(judgments.offsets, judgments.codes, judgments.grades),
        )
    )


def _run_fingerprint(run: Run) -> str:
    raw = run.columns.get("raw", run.scores)
    return " ".join(
        (
            _strings_digest(list(run.qids)),
            _strings_digest(list(run.vocabulary)),
            _array_digest(run.offsets, run.codes, np.asarray(raw)),
        )
    )
