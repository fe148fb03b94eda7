"""ICR's two passes on one prefix beside two whole passes with eager attention maps: time and memory.

    python benchmarks/icr_cost.py [--documents 20 100] [--rounds 3] [--clock cpu|wall]

The model is the specification's: Llama, 4 layers, hidden size 256, 4 heads, vocabulary 1,792, float32, random weights;
documents of 60 tokens, 47 tokens that ask. Each measurement is a process of its own on one thread; its memory is the
growth of its peak over a small prompt. Seconds are the median of the rounds, which both sides do alternately. Both
sides give the same scores, which is checked. Aims: 0.4 and 0.08 of the eager time at 20 and 100 documents, a second
pass of at most 12 % and 5 % of the first, memory linear in the length.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from evaluation import peak_since_reset, resident

from rtk.retrieval.rerankers import Candidate, Request, icr_passes, load_language_model
from rtk.retrieval.rerankers.icr import IcrModel
from rtk.retrieval.rerankers.icr_prompt import IcrPrompt
from rtk.retrieval.rerankers.listwise import WindowQuestion

TOKENS, ASKING, WORDS = 60, 47, 1700
CLOCKS = {"cpu": time.process_time, "wall": time.perf_counter}
INSTRUCTION = "Please find information that are relevant to the following query in the paragraphs above. Query:"
FIXED = ["user:", "assistant:", "Here", "are", "some", "paragraphs:", "N/A", "<s>", *INSTRUCTION.split()]


def language_model() -> Any:
    """The model with a tokenizer of whole words, so that tokens can be counted in advance."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = [*FIXED, *(f"[{label}]" for label in range(1, 120)), *(f"w{number}" for number in range(WORDS))]
    names = list(dict.fromkeys(words))[:1792]
    backend = Tokenizer(models.WordLevel({word: at for at, word in enumerate(names)}, unk_token="<s>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    template = "{% for m in messages %}user: {{ m['content'] }} {% endfor %}assistant:"
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", pad_token="<s>", chat_template=template, model_max_length=16_384
    )
    config = LlamaConfig(
        vocab_size=1792, hidden_size=256, intermediate_size=688, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=16_384, initializer_range=0.2,
    )  # fmt: skip
    torch.manual_seed(0)
    return load_language_model((LlamaForCausalLM(config), tokenizer))


def question(documents: int) -> WindowQuestion:
    """A query and documents that make prompts of the wanted numbers of tokens."""
    draw = np.random.default_rng(documents)

    def text(count: int) -> str:
        return " ".join(f"w{number}" for number in draw.integers(0, 1600, count))

    candidates = tuple(Candidate(str(at), text(TOKENS - 1)) for at in range(documents))
    query = text(ASKING - len(INSTRUCTION.split()) - 1)  # and the marker of the answer
    return WindowQuestion(Request("q", query, candidates), tuple(range(documents)))


def ours(icr: IcrModel, asked: WindowQuestion, clock: Callable[[], float]) -> tuple[np.ndarray, list[float]]:
    """Scores before calibration, and the seconds of everything and of either pass."""
    passes: list[float] = []
    forward = icr_passes.watched_forward

    def timed(*given: Any, **more: Any) -> None:
        start = clock()
        forward(*given, **more)
        passes.append(clock() - start)

    icr_passes.watched_forward = timed
    start = clock()
    (answer,) = icr.score([asked])
    total = clock() - start
    icr_passes.watched_forward = forward
    return answer.value.attention, [total, *passes]


def eager(icr: IcrModel, asked: WindowQuestion, clock: Callable[[], float]) -> tuple[np.ndarray, list[float]]:
    """The same from whole attention maps of two whole prompts; the model's body alone, without its head."""
    body = icr.model.model.model
    icr.model.model.set_attn_implementation("eager")
    start = clock()
    prompt = icr.prompter.write(asked.request.query, asked.texts)
    for ids in (prompt.free, prompt.real):
        with torch.inference_mode():
            maps = body(torch.tensor([ids]), output_attentions=True, use_cache=False).attentions
        paid = sum(each[0, :, prompt.start :].sum(0).mean(0) for each in maps)
        del maps
    total = clock() - start
    return _by_document(prompt, paid.double().numpy()), [total]


def _by_document(prompt: IcrPrompt, paid: np.ndarray) -> np.ndarray:
    return np.asarray([paid[start:stop].sum() for start, stop in prompt.documents])


SIDES = {"ours": ours, "eager": eager}


def measure(side: str, documents: int, clock: str, answer: Any) -> None:
    """In a process of its own: scores, seconds, MB beyond what a small prompt needed."""
    torch.set_num_threads(1)
    icr = IcrModel(language_model())
    SIDES[side](icr, question(1), CLOCKS[clock])
    before = resident()
    scores, seconds = SIDES[side](icr, question(documents), CLOCKS[clock])
    grown = peak_since_reset() - before
    prompt = icr.prompter.write(question(documents).request.query, question(documents).texts)
    answer.put((scores, seconds, grown, len(prompt.free), len(prompt.real) - prompt.start))


def apart(side: str, documents: int, clock: str) -> Any:
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    process = context.Process(target=measure, args=(side, documents, clock, answer))
    process.start()
    found = answer.get()
    process.join()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, nargs="+", default=[20, 100])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="cpu")
    options = parser.parse_args()
    print("documents  tokens  side   seconds  pass 1  pass 2  2nd/1st  extra MB  ours/eager")
    for documents in options.documents:
        rounds = [{side: apart(side, documents, options.clock) for side in SIDES} for _ in range(options.rounds)]
        for each in rounds:
            np.testing.assert_allclose(each["ours"][0], each["eager"][0], atol=1e-4)
        ratio = statistics.median(each["ours"][1][0] / each["eager"][1][0] for each in rounds)
        for side in SIDES:
            runs = [each[side] for each in rounds]
            total, *passes = (statistics.median(run[1][at] for run in runs) for at in range(len(runs[0][1])))
            shown = f"{passes[0]:7.2f} {passes[1]:7.3f} {passes[1] / passes[0]:8.3f}" if passes else " " * 24
            grown = statistics.median(run[2] for run in runs)
            last = f"{ratio:10.3f}" if side == "ours" else ""
            first, asking = runs[0][3:]
            print(f"{documents:9d} {first:5d}+{asking:2d} {side:>5s} {total:9.2f} {shown} {grown:9.0f} {last}")


if __name__ == "__main__":
    main()
