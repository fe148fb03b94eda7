"""Does FIRST learn? A small decoder trained from scratch to rerank, beside BM25 and beside shuffled labels.

    python benchmarks/first_learns.py DATA [--seeds 5] [--scale 1] [--only labels] [--dev] [--work DIR]

DATA is a folder that holds `scifact` and `nfcorpus` in BEIR layout. A passage is the first eight different words of a
document among WORDS content words of both collections. A query is 4 to 8 words of one passage, half of them (the larger
half) replaced by synonyms: words that no passage has, which only training can tell apart. Its candidates are that
passage and the 19 others that BM25 finds best, which every reranker is shown in the same random order; every passage
has eight different words, so that BM25's score is the sum of the matched words' idf. The passages of test queries and
their candidates are never trained on, nor are those of the development part, on which everything was chosen. The
control trains on the same lists, each with its relevant passage exchanged for one drawn at random.

The same checkpoint then reranks by one token and by generation; orders and times are printed.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
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

WORDS, LENGTH, DEPTH, TEST = 64, 8, 20, 300
TRAIN_QUERIES = 4  # of each passage
HELD_OUT, DEVELOPMENT = 2000, 1000  # passages, the last ones and those before
SIZE, HEADS, LAYERS = 64, 2, 3
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
    """A part of training: what it reads and how much of it."""

    name: str
    collection: str
    run: str
    steps: int
    window: int
    smallest: int
    batch: int
    rate: float = 2e-3
    scheduler: str = "constant_with_warmup"
    generation: float = 0.0


STAGES = (
    # Matching comes first, where equal words say everything: BM25's neighbours have all of the query's own words too,
    # so that nothing could be learned from them without synonyms, nor these without matching.
    Stage("plain", "plain", "random.run", 90, 4, 2, 32),
    Stage("some", "some", "random.run", 120, 8, 4, 32),
    Stage("longer", "some", "random.run", 40, DEPTH, 10, 16),
    Stage("mixed", "train", "mixed.run", 600, 12, 6, 32),
    Stage("full", "train", "bm25.run", 200, DEPTH, 10, 16, scheduler="linear", generation=1.0),
)


def short(query: str, passages: Sequence[str], identifiers: Identifiers) -> list[Message]:
    """The least that can be asked, the query first and in capitals, so that its words are tokens of their own."""
    lines = [f"[{identifiers.label(at)}] {passage}" for at, passage in enumerate(passages)]
    return [Message("user", "\n".join([query.upper(), *lines]))]


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
    passages: np.ndarray, each: int, seed: int, replace_words: str
) -> list[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
    """(passage, query words, which of them are replaced, candidates in BM25's order) of `each` queries a passage; the
    "half", "none" or "some" (any number, all of them at most) are replaced."""
    generator = np.random.default_rng(seed)
    matrix = np.zeros((len(passages), WORDS), np.float32)
    np.put_along_axis(matrix, passages, 1, axis=1)
    frequency = matrix.sum(axis=0)
    idf = np.log(1 + (len(passages) - frequency + 0.5) / (frequency + 0.5))
    made = []
    for row in np.repeat(np.arange(len(passages)), each).tolist():
        size = int(generator.integers(4, 9))
        words = generator.permutation(passages[row])[:size]
        some = int(generator.integers(size + 1))
        replaced = np.arange(size) < {"half": (size + 1) // 2, "none": 0, "some": some}[replace_words]
        scores = matrix[:, words[~replaced]] @ idf[words[~replaced]]
        scores += generator.random(len(scores)) * 1e-3  # ties of BM25 in a random order
        order = np.argsort(-scores)
        found = order[:DEPTH] if row in order[:DEPTH] else np.append(order[: DEPTH - 1], row)
        mixed = generator.permutation(size)
        made.append((row, words[mixed], replaced[mixed], found))
    return made


def write_collection(
    folder: Path, vocabulary: list[str], passages: np.ndarray, each: int, seed: int, replace_words: str = "half"
) -> None:
    """A collection in BEIR layout with runs of BM25's candidates, of random ones, and of either, by query."""
    lists = make_lists(passages, each, seed, replace_words)
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
    either = [pair[int(generator.integers(2))] for pair in zip(run, easy, strict=True)]
    write_run(Run.from_lists(either), folder / "mixed.run")


def write_model(folder: Path, vocabulary: list[str], seed: int) -> None:
    """A small random decoder over a vocabulary of whole words: small ones, the same in capitals, and synonyms.

    Embeddings are random; letters have directions of their own and a vector in common, the query's words another one,
    and a word in capitals is otherwise what it is in small letters. The output is tied to them, and values are copied:
    what a head attends to is what it writes. See `begin_heads`. No word knows its synonym, and the last layer attends
    to everything alike. Synonyms begin as new words should, nearly all alike, and short, so that what training adds
    soon counts: begun at random like the others, each is far more like some wrong words than training can outweigh,
    since a softmax that is certain of something else has next to no gradient.
    """
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    letters, shown = [chr(65 + at) for at in range(26)], [word.upper() for word in vocabulary]
    tokens = ["<unk>", "<s>", "</s>", "[", "]", ">", *letters, *vocabulary, *shown, *(f"SYN{word}" for word in shown)]
    backend = Tokenizer(models.WordLevel({token: at for at, token in enumerate(tokens)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>", model_max_length=512
    )
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokens),
        hidden_size=SIZE,
        intermediate_size=2 * SIZE,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        max_position_embeddings=512,
        rope_theta=1e9,
        attention_bias=True,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config)
    table, std = model.model.embed_tokens.weight.data, 0.2
    letter, small, capital = 6, 6 + 26, 6 + 26 + len(vocabulary)
    basis = torch.nn.init.orthogonal_(torch.empty(SIZE, SIZE))
    table[:] = torch.randn(len(tokens), SIZE - 26) @ basis[26:] * std * (SIZE / (SIZE - 26)) ** 0.5
    labels, queries = torch.randn(2, SIZE - 26) @ basis[26:] * std
    table[letter:small] = basis[:26] * std * SIZE**0.5 + labels
    table[capital : capital + len(vocabulary)] = table[small:capital]
    table[capital + len(vocabulary) :] *= 0.1
    table[capital:] += 0.7 * queries
    table[capital + len(vocabulary) :] *= 0.3
    for layer in model.model.layers:
        torch.nn.init.orthogonal_(layer.self_attn.v_proj.weight.data)
        layer.self_attn.o_proj.weight.data = 0.5 * layer.self_attn.v_proj.weight.data.T.clone()
    begin_heads(model.model.layers, along(table[letter:small], labels), along(table[capital:], queries))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def along(rows: Any, direction: Any) -> Any:
    """A vector whose product with these embeddings, as the first layer sees them, is 1 on average."""
    import torch

    unit = direction / direction.norm()
    return unit / ((torch.nn.functional.normalize(rows, dim=1) @ unit).mean() * SIZE**0.5)


def begin_heads(layers: Any, letters: Any, queries: Any) -> None:
    """Where heads attend before training (a mimetic initialisation, Trockman and Kolter 2023).

    In the first layer one attends to letters, the nearest before it, by rotations of middling speed; the other to equal
    words, by one random projection for queries and keys where rotations are slow, and to the query's words before
    others. In the second layer one attends to what is near.
    """
    import torch

    width = SIZE // HEADS
    half, root = width // 2, width**0.5
    first, second = layers[0].self_attn, layers[1].self_attn
    for rotation in (2, 3):
        first.k_proj.weight.data[rotation] += letters
        first.q_proj.bias.data[rotation] = 4.0 * root
    slow = [width + at for at in range(width) if at % half >= 4]
    equal = torch.nn.init.orthogonal_(torch.empty(len(slow), SIZE)) * (10.0 * root / len(slow)) ** 0.5
    first.q_proj.weight.data[slow] = first.k_proj.weight.data[slow] = equal
    shown = equal @ (queries / queries.norm())
    first.q_proj.bias.data[slow] = 3.0 * root * queries.norm() * shown / (shown @ shown)
    for rotation, weight in ((1, 0.5), (2, 1.0), (3, 1.0)):
        second.q_proj.bias.data[rotation] = second.k_proj.bias.data[rotation] = (4.0 * weight * root) ** 0.5


def configuration(work: Path, model: Path, output: Path, stage: Stage, *, seed: int, shuffled: bool) -> dict[str, Any]:
    data: dict[str, Any] = {
        "collection": str(work / stage.collection),
        "runs": {"first_stage": str(work / stage.collection / stage.run)},
    }
    if shuffled:
        data["shuffle_judgments"] = seed
    return {
        "method": "first",
        "model": str(model),
        "data": data,
        "prompt": {"wording": "short", "template": "plain", "double_bos": False, "words": None},
        "sampling": {"window": stage.window, "smallest": stage.smallest, "start": "anywhere", "shuffle": 1.0},
        "trainer": {
            **{"per_device_train_batch_size": stage.batch, "gradient_accumulation_steps": 1, "max_steps": stage.steps},
            **{"learning_rate": stage.rate, "lr_scheduler_type": stage.scheduler, "warmup_steps": 20},
            **{"neftune_noise_alpha": None, "bf16": False, "gradient_checkpointing": False, "use_cpu": True},
            **{"logging_steps": 50, "save_steps": 10_000},
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

    collection, run = open_collection(folder), read_run(folder / "shown.run")
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
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of steps")
    parser.add_argument("--only", choices=["labels", "shuffled labels"], default=None)
    parser.add_argument("--dev", action="store_true", help="measure on the development part")
    parser.add_argument("--work", type=Path, default=None)
    given = parser.parse_args()
    work = given.work or Path(tempfile.mkdtemp())
    logging.basicConfig(format="%(message)s")
    logging.getLogger("rtk.retrieval.training").setLevel(logging.INFO)
    vocabulary, passages = passages_of(given.data)
    held = HELD_OUT + DEVELOPMENT
    if not (work / "test").exists():
        write_collection(work / "plain", vocabulary, passages[:-held], 2, 3, "none")
        write_collection(work / "some", vocabulary, passages[:-held], 2, 5, "some")
        write_collection(work / "train", vocabulary, passages[:-held], TRAIN_QUERIES, 1)
        write_collection(work / "dev-all", vocabulary, passages[-held:-HELD_OUT], 1, 4)
        keep_some(work / "dev-all", work / "dev", TEST)
        write_collection(work / "test-all", vocabulary, passages[-HELD_OUT:], 1, 2)
        keep_some(work / "test-all", work / "test", TEST)
    part = work / ("dev" if given.dev else "test")
    run = read_run(part / "bm25.run")
    print(f"{len(passages)} passages; {part.name}: BM25 {measured(run, part)}", flush=True)
    run = in_random_order(run)
    write_run(run, part / "shown.run")
    print(f"random order {measured(run, part)}", flush=True)
    found: dict[str, list[float]] = {}
    for seed in range(given.first_seed, given.first_seed + given.seeds):
        begun = work / f"begun-{seed}"
        write_model(begun, vocabulary, seed)
        found.setdefault("untrained", []).append(measured(reranked(begun, part, "first")[0], part)["nDCG@10"])
        print(f"seed {seed}, untrained: {found['untrained'][-1]:.3f}", flush=True)
        for name in ("labels", "shuffled labels"):
            if given.only in (None, name):
                for reader, value in one(work, part, name, seed, given.scale).items():
                    found.setdefault(f"{name}, {reader}", []).append(value)
    for name, values in found.items():
        print(f"{name}: {interval(values)}")


def in_random_order(run: Run) -> Run:
    generator = np.random.default_rng(0)
    lists = []
    for at, qid in enumerate(run.qids):
        codes = generator.permutation(run.codes[run.offsets[at] : run.offsets[at + 1]])
        lists.append((qid, list(run.vocabulary.take(codes)), -np.arange(len(codes), dtype=np.float32)))
    return Run.from_lists(lists)


def interval(values: Sequence[float]) -> str:
    """Mean, Student's 95 % interval, and each value."""
    from scipy.stats import t

    shown = ", ".join(f"{value:.3f}" for value in values)
    if len(values) < 2:
        return shown
    half = t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
    return f"mean {np.mean(values):.3f} ± {half:.3f} ({shown})"


def advantage(run: Run, folder: Path) -> str:
    """Mean difference of nDCG@10 to BM25's over queries, with Student's 95 % interval."""
    from scipy.stats import t

    judgments = open_collection(folder).judgments("train")
    both = [evaluate(each, judgments, "nDCG@10").values["nDCG@10"] for each in (run, read_run(folder / "bm25.run"))]
    found = np.subtract(*both)
    return f"{found.mean():.3f} ± {t.ppf(0.975, len(found) - 1) * found.std(ddof=1) / len(found) ** 0.5:.3f}"


def wrong_synonyms(folder: Path) -> Path:
    """The same lists with queries in which every synonym is that of the next word, in alphabetical order."""
    out = folder.with_name(f"{folder.name}-wrong")
    shutil.copytree(folder, out, dirs_exist_ok=True)
    text = (folder / "queries.jsonl").read_text()
    words = sorted(set(re.findall(r"\bsyn(\w+)", text)))
    after = dict(zip(words, words[1:] + words[:1], strict=True))
    (out / "queries.jsonl").write_text(re.sub(r"\bsyn(\w+)", lambda found: f"syn{after[found[1]]}", text))
    return out


def keep_some(folder: Path, out: Path, count: int) -> None:
    """The same collection with the first `count` queries."""
    (out / "qrels").mkdir(parents=True)
    for name in ("corpus.jsonl", "queries.jsonl"):
        (out / name).write_bytes((folder / name).read_bytes())
    rows = (folder / "qrels" / "train.tsv").read_text().splitlines()[: count + 1]
    (out / "qrels" / "train.tsv").write_text("\n".join(rows) + "\n")
    run = read_run(folder / "bm25.run")
    write_run(run.select([f"q{at}" for at in range(count)]), out / "bm25.run")


def one(work: Path, part: Path, name: str, seed: int, scale: float) -> dict[str, float]:
    """Train and test once: nDCG@10 by reader."""
    began = time.process_time()
    model = work / f"begun-{seed}"
    for stage in STAGES:
        output = work / f"{name.split()[0]}-{seed}-{stage.name}"
        stage = replace(stage, steps=max(1, round(scale * stage.steps)))
        settings = configuration(work, model, output, stage, seed=seed, shuffled=name != "labels")
        train(load_config(settings), overwrite=True)
        model = output
    print(f"seed {seed}, {name}, trained in {time.process_time() - began:.0f} s", flush=True)
    run, seconds, usage = reranked(model, part, "first")
    print(f"  first {measured(run, part)} {seconds:.1f} s {usage}", flush=True)
    print(f"  minus BM25, by query: {advantage(run, part)}", flush=True)
    values = {"first": measured(run, part)["nDCG@10"]}
    if name == "labels":
        wrong = wrong_synonyms(part)
        print(f"  synonyms exchanged: {measured(reranked(model, wrong, 'first')[0], wrong)}", flush=True)
    if name != "labels":
        return values
    written, longer, cost = reranked(model, part, "rank-gpt")
    same = run.codes.reshape(-1, DEPTH) == written.codes.reshape(-1, DEPTH)
    print(
        f"  generated {measured(written, part)} {longer:.1f} s {cost}; "
        f"same first {same[:, 0].mean():.3f}, same places {same.mean():.3f}",
        flush=True,
    )
    return {**values, "generated": measured(written, part)["nDCG@10"]}


if __name__ == "__main__":
    main()
