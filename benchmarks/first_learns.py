"""Does FIRST learn? A small decoder trained from scratch to rerank, beside BM25 and beside shuffled labels.

    python benchmarks/first_learns.py DATA [--steps 500] [--seeds 1] [--only labels] [--work DIR]

DATA is a folder that holds `scifact` and `nfcorpus` in BEIR layout. A passage is the first eight different words of a
document among 96 content words of both collections. A query is 4 to 8 words of one passage, half of them (the larger
half) replaced by synonyms: words that no passage has, from a fixed random table that only training can reveal. Its
candidates are that passage and the 19 others that BM25 finds best, in BM25's order; every passage has eight different
words, so that BM25's score is the sum of the matched words' idf. The passages of test queries and their candidates are
never trained on. The control trains on the same lists with the target order of each shuffled.

The same checkpoint then reranks by one token and by generation; both orders and times are printed.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rtk.eval.collection import open_collection
from rtk.eval.files import read_run, write_run
from rtk.eval.measures import evaluate
from rtk.eval.run import Run
from rtk.retrieval.rerankers.base import Candidate, Request, Usage
from rtk.retrieval.rerankers.chat import Message
from rtk.retrieval.rerankers.identifiers import Identifiers
from rtk.retrieval.rerankers.prompts import LIST_PROMPTS
from rtk.retrieval.training.config import load_config
from rtk.retrieval.training.trainer import train

WORDS, LENGTH, DEPTH, TEST = 96, 8, 20, 300
TRAIN_QUERIES = 4  # of each passage
HELD_OUT = 2500  # passages
FIRST_WORDS = 4  # of a passage, in the first stage of training
LAYERS = 3
STOP = frozenset(
    (
        *("with", "from", "that", "this", "were", "have", "been", "which", "these", "than", "more", "also", "both"),
        *("between", "such", "into", "other", "most", "only", "after", "during", "their", "they", "when", "while"),
        *("among", "however", "there", "being", "each", "some", "using", "used", "over", "under", "through", "well"),
        *("where", "within", "about", "those", "does", "could", "would", "should", "because", "then", "them", "what"),
    )
)


@dataclass(frozen=True)
class Stage:
    """At first windows are short and hold random passages, where equal words say enough: BM25's neighbours have all of
    the query's own words too, so that nothing could be learned from them without the synonyms, nor these without
    matching."""

    model: Path
    collection: str
    run: str
    words: int
    steps: int
    window: int
    smallest: int
    batch: int
    generation: float


def short(query: str, passages: Sequence[str], identifiers: Identifiers) -> list[Message]:
    """The least that can be asked: nothing has to be told to a model that was never taught anything else."""
    lines = [f"[{identifiers.label(at)}] {passage}" for at, passage in enumerate(passages)]
    return [Message("user", "\n".join([*lines, query]))]


LIST_PROMPTS["short"] = short


def passages_of(data: Path) -> tuple[list[str], np.ndarray]:
    """The content words, and (n, 8) rows of words of the passages, shuffled, each once."""
    texts: list[str] = []
    for name in ("scifact", "nfcorpus"):
        documents = open_collection(data / name).documents
        texts += documents.texts(slice(0, len(documents)))
    found = [list(dict.fromkeys(re.findall(r"[a-z]{4,}", text.lower()))) for text in texts]
    counts = Counter(word for words in found for word in words if word not in STOP)
    vocabulary = [word for word, _ in counts.most_common(WORDS)]
    number = {word: at for at, word in enumerate(vocabulary)}
    rows = [[number[word] for word in words if word in number][:LENGTH] for words in found]
    full = np.unique(np.sort([row for row in rows if len(row) == LENGTH], axis=1), axis=0)
    generator = np.random.default_rng(0)
    return vocabulary, np.stack([generator.permutation(row) for row in generator.permutation(full)])


def make_lists(
    passages: np.ndarray, each: int, seed: int, *, plain: bool = False
) -> list[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
    """(passage, query words, which of them are replaced, candidates in BM25's order) of `each` queries a passage."""
    generator = np.random.default_rng(seed)
    matrix = np.zeros((len(passages), WORDS), np.float32)
    np.put_along_axis(matrix, passages, 1, axis=1)
    frequency = matrix.sum(axis=0)
    idf = np.log(1 + (len(passages) - frequency + 0.5) / (frequency + 0.5))
    made = []
    for row in np.repeat(np.arange(len(passages)), each).tolist():
        size = 3 if plain else int(generator.integers(4, 9))
        words = generator.permutation(passages[row][: FIRST_WORDS if plain else LENGTH])[:size]
        replaced = np.arange(size) < (0 if plain else (size + 1) // 2)
        scores = matrix[:, words[~replaced]] @ idf[words[~replaced]]
        scores += generator.random(len(scores)) * 1e-3  # ties of BM25 in a random order
        order = np.argsort(-scores)
        found = order[:DEPTH] if row in order[:DEPTH] else np.append(order[: DEPTH - 1], row)
        mixed = generator.permutation(size)
        made.append((row, words[mixed], replaced[mixed], found))
    return made


def write_collection(
    folder: Path, vocabulary: list[str], passages: np.ndarray, each: int, seed: int, *, plain: bool = False
) -> None:
    """A collection in BEIR layout with runs of BM25's and of random candidates. Plain queries have three of a passage's
    first four words, none replaced."""
    lists = make_lists(passages, each, seed, plain=plain)
    (folder / "qrels").mkdir(parents=True)
    texts = [" ".join(vocabulary[word] for word in row) for row in passages.tolist()]
    corpus = [json.dumps({"_id": f"d{at}", "text": text}) for at, text in enumerate(texts)]
    (folder / "corpus.jsonl").write_text("\n".join(corpus) + "\n")
    queries, judged, run, easy = [], ["query-id\tcorpus-id\tscore"], [], []
    generator = np.random.default_rng(seed)
    for at, (row, words, replaced, candidates) in enumerate(lists):
        shown = [f"{'syn' if out else ''}{vocabulary[word]}" for word, out in zip(words, replaced, strict=True)]
        queries.append(json.dumps({"_id": f"q{at}", "text": " ".join(shown)}))
        judged.append(f"q{at}\td{row}\t1")
        falling = -np.arange(DEPTH, dtype=np.float32)
        run.append((f"q{at}", [f"d{each}" for each in candidates.tolist()], falling))
        others = generator.permutation(np.setdiff1d(generator.integers(0, len(passages), 2 * DEPTH), [row]))[
            : DEPTH - 1
        ]
        easy.append((f"q{at}", [f"d{each}" for each in (row, *others.tolist())], falling))
    (folder / "queries.jsonl").write_text("\n".join(queries) + "\n")
    (folder / "qrels" / "train.tsv").write_text("\n".join(judged) + "\n")
    write_run(Run.from_lists(run), folder / "bm25.run")
    write_run(Run.from_lists(easy), folder / "random.run")


def write_model(folder: Path, vocabulary: list[str], seed: int) -> None:
    """A small random decoder over a vocabulary of whole words; synonyms are words of their own.

    Of the two heads of each layer, one begins with equal random projections of queries and keys, so that it attends to
    equal words (a mimetic initialisation, Trockman and Kolter 2023), and one with a bias on quick rotations, so that it
    attends to near words. It saves the steps until such heads come about by themselves; no word knows its synonym.
    """
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    letters = [chr(65 + at) for at in range(26)]
    tokens = ["<unk>", "<s>", "</s>", "[", "]", ">", *letters, *vocabulary, *(f"syn{word}" for word in vocabulary)]
    backend = Tokenizer(models.WordLevel({token: at for at, token in enumerate(tokens)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>", model_max_length=512
    )
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokens),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        max_position_embeddings=512,
        rope_theta=1e9,
        attention_bias=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config)
    for layer in model.model.layers:
        query, key = layer.self_attn.q_proj, layer.self_attn.k_proj
        torch.nn.init.orthogonal_(query.weight.data[:32])
        key.weight.data[:32] = query.weight.data[:32]
        fast = [32, 33, 34, 35, 48, 49, 50, 51]  # the quickest rotations of the second head
        query.bias.data[fast] = key.bias.data[fast] = 1.7
        torch.nn.init.orthogonal_(layer.self_attn.v_proj.weight.data)
        layer.self_attn.o_proj.weight.data = 0.5 * layer.self_attn.v_proj.weight.data.T.clone()
    torch.nn.init.normal_(model.model.embed_tokens.weight.data, std=0.3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def configuration(work: Path, output: Path, stage: Stage, *, seed: int, shuffled: bool) -> dict[str, Any]:
    data: dict[str, Any] = {
        "collection": str(work / stage.collection),
        "runs": {"first_stage": str(work / stage.collection / stage.run)},
    }
    if shuffled:
        data["shuffle_judgments"] = seed
    return {
        "method": "first",
        "model": str(stage.model),
        "data": data,
        "prompt": {"wording": "short", "template": "plain", "double_bos": False, "words": stage.words},
        "sampling": {"window": stage.window, "smallest": stage.smallest, "start": "anywhere", "shuffle": 1.0},
        "trainer": {
            **{"per_device_train_batch_size": stage.batch, "gradient_accumulation_steps": 1, "max_steps": stage.steps},
            **{
                "learning_rate": 2e-3,
                "lr_scheduler_type": "constant_with_warmup",
                "warmup_steps": 50,
                "neftune_noise_alpha": None,
                "bf16": False,
            },
            **{"gradient_checkpointing": False, "use_cpu": True, "logging_steps": 25, "save_steps": 250},
        },
        "loss": [{"name": "first", "generation_weight": stage.generation}],
        "output": str(output),
        "seed": seed,
    }


def measured(run: Run, folder: Path) -> dict[str, float]:
    judgments = open_collection(folder).judgments("train")
    return {name: float(evaluate(run, judgments, name).means[name]) for name in ("nDCG@10", "RR@10")}


def reranked(model: Path, folder: Path, name: str) -> tuple[Run, float, Usage]:
    """The test run reranked by `first` or `rank-gpt`, its seconds, and what it cost."""
    from rtk.retrieval.rerankers.first import FirstReranker
    from rtk.retrieval.rerankers.generative import RankGptReranker
    from rtk.retrieval.rerankers.language_model import load_language_model
    from rtk.retrieval.rerankers.reading import Reading

    collection, run = open_collection(folder), read_run(folder / "bm25.run")
    texts = dict(zip(collection.queries("train").ids, collection.queries("train").texts, strict=True))
    rows = collection.documents.rows(run.vocabulary)
    kind = {"first": FirstReranker, "rank-gpt": RankGptReranker}[name]
    reader = kind(load_language_model(str(model), device="cpu"), prompt="short", identifiers=Identifiers("letters"),
                  reading=Reading(words=None, template="plain"))  # fmt: skip
    requests = []
    for at, qid in enumerate(run.qids):
        codes = run.codes[run.offsets[at] : run.offsets[at + 1]]
        ids, shown = run.vocabulary.take(codes), collection.documents.texts(rows[codes])
        requests.append(Request(qid, texts[qid], tuple(Candidate(*pair) for pair in zip(ids, shown, strict=True))))
    began = time.process_time()
    results = list(reader.rerank(requests))
    seconds = time.process_time() - began
    usage = sum((result.usage for result in results), Usage())
    return Run.from_lists((each.qid, list(each.ids), each.scores) for each in results), seconds, usage


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", choices=["labels", "shuffled labels"], default=None)
    parser.add_argument("--work", type=Path, default=None)
    given = parser.parse_args()
    work = given.work or Path(tempfile.mkdtemp())
    logging.basicConfig(format="%(message)s")
    logging.getLogger("rtk.retrieval.training").setLevel(logging.INFO)
    vocabulary, passages = passages_of(given.data)
    if not (work / "test").exists():
        write_collection(work / "plain", vocabulary, passages[:-HELD_OUT], 1, 3, plain=True)
        write_collection(work / "train", vocabulary, passages[:-HELD_OUT], TRAIN_QUERIES, 1)
        write_collection(work / "test-all", vocabulary, passages[-HELD_OUT:], 1, 2)
        keep_some(work / "test-all", work / "test", TEST)
    bm25 = measured(read_run(work / "test" / "bm25.run"), work / "test")
    print(f"{len(passages)} passages; BM25 {bm25}", flush=True)
    for seed in range(given.seeds):
        write_model(work / f"random-{seed}", vocabulary, seed)
        for name in ("labels", "shuffled labels"):
            if given.only in (None, name):
                one(work, name, seed, given.steps)


def keep_some(folder: Path, out: Path, count: int) -> None:
    """The same collection with the first `count` queries."""
    (out / "qrels").mkdir(parents=True)
    for name in ("corpus.jsonl", "queries.jsonl"):
        (out / name).write_bytes((folder / name).read_bytes())
    rows = (folder / "qrels" / "train.tsv").read_text().splitlines()[: count + 1]
    (out / "qrels" / "train.tsv").write_text("\n".join(rows) + "\n")
    run = read_run(folder / "bm25.run")
    write_run(run.select([f"q{at}" for at in range(count)]), out / "bm25.run")


def one(work: Path, name: str, seed: int, steps: int) -> None:
    """Train and test once."""
    output = work / f"{name.split()[0]}-{seed}"
    began = time.process_time()
    parts = ("plain", "longer", "begun", "grown")
    plain, longer, begun, grown = (work / f"{name.split()[0]}-{seed}-{part}" for part in parts)
    stages = (
        (Stage(work / f"random-{seed}", "plain", "random.run", FIRST_WORDS, 2 * steps, 2, 2, 64, 0.0), plain),
        (Stage(plain, "plain", "random.run", LENGTH, steps, 3, 2, 48, 0.0), longer),
        (Stage(longer, "train", "random.run", LENGTH, 2 * steps, 4, 2, 32, 0.0), begun),
        (Stage(begun, "train", "bm25.run", LENGTH, steps, 6, 2, 24, 0.0), grown),
        (Stage(grown, "train", "bm25.run", LENGTH, steps // 3, DEPTH, 10, 8, 1.0), output),
    )
    for stage, out in stages:
        train(load_config(configuration(work, out, stage, seed=seed, shuffled=name != "labels")), overwrite=True)
    trained = time.process_time() - began
    run, seconds, usage = reranked(output, work / "test", "first")
    print(
        f"seed {seed}, {name}, {trained:.0f} s: first {measured(run, work / 'test')} {seconds:.1f} s {usage}",
        flush=True,
    )
    if name == "labels":
        written, longer, cost = reranked(output, work / "test", "rank-gpt")
        same = np.mean(run.codes.reshape(-1, DEPTH) == written.codes.reshape(-1, DEPTH))
        print(
            f"  generated {measured(written, work / 'test')} {longer:.1f} s {cost}; same places {same:.3f}", flush=True
        )


if __name__ == "__main__":
    main()
