"""Does ICR rank by what a model has learned? A small decoder trained here to look things up in its context.

    python benchmarks/icr_lookup.py [--seeds 5] [--steps 160] [--test 100]

Ten topics have four words each, which nothing but training tells: no query shares a word with a document. A document is
three words of no topic and one of its topic's, in any order. A decoder of two layers is trained from scratch, on
prompts in ICR's own form, to answer a topic's name with that topic's word among the documents. Then ICR reranks
shuffled lists of ten new documents by the name of one topic, with the trained model, with an untrained copy (the same
seed's first weights), and with a model trained as long on prompts that are answered by any topic's words, which teaches
everything but looking things up. Measured is nDCG@10 with the one relevant document; 95 % t intervals over the seeds.
"""

from __future__ import annotations

import argparse
import copy
import time
from typing import Any

import numpy as np
import torch
from scipy import stats

from rtk.retrieval.rerankers import Candidate, IcrReranker, Request, load_language_model
from rtk.retrieval.rerankers.chat import ChatRenderer
from rtk.retrieval.rerankers.icr_prompt import IcrPrompter, Wording
from rtk.retrieval.rerankers.reading import Reading

TOPICS, EACH, OTHERS, LENGTH = 10, 4, 30, 4
BATCH, RATE = 8, 5e-3
FIXED = (
    "user: assistant: Here are some paragraphs: paragraphs Please find information that are relevant to the following "
    "query in the above. Query: N/A <pad>"
)


def tokenizer() -> Any:
    """Whole words: the prompt's, topics' names q0 …, their words w0 … (topic n has the four from 4 n on), others o0."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = [*FIXED.split(), *(f"[{label}]" for label in range(1, TOPICS + 1))]
    for letter, count in (("q", TOPICS), ("w", TOPICS * EACH), ("o", OTHERS)):
        names += [f"{letter}{number}" for number in range(count)]
    words = {word: at for at, word in enumerate(dict.fromkeys(names))}
    backend = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    template = "{% for m in messages %}user: {{ m['content'] }} {% endfor %}assistant:"
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", chat_template=template, model_max_length=512
    )


def decoder(seed: int, size: int) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=size, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=512, initializer_range=0.05,
    )  # fmt: skip
    torch.manual_seed(seed)
    return LlamaForCausalLM(config)


class Prompts:
    """Random documents and prompts about them."""

    def __init__(self, seed: int) -> None:
        self.draw = np.random.default_rng(seed)
        self.tokenizer = tokenizer()
        prompter = IcrPrompter(ChatRenderer(self.tokenizer), Wording(), Reading(), 512)
        frame = prompter.write("q0", [" ".join(["o0"] * LENGTH)] * TOPICS)
        self.frame, self.spans = np.asarray(frame.real[:-2]), frame.documents  # up to the query

    def documents(self) -> tuple[np.ndarray, np.ndarray]:
        """(TOPICS,) the documents' topics, (TOPICS, LENGTH) their token ids."""
        word, other = (self.tokenizer.convert_tokens_to_ids(each) for each in ("w0", "o0"))
        topics = self.draw.permutation(TOPICS)
        ids = other + self.draw.integers(0, OTHERS, (TOPICS, LENGTH))
        places = self.draw.integers(0, LENGTH, TOPICS)
        ids[np.arange(TOPICS), places] = word + topics * EACH + self.draw.integers(0, EACH, TOPICS)
        return topics, ids

    def lessons(self, *, right: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """(BATCH, length) ids of prompts that ask for every topic, and labels that are -100 but at the answers."""
        query, word, marker = (self.tokenizer.convert_tokens_to_ids(each) for each in ("q0", "w0", "Query:"))
        rows, labels = [], []
        for _ in range(BATCH):
            topics, ids = self.documents()
            row = self.frame.copy()
            for (start, stop), own in zip(self.spans, ids, strict=True):
                row[start + 1 : stop] = own
            topical = ids[(ids >= word) & (ids < word + TOPICS * EACH)]
            answers = topical if right else word + self.draw.integers(0, TOPICS * EACH, TOPICS)
            order = self.draw.permutation(TOPICS)
            asked = np.stack([query + topics, answers, np.full(TOPICS, marker)], axis=1)[order]
            wanted = asked.copy()
            wanted[:, [0, 2]] = -100
            rows.append(np.concatenate([row, asked.reshape(-1)]))
            labels.append(np.concatenate([np.full(len(row), -100), wanted.reshape(-1)]))
        return torch.from_numpy(np.stack(rows)), torch.from_numpy(np.stack(labels))

    def requests(self, count: int) -> tuple[list[Request], list[str]]:
        """Lists in random order, and which document each query is about."""
        made, wanted = [], []
        for number in range(count):
            topics, ids = self.documents()
            about = int(self.draw.integers(TOPICS))
            texts = [" ".join(self.tokenizer.convert_ids_to_tokens(row.tolist())) for row in ids]
            candidates = tuple(Candidate(f"d{at}", text) for at, text in enumerate(texts))
            made.append(Request(f"q{number}", f"q{topics[about]}", candidates))
            wanted.append(f"d{about}")
        return made, wanted


def taught(model: Any, seed: int, steps: int, *, right: bool) -> list[float]:
    """Train in place; the losses."""
    prompts = Prompts(seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01)
    losses = []
    model.train()
    for _ in range(steps):
        ids, labels = prompts.lessons(right=right)
        loss = model(input_ids=ids, labels=labels).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    return losses


def ndcg(orders: list[tuple[str, ...]], wanted: list[str]) -> float:
    """With one relevant document in lists of ten: 1 / log2(1 + its rank), averaged."""
    ranks = [order.index(each) + 1 for order, each in zip(orders, wanted, strict=True)]
    return float(np.mean(1 / np.log2(1 + np.asarray(ranks))))


def seed_run(seed: int, steps: int, count: int) -> dict[str, float]:
    words = tokenizer()
    first = decoder(seed, len(words))
    models = {"untrained copy": copy.deepcopy(first), "trained": first, "wrong answers": copy.deepcopy(first)}
    losses = {
        name: float(np.mean(taught(models[name], seed, steps, right=name == "trained")[-20:]))
        for name in ("trained", "wrong answers")
    }
    asked, wanted = Prompts(1000 + seed).requests(count)
    found = {"input order": ndcg([request.ids for request in asked], wanted)}
    for name, model in models.items():
        reranker = IcrReranker(load_language_model((model, words)))
        found[f"ICR, {name}"] = ndcg([result.ids for result in reranker.rerank(asked)], wanted)
    return found | {f"loss, {name}": value for name, value in losses.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--test", type=int, default=100)
    options = parser.parse_args()
    runs = []
    for seed in range(options.seeds):
        start = time.process_time()
        runs.append(seed_run(seed, options.steps, options.test))
        shown = ", ".join(f"{name} {value:.3f}" for name, value in runs[-1].items())
        print(f"seed {seed} ({time.process_time() - start:.0f} s of one core): {shown}", flush=True)
    for name in runs[0]:
        values = np.asarray([run[name] for run in runs])
        half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else 0
        print(f"{name:24s} {values.mean():.3f} ± {half:.3f}")


if __name__ == "__main__":
    main()
