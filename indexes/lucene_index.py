"""BM25 by Lucene, through the Anserini jar that Pyserini brings. Pyserini's LuceneSearcher opens INDEX/lucene itself.

Scores are Anserini's: rounded to four decimals, with a later document of a tie reported slightly lower; document
lengths are kept in one byte, as Lucene does. Documents without any text are in `ids` but not in Lucene's statistics.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from ..ids import Ids, ids_file
from ..progress import task
from .base import Hits, Options
from .bm25s_index import BOUNDS, check_texts
from .bounds import check_numbers
from .dense import Exclude, check_exclude, ordered_hits
from .java import autoclass, java_errors
from .manifest import Manifest
from .plan import BuildPlan
from .registry import check_names, check_threads

__all__ = ["LuceneIndex"]

logger = logging.getLogger(__name__)

DEFAULTS: dict[str, Any] = {"k1": 0.9, "b": 0.4}
_BATCH = 1000
_QUERIES = 500


class LuceneIndex:
    """A Lucene index of Anserini's making.

    Args:
        folder: Lucene's own folder (INDEX/lucene).
        ids: row → document id.
        k1: BM25's k1; may differ from call to call through the search options.
        b: BM25's b.
        threads: queries searched at the same time.
    """

    def __init__(self, folder: Path, ids: Ids, *, k1: float = 0.9, b: float = 0.4, threads: int = 1) -> None:
        self.folder, self.ids, self.threads = folder, ids, threads
        self.options = {"k1": k1, "b": b}
        self._searcher: Any = None
        if len(ids):
            with java_errors(f"opening {folder}"):
                self._searcher = autoclass("io.anserini.search.SimpleSearcher")(str(folder))
                self._writer = json_writer()

    def __len__(self) -> int:
        return len(self.ids)

    def search(
        self, queries: Sequence[str], k: int, /, *, options: Options | None = None, exclude: Exclude | None = None
    ) -> Hits:
        """See `Index.search`. Options: `k1`, `b`."""
        what = "search options of the lucene back-end"
        check_names(options or {}, tuple(self.options), what)
        chosen = check_numbers({**self.options, **(options or {})}, BOUNDS, what)
        check_texts(queries, k)
        check_exclude(exclude, len(queries))
        extra = 0 if exclude is None else max(map(len, exclude), default=0)
        fetch = min(k + extra, len(self))
        if not len(queries) or not fetch or not k:
            return Hits.empty(len(queries), k)
        self._set_bm25(chosen)
        parts = [self._batch(queries[at : at + _QUERIES], fetch) for at in range(0, len(queries), _QUERIES)]
        rows, scores = (np.concatenate(part) for part in zip(*parts, strict=True))
        for number, left_out in enumerate(exclude or ()):
            rows[number, np.isin(rows[number], left_out)] = -1
        return ordered_hits(rows, scores, k)

    def _set_bm25(self, values: Mapping[str, float]) -> None:
        with java_errors("setting BM25"):
            self._searcher.set_bm25(values["k1"], values["b"])

    def _batch(self, queries: Sequence[str], fetch: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows and scores (n, fetch) for some queries, -1 where there are fewer hits."""
        names = [str(number) for number in range(len(queries))]
        with java_errors("searching"):
            found = self._searcher.batch_search(java_list(queries), java_list(names), fetch, int(self.threads))
            answer = self._writer.writeValueAsString(found)
        return read_hits(answer, names, fetch, self.ids)


def read_hits(answer: str, names: Sequence[str], fetch: int, ids: Ids) -> tuple[np.ndarray, np.ndarray]:
    """Rows and scores (n, fetch) of a batch's hits as `json_writer` wrote them, -1 where there are fewer."""
    found = json.loads(answer)
    lists = [[(hit["docid"], hit["score"]) for hit in found.get(name, ())] for name in names]
    hits = Hits.empty(len(names), fetch)
    lengths = np.asarray([len(part) for part in lists])
    filled = np.arange(fetch) < lengths[:, None]
    hits.rows[filled] = ids.rows([docid for docid, _ in chain.from_iterable(lists)])
    hits.scores[filled] = [score for _, score in chain.from_iterable(lists)]
    return hits.rows, hits.scores


