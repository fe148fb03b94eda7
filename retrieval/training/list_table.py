"""Lists of candidates with the order that a model shall give them: from runs, from judgments, or from published files.

Three sources, one table. A first stage's run with a teacher's run (or judgments) gives each query its candidates in
first-stage order and their target order. A file of permutations, one JSON object a line with `qid`, `initial_list` and
`final_list`, gives the same by ids. A file of conversations (`conversations`: system, human, gpt "[C] > [A] > …") holds
its prompts itself and needs no collection.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import DataError
from ...files import sha256_file
from ..pairs import one_list_each
from ..rerankers.chat import Message
from .examples import judged_pairs, look_up, run_pairs
from .list_lines import answer, records, strings
from .list_windows import Conversation, Window, Windows

if TYPE_CHECKING:
    from ...eval.collection import Collection, Documents
    from .blocks import Part

__all__ = ["ListReport", "ListTable", "Wanted", "conversation_table", "file_table", "run_table"]

_ROLES = {"system": "system", "human": "user", "gpt": "assistant"}


@dataclass(frozen=True)
class ListReport:
    """What was joined, and what was left out of it."""

    queries: int
    documents: int
    outside_split: int = 0
    without_order: int = 0
    unordered_documents: int = 0
    short: int = 0
    out_of_reach: int = 0

    def lines(self) -> list[str]:
        """One line for each count that a user should see."""
        told = {
            "queries outside the split: ignored": self.outside_split,
            "lists in which nothing is better than anything else: left out": self.without_order,
            "lists with fewer documents than are paid together: left out": self.short,
            "lists whose better documents no window shows (sampling.window, depth, start): left out": self.out_of_reach,
            "documents that the target order lacks: last, in first-stage order": self.unordered_documents,
        }
        shown = [f"{self.queries} lists, {self.documents} documents in them"]
        return shown + [f"{count} {what}" for what, count in told.items() if count]


@dataclass(frozen=True)
class Wanted:
    """What is wanted of every list.

    Attributes:
        least: documents that it must have.
        most: windows show its first so many documents only, and it is cut to them; None keeps all.
        reference: the one of `runs.teachers` gives documents a score (`Window.reference`), not their target order.
    """

    least: int = 2
    most: int | None = None
    reference: bool = False


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
        references: (e,) float32, a supervised model's scores, where they are wanted.
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
    references: np.ndarray | None = None
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
        """What slot `slot` of batch `number` shows of list `row`."""
        if self.conversations:
            talk = self.conversations[row]
            levels = -np.argsort(np.asarray(talk.order)).astype(np.float32)
            return Window(self.texts[row], (), talk.order, levels, talk)
        assert self.windows is not None
        assert self.documents is not None
        start, stop = (int(each) for each in self.offsets[row : row + 2])
        places = start + self.windows.draw(self.levels[start:stop], number, slot, part)
        texts = self.documents.texts(self.entries[places])
        order = np.argsort(self.ranks[places], kind="stable")
        reference = None if self.references is None else self.references[places]
        return Window(self.texts[row], tuple(texts), tuple(order.tolist()), self.levels[places], reference=reference)


@dataclass(frozen=True)
class _List:
    """One query's list: document rows in first-stage order, the level of each, and a supervised model's score."""

    qid: str
    text: str
    documents: np.ndarray
    levels: np.ndarray
    reference: np.ndarray | None = None

    def first(self, most: int | None) -> _List:
        reference = None if self.reference is None else self.reference[:most]
        return _List(self.qid, self.text, self.documents[:most], self.levels[:most], reference)

    @property
    def ordered(self) -> bool:
        """Whether some document is better than another."""
        return len(self.levels) > 1 and bool(self.levels.min() < self.levels.max())


def run_table(part: Part, wanted: Wanted) -> ListTable:
    """Lists of `runs.first_stage`, ordered by `runs.labels`, else by the one of `runs.teachers`, else by judgments.

    Raises:
        DataError: a run has documents that the collection lacks, no list is left, or the scores that are wanted as
            references are not there (see `_references`).
    """
    from ...eval.collection import open_collection
    from ...eval.files import read_run

    assert part.runs.first_stage is not None  # checked with the configuration
    collection = open_collection(part.collection)
    first = one_list_each(read_run(part.runs.first_stage), "a table of lists")
    pairs, outside = run_pairs(first, collection, part.split)
    teacher = next(iter(part.runs.teachers), None)
    named = part.runs.labels or (None if wanted.reference else teacher)
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
    reference = _references(teacher, pairs, collection, part.split) if wanted.reference and teacher else None
    queries = collection.queries(part.split)
    bounds = np.concatenate([[0], np.flatnonzero(np.diff(pairs.query)) + 1, [len(pairs.query)]])
    lists = [
        _List(
            queries.ids[row],
            queries.texts[row],
            pairs.document[start:stop],
            levels[start:stop],
            None if reference is None else reference[start:stop],
        )
        for start, stop in pairwise(bounds.tolist())
        if start < stop
        for row in (int(pairs.query[start]),)
    ]
    files = [sha256_file(path) for _, path in part.runs.files()]
    digest = _digest("lists", part, wanted, collection, *files)
    return _table(collection, lists, part, wanted, digest, (outside, lacking))


def _references(path: str, pairs: Any, collection: Collection, split: str) -> np.ndarray:
    """Along `pairs`, the `raw` column of a run; NaN where it lacks the pair. (e,) float32.

    Raises:
        DataError: the run has no such column, or documents that the collection lacks.
    """
    from ...eval.files import read_run

    run = one_list_each(read_run(path), "a supervised model's scores")
    if "raw" not in run.columns:
        raise DataError(
            "no column `raw`, the supervised model's scores themselves: write the run by `rtk rerank --raw` (.parquet)",
            path=path,
        )
    found, _ = run_pairs(run, collection, split)
    size = len(collection.documents)
    return look_up(found.keys(size), found.value, pairs.keys(size), np.nan)


def file_table(part: Part, wanted: Wanted) -> ListTable:
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
    for line, record in records(path):
        before, after = strings(record, "initial_list", path, line), strings(record, "final_list", path, line)
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
    digest = _digest("permutations", part, wanted, collection, sha256_file(path))
    return _table(collection, lists, part, wanted, digest, (outside, 0))


def conversation_table(path: str, window: int) -> ListTable:
    """The examples of a file of conversations.

    An answer names the first n documents of its prompt, each once, and ranks these only. One that leaves out a document
    before the last that it names ("[C] > [A]") is refused: FIRST's label of each identifier is its rank in the answer,
    and B has none.

    Args:
        path: JSON lines, or a JSON array.
        window: most documents that an answer may name.

    Raises:
        DataError: with the line: not three turns of system, human and gpt, an answer that is not as above, or one that
            names more than `window` documents.
    """
    ids: list[str] = []
    talks: list[Conversation] = []
    for line, record in records(path):
        turns = record.get("conversations")
        turns = turns if isinstance(turns, list) else []
        if [isinstance(turn, dict) and turn.get("from") for turn in turns] != list(_ROLES):
            raise DataError("expected `conversations` with the turns system, human, gpt", path=path, line=line)
        messages = tuple(Message(_ROLES[turn["from"]], str(turn.get("value", ""))) for turn in turns)
        kind, order = answer(messages[-1].content)
        if not order:
            raise DataError(
                f"the answer {messages[-1].content[:60]!r} is not a permutation of the first so many documents, such "
                "as '[B] > [A]'",
                path=path,
                line=line,
            )
        if len(order) > window:
            raise DataError(
                f"the answer orders {len(order)} documents, sampling.window is {window}; set sampling.window to the "
                "longest answer's number",
                path=path,
                line=line,
            )
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
                     one.astype(np.float32), conversations=tuple(talks))  # fmt: skip


def _table(
    collection: Collection, lists: Sequence[_List], part: Part, wanted: Wanted, digest: str, counts: tuple[int, int]
) -> ListTable:
    left = dict.fromkeys(("without_order", "short", "out_of_reach"), 0)
    kept: list[_List] = []
    for each in lists:
        shown = each.first(wanted.most)
        if not each.ordered:
            left["without_order"] += 1
        elif len(shown.documents) < wanted.least:
            left["short"] += 1
        elif not shown.ordered:
            left["out_of_reach"] += 1
        else:
            kept.append(shown)
    sizes = [len(each.documents) for each in kept]
    report = ListReport(len(kept), sum(sizes), counts[0], unordered_documents=counts[1], **left)
    if not kept:
        raise DataError(f"{collection.name}, split {part.split}: no list to train on: {'; '.join(report.lines())}")
    _check_references(collection, kept)
    generator = None if part.shuffle_judgments is None else np.random.default_rng(part.shuffle_judgments)
    levels = [each.levels if generator is None else generator.permutation(each.levels) for each in kept]
    ranks = [np.argsort(np.argsort(-each, kind="stable")) for each in levels]
    references = [each.reference for each in kept if each.reference is not None]
    return ListTable(
        collection.name,
        digest,
        report,
        [each.qid for each in kept],
        [each.text for each in kept],
        np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        np.concatenate([each.documents for each in kept]).astype(np.int64),
        np.concatenate(ranks).astype(np.int64),
        np.concatenate(levels).astype(np.float32),
        np.concatenate(references).astype(np.float32) if references else None,
        collection.documents,
    )


def _check_references(collection: Collection, lists: Sequence[_List]) -> None:
    """Refuse lists in which a document has no reference.

    Raises:
        DataError: with the number of them and the first.
    """
    lacking = [each for each in lists if each.reference is not None and np.isnan(each.reference).any()]
    if lacking:
        assert lacking[0].reference is not None
        row = lacking[0].documents[int(np.flatnonzero(np.isnan(lacking[0].reference))[0])]
        (document,) = collection.documents.ids.take(np.asarray([row]))
        raise DataError(
            f"data.runs.teachers: no score in {len(lacking)} of {len(lists)} lists for documents that are trained on, "
            f"such as query {lacking[0].qid!r} document {document!r}; score all candidates, or cut the lists by "
            "sampling.depth"
        )


def _digest(kind: str, part: Part, wanted: Wanted, collection: Collection, *files: str) -> str:
    from .data import collection_fingerprint

    chosen = (part.split, str(part.shuffle_judgments), repr(wanted))
    parts = (kind, *chosen, collection_fingerprint(collection, part.split), *files)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]
