"""A copy of a collection whose documents end where a model stops to read, so that BM25 reads as much as the model.

    python benchmarks/first_tokens.py COLLECTION OUT [--tokens 64] [--model minilm]
    rtk index OUT --out bm25-64

COLLECTION is a folder in BEIR layout; queries and judgments are copied as they are. Special tokens count, as they do
for the model.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from rtk.eval.collection import open_collection
from rtk.retrieval.encoders.load import load_tokenizer

BATCH = 1000


def main() -> None:
    """Write the copy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("collection", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--model", default="minilm")
    chosen = parser.parse_args()
    documents, tokenizer = open_collection(chosen.collection).documents, load_tokenizer(chosen.model)
    shutil.copytree(chosen.collection, chosen.out, ignore=shutil.ignore_patterns("corpus.jsonl*"))
    ids = list(documents.ids)
    with (chosen.out / "corpus.jsonl").open("w", encoding="utf-8") as stream:
        for start in range(0, len(ids), BATCH):
            part = slice(start, start + BATCH)
            texts = list(documents.texts(part))
            read = tokenizer(texts, truncation=True, max_length=chosen.tokens, return_offsets_mapping=True)
            for name, text, offsets in zip(ids[part], texts, read["offset_mapping"], strict=True):
                shown = text[: max(end for _, end in offsets)]
                stream.write(json.dumps({"_id": name, "title": "", "text": shown}, ensure_ascii=False) + "\n")
    print(f"{chosen.out}: {len(ids):,} documents of at most {chosen.tokens} tokens")


if __name__ == "__main__":
    main()
