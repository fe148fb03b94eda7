"""`pydocs`: a collection that is on every machine, made from the documentation strings of Python's standard library.

Documents. One for each public module, function, class, method and property that is documented, about 5,200 with Python
3.11; id = qualified name (`itertools.islice`), title = name and signature, text = documentation string. They are read
once for each Python (see `pydocs_extract`) and kept in the cache like any other corpus.

Test questions. Written for this collection, as a person would type them who does not know the name. Those of kind
"paraphrase" share no content word (stemmed, stop words out, identifiers split) with any document that answers them;
the others are "plain".

Judgments. 2 = answers the question, 1 = a related or partial answer, 0 = judged and not relevant. For every question
the top 10 of BM25, of all-MiniLM-L6-v2 and of their reciprocal rank fusion on Python 3.11, later also those of a
trained retriever and a MaxSim reranker, were pooled and judged by one assessor, who added answers known to exist that
no system had found. One assessor means no agreement figures; whatever nobody pooled counts as not relevant. Judged
documents that the running Python does not have are left out and counted in a log line.

Dev questions. For choosing settings: written in the same manner, other questions, each with the answers its author knew
and no pool, so that figures on them compare systems and mean little by themselves.

Training pairs. `pydocs-train` has splits `train` and `dev`, made from the documentation alone: the query is the first
sentence of a documentation string, the document is that string without the sentence. The sentence must be cut out, or
finding it would only take matching the string; hence a collection of its own, and `pydocs` itself has `dev` and `test`.
Pairs whose query is near a question of either (Jaccard of content words above 0.6) are dropped. A query that several
documents begin with has all of them as positives.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from ..errors import BackendError
from .collection import CollectionBase, Queries
from .documents import Document, Documents, cached_documents
from .judgments import Judgments, read_beir_qrels

__all__ = [
    "PYDOCS",
    "PYDOCS_TRAIN",
    "PyDocs",
    "PyDocsTrain",
    "Question",
    "dev_questions",
    "open_pydocs",
    "test_questions",
]

_LOG = logging.getLogger(__name__)
_QUESTIONS = ("data/pydocs-questions.jsonl", "data/pydocs-dev.jsonl")
_HERE = files(__name__.rpartition(".")[0])

PYDOCS, PYDOCS_TRAIN = "pydocs", "pydocs-train"
PAIRS = 1
"""Raised whenever other training pairs would come out of the same documents."""
LEAST_DOCUMENTS = 2000
NEAR = 0.6
"""Jaccard similarity of content words above which a training query counts as a test question."""

_DEV_SHARE = 10  # one query in so many
_SHORTEST_QUERY, _LONGEST_QUERY, _SHORTEST_REST, _MOST_POSITIVES = 4, 30, 4, 5
_SENTENCE = re.compile(r"(?s)(.+?[.!?])(?=\s|$)")
_SIGNATURE = re.compile(r"^[\w.\[\]]+\(.*\)|.*(->|==>)")
_RETURNS = re.compile(r"^returns?\s+(?=\w)", re.IGNORECASE)
_TOKEN = re.compile(r"[a-z0-9]+")
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


@dataclass(frozen=True)
class Question:
    """A question; `kind` is "plain" or "paraphrase" for those of the test, "dev" for the others."""

    id: str
    text: str
    kind: str


def open_pydocs(name: str = PYDOCS) -> PyDocs | PyDocsTrain:
    """Open the collection for search and test ("pydocs") or the one of training pairs ("pydocs-train")."""
    return PyDocsTrain() if name == PYDOCS_TRAIN else PyDocs()


class PyDocs(CollectionBase):
    """The documents with the test questions."""

    def __init__(self) -> None:
        super().__init__()
        self.name, self.splits = PYDOCS, ("dev", "test")

    def _documents(self) -> Documents:
        return Documents(cached_documents(_key(PYDOCS), _extract, source=PYDOCS, check=_check), path=PYDOCS)

    def _queries(self) -> Queries:
        questions = (*dev_questions(), *test_questions())
        return Queries([question.id for question in questions], [question.text for question in questions])

    def _judgments(self, split: str) -> Judgments:
        if split == "dev":
            return self._present(Judgments.from_dict({row["_id"]: dict.fromkeys(row["answers"], 1) for row in _dev()}))
        with as_file(_data("pydocs-judgments.tsv")) as path:
            return self._present(read_beir_qrels(path))

    def _present(self, judged: Judgments) -> Judgments:
        """Without the documents that this Python does not have."""
        grades = {qid: dict(found) for qid, found in judged.items()}
        there = self.documents.rows(judged.vocabulary) >= 0
        missing = {name for name, found in zip(judged.vocabulary, there.tolist(), strict=True) if not found}
        if missing:
            _LOG.info(
                "%s: %d of %d judged documents are not in Python %s and are left out (%s, …)",
                PYDOCS, len(missing), len(judged.vocabulary), sys.version.split()[0], min(missing),
            )  # fmt: skip
        kept = {qid: {name: grade for name, grade in found.items() if name not in missing}
                for qid, found in grades.items()}  # fmt: skip
        return Judgments.from_dict(kept)


class PyDocsTrain(CollectionBase):
    """Training pairs: documents without their first sentence, which is the query."""

    def __init__(self) -> None:
        super().__init__()
        self.name, self.splits = PYDOCS_TRAIN, ("train", "dev")

    @property
    def _pairs(self) -> Path:
        """The cache folder, which also holds queries.json: {query: [document ids]}."""
        source = PyDocs().documents
        return cached_documents(
            (PYDOCS_TRAIN, PAIRS, source.fingerprint, *map(_digest, _QUESTIONS)),
            lambda: (pair.document for pair in _all_pairs(source)),
            source=PYDOCS_TRAIN,
            finish=lambda folder: _write_queries(folder, source),
        )

    def _documents(self) -> Documents:
        return Documents(self._pairs, path=PYDOCS_TRAIN)

    def _positives(self) -> dict[str, list[str]]:
        return json.loads((self._pairs / "queries.json").read_text(encoding="utf-8"))

    def _queries(self) -> Queries:
        texts = list(self._positives())
        return Queries([_query_id(text) for text in texts], texts)

    def _judgments(self, split: str) -> Judgments:
        chosen = {_query_id(text): names for text, names in self._positives().items() if _split(text) == split}
        return Judgments.from_dict({qid: dict.fromkeys(names, 1) for qid, names in chosen.items()})


@dataclass(frozen=True)
class _Pair:
    """A query and the document that it was cut out of."""

    query: str
    document: Document


def _key(name: str) -> tuple[object, ...]:
    """What the documents depend on: this Python, and the script that reads them."""
    return (name, sys.version, sys.platform, _digest("pydocs_extract.py"))


def _digest(name: str) -> str:
    return hashlib.sha256((_HERE / name).read_bytes()).hexdigest()


def _data(name: str) -> Any:
    return _HERE / "data" / name


@cache
def test_questions() -> tuple[Question, ...]:
    """The test questions with their kinds, in their order."""
    lines = _data("pydocs-questions.jsonl").read_text(encoding="utf-8").splitlines()
    return tuple(Question(row["_id"], row["text"], row["kind"]) for row in map(json.loads, lines))


def dev_questions() -> tuple[Question, ...]:
    """The dev questions, in their order."""
    return tuple(Question(row["_id"], row["text"], "dev") for row in _dev())


@cache
def _dev() -> tuple[dict[str, Any], ...]:
    return tuple(map(json.loads, _data("pydocs-dev.jsonl").read_text(encoding="utf-8").splitlines()))


def _extract() -> Iterator[Document]:
    """Run the extraction in a fresh interpreter."""
    with as_file(_HERE / "pydocs_extract.py") as script:
        done = subprocess.run([sys.executable, "-I", str(script)], capture_output=True, text=True, encoding="utf-8")
    if done.returncode:
        raise BackendError(
            f"reading the documentation of the standard library with {sys.executable} failed "
            f"(exit code {done.returncode}): {done.stderr.strip()[-2000:]}"
        )
    first, *rest = map(json.loads, done.stdout.splitlines())
    for module, reason in first["skipped"].items():
        _LOG.info("%s: module %s left out: %s", PYDOCS, module, reason)
    return (Document(row["id"], row["title"], row["text"]) for row in rest)


def _check(documents: Documents) -> None:
    documents.ids.refuse_duplicates("document", path=documents.path)
    if len(documents) < LEAST_DOCUMENTS:
        raise BackendError(
            f"only {len(documents)} documentation strings found in {sys.executable}, expected over {LEAST_DOCUMENTS}: "
            "this Python was built without them. Take another Python."
        )


def _all_pairs(documents: Iterable[Document]) -> list[_Pair]:
    """Every usable pair, in order of document."""
    tests = [content_words(question.text) for question in (*dev_questions(), *test_questions())]
    pairs = [pair for document in documents if (pair := _pair(document)) is not None]
    counts: dict[str, int] = {}
    for pair in pairs:
        counts[pair.query] = counts.get(pair.query, 0) + 1
    return [pair for pair in pairs if counts[pair.query] <= _MOST_POSITIVES and not _near(pair.query, tests)]


def _pair(document: Document) -> _Pair | None:
    """Cut the first sentence out of a document; None where too little of either would be left."""
    paragraphs = document.text.split("\n\n")
    place = 1 if len(paragraphs) > 1 and _SIGNATURE.match(paragraphs[0]) else 0
    found = _SENTENCE.match(paragraphs[place])
    if found is None:
        return None
    sentence = found.group(1)
    query = _RETURNS.sub("", " ".join(sentence.split())).rstrip(".!?")
    paragraphs[place] = paragraphs[place][len(sentence) :].strip()
    rest = "\n\n".join(paragraph for paragraph in paragraphs if paragraph)
    whole = " ".join(f"{document.title} {rest}".split()).lower()
    fits = _SHORTEST_QUERY <= len(query.split()) <= _LONGEST_QUERY and len(rest.split()) >= _SHORTEST_REST
    if not fits or query.lower() in whole:
        return None
    return _Pair(query, Document(document.id, document.title, rest))


def _near(query: str, tests: list[frozenset[str]]) -> bool:
    words = content_words(query)
    return any(len(words & test) > NEAR * len(words | test) for test in tests)


def _write_queries(folder: Path, source: Documents) -> None:
    positives: dict[str, list[str]] = {}
    for pair in _all_pairs(source):
        positives.setdefault(pair.query, []).append(pair.document.id)
    (folder / "queries.json").write_text(json.dumps(positives, ensure_ascii=False), encoding="utf-8")


def _query_id(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _split(text: str) -> str:
    return "dev" if int(_query_id(text), 16) % _DEV_SHARE == 0 else "train"


_FUNCTION_WORDS = """
a about above after again against all also am an and any are as at be because been before being below between both but
by can cannot could did do does doing don down during each every everything few for from further had has have having
he her here hers him his how i if in into is it its itself just let like ll many may me might more most much must my
myself no nor not nothing now of off on once only onto or other others our out over own per same shall she should so
some somebody someone something such t than that the their them then there these they things this those through till
to together too toward towards under until up upon us very was we were what whatever when where whether which while
who whom whose why will with within without would yet you your
"""
_STOP_WORDS = frozenset(_FUNCTION_WORDS.split())


def content_words(text: str) -> frozenset[str]:
    """The stems of a text's content words: identifiers split at underscores and humps, function words left out."""
    words = _TOKEN.findall(_HUMP.sub(" ", text).lower().replace("n't", " ").replace("'s", " "))
    return frozenset(_stemmer().stemWords([word for word in words if word not in _STOP_WORDS and len(word) > 1]))


@cache
def _stemmer() -> Any:
    import Stemmer

    return Stemmer.Stemmer("english")
