"""Sparse vectors as integer impacts in Lucene; Pyserini's LuceneImpactSearcher opens INDEX/lucene itself.

Weights become whole numbers (`quantiser`), kept as term frequencies; tokens are the terms' numbers, since pieces of
words may hold spaces or delimiters. Query weights are scaled before they are rounded, as Anserini truncates them, and
no token is dropped for its idf (Pyserini's `min_idf` of -1). Scores are divided by both factors, so that they are close
to inner products; Anserini's small changes of tied scores are taken back. It breaks ties by the doc values of the field
"id", which hold the row here, so ties go to the lower row; the stored field "id" has the document id.
"""

from __future__ import annotations

import importlib.metadata
import logging
import shutil
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix

from ..errors import ConfigError
from ..ids import Ids, ids_file
from ..progress import task
from .base import Hits, Options
from .bounds import ABOVE_ZERO, check_numbers
from .dense import Exclude, check_exclude, ordered_hits
from .java import autoclass, java_errors
from .lucene_index import java_list, json_writer, read_hits
from .manifest import Manifest
from .plan import BuildPlan
from .quantiser import Quantiser
from .registry import check_names, check_threads
from .sparse import SparseShards, canonical

__all__ = ["LuceneImpactIndex"]

logger = logging.getLogger(__name__)

DEFAULTS: dict[str, Any] = {"factor": 100.0, "query_factor": 100.0}
_BOUNDS = dict.fromkeys(DEFAULTS, ABOVE_ZERO)
EMPTY = "empty"
"""The token of a document whose weights all round to zero, so that it is in Lucene's statistics."""
LIMIT = 1 << 20
"""Of a whole weight. A document's add up to its length, which Lucene counts in 31 bits; a query's cost time, since
Anserini repeats a token as often as its weight says: seconds a term at the limit."""
_QUERIES = 500
_DELIMITER = "|"
_FIELD = "(Ljava/lang/String;Ljava/lang/CharSequence;Lorg/apache/lucene/index/IndexableFieldType;)V"  # of five that fit


class LuceneImpactIndex:
    """An impact index in Lucene.

    Args:
        folder: Lucene's own folder (INDEX/lucene).
        ids: row → document id.
        dimension: terms in the vocabulary.
        factors: of the documents' weights, and of the queries' by default.
        threads: queries searched at the same time.
    """

    def __init__(
        self, folder: Path, ids: Ids, dimension: int, *, factors: tuple[float, float], threads: int = 1
    ) -> None:
        self.folder, self.ids, self.dimension, self.threads = folder.parent, ids, dimension, threads
        self.factor, self.query_factor = factors
        self._searcher: Any = None
        if len(ids):
            with java_errors(f"opening {folder}"):
                self._searcher = autoclass("io.anserini.search.SimpleImpactSearcher")(str(folder))
                self._writer = json_writer()

    def __len__(self) -> int:
        return len(self.ids)

    def search(
        self, queries: csr_matrix, k: int, /, *, options: Options | None = None, exclude: Exclude | None = None
    ) -> Hits:
        """See `Index.search`. Queries are CSR (n, vocabulary); the only option is `query_factor`."""
        what = "search options of the lucene back-end for sparse vectors"
        check_names(options or {}, ("query_factor",), what)
        factor = check_numbers({"query_factor": self.query_factor, **(options or {})}, _BOUNDS, what)["query_factor"]
        if k < 0:
            raise ConfigError(f"k is {k}, expected at least 0")
        checked = canonical(queries, self.dimension, "queries")
        whole, clipped = Quantiser(factor, LIMIT)(checked)
        if clipped:
            logger.warning(
                "%d query weights were cut to %d, so scores are too low; take a smaller query_factor than %g",
                clipped, LIMIT, factor,
            )  # fmt: skip
        count = len(whole.indptr) - 1
        check_exclude(exclude, count)
        extra = 0 if exclude is None else max(map(len, exclude), default=0)
        fetch = min(k + extra, len(self))
        if not count or not fetch or not k:
            return Hits.empty(count, k)
        parts = [self._batch(whole[at : at + _QUERIES], fetch) for at in range(0, count, _QUERIES)]
        rows, scores = (np.concatenate(part) for part in zip(*parts, strict=True))
        for number, left_out in enumerate(exclude or ()):
            rows[number, np.isin(rows[number], left_out)] = -1
        products = np.where(rows < 0, -np.inf, np.rint(scores.astype(np.float64)) / (self.factor * factor))
        return ordered_hits(rows, products.astype(np.float32), k)

    def _batch(self, queries: csr_matrix, fetch: int) -> tuple[np.ndarray, np.ndarray]:
        names = [str(number) for number in range(len(queries.indptr) - 1)]
        with java_errors("searching"):
            weighted = java_list([java_map(queries, number) for number in range(len(names))])
            found = self._searcher.batch_search(weighted, java_list(names), fetch, int(self.threads))
            answer = self._writer.writeValueAsString(found)
        return read_hits(answer, names, fetch, self.ids)


def java_map(queries: csr_matrix, number: int) -> Any:
    """Token → weight of one query."""
    result, integer = autoclass("java.util.HashMap")(), autoclass("java.lang.Integer")
    part = slice(queries.indptr[number], queries.indptr[number + 1])
    for term, weight in zip(queries.indices[part].tolist(), queries.data[part].tolist(), strict=True):
        result.put(str(term), integer(weight))
    return result