def json_writer() -> Any:
    """Turns many hits into one string: reading them one by one through JNI takes a hundred times longer."""
    writer = autoclass("com.fasterxml.jackson.databind.ObjectMapper")()
    stored = autoclass("java.lang.Class").forName("org.apache.lucene.document.Document")
    writer.configOverride(stored).setIsIgnoredType(autoclass("java.lang.Boolean")(True))
    return writer


def java_list(values: Sequence[Any]) -> Any:
    """A Java list of strings or Java objects."""
    result = autoclass("java.util.ArrayList")()
    for value in values:
        result.add(value)
    return result


def build_lexical(
    folder: Path, ids: Ids, texts: Callable[[int, int], Sequence[str]], plan: BuildPlan
) -> dict[str, Any]:
    """Index documents as they stream by and write INDEX/lucene."""
    what = "settings of the lucene back-end"
    check_names(plan.settings, tuple(DEFAULTS), what)
    settings = check_numbers({**DEFAULTS, **plan.settings}, BOUNDS, what)
    target = folder / "lucene"
    if target.exists():  # a killed build: Lucene starts again
        for path in target.iterdir():
            path.unlink()
    target.mkdir(exist_ok=True)
    if len(ids):
        add_documents(target, ids, texts, append=False, batch=min(plan.shard_size, _BATCH))
    versions = {name: importlib.metadata.version(name) for name in ("pyserini", "pyjnius")}
    return {"settings": settings, "versions": versions, "keep_vectors": False}


def add_documents(
    target: Path, ids: Ids, texts: Callable[[int, int], Sequence[str]], *, append: bool, batch: int = _BATCH
) -> None:
    """Add documents to a Lucene folder, one thread, in order, `batch` of them at a time."""
    document = autoclass("io.anserini.collection.JsonCollection$Document")
    with java_errors(f"indexing into {target}"):
        indexer = autoclass("io.anserini.index.SimpleIndexer")(str(target), append, 1)
    added = 0
    try:
        with task("index", len(ids)) as advance:
            for start in range(0, len(ids), batch):
                stop = min(start + batch, len(ids))
                pairs = zip(ids[start:stop], texts(start, stop), strict=True)
                with java_errors(f"indexing documents {start} to {stop}"):
                    documents = [document.fromFields(name, text) for name, text in pairs]
                    added += int(indexer.addJsonDocuments(documents))
                advance(stop - start)
    finally:
        with java_errors(f"committing {target}"):
            indexer.close()
    if added < len(ids):
        logger.warning("%d of %d documents have no text; Lucene does not hold them", len(ids) - added, len(ids))


def remove_documents(target: Path, names: Sequence[str]) -> None:
    """Delete documents by id and commit."""
    path = autoclass("java.nio.file.Paths").get(str(target))
    term = autoclass("org.apache.lucene.index.Term")
    with java_errors(f"deleting from {target}"):
        config = autoclass("org.apache.lucene.index.IndexWriterConfig")()
        writer = autoclass("org.apache.lucene.index.IndexWriter")(
            autoclass("org.apache.lucene.store.FSDirectory").open(path), config
        )
        nothing = autoclass("java.util.ArrayList")()  # updating to no documents deletes, without Java's varargs
        try:
            for name in names:
                writer.updateDocuments(term("id", name), nothing)
            writer.forceMergeDeletes()  # so that deleted documents leave the statistics
        finally:
            writer.close()


def open_folder(folder: Path, manifest: Manifest, settings: Mapping[str, Any]) -> LuceneIndex:
    """Open for searching. Settings: `threads` (default 1)."""
    check_names(settings, ("threads",), "settings for opening a lucene index")
    threads = check_threads(settings)
    return LuceneIndex(
        folder / "lucene",
        Ids.load(ids_file(folder)),
        k1=manifest.settings["k1"],
        b=manifest.settings["b"],
        threads=threads,
    )
