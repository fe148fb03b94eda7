"""Lists of candidates with the order that a model shall give them: from runs, from judgments, or from published files.

Three sources, one table. A first stage's run with a teacher's run (or judgments) gives each query its candidates in
first-stage order and their target order. A file of permutations, one JSON object a line with `qid`, `initial_list` and
`final_list`, gives the same by ids. A file of conversations (`conversations`: system, human, gpt "[C] > [A] > …") holds
its prompts itself and needs no collection.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import DataError
from ...files import sha256_file
from ..pairs import one_list_each
from ..rerankers.chat import Message
from ..rerankers.identifiers import Identifiers
from ..rerankers.permutations import parse_permutation
from .examples import judged_pairs, look_up, run_pairs

if TYPE_CHECKING:
    from ...eval.collection import Collection, Documents
    from .blocks import Part
    from .list_blocks import ListSampling

__all__ = [
    "Conversation",
    "ListReport",
    "ListTable",
    "Window",
    "Windows",
    "conversation_table",
    "file_table",
    "run_table",
]

_STREAM = 3  # of random numbers, beside those of the samplers
_ROLES = {"system": "system", "human": "user", "gpt": "assistant"}


@dataclass(frozen=True)
class ListReport:
    """What was joined, and what was left out of it."""

    queries: int
    documents: int
    outside_split: int = 0
    without_order: int = 0
    unordered_documents: int = 0

    def lines(self) -> list[str]:
        """One line for each count that a user should see."""
        told = {
            "queries outside the split: ignored": self.outside_split,
            "lists in which nothing is better than anything else: left out": self.without_order,
            "documents that the target order lacks: last, in first-stage order": self.unordered_documents,
        }
        shown = [f"{self.queries} lists, {self.documents} documents in them"]
        return shown + [f"{count} {what}" for what, count in told.items() if count]


@dataclass(frozen=True)
class Conversation:
    """A published example: the turns before the answer, and the answer's places from 0, best first."""

    messages: tuple[Message, ...]
    order: tuple[int, ...]
    kind: str


@dataclass(frozen=True, eq=False)
class Window:
    """An example: what the model sees, and what it should make of it.

    Attributes:
        query: the query.
        passages: texts in the order shown.
        order: places from 0, best first.
        levels: (w,) float32 along the passages, larger is better; ties are not held against each other.
        talk: the turns themselves, where a file of conversations holds them; there are no passages then.
    """

    query: str
    passages: tuple[str, ...]
    order: tuple[int, ...]
    levels: np.ndarray
    talk: Conversation | None = None


@dataclass(frozen=True)
class Windows:
    """Which documents of a list are shown, and in which order."""

    block: ListSampling
    seed: int

    def draw(self, length: int, number: int, slot: int, part: int, best: int | None = None) -> np.ndarray:
        """Places in a list of `length`, in the order shown: a function of the seed, the batch number and the slot.

        Windows of one batch are of one size, where the lists are long enough: little is padded. A window that begins
        anywhere holds the place `best`, where one is given.
        """
        window = self.block.window
        shared = np.random.default_rng([self.seed, _STREAM, part, number])
        generator = np.random.default_rng([self.seed, _STREAM, part, number, slot + 1])
        length = min(length, self.block.depth or length)
        size = min(int(shared.integers(self.block.smallest or window, window + 1)), length)
        least, most = 0, length - size if self.block.start == "anywhere" else 0
        if best is not None and best < length and most:
            least, most = max(0, best - size + 1), min(best, most)
        start = int(generator.integers(least, most + 1))
        shown = np.arange(start, start + size)
        return generator.permutation(shown) if generator.random() < self.block.shuffle else shown


