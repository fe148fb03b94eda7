"""Does GRPO learn from rewards alone? A small decoder made here is trained by method `grpo` and asked held-out queries.

    OMP_NUM_THREADS=1 python benchmarks/grpo_learns.py [--seeds 5] [--steps 100] [--split test]

Four topics have a name and three words each, and nothing but the reward tells which belong together. A query is a
topic's name and two words of no topic, a document one word of its topic and three of no topic, in any order. A list has
ten documents in random order, one of them of the query's topic. Documents and queries of training, dev and test are
disjoint, as texts too. The settings were chosen on dev, with another seed.

A decoder of two layers first learns the form of ProRank's answer, and nothing else: on training prompts it is taught
"0" or "1" by the toss of a coin for each. Then `train(load_config(...))` with the library's reward after ProRank (0.5
for an answer that is exactly 0 or 1, 1 more if it is the right one), on a relevant document and its neighbour in the
list: whoever tosses a coin earns 1.0, and so does whoever always says the same. Shuffled rewards, the control: the same
weights, prompts and settings, but the rewards of a prompt's rollouts are dealt out anew among them, so that advantages
have the same values and say nothing about the answers.

Measured on held-out queries: the mean reward of sampled answers (temperature 1, the library's reward) and nDCG@10 of
the reranker `prorank`, before and after; 95 % t intervals over the seeds, each of which has its own data and weights.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from scipy import stats

from rtk.eval.collection import open_collection
from rtk.eval.files import read_run, write_run
from rtk.eval.measures import evaluate
from rtk.eval.run import Run
from rtk.retrieval.rerankers import Candidate, Request, load_language_model
from rtk.retrieval.rerankers.chat import Prompt
from rtk.retrieval.rerankers.families import load_family
from rtk.retrieval.rerankers.language_model import Sampling
from rtk.retrieval.training.config import TrainConfig, load_config
from rtk.retrieval.training.list_examples import open_lists
from rtk.retrieval.training.policy import policy_examples
from rtk.retrieval.training.policy_rewards import REWARDS, Example, ProRank
from rtk.retrieval.training.trainer import train

TOPICS, EACH, OTHERS, DEPTH, CONTEXT = 4, 3, 30, 10, 128
QUERIES = {"train": 3200, "dev": 100, "test": 100}
ROLLOUTS, PROMPTS = 4, 64  # of a prompt, of a step
FORM_STEPS, FORM_RATE, RATE, BETA = 60, 1e-3, 3e-3, 0.1
SAMPLES = 8  # of a held-out prompt
INSTRUCTION = r"You are a search relevance expert[\s\S]*Relevance:"  # the end of every prompt, one token here
SYSTEMS = ("rewards", "shuffled rewards")


class Shuffled(ProRank):
    """ProRank's rewards, dealt out anew among the rollouts of each prompt."""

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self.draw = np.random.default_rng(0)

    def __call__(self, examples: Sequence[Example], completions: Sequence[str]) -> list[float]:
        paid = np.asarray(super().__call__(examples, completions)).reshape(-1, self.options.generations)
        return self.draw.permuted(paid, axis=1).ravel().tolist()


# --- data and model ---


