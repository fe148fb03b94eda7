"""Runs as Parquet: ids with any characters, further columns, and the order and tag in the file's metadata."""

from __future__ import annotations

import json
import logging
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import DataError
from ..files import atomic_path
from ..ids import Ids
from ..progress import task
from .assemble import RunAssembler
from .run import Order, Run

__all__ = ["read_parquet", "write_parquet"]

log = logging.getLogger(__name__)

_OWN = ("qid", "docid", "score", "rank")
_METADATA = b"rtk.run"
_BATCH = 1 << 20


def write_parquet(run: Run, path: str | Path) -> None:
    """Write `qid`, `docid`, `score` (float32), `rank` (int32, from 1) and the run's further columns.

    The metadata key `rtk.run` holds JSON: version, order, tag, and the queries without documents with their places.
    """
    path = Path(path)
    for name, values in run.columns.items():
        if name in _OWN or values.dtype.kind not in "iufb":
            raise DataError(f"column {name!r} ({values.dtype}) cannot be written: name taken, or not numeric",
                            path=path)  # fmt: skip
    empty = np.flatnonzero(np.diff(run.offsets) == 0)
    metadata = {
        "version": 1, "order": run.order, "tag": run.tag, "queries_without_documents": [
            [int(row), qid] for row, qid in zip(empty, run.qids.take(empty), strict=True)
        ],
    }  # fmt: skip
    fields = [pa.field("qid", pa.dictionary(pa.int32(), pa.large_string())), pa.field("docid", pa.large_string()),
              pa.field("score", pa.float32()), pa.field("rank", pa.int32())]  # fmt: skip
    fields += [pa.field(name, pa.from_numpy_dtype(values.dtype)) for name, values in run.columns.items()]
    schema = pa.schema(fields, metadata={_METADATA: json.dumps(metadata, ensure_ascii=False).encode()})
    with atomic_path(path) as temporary, task(f"write {path.name}", len(run)) as advance, \
            pq.ParquetWriter(temporary, schema, compression="zstd", use_dictionary=["qid"]) as writer:  # fmt: skip
        for first, last, (start, stop) in run.blocks(_BATCH):
            writer.write_table(_block_table(run, schema, first, last, start, stop))
            advance(last - first)


def _block_table(run: Run, schema: pa.Schema, first: int, last: int, start: int, stop: int) -> pa.Table:
    lengths = np.diff(run.offsets[first : last + 1])
    rows = np.repeat(np.arange(last - first, dtype=np.int32), lengths)
    ranks = np.arange(start, stop) - np.repeat(run.offsets[first:last], lengths) + 1
    columns = [
        pa.DictionaryArray.from_arrays(pa.array(rows), run.qids.array.slice(first, last - first)),
        run.documents_between(start, stop),
        pa.array(run.scores[start:stop]),
        pa.array(ranks.astype(np.int32)),
        *(pa.array(values[start:stop]) for values in run.columns.values()),
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def read_parquet(path: str | Path, *, order: Order | None = None) -> Run:
    """Read a Parquet run: ours, or any with columns qid, docid, score (and rank; further numeric columns are kept).

    Args:
        path: the file.
        order: "score" or "rank"; None takes the file's own (its metadata, else "score").

    Raises:
        DataError: no Parquet file, a column missing or of another kind, nulls, a NaN score, a duplicate.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError("no such file", path=path)
    try:
        schema = pq.read_schema(path)
        metadata = _metadata(schema, path)
        chosen: Order = order or metadata["order"]
        _check_columns(schema, chosen, path)
        with pq.ParquetFile(path, read_dictionary=["qid", "docid"], pre_buffer=False) as file:
            assembler = RunAssembler(chosen, file.metadata.num_rows)
            _read_batches(file, assembler, path)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"not a readable Parquet file: {error}", path=path) from error
    try:
        run = assembler.finish(metadata["tag"])
    except DataError as error:
        raise DataError(str(error), path=path) from error
    return _with_empty(run, metadata["queries_without_documents"])


def _metadata(schema: pa.Schema, path: Path) -> dict[str, Any]:
    raw = (schema.metadata or {}).get(_METADATA)
    if raw is None:
        return {"order": "score", "tag": path.stem, "queries_without_documents": []}
    metadata = json.loads(raw)
    if metadata.get("version") != 1:
        raise DataError(f"run format version {metadata.get('version')!r} is newer than this rtk; update it", path=path)
    return metadata


def _check_columns(schema: pa.Schema, order: Order, path: Path) -> None:
    needed = ["qid", "docid", "score"] + (["rank"] if order == "rank" else [])
    missing = [name for name in needed if name not in schema.names]
    if missing:
        raise DataError(f"no column {', '.join(missing)}; found {', '.join(schema.names)}. A run needs qid, docid, "
                        "score (and rank, to be read by rank)", path=path)  # fmt: skip
    for field in schema:
        kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
        text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
        number = pa.types.is_floating(kind) or pa.types.is_integer(kind)
        if field.name in ("qid", "docid") and not text:
            raise DataError(
                f"column {field.name!r} is {kind}, expected text: ids are strings, '007' is not 7", path=path
            )
        if field.name not in ("qid", "docid") and not (number or pa.types.is_boolean(kind)):
            raise DataError(f"column {field.name!r} is {kind}, expected numbers; leave it out of the run", path=path)


def _read_batches(file: pq.ParquetFile, assembler: RunAssembler, path: Path) -> None:
    further = [name for name in file.schema_arrow.names if name not in _OWN]
    wanted = ["qid", "docid", "score", *(["rank"] if assembler.order == "rank" else []), *further]
    with task(f"read {path.name}", file.metadata.num_rows) as advance:
        done = 0
        none = pa.RecordBatch.from_pylist([], schema=file.schema_arrow)  # so that columns keep their kind
        groups = (
            file.iter_batches(_BATCH, row_groups=[group], columns=wanted)  # a batch over two has two dictionaries
            for group in range(file.num_row_groups)
        )
        for batch in chain([none.select(wanted)], chain.from_iterable(groups)):
            for name in batch.schema.names:
                nulls = batch[name].null_count
                if nulls and not (name in further and pa.types.is_floating(batch[name].type)):
                    raise DataError(f"column {name!r} has {nulls} nulls in rows {done + 1} to {done + len(batch)}; "
                                    "every entry needs a value", path=path)  # fmt: skip
            assembler.add(
                batch["qid"], batch["docid"], _numbers(batch["score"]),
                ranks=_numbers(batch["rank"]) if assembler.order == "rank" else None,
                columns={name: _numbers(batch[name]) for name in further},
            )  # fmt: skip
            done += len(batch)
            advance(len(batch))


def _numbers(values: pa.Array) -> np.ndarray:
    """As numpy; nulls of a float column become NaN."""
    return values.to_numpy(zero_copy_only=False)


def _with_empty(run: Run, empty: list[tuple[int, str]]) -> Run:
    """The run with its queries without documents back in their places."""
    if not empty:
        return run
    qids = run.qids.array.to_pylist()
    lengths = np.diff(run.offsets).tolist()
    for row, qid in empty:  # rising rows, so every insertion lands at its final place
        qids.insert(row, qid)
        lengths.insert(row, 0)
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)
    return Run(Ids(qids), offsets, run.vocabulary, run.codes, run.scores, run.columns, run.order, run.tag)