@dataclass(eq=False)
class ListTable:
    """Lists in arrays.

    Attributes:
        name: of the collection or file.
        fingerprint: of everything that went into it.
        report: the counts.
        ids: (n,) query ids.
        texts: (n,) queries.
        offsets: (n + 1,) int64, the entries of list i are offsets[i]:offsets[i + 1].
        entries: (e,) int64 document rows, in first-stage order.
        ranks: (e,) int64 target ranks from 0, a permutation of each list.
        levels: (e,) float32, larger is better; documents of equal level are not held against each other.
        documents: whose rows these are; None with `conversations`.
        conversations: (n,) what a file of conversations holds; its lists have one entry each, which means nothing.
        windows: what is shown of a list.
    """

    name: str
    fingerprint: str
    report: ListReport
    ids: Sequence[str]
    texts: Sequence[str]
    offsets: np.ndarray
    entries: np.ndarray
    ranks: np.ndarray
    levels: np.ndarray
    documents: Documents | None = None
    conversations: tuple[Conversation, ...] = ()
    windows: Windows | None = None
    positives: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.positives = np.ones(len(self), dtype=np.int32)  # what a sampler draws from: one example a list

    def __len__(self) -> int:
        return len(self.ids)

    def qids(self, rows: np.ndarray) -> list[str]:
        """Query ids of table rows."""
        return [str(self.ids[row]) for row in rows.tolist()]

    def window(self, row: int, number: int, slot: int, part: int) -> Window:
        """What slot `slot` of batch `number` shows of list `row`; of a list with ties, always its best document, since
        documents of one level teach no order."""
        if self.conversations:
            talk = self.conversations[row]
            levels = -np.argsort(np.asarray(talk.order)).astype(np.float32)
            return Window(self.texts[row], (), talk.order, levels, talk)
        assert self.windows is not None
        assert self.documents is not None
        start, stop = (int(each) for each in self.offsets[row : row + 2])
        levels = self.levels[start:stop]
        best = None if len(np.unique(levels)) == len(levels) else int(np.argmin(self.ranks[start:stop]))
        places = start + self.windows.draw(stop - start, number, slot, part, best)
        texts = self.documents.texts(self.entries[places])
        order = np.argsort(self.ranks[places], kind="stable")
        return Window(self.texts[row], tuple(texts), tuple(order.tolist()), self.levels[places])


@dataclass(frozen=True)
class _List:
    """One query's list: document rows in first-stage order, and the level of each."""

    qid: str
    text: str
    documents: np.ndarray
    levels: np.ndarray


def run_table(part: Part) -> ListTable:
    """Lists of `runs.first_stage`, ordered by `runs.labels`, else by the one of `runs.teachers`, else by judgments.

    Raises:
        DataError: a run has documents that the collection lacks, or no list is left.
    """
    from ...eval.collection import open_collection
    from ...eval.files import read_run

    assert part.runs.first_stage is not None  # checked with the configuration
    collection = open_collection(part.collection)
    first = one_list_each(read_run(part.runs.first_stage), "a table of lists")
    pairs, outside = run_pairs(first, collection, part.split)
    named = part.runs.labels or next(iter(part.runs.teachers), None)
    keys, lacking = pairs.keys(len(collection.documents)), 0
    if named is None:
        judged, _ = judged_pairs(collection, part.split)
        levels = np.maximum(look_up(judged.keys(len(collection.documents)), judged.value, keys, 0.0), 0.0)
    else:
        order = one_list_each(read_run(named), "a target order")
        order = order.replace(columns={"raw": -order.ranks.astype(np.float32)})
        target, _ = run_pairs(order, collection, part.split)
        levels = look_up(target.keys(len(collection.documents)), target.value, keys, np.nan)
        lacking = int(np.isnan(levels).sum())
        levels = np.where(np.isnan(levels), target.value.min(initial=0.0) - 1, levels)
    queries = collection.queries(part.split)
    bounds = np.concatenate([[0], np.flatnonzero(np.diff(pairs.query)) + 1, [len(pairs.query)]])
    lists = [
        _List(queries.ids[row], queries.texts[row], pairs.document[start:stop], levels[start:stop])
        for start, stop in pairwise(bounds.tolist())
        if start < stop
        for row in (int(pairs.query[start]),)
    ]
    files = [sha256_file(path) for _, path in part.runs.files()]
    return _table(collection, lists, part, _digest("lists", part, collection, *files), (outside, lacking))


