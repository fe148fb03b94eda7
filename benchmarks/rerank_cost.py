"""What reranking 100 documents of 100 tokens costs with each family of LLM rerankers: time, tokens, calls, memory.

    python benchmarks/rerank_cost.py [--documents 100] [--tokens 100] [--rounds 3] [--methods icr first …]
    python benchmarks/rerank_cost.py --size 8b --dtype bfloat16 --device cuda     # a GPU

One query at a time, with the random decoder of `small_chat.py` (`--size`), on the engine of transformers and, on CPU,
with one thread. Each method runs in a process of its own, on a short list first and then `--rounds` times on the whole;
methods take turns. Seconds are of the processor (on a GPU of the clock), memory is the process's peak beyond what it
held after the short list (on a GPU of what torch had allocated). Generation writes exactly as many tokens as a
permutation has, windows of 20 by 10 over it and over FIRST are the same ones. A model that knows nothing writes no
order that can be read, which changes nothing of the cost but the sorts': setwise compares as a heap of random answers
does. Aim: FIRST at most 0.2 of generation at equal prompts.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
from evaluation import peak_since_reset, resident
from small_chat import SIZES, chat_model, chat_tokenizer, single_words

METHODS: dict[str, dict[str, Any]] = {
    "icr": {},
    "first": {},
    "rank-gpt": {"identifiers": "letters"},
    "full-rank": {},
    "setwise": {},
    "yes-no": {},
    "query-likelihood": {},
    "prp": {},
}
SHORT = 25  # documents of the list before: more than one window, so that every way is gone once


def requests(tokenizer: Any, documents: int, tokens: int) -> Any:
    """A query of 8 tokens and documents of `tokens`."""
    from rtk.retrieval.rerankers import Candidate, Request

    words, draw = single_words(tokenizer), np.random.default_rng(documents)

    def text(count: int) -> str:
        return " ".join(draw.choice(words, count).tolist())

    made = tuple(Candidate(f"d{at}", text(tokens)) for at in range(documents))
    counts = [len(tokenizer(" " + each.text, add_special_tokens=False).input_ids) for each in made]
    if set(counts) != {tokens}:
        raise SystemExit(f"documents have {min(counts)} to {max(counts)} tokens, not {tokens}")
    return Request("q", text(8), made)


def held(device: str) -> float:
    """MB that this process has now; its peak begins anew."""
    if device == "cpu":
        return resident()
    import torch

    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated() / 1e6


def peak(device: str) -> float:
    """MB that it had at most since then."""
    if device == "cpu":
        return peak_since_reset()
    import torch

    return torch.cuda.max_memory_allocated() / 1e6


def seconds(device: str) -> float:
    if device == "cpu":
        return time.process_time()
    import torch

    torch.cuda.synchronize()
    return time.perf_counter()


def measure(method: str, options: argparse.Namespace) -> tuple[float, float, Any]:
    """In a process of its own: seconds, usage, MB."""
    import torch

    from rtk.retrieval.rerankers import load_reranker

    if options.device == "cpu":
        torch.set_num_threads(1)
    tokenizer = chat_tokenizer()
    model = chat_model(options.size, tokenizer, dtype=options.dtype, device=options.device)
    reranker = load_reranker(method, (model, tokenizer), **METHODS[method])
    list(reranker.rerank([requests(tokenizer, min(SHORT, options.documents), options.tokens)]))
    before, began = held(options.device), seconds(options.device)
    (result,) = reranker.rerank([requests(tokenizer, options.documents, options.tokens)])
    took = seconds(options.device) - began
    return took, peak(options.device) - before, result.usage


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=100)
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--size", choices=list(SIZES), default="small")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    found: dict[str, list[Any]] = {method: [] for method in options.methods}
    for _ in range(options.rounds):
        for method in options.methods:
            with ProcessPoolExecutor(1, mp_context=context) as process:
                found[method].append(process.submit(measure, method, options).result())
    print("| method | seconds | calls | tokens read | from the cache | written | MB | of first |\n|---|" + "---:|" * 7)
    median = {method: statistics.median(each[0] for each in rounds) for method, rounds in found.items()}
    for method, rounds in found.items():
        usage, grown = rounds[0][2], statistics.median(each[1] for each in rounds)
        ratio = f"{median[method] / median['first']:.2f}" if "first" in median else ""
        tokens = f"{usage.prompt_tokens:,} | {usage.cached_tokens:,} | {usage.generated_tokens:,}"
        print(f"| {method} | {median[method]:.2f} | {usage.calls:,} | {tokens} | {grown:.0f} | {ratio} |", flush=True)


if __name__ == "__main__":
    main()