def read_settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults with `given` over them, checked: `factor`, `query_factor`."""
    what = "settings of the lucene back-end for sparse vectors"
    check_names(given, tuple(DEFAULTS), what)
    return check_numbers({**DEFAULTS, **given}, _BOUNDS, what)


def build_sparse(folder: Path, vectors: SparseShards, ids: Ids, plan: BuildPlan) -> dict[str, Any]:
    """Write INDEX/lucene, one thread, in order."""
    settings = read_settings(plan.settings)
    documents = Quantiser(settings["factor"], LIMIT)
    target = folder / "lucene"
    shutil.rmtree(target, ignore_errors=True)  # a killed build: Lucene starts again
    target.mkdir()
    counts = _add_documents(target, vectors, ids, documents) if len(ids) else {"clipped": 0, "empty": 0}
    if counts["clipped"]:
        logger.warning("%d weights were cut to %d", counts["clipped"], LIMIT)
    versions = {name: importlib.metadata.version(name) for name in ("pyserini", "pyjnius")}
    return {"settings": {**settings, "limit": LIMIT, **counts}, "versions": versions, "keep_vectors": False}


def _add_documents(target: Path, vectors: SparseShards, ids: Ids, quantiser: Quantiser) -> dict[str, int]:
    counts = {"clipped": 0, "empty": 0}
    with java_errors(f"indexing into {target}"):
        writer, document, fields = _index_writer(target), autoclass("org.apache.lucene.document.Document")(), _fields()
        for field in fields:
            document.add(field)
    name, row, impacts = fields
    number = autoclass("org.apache.lucene.util.BytesRef")
    try:
        with task("index", len(ids)) as advance:
            for first, part in vectors.blocks():
                whole, clipped = quantiser(part)
                counts["clipped"] += clipped
                counts["empty"] += int((np.diff(whole.indptr) == 0).sum())
                with java_errors(f"indexing documents from {first}"):
                    for at, tokens in enumerate(_token_lines(whole), start=first):
                        name.setStringValue(ids[at])
                        row.setBytesValue(number(b"%010d" % at))
                        impacts.setStringValue(tokens)
                        writer.addDocument(document)
                advance(len(whole.indptr) - 1)
    finally:
        with java_errors(f"committing {target}"):
            writer.forceMerge(1)
            writer.close()
    return counts


def _fields() -> tuple[Any, Any, Any]:
    """Id, row and impacts: one document's, whose values change, since every new object is a call into Java."""
    package = "org.apache.lucene.document"
    kind = autoclass(f"{package}.FieldType")()
    kind.setTokenized(True)
    kind.setOmitNorms(True)
    kind.setIndexOptions(autoclass("org.apache.lucene.index.IndexOptions").DOCS_AND_FREQS)  # no positions
    kind.freeze()
    text = autoclass("java.lang.String")("")
    return (
        autoclass(f"{package}.StringField")("id", "", autoclass(f"{package}.Field$Store").YES),
        autoclass(f"{package}.BinaryDocValuesField")("id", autoclass("org.apache.lucene.util.BytesRef")(b"")),
        autoclass(f"{package}.Field")("contents", text, kind, signature=_FIELD),
    )


def _token_lines(whole: csr_matrix) -> list[str]:
    """For each document its tokens with their weights, as Lucene's filter for term frequencies reads them."""
    pairs = [f"{term}{_DELIMITER}{weight}" for term, weight in zip(whole.indices, whole.data, strict=True)]
    bounds: Any = whole.indptr.tolist()
    return [" ".join(pairs[start:stop]) or f"{EMPTY}{_DELIMITER}1" for start, stop in pairwise(bounds)]


def _index_writer(target: Path) -> Any:
    analysis, builder = "org.apache.lucene.analysis", autoclass("org.apache.lucene.analysis.custom.CustomAnalyzer")
    nothing, delimiter = autoclass("java.util.HashMap")(), autoclass("java.util.HashMap")()
    delimiter.put("delimiter", _DELIMITER)
    tokenizer = autoclass(f"{analysis}.core.WhitespaceTokenizerFactory").NAME
    frequency = autoclass(f"{analysis}.miscellaneous.DelimitedTermFrequencyTokenFilterFactory").NAME
    analyzer = builder.builder().withTokenizer(tokenizer, nothing).addTokenFilter(frequency, delimiter).build()
    config = autoclass("org.apache.lucene.index.IndexWriterConfig")(analyzer)
    config.setSimilarity(autoclass("io.anserini.search.similarity.ImpactSimilarity")())
    config.setRAMBufferSizeMB(256.0)
    place = autoclass("java.nio.file.Paths").get(str(target))
    return autoclass("org.apache.lucene.index.IndexWriter")(
        autoclass("org.apache.lucene.store.FSDirectory").open(place), config
    )


def open_folder(folder: Path, manifest: Manifest, settings: Mapping[str, Any]) -> LuceneImpactIndex:
    """Open for searching. Settings: `threads` (default 1)."""
    check_names(settings, ("threads",), "settings for opening a lucene index")
    threads = check_threads(settings)
    return LuceneImpactIndex(
        folder / "lucene",
        Ids.load(ids_file(folder)),
        manifest.dimension or 0,
        factors=(manifest.settings["factor"], manifest.settings["query_factor"]),
        threads=threads,
    )
