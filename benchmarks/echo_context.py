"""Does a causal encoder need to see the text twice? A task where what a word means depends on the text's last word.

    python benchmarks/echo_context.py [--seeds 1 2 3 4 5] [--steps 150] [--systems echo once …] [--out FILE]

A document is a row of ambiguous words and, at its end, a context word that decides what each of them means. A query is
those meanings, words that stand in no document. Documents with the same words and another context are its hard
negatives, so that an encoder has to expand each word by the meaning that fits what comes after it. Every pair of a word
and a context occurs in training; the sets of words in the test are new.

Systems are the same random two-layer Llama, trained by `method: echo-splade` with the same losses:

- echo: the text twice, its second copy pooled;
- once: the text once, all of it pooled; only the context word's own position has seen everything;
- once-longer: the same for twice the steps, about what echo costs;
- both-ways: the text once, without the causal mask: what echo stands in for.

Measured is RR@10 over the test documents (a model that ignores the context finds one of the four with the right words,
.52 on average), with the difference to echo paired by seed and its 95% t interval.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rtk.eval import evaluate
from rtk.eval.collection import open_collection
from rtk.eval.files import write_run
from rtk.eval.run import Run
from rtk.retrieval.encoders import load_encoder
from rtk.retrieval.training import load_config, train
from rtk.retrieval.training.evaluation import search_exactly

WORDS, CONTEXTS, ROW = 12, 4, 6
SYSTEMS: dict[str, dict[str, Any]] = {
    "echo": {"template": "{bos}{text} again {echo}"},
    "once": {"template": "{bos}{echo}"},
    "once-longer": {"template": "{bos}{echo}", "steps": 2},
    "both-ways": {"template": "{bos}{echo}", "attention": "bidirectional"},
}


@dataclass(frozen=True)
class Task:
    """The folder of the random model and the training and test collections, all of one seed."""

    model: Path
    training: Path
    test: Path


def make_task(folder: Path, seed: int, *, rows: int) -> Task:
    """Write model and collections."""
    generator = np.random.default_rng(seed)
    sets = generator.permutation(list(itertools.combinations(range(WORDS), ROW)))[: rows + rows // 4]
    sets = generator.permuted(sets, axis=1)  # the order of the words
    write_collection(folder / "training", sets[:rows], generator)
    write_collection(folder / "test", sets[rows:], generator)
    write_model(folder / "model", seed)
    return Task(folder / "model", folder / "training", folder / "test")


def write_collection(folder: Path, rows: np.ndarray, generator: np.random.Generator) -> None:
    """Each row of words in every context, a query of their meanings for each, siblings as its negatives."""
    documents: list[dict[str, str]] = []
    queries: list[dict[str, str]] = []
    for number, row in enumerate(rows):
        for context in range(CONTEXTS):
            name = f"{number}-{context}"
            text = " ".join([*(f"word{word}" for word in row), f"context{context}"])
            documents.append({"_id": name, "title": "", "text": text})
            asked = generator.permutation(row)
            queries.append({"_id": name, "text": " ".join(f"meaning{word}in{context}" for word in asked)})
    names = [query["_id"] for query in queries]
    siblings = [[f"{name.split('-')[0]}-{c}" for c in range(CONTEXTS) if not name.endswith(f"-{c}")] for name in names]
    (folder / "qrels").mkdir(parents=True)
    for file, lines in (("corpus.jsonl", documents), ("queries.jsonl", queries)):
        (folder / file).write_text("".join(json.dumps(line) + "\n" for line in lines))
    judged = "".join(f"{name}\t{name}\t1\n" for name in names)
    for split in ("train", "test"):
        (folder / "qrels" / f"{split}.tsv").write_text(f"query-id\tcorpus-id\tscore\n{judged}")
    lists = ((name, found, -np.arange(len(found))) for name, found in zip(names, siblings, strict=True))
    write_run(Run.from_lists(lists), folder / "siblings.run")


def write_model(folder: Path, seed: int) -> None:
    """A random Llama of two layers over the task's words."""
    words = [f"word{word}" for word in range(WORDS)] + [f"context{context}" for context in range(CONTEXTS)]
    words += [f"meaning{word}in{context}" for word in range(WORDS) for context in range(CONTEXTS)]
    vocabulary = {word: number for number, word in enumerate(["<unk>", "<s>", "</s>", "again", *words])}
    cut = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    cut.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=cut, **special).save_pretrained(folder)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(vocabulary), max_position_embeddings=64, initializer_range=0.1, tie_word_embeddings=True,
        bos_token_id=1, eos_token_id=2,
        **sizes,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)


def run_system(task: Task, name: str, output: Path, seed: int, steps: int) -> dict[str, float]:
    """Train one system and measure it."""
    system = SYSTEMS[name]
    template = system["template"]
    config = {
        "method": "echo-splade",
        "model": str(task.model),
        "attention": system.get("attention"),
        "data": {"collection": str(task.training), "runs": {"negatives": str(task.training / "siblings.run")}},
        "lengths": {"query": 8, "document": 8},
        "sampling": {"negatives": 3},
        "loss": ["infonce", {"name": "flops", "side": "both", "weight": 1e-4, "steps": 50}],
        "echo": {"query": template, "document": template},
        "lora": None,
        "sparse": {"active": {"most": 1.0, "least": 0.0}},
        "trainer": {
            "per_device_train_batch_size": 16, "learning_rate": 3e-3, "max_steps": steps * system.get("steps", 1),
            "warmup_steps": 20, "use_cpu": True, "save_strategy": "no",
        },
        "output": str(output),
        "seed": seed,
    }  # fmt: skip
    started = time.perf_counter()
    encoder = load_encoder(train(load_config(config)), device="cpu")
    seconds = time.perf_counter() - started
    collection = open_collection(task.test)
    run = search_exactly(encoder, collection.queries("test"), collection, 10)
    found = evaluate(run, collection.judgments("test"), "RR@10").means
    return {"RR@10": float(next(iter(found.values()))), "seconds": round(seconds, 1)}


def summary(results: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Means, and differences to echo with their interval."""
    told: dict[str, Any] = {}
    echo = np.array([entry["RR@10"] for entry in results.get("echo", [])])
    for name, entries in results.items():
        values = np.array([entry["RR@10"] for entry in entries])
        told[name] = {"RR@10": round(float(values.mean()), 3), "each": values.round(3).tolist()}
        told[name]["seconds"] = round(float(np.mean([entry["seconds"] for entry in entries])), 1)
        if name != "echo" and len(echo) == len(values) > 1:
            less = echo - values
            half = float(stats.t.ppf(0.975, len(less) - 1) * less.std(ddof=1) / np.sqrt(len(less)))
            told[name]["echo is better by"] = f"{less.mean():.3f} ± {half:.3f}"
    return told


def main() -> None:
    """Run every system for every seed and print the summary as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--rows", type=int, default=160, help="sets of words in training; a quarter of it in the test")
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS), choices=list(SYSTEMS))
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    results: dict[str, list[dict[str, float]]] = {name: [] for name in chosen.systems}
    for seed in chosen.seeds:
        with tempfile.TemporaryDirectory() as folder:
            task = make_task(Path(folder) / "task", seed, rows=chosen.rows)
            for name in chosen.systems:
                results[name].append(run_system(task, name, Path(folder) / name, seed, chosen.steps))
                print(json.dumps({"seed": seed, "system": name, **results[name][-1]}), flush=True)
    told = summary(results)
    print(json.dumps(told, indent=2))
    if chosen.out:
        chosen.out.write_text(json.dumps(told, indent=2) + "\n")


if __name__ == "__main__":
    main()