def file_table(part: Part) -> ListTable:
    """Lists of a file of permutations over the collection's documents.

    Raises:
        DataError: with the line: no such object, another set of ids in the two lists, or an unknown document.
    """
    from ...eval.collection import open_collection

    collection = open_collection(part.collection)
    queries = collection.queries(part.split)
    lists: list[_List] = []
    outside = 0
    path = str(part.lists)
    for line, record in _records(path):
        before, after = _strings(record, "initial_list", path, line), _strings(record, "final_list", path, line)
        if len(set(before)) < len(before) or sorted(before) != sorted(after):
            raise DataError("initial_list and final_list must hold the same ids, each once", path=path, line=line)
        place = int(queries.ids.rows([str(record.get("qid"))])[0])
        if place < 0:
            outside += 1
            continue
        rows = collection.documents.rows(before)
        if (rows < 0).any():
            unknown = before[int(np.flatnonzero(rows < 0)[0])]
            raise DataError(f"document {unknown!r} is not in {collection.name}", path=path, line=line)
        rank = {document: at for at, document in enumerate(after)}
        levels = -np.asarray([rank[document] for document in before], np.float32)
        lists.append(_List(queries.ids[place], queries.texts[place], rows, levels))
    return _table(collection, lists, part, _digest("permutations", part, collection, sha256_file(path)), (outside, 0))


def conversation_table(path: str) -> ListTable:
    """The examples of a file of conversations; an answer that names some of its documents only ranks these.

    Raises:
        DataError: with the line: not three turns of system, human and gpt, or an answer without an identifier.
    """
    ids: list[str] = []
    talks: list[Conversation] = []
    for line, record in _records(path):
        turns = record.get("conversations")
        turns = turns if isinstance(turns, list) else []
        if [isinstance(turn, dict) and turn.get("from") for turn in turns] != list(_ROLES):
            raise DataError("expected `conversations` with the turns system, human, gpt", path=path, line=line)
        messages = tuple(Message(_ROLES[turn["from"]], str(turn.get("value", ""))) for turn in turns)
        kind, order = _answer(messages[-1].content)
        if not order:
            raise DataError("the answer is not a permutation such as '[B] > [A]'", path=path, line=line)
        talks.append(Conversation(messages[:-1], order, kind))
        ids.append(str(record.get("id", line)))
    sizes = sum(len(talk.order) for talk in talks)
    digest = hashlib.sha256(f"conversations {sha256_file(path)}".encode()).hexdigest()[:32]
    name = Path(path).name
    if not talks:
        raise DataError("no conversation in this file", path=path)
    texts = [talk.messages[-1].content[:80] for talk in talks]
    one = np.zeros(len(talks), np.int64)  # an entry each, for samplers to draw
    return ListTable(name, digest, ListReport(len(talks), sizes), ids, texts, np.arange(len(talks) + 1), one, one,
                     one.astype(np.float32), None, tuple(talks))  # fmt: skip


def _answer(text: str) -> tuple[str, tuple[int, ...]]:
    """The kind of identifiers and the places named; nothing unless these are the first so many, each once."""
    for kind in ("letters", "numbers"):
        count = text.count("[")
        read = parse_permutation(text, count, Identifiers(kind)) if count else None
        if read is not None and read.well_formed:
            return kind, read.order
    return "numbers", ()


def _table(
    collection: Collection, lists: Sequence[_List], part: Part, digest: str, counts: tuple[int, int]
) -> ListTable:
    generator = None if part.shuffle_judgments is None else np.random.default_rng(part.shuffle_judgments)
    ordered = [each for each in lists if len(each.levels) > 1 and each.levels.min() < each.levels.max()]
    if not ordered:
        raise DataError(f"{collection.name}, split {part.split}: no list has two documents of which one is better")
    levels = [each.levels if generator is None else generator.permutation(each.levels) for each in ordered]
    ranks = [np.argsort(np.argsort(-each, kind="stable")) for each in levels]
    sizes = [len(each.documents) for each in ordered]
    report = ListReport(len(ordered), sum(sizes), counts[0], len(lists) - len(ordered), counts[1])
    return ListTable(
        collection.name,
        digest,
        report,
        [each.qid for each in ordered],
        [each.text for each in ordered],
        np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        np.concatenate([each.documents for each in ordered]).astype(np.int64),
        np.concatenate(ranks).astype(np.int64),
        np.concatenate(levels).astype(np.float32),
        collection.documents,
    )


def _records(path: str) -> Iterator[tuple[int, dict[str, Any]]]:
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


def _strings(record: dict[str, Any], key: str, path: str, line: int) -> list[str]:
    value = record.get(key)
    if not isinstance(value, list):
        raise DataError(f"expected a list of ids under {key!r}", path=path, line=line)
    return [str(each) for each in value]


def _digest(kind: str, part: Part, collection: Collection, *files: str) -> str:
    from .data import collection_fingerprint

    parts = (kind, part.split, str(part.shuffle_judgments), collection_fingerprint(collection, part.split), *files)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]
