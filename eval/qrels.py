"""Judgment files: TREC's four columns and BEIR's three, told apart by their first line."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..errors import DataError
from ..files import atomic_path
from ..ids import Ids
from .blocks import decode_line, read_blocks, single_spaced, write_bytes
from .judgments import Judgments, JudgmentsBuilder, parse_grade, read_beir_qrels
from .trec import refuse_blanks

__all__ = ["read_qrels", "write_qrels"]

log = logging.getLogger(__name__)


def read_qrels(path: str | Path) -> Judgments:
    """Read judgments: TREC (query id, iteration, document id, grade) or BEIR (tab-separated, with or without its
    header); `.gz` allowed.

    Raises:
        DataError: with the line: another number of columns, a grade that is no integer, two grades for one pair; an
            empty file; broken gzip data.
    """
    path = Path(path)
    for number, block in read_blocks(path):
        for at, line in enumerate(block.split(b"\n"), start=number):
            first = decode_line(line.rstrip(b"\r"), path, at)
            if first.strip():
                return read_beir_qrels(path) if len(first.split("\t")) == 3 else _read_trec_qrels(path)
    raise DataError("no judgments; expected lines of four columns (query id, 0, document id, grade)", path=path)


def _read_trec_qrels(path: Path) -> Judgments:
    builder = JudgmentsBuilder(path=path)
    for number, block in read_blocks(path):
        for at, line in enumerate(block.split(b"\n"), start=number):
            fields = decode_line(single_spaced(line), path, at).split(" ")
            if fields == [""]:
                continue
            if len(fields) != 4:
                raise DataError(
                    f"expected four columns (query id, 0, document id, grade), found {len(fields)}: "
                    f"{' '.join(fields)[:120]!r}", path=path, line=at,
                )  # fmt: skip
            builder.add(fields[0], fields[2], parse_grade(fields[3], path=path, line=at))
    return builder.finish()


def write_qrels(judgments: Judgments, path: str | Path) -> None:
    """Write judgments: BEIR's form with its header when the name ends in .tsv or .tsv.gz, else TREC's four columns.

    Raises:
        DataError: an id with white space, which these forms cannot hold (a tab or a line end, for BEIR's).
    """
    path = Path(path)
    beir = path.name.endswith((".tsv", ".tsv.gz"))
    for ids, what in ((judgments.qids, "query"), (judgments.vocabulary, "document")):
        _refuse_tabs(ids, what, path) if beir else refuse_blanks(ids, what, path)
    queries = judgments.qids.array.take(pa.array(judgments.query_rows))
    grades = pc.cast(pa.array(judgments.grades), pa.large_string())
    middle = [] if beir else [pa.scalar("0", pa.large_string())]
    text = pc.binary_join_element_wise(
        queries, *middle, judgments.documents, grades, pa.scalar("\t" if beir else " ", pa.large_string())
    )
    with atomic_path(path) as temporary, write_bytes(temporary) as out:
        if beir:
            out.write(b"query-id\tcorpus-id\tscore\n")
        for start in range(0, len(text), 1 << 20):
            out.write("".join(f"{line}\n" for line in text[start : start + (1 << 20)].to_pylist()).encode())


def _refuse_tabs(ids: Ids, what: str, path: Path) -> None:
    bad = np.flatnonzero(np.asarray(pc.match_substring_regex(ids.array, r"[\t\r\n]"), dtype=bool))
    if len(bad):
        raise DataError(f"{what} id {ids[int(bad[0])]!r} has a tab or line end, which the form cannot hold", path=path)
