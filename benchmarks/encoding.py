"""Encoding speed beside SentenceTransformer.encode, and what each form does to retrieval.

    python benchmarks/encoding.py speed DATA [--sample 1000] [--rounds 3] [--threads 2] [--clock wall|cpu]
    python benchmarks/encoding.py quality DATA [--collections scifact nfcorpus] [--forms float32 int8]

DATA is a folder that holds `scifact` and `nfcorpus` in BEIR layout. `speed` gives every form the same texts, model,
maximum length (256 tokens) and threads; the forms take turns within a round, and the figure is the median over rounds
of the round's own ratio to sentence-transformers in float32, with cosines to its vectors. `--clock cpu` takes the time
of the process instead of the wall's, which with one thread holds on a machine that others use too. `quality` prints
nDCG@10 of exact search over title and text.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from rtk.eval import Run, evaluate, open_collection
from rtk.retrieval.encoders import load_encoder, load_minilm_path

LENGTH = 256
FORMS = {
    "float32": {},
    "bfloat16": {"dtype": "bfloat16"},
    "onnx": {"backend": "onnx"},
    "int8": {"quantise": "int8"},
}


def speed(args: argparse.Namespace) -> None:
    """Print each form's speed relative to sentence-transformers in float32."""
    torch.set_num_threads(args.threads)
    texts = open_collection(args.data / "scifact").documents.texts(slice(0, None))
    rows = np.sort(np.random.default_rng(0).permutation(len(texts))[: args.sample])
    texts = [texts[row] for row in rows]
    reference = SentenceTransformer(str(load_minilm_path()), device="cpu")
    reference.max_seq_length = LENGTH
    forms: dict[str, Callable[[list[str]], np.ndarray]] = {"sentence-transformers": reference.encode}
    for name in args.forms:
        forms[name] = load_encoder("minilm", device="cpu", document_length=LENGTH, **FORMS[name]).encode_document
    expected = reference.encode(texts[:32])
    cosines = {name: (encode(texts[:32]) * expected).sum(axis=1) for name, encode in forms.items()}
    clock = time.perf_counter if args.clock == "wall" else time.process_time
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    for number in range(args.rounds):
        for name, encode in forms.items():
            start = clock()
            encode(texts)
            seconds[name].append(clock() - start)
        print(f"round {number + 1}:", {name: round(values[-1], 2) for name, values in seconds.items()}, flush=True)
    first = seconds["sentence-transformers"]
    print(f"{len(texts)} documents, {LENGTH} tokens, {args.threads} threads, {args.clock} clock, {args.rounds} rounds")
    for name, values in seconds.items():
        ratio = statistics.median(one / other for one, other in zip(first, values, strict=True))
        rate = len(texts) / statistics.median(values)
        print(f"{name:22} {ratio:5.2f}x  {rate:7.1f} documents/s  cosine mean {cosines[name].mean():.5f}"
              f" least {cosines[name].min():.5f}")  # fmt: skip


def quality(args: argparse.Namespace) -> None:
    """Print nDCG@10 of exact search with each form's vectors on both sides."""
    torch.set_num_threads(args.threads)
    for name in args.collections:
        collection = open_collection(args.data / name)
        queries, judgments = collection.queries("test"), collection.judgments("test")
        for form in args.forms:
            encoder = load_encoder("minilm", device="cpu", document_length=LENGTH, **FORMS[form])
            start = time.perf_counter()
            documents = encoder.encode_document(collection.documents.texts(slice(0, None)))
            spent = time.perf_counter() - start
            scores = encoder.encode_query(queries.texts) @ documents.T
            best = np.argsort(-scores, axis=1, kind="stable")[:, :100]
            run = Run.from_lists(
                (qid, collection.documents.ids.take(rows), scores[number, rows])
                for number, (qid, rows) in enumerate(zip(queries.ids, best, strict=True))
            )
            value = float(evaluate(run, judgments, "nDCG@10").values["nDCG@10"].mean())
            print(f"{name:10} {form:10} nDCG@10 {value:.4f}  ({len(documents)} documents in {spent:.0f} s)", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True)
    for verb in (speed, quality):
        command = verbs.add_parser(verb.__name__)
        command.set_defaults(run=verb)
        command.add_argument("data", type=Path)
        command.add_argument("--threads", type=int, default=2)
        command.add_argument("--forms", nargs="+", choices=list(FORMS), default=list(FORMS))
        if verb is speed:
            command.add_argument("--sample", type=int, default=1000)
            command.add_argument("--rounds", type=int, default=3)
            command.add_argument("--clock", choices=["wall", "cpu"], default="wall")
        else:
            command.add_argument("--collections", nargs="+", default=["scifact", "nfcorpus"])
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
