"""Collections, runs, measures, significance and reports.

The names load their modules only when asked for, so that importing this package is cheap.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from .approximate import Agreement, agreement
    from .beir import BeirCollection, read_corpus, read_queries
    from .beir_write import CollectionParts, write_beir
    from .chunking import (
        ChunkedDocuments,
        Chunking,
        TokenOffsets,
        chunk_documents,
        max_passage,
        parent_ids,
        token_offsets,
    )
    from .collection import (
        Collection,
        CollectionBase,
        CollectionReport,
        Conventions,
        Queries,
        check_collection,
        open_collection,
    )
    from .cropped_queries import Cropping, crop_queries
    from .documents import Document, Documents
    from .files import read_run, run_name, write_run
    from .fusion import fuse
    from .hard_negatives import HardNegatives, read_hard_negatives, write_hard_negatives
    from .html import to_html
    from .irds import IrDatasetsCollection
    from .judgments import Judgments
    from .measures import Evaluation, evaluate
    from .msmarco import (
        Triples,
        read_collection_tsv,
        read_queries_tsv,
        read_triples,
        write_collection_tsv,
        write_queries_tsv,
        write_triples,
    )
    from .presets import AVERAGES, PRESETS, Aggregate, Preset, aggregate, get_preset
    from .pydocs import open_pydocs
    from .qrels import read_qrels, write_qrels
    from .report import (
        Report,
        Table,
        recall_curve,
        to_csv,
        to_json,
        to_markdown,
        to_text,
        write_per_query,
        write_report,
    )
    from .run import Run, RunEntry
    from .significance import Comparison, Difference, compare

_HOMES = {
    "AVERAGES": "presets",
    "Aggregate": "presets",
    "BeirCollection": "beir",
    "ChunkedDocuments": "chunking",
    "Chunking": "chunking",
    "Collection": "collection",
    "CollectionBase": "collection",
    "CollectionParts": "beir_write",
    "CollectionReport": "collection",
    "Comparison": "significance",
    "Conventions": "collection",
    "Cropping": "cropped_queries",
    "Difference": "significance",
    "Document": "documents",
    "Documents": "documents",
    "Evaluation": "measures",
    "HardNegatives": "hard_negatives",
    "IrDatasetsCollection": "irds",
    "Judgments": "judgments",
    "PRESETS": "presets",
    "Preset": "presets",
    "Queries": "collection",
    "Report": "report",
    "Run": "run",
    "RunEntry": "run",
    "Table": "report",
    "TokenOffsets": "chunking",
    "Triples": "msmarco",
    "aggregate": "presets",
    "check_collection": "collection",
    "chunk_documents": "chunking",
    "Agreement": "approximate",
    "agreement": "approximate",
    "compare": "significance",
    "crop_queries": "cropped_queries",
    "evaluate": "measures",
    "fuse": "fusion",
    "get_preset": "presets",
    "max_passage": "chunking",
    "open_collection": "collection",
    "open_pydocs": "pydocs",
    "parent_ids": "chunking",
    "read_collection_tsv": "msmarco",
    "read_corpus": "beir",
    "read_hard_negatives": "hard_negatives",
    "read_qrels": "qrels",
    "read_queries": "beir",
    "read_queries_tsv": "msmarco",
    "read_run": "files",
    "run_name": "files",
    "read_triples": "msmarco",
    "recall_curve": "report",
    "to_csv": "report",
    "to_html": "html",
    "to_json": "report",
    "to_markdown": "report",
    "to_text": "report",
    "token_offsets": "chunking",
    "write_beir": "beir_write",
    "write_collection_tsv": "msmarco",
    "write_hard_negatives": "hard_negatives",
    "write_per_query": "report",
    "write_qrels": "qrels",
    "write_queries_tsv": "msmarco",
    "write_report": "report",
    "write_run": "files",
    "write_triples": "msmarco",
}

__all__ = [
    "AVERAGES",
    "PRESETS",
    "Aggregate",
    "Agreement",
    "BeirCollection",
    "ChunkedDocuments",
    "Chunking",
    "Collection",
    "CollectionBase",
    "CollectionParts",
    "CollectionReport",
    "Comparison",
    "Conventions",
    "Cropping",
    "Difference",
    "Document",
    "Documents",
    "Evaluation",
    "HardNegatives",
    "IrDatasetsCollection",
    "Judgments",
    "Preset",
    "Queries",
    "Report",
    "Run",
    "RunEntry",
    "Table",
    "TokenOffsets",
    "Triples",
    "aggregate",
    "agreement",
    "check_collection",
    "chunk_documents",
    "compare",
    "crop_queries",
    "evaluate",
    "fuse",
    "get_preset",
    "max_passage",
    "open_collection",
    "open_pydocs",
    "parent_ids",
    "read_collection_tsv",
    "read_corpus",
    "read_hard_negatives",
    "read_qrels",
    "read_queries",
    "read_queries_tsv",
    "read_run",
    "read_triples",
    "recall_curve",
    "run_name",
    "to_csv",
    "to_html",
    "to_json",
    "to_markdown",
    "to_text",
    "token_offsets",
    "write_beir",
    "write_collection_tsv",
    "write_hard_negatives",
    "write_per_query",
    "write_qrels",
    "write_queries_tsv",
    "write_report",
    "write_run",
    "write_triples",
]

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
