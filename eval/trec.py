"""TREC run files: query id, Q0, document id, rank, score, tag, separated by white space."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from ..errors import DataError
from ..files import atomic_path
from ..ids import Ids
from ..progress import task
from .assemble import RunAssembler
from .blocks import decode_line, read_blocks, single_spaced, write_bytes
from .run import Order, Run

__all__ = ["read_trec", "refuse_blanks", "write_trec"]

log = logging.getLogger(__name__)

_NAMES = ("qid", "q0", "docid", "rank", "score", "tag")
_TYPES = {
    "qid": pa.large_string(), "q0": pa.string(), "docid": pa.large_string(), "rank": pa.string(),
    "score": pa.float64(), "tag": pa.string(),
}  # fmt: skip
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*([eE][+-]?\d+)?|\.\d+([eE][+-]?\d+)?|inf|infinity)", re.IGNORECASE)
_BLANK = r"[\s\pZ\x{0b}\x{1c}-\x{1f}\x{85}]"  # what readers split at, by any of their ideas of white space


def read_trec(path: str | Path, *, order: Order = "score") -> Run:
    """Read a TREC run file, `.gz` allowed. Lines of one query need not stand together; the tag is the first line's.

    Args:
        path: the file.
        order: "score" ignores the rank column, as trec_eval does; "rank" orders by it.

    Raises:
        DataError: with the line: not six columns, a score that is NaN or no number, a rank that is no integer (under
            order="rank"), bytes that are not UTF-8; a document twice for one query; an empty file; broken gzip data.
    """
    path = Path(path)
    assembler = RunAssembler(order)
    tag: str | None = None
    with task(f"read {path.name}") as advance:
        for number, block in read_blocks(path):
            table = _parse(block, path, number, order)
            if not len(table):
                continue
            tag = tag if tag is not None else table["tag"][0].as_py()
            for batch in table.combine_chunks().to_batches():
                assembler.add(
                    batch["qid"], batch["docid"], np.asarray(batch["score"]),
                    ranks=np.asarray(batch["rank"]) if order == "rank" else None,
                )  # fmt: skip
            advance(len(table))
    if tag is None:
        raise DataError("the run is empty; expected lines of six columns: qid Q0 docid rank score tag", path=path)
    try:
        return assembler.finish(tag)
    except DataError as error:
        raise DataError(str(error) + _where(path, str(error)), path=path) from error


def _parse(block: bytes, path: Path, number: int, order: Order) -> pa.Table:
    """The block's lines as a table of `_NAMES`; `rank` is int64 under order="rank". Arrow first; the careful parser
    runs where Arrow stumbles, to accept the block or to say which line is wrong and why."""
    try:
        table = pyarrow.csv.read_csv(
            pa.BufferReader(single_spaced(block)),
            read_options=pyarrow.csv.ReadOptions(column_names=list(_NAMES), block_size=max(len(block), 1 << 20)),
            parse_options=pyarrow.csv.ParseOptions(delimiter=" ", quote_char=False, double_quote=False),
            convert_options=pyarrow.csv.ConvertOptions(column_types=_TYPES, null_values=[]),
        )
        if order == "rank":
            table = table.set_column(3, "rank", pc.cast(table["rank"], pa.int64()))
        if not pc.any(pc.is_nan(table["score"])).as_py():
            return table
    except pa.ArrowInvalid:
        log.debug("%s:%d: reading the block line by line", path, number)
    return _parse_carefully(block, path, number, order)


def _parse_carefully(block: bytes, path: Path, number: int, order: Order) -> pa.Table:
    rows: list[list[str]] = []
    scores: list[float] = []
    for at, fields in _fields(block, path, number):
        if len(fields) != 6:
            raise DataError(
                f"expected six columns (qid Q0 docid rank score tag), found {len(fields)}: {' '.join(fields)[:120]!r}",
                path=path, line=at,
            )  # fmt: skip
        if not _NUMBER.fullmatch(fields[4]):
            raise DataError(
                f"score of document {fields[2]!r} for query {fields[0]!r} is {fields[4]!r}, expected a number",
                path=path, line=at,
            )  # fmt: skip
        if order == "rank" and not re.fullmatch(r"[+-]?\d+", fields[3]):
            raise DataError(
                f"rank of document {fields[2]!r} for query {fields[0]!r} is {fields[3]!r}, expected an integer. "
                "Read the run by score if its ranks are not to be used",
                path=path, line=at,
            )  # fmt: skip
        rows.append(fields)
        scores.append(float(fields[4]))
    columns: dict[str, pa.Array] = {
        name: pa.array([row[place] for row in rows], type=_TYPES[name])
        for place, name in enumerate(_NAMES) if name != "score"
    }  # fmt: skip
    columns["score"] = pa.array(scores, type=pa.float64())
    if order == "rank":
        columns["rank"] = columns["rank"].cast(pa.int64())
    return pa.table({name: columns[name] for name in _NAMES})


def _fields(block: bytes, path: Path, number: int) -> Iterator[tuple[int, list[str]]]:
    for at, line in enumerate(block.split(b"\n"), start=number):
        text = decode_line(single_spaced(line), path, at)
        if text:
            yield at, text.split(" ")


def _where(path: Path, message: str) -> str:
    """The lines of a document that occurs twice, for the message; an empty string for other complaints."""
    found = re.match(r"document '(.*)' occurs twice for query '(.*)'$", message)
    if not found:
        return ""
    lines = [
        at
        for number, block in read_blocks(path)
        for at, fields in _fields(block, path, number)
        if fields[2] == found[1] and fields[0] == found[2]
    ]
    return f" (lines {lines[0]} and {lines[1]}); a document may stand once in a list" if len(lines) > 1 else ""


def write_trec(run: Run, path: str | Path) -> None:
    """Write the six columns, packed when the name ends in .gz; scores are the shortest text of their float32.

    Further columns are left out, and so are queries without documents, which the form cannot say.

    Raises:
        DataError: an id with white space (or an empty one), or a tag with white space: the form cannot hold it.
    """
    path = Path(path)
    refuse_blanks(run.qids, "query", path)
    refuse_blanks(run.vocabulary, "document", path)
    refuse_blanks(Ids([run.tag]), "tag", path)
    with atomic_path(path) as temporary, write_bytes(temporary) as out, task(f"write {path.name}", len(run)) as advance:
        for first, last, (start, stop) in run.blocks(1 << 19):
            out.write(_block_text(run, first, last, start, stop))
            advance(last - first)


def refuse_blanks(ids: Ids, what: str, path: Path) -> None:
    """Raise `DataError` naming the first id that is empty or has white space, which column files cannot hold."""
    bad = pc.or_(pc.match_substring_regex(ids.array, _BLANK), pc.equal(pc.binary_length(ids.array), 0))
    at = pc.index(bad, True).as_py()
    if at >= 0:
        name = ids[at]
        held = f"white space in {what} id {name!r}" if name else f"an empty {what} id"
        if what == "tag":
            raise DataError(
                f"the run's tag {name!r} is empty or has white space, which a TREC file cannot hold", path=path
            )
        raise DataError(f"{held}: a TREC file cannot hold it. Write the run as .parquet", path=path)


def _block_text(run: Run, first: int, last: int, start: int, stop: int) -> bytes:
    lengths = np.diff(run.offsets[first : last + 1])
    ranks = np.arange(start, stop) - np.repeat(run.offsets[first:last], lengths) + 1
    text = pc.binary_join_element_wise(
        run.qids.array.take(pa.array(np.repeat(np.arange(first, last), lengths))),
        pa.scalar("Q0", pa.large_string()),
        run.documents_between(start, stop),
        pc.cast(pa.array(ranks), pa.large_string()),
        _score_text(run.scores[start:stop]),
        pa.scalar(run.tag + "\n", pa.large_string()),
        pa.scalar(" ", pa.large_string()),
    )
    if not len(text):
        return b""
    bounds = np.frombuffer(text.buffers()[1], dtype=np.int64)[text.offset : text.offset + len(text) + 1]
    return text.buffers()[2][int(bounds[0]) : int(bounds[-1])].to_pybytes()


def _score_text(scores: np.ndarray) -> pa.Array:
    """The shortest decimal of each float32 that reads back as itself, also by way of float64 (as readers do)."""
    text = pc.cast(pa.array(scores), pa.large_string())
    back = np.asarray(pc.cast(text, pa.float64())).astype(np.float32)
    wrong = back != scores
    if wrong.any():  # a decimal so near the middle of two float32 that rounding twice moves it: give all digits
        text = pc.replace_with_mask(
            text, pa.array(wrong), pc.cast(pa.array(scores[wrong].astype(np.float64)), text.type)
        )
    return text