def write_texts(folder: Path, seed: int) -> None:
    """A collection in BEIR layout, and a run for each of its splits."""
    draw = np.random.default_rng(seed)
    taken: set[str] = set()

    def text(word: str, others: int) -> str:
        """A word among some of no topic, which no other text is."""
        while True:
            words = [word, *(f"o{each}" for each in draw.integers(0, OTHERS, others))]
            made = " ".join(words[at] for at in draw.permutation(len(words)))
            if made not in taken:
                taken.add(made)
                return made

    corpus, queries = [], []
    (folder / "qrels").mkdir(parents=True)
    for split, count in QUERIES.items():
        topics = np.arange(max(count, 20 * TOPICS)) % TOPICS
        ids = [f"{split}-d{at}" for at in range(len(topics))]
        words = topics * EACH + draw.integers(0, EACH, len(topics))
        corpus += [{"_id": each, "text": text(f"w{word}", 3)} for each, word in zip(ids, words, strict=True)]
        judged, lists = ["query-id\tcorpus-id\tscore"], []
        for at in range(count):
            about = int(draw.integers(TOPICS))
            relevant = int(draw.choice(np.flatnonzero(topics == about)))
            others = draw.choice(np.flatnonzero(topics != about), DEPTH - 1, replace=False)
            shown = [ids[place] for place in draw.permutation([relevant, *others])]
            queries.append({"_id": f"{split}-q{at}", "text": text(f"q{about}", 2)})
            judged.append(f"{split}-q{at}\t{ids[relevant]}\t1")
            lists.append((f"{split}-q{at}", shown, -np.arange(DEPTH, dtype=np.float32)))
        (folder / "qrels" / f"{split}.tsv").write_text("\n".join(judged) + "\n")
        write_run(Run.from_lists(lists), folder / f"{split}.run")
    for name, rows in (("corpus", corpus), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_model(folder: Path, seed: int) -> None:
    """A random decoder whose tokens are whole words; the instruction, which is the same in every prompt, is `<unk>`."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    names = ["<pad>", "</s>", "<unk>", "query:", "document:", "0", "1"]
    for letter, count in (("q", TOPICS), ("w", TOPICS * EACH), ("o", OTHERS)):
        names += [f"{letter}{number}" for number in range(count)]
    words = {word: at for at, word in enumerate(dict.fromkeys(names))}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(rf"{INSTRUCTION}|\S+"), "removed", invert=True)
    PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=CONTEXT
    ).save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=CONTEXT, initializer_range=0.1,
        bos_token_id=None, eos_token_id=words["</s>"], pad_token_id=words["<pad>"],
    )  # fmt: skip
    torch.manual_seed(seed)
    LlamaForCausalLM(config).save_pretrained(folder)


# --- training ---


def configuration(work: Path, model: Path, name: str, seed: int, steps: int, split: str = "train") -> TrainConfig:
    texts = work / "texts"
    return load_config(
        {
            "method": "grpo",
            "model": str(model),
            "data": {"collection": str(texts), "split": split, "runs": {"first_stage": str(texts / f"{split}.run")}},
            "sampling": {"window": 2, "start": "anywhere", "shuffle": 1.0},
            "loss": [
                {"name": "grpo", "reward": "prorank", "generations": ROLLOUTS, "max_new_tokens": 1, "beta": BETA},
            ],
            "prompt": {"template": "plain", "words": None, "tokens": None, "context": CONTEXT},
            "lora": None,
            "trainer": {
                **{"per_device_train_batch_size": ROLLOUTS * PROMPTS, "max_steps": steps, "learning_rate": RATE},
                **{"lr_scheduler_type": "linear", "warmup_steps": 20, "weight_decay": 0.0, "use_cpu": True},
                **{"bf16": False, "gradient_checkpointing": False, "save_strategy": "no"},
            },
            "output": str(work / name.replace(" ", "-")),
            "seed": seed,
        }
    )


def learn_form(config: TrainConfig, folder: Path) -> None:
    """Answers by the toss of a coin: supervised, and nothing about relevance."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(config.model), AutoTokenizer.from_pretrained(config.model)
    asked = policy_examples(config, open_lists(config), context=CONTEXT, queries=FORM_STEPS * PROMPTS // 2)
    prompts = torch.tensor([each.ids for each in asked]).reshape(FORM_STEPS, PROMPTS, -1)
    answers = torch.tensor(tokenizer.convert_tokens_to_ids(["0", "1"]))
    tosses = torch.randint(2, (FORM_STEPS, PROMPTS), generator=torch.Generator().manual_seed(config.seed))
    optimiser = torch.optim.AdamW(model.parameters(), lr=FORM_RATE, weight_decay=0.0)
    model.train()
    for rows, coins in zip(prompts, tosses, strict=True):
        loss = torch.nn.functional.cross_entropy(model(rows, logits_to_keep=1).logits[:, -1], answers[coins])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


# --- measuring ---


def earned(config: TrainConfig, model: Path) -> float:
    """The mean reward of sampled answers on the configuration's windows."""
    asked = policy_examples(config, open_lists(config), context=CONTEXT, queries=QUERIES[config.data.split])
    engine = load_language_model(str(model), device="cpu")
    sampling = Sampling(max_new_tokens=1, temperature=1.0, samples=SAMPLES)
    said = engine.generate([Prompt(each.ids) for each in asked], sampling).values
    told = [each for each in asked for _ in range(SAMPLES)]
    return float(np.mean(ProRank(config.loss[0])(told, [each.text for answers in said for each in answers])))


def requests(folder: Path, split: str) -> Iterator[Request]:
    collection, run = open_collection(folder), read_run(folder / f"{split}.run")
    texts = dict(zip(collection.queries(split).ids, collection.queries(split).texts, strict=True))
    rows = collection.documents.rows(run.vocabulary)
    for at, qid in enumerate(run.qids):
        codes = run.codes[run.offsets[at] : run.offsets[at + 1]]
        pairs = zip(run.vocabulary.take(codes), collection.documents.texts(rows[codes]), strict=True)
        yield Request(qid, texts[qid], tuple(Candidate(*pair) for pair in pairs))


def ranked(folder: Path, split: str, model: Path) -> float:
    """nDCG@10 of the run, reranked."""
    reranker = load_family("prorank", str(model), device="cpu", template="plain")
    results = reranker.rerank(requests(folder, split))
    run = Run.from_lists((each.qid, list(each.ids), each.scores) for each in results)
    return float(evaluate(run, open_collection(folder).judgments(split), "nDCG@10").means["nDCG@10"])


def seed_run(work: Path, seed: int, steps: int, split: str) -> dict[str, tuple[float, float]]:
    """Reward and nDCG@10 on held-out queries, by system."""
    write_texts(work / "texts", seed)
    write_model(work / "random", seed)
    learn_form(configuration(work, work / "random", "form", seed, steps), work / "form")
    held_out = configuration(work, work / "form", "held-out", seed, steps, split)
    found = {}
    for name in ("before", *SYSTEMS):
        start, model = time.process_time(), work / "form"
        if name != "before":
            with patch.dict(REWARDS, prorank=Shuffled if name == "shuffled rewards" else ProRank):
                model = train(configuration(work, work / "form", name, seed, steps))
        trained = time.process_time() - start
        found[name] = earned(held_out, model), ranked(work / "texts", split, model)
        shown = "reward {:.3f}, nDCG@10 {:.3f}".format(*found[name])
        print(f"seed {seed}, {name}: {shown}, trained for {trained:.0f} s of one core", flush=True)
        if name != "before":
            told = json.loads((model / "rtk-run.json").read_text())["rewards"]
            print("  in training:", *(f"{entry['reward']:.2f}" for entry in told[1::2]), flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--split", choices=("dev", "test"), default="test")
    options = parser.parse_args()
    runs = []
    for seed in range(options.first, options.first + options.seeds):
        with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, RTK_CACHE=f"{folder}/cache"):
            runs.append(seed_run(Path(folder), seed, options.steps, options.split))
    print(f"\n{options.split}: mean ± half of the 95 % t interval, each seed")
    differences = [(name, "before") for name in SYSTEMS] + [("rewards", name) for name in SYSTEMS[1:]]
    for at, measure in enumerate(("reward", "nDCG@10")):
        values = {name: np.asarray([run[name][at] for run in runs]) for name in runs[0]}
        values |= {f"{one} - {other}": values[one] - values[other] for one, other in differences}
        for name, each in values.items():
            half = stats.t.ppf(0.975, len(each) - 1) * each.std(ddof=1) / len(each) ** 0.5 if len(each) > 1 else 0
            print(f"{measure:8s} {name:36s} {each.mean():.3f} ± {half:.3f}  ", *(f"{value:.3f}" for value in each))


if __name__ == "__main__":
    main()
