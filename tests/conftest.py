"""Fixtures that several test modules share."""

from __future__ import annotations

import gzip
import json
import os
import re
import shlex
import shutil
import socket
import string
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # tests never ask the hub, and never wait for it

# Two cores that others use too: an example may be slow for reasons that are not the code's.
hypothesis.settings.register_profile("rtk", deadline=None)
hypothesis.settings.load_profile("rtk")

# --- tiny random models: real classes of sentence-transformers over a two-layer BERT of random weights ---

_WORDS = (
    "the of and in to a is for with on by as that are from file read write list sort merge text cell protein gene "
    "vitamin risk cancer study wing flow heat air query document string number time date json iterator path"
)


def _tiny_tokenizer() -> Any:
    from transformers import BertTokenizerFast

    letters = [*string.ascii_lowercase, *string.digits]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    tokens += [*string.punctuation, *_WORDS.split()]
    return BertTokenizerFast(vocab={token: number for number, token in enumerate(dict.fromkeys(tokens))})


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of saved tiny random models (hidden 32, two layers, at most 128 tokens, own word pieces): `dense`
    (mean pooling, normalised), `sparse` (SPLADE), `multi_vector` (16 dimensions), `cross_encoder` (one logit), and
    the plain transformers they stand on (`bert`, `bert-mlm`)."""
    torch = pytest.importorskip("torch")
    from sentence_transformers import CrossEncoder, MultiVectorEncoder, SentenceTransformer, SparseEncoder
    from sentence_transformers.base.modules import Dense, Normalize, Transformer
    from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask
    from sentence_transformers.sentence_transformer.modules import Pooling
    from sentence_transformers.sparse_encoder.modules import SpladePooling
    from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification, BertModel

    folder = tmp_path_factory.mktemp("tiny-models")
    tokenizer = _tiny_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=128,
        initializer_range=0.2,
        num_labels=1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        kinds = {"bert": BertModel, "bert-mlm": BertForMaskedLM, "bert-classifier": BertForSequenceClassification}
        for name, kind in kinds.items():
            kind(config).save_pretrained(folder / name)
            tokenizer.save_pretrained(folder / name)
        bert = str(folder / "bert")
        mlm = Transformer(str(folder / "bert-mlm"), transformer_task="fill-mask")
        project = Dense(
            32,
            16,
            bias=False,
            activation_function=torch.nn.Identity(),
            module_input_name="token_embeddings",
            module_output_name="token_embeddings",
        )
        models = {
            "dense": SentenceTransformer(
                modules=[Transformer(bert), Pooling(32, "mean"), Normalize()], similarity_fn_name="cosine"
            ),
            "sparse": SparseEncoder(modules=[mlm, SpladePooling("max")], similarity_fn_name="dot"),
            "multi_vector": MultiVectorEncoder(
                modules=[Transformer(bert), project, MultiVectorMask(), Normalize("token_embeddings")]
            ),
            "cross_encoder": CrossEncoder(str(folder / "bert-classifier")),
        }
    for name, model in models.items():
        model.save_pretrained(str(folder / name), create_model_card=False)
    return folder


@pytest.fixture
def tiny_dense(tiny_models: Path) -> Any:
    """A fresh tiny SentenceTransformer: 32 dimensions, mean pooling, normalised."""
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(tiny_models / "dense"), device="cpu")


@pytest.fixture
def tiny_sparse(tiny_models: Path) -> Any:
    """A fresh tiny SparseEncoder (SPLADE max pooling)."""
    from sentence_transformers import SparseEncoder

    return SparseEncoder(str(tiny_models / "sparse"), device="cpu")


@pytest.fixture
def tiny_multi_vector(tiny_models: Path) -> Any:
    """A fresh tiny MultiVectorEncoder: 16 dimensions a token."""
    from sentence_transformers import MultiVectorEncoder

    return MultiVectorEncoder(str(tiny_models / "multi_vector"), device="cpu")


@pytest.fixture
def tiny_cross_encoder(tiny_models: Path) -> Any:
    """A fresh tiny CrossEncoder with one logit."""
    from sentence_transformers import CrossEncoder

    return CrossEncoder(str(tiny_models / "cross_encoder"), device="cpu")


@pytest.fixture(scope="session")
def as_saved_before_5_4() -> Callable[[Path], Path]:
    """`as_saved_before_5_4(folder)`: a saved SPLADE encoder as sentence-transformers 5.3 wrote it, in place: the masked
    language model is a class of its own, and nothing says its task."""
    classes = {"Transformer": "MLMTransformer", "SpladePooling": "SpladePooling"}

    def old(kind: str) -> str:
        name = classes.get(kind.rpartition(".")[2])
        return kind if name is None else f"sentence_transformers.sparse_encoder.models.{name}"

    def write(folder: Path) -> Path:
        modules = json.loads((folder / "modules.json").read_text())
        (folder / "modules.json").write_text(
            json.dumps([{**module, "type": old(module["type"])} for module in modules])
        )
        for file in folder.rglob("router_config.json"):
            router = json.loads(file.read_text())
            router["types"] = {name: old(kind) for name, kind in router["types"].items()}
            file.write_text(json.dumps(router))
        for file in folder.rglob("sentence_bert_config.json"):
            file.write_text(json.dumps({"max_seq_length": 128, "do_lower_case": False}))
        return folder

    return write


# --- tiny language models: a byte-level tokenizer with a chat template, random decoders ---

_CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|head|>{{ message['role'] }}<|/head|>\n\n"
    "{{ message['content'] | trim }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|head|>assistant<|/head|>\n\n{% endif %}"
)


def _chat_tokenizer(text: str, size: int) -> Any:
    """A byte-level tokenizer trained on `text`, with the markers and the template above."""
    pytest.importorskip("transformers")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    specials = ["<|begin|>", "<|head|>", "<|/head|>", "<|end|>", "<|pad|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([text] * 3, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|begin|>",
        eos_token="<|end|>",
        pad_token="<|pad|>",
        additional_special_tokens=["<|head|>", "<|/head|>"],
        chat_template=_CHAT_TEMPLATE,
        model_max_length=2048,
    )


@pytest.fixture(scope="session")
def chat_tokenizer() -> Any:
    """A fast tokenizer that can write any text (bytes, with merges for common words; letters and digits are single
    tokens), whose template has the markers `<|begin|>`, `<|head|>`, `<|/head|>` and `<|end|>` (the answer's end)."""
    return _chat_tokenizer(f"{_WORDS} user assistant system Query yes no true false", 500)


@pytest.fixture(scope="session")
def answer_tokenizer() -> Any:
    """As `chat_tokenizer`, with single tokens for what rerankers are asked to answer: "Yes", "true", " A", …."""
    letters = " ".join(string.ascii_uppercase)
    return _chat_tokenizer(f"Yes\nNo\nyes\nno\ntrue\nfalse\nPassage {letters}\n{_WORDS}", 900)


@pytest.fixture(scope="session")
def tiny_llama(chat_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a saved random Llama (hidden 32, three layers, four heads over two key heads, 2048 positions, far
    from uniform attention) and `chat_tokenizer`."""
    torch = pytest.importorskip("torch")
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tiny-llama")
    config = LlamaConfig(
        vocab_size=len(chat_tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        initializer_range=0.3,
        bos_token_id=chat_tokenizer.bos_token_id,
        eos_token_id=chat_tokenizer.eos_token_id,
        pad_token_id=chat_tokenizer.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    chat_tokenizer.save_pretrained(folder)
    return folder


class OracleModel:
    """A language model that knows: documents say "grade 7", and it answers as if it had read them.

    Attributes:
        tokenizer: of the prompts.
        context_length: what it reads.
        write: text → what it generates, in place of the right answer.
        fail: called with the texts of every call before it is answered; may raise.
        batches: how many prompts each call had.
    """

    def __init__(self, tokenizer: Any, *, context_length: int = 100_000, write: Any = None, fail: Any = None) -> None:
        self.tokenizer, self.context_length, self.write, self.fail = tokenizer, context_length, write, fail
        self.batches: list[int] = []
        self.texts: list[str] = []
        self.continued: list[tuple[str, str]] = []

    def identity(self) -> dict[str, Any]:
        return {"model": "oracle"}

    def _read(self, prompts: Any) -> list[str]:
        texts = [self.tokenizer.decode(prompt.ids) for prompt in prompts]
        self.batches.append(len(texts))
        self.texts += texts
        if self.fail is not None:
            self.fail(texts)
        return texts

    @staticmethod
    def grades(text: str) -> dict[str, int]:
        """Label → grade of the documents in a prompt; a document without a label is ""."""
        labelled = re.findall(r'(?:\[|Passage |Document)([A-Z]|\d+)[\]:]:? "?grade (\d+)', text)
        return {label: int(grade) for label, grade in labelled} or {
            "": int((re.findall(r"grade (\d+)", text) or [0])[-1])
        }

    def next_token_logits(self, prompts: Any, tokens: Any, /) -> Any:
        import numpy as np

        from rtk.retrieval.rerankers.base import Usage
        from rtk.retrieval.rerankers.language_model import Answers

        labels = [self.tokenizer.decode([token]).strip() for token in tokens]
        rows = []
        for text in self._read(prompts):
            known = self.grades(text)
            relevant = {"Yes": known.get(""), "1": known.get(""), "true": known.get("")}
            rows.append([float(known.get(label, relevant.get(label) or 0)) for label in labels])
        values = np.asarray(rows, dtype=np.float32).reshape(len(prompts), len(labels))
        return Answers(values, tuple(Usage(1, len(prompt)) for prompt in prompts))

    def continuation_log_probs(self, prompts: Any, continuations: Any, /) -> Any:
        import numpy as np

        from rtk.retrieval.rerankers.base import Usage
        from rtk.retrieval.rerankers.language_model import Answers

        self.continued = [
            (text, self.tokenizer.decode(list(ids)))
            for text, ids in zip(self._read(prompts), continuations, strict=True)
        ]
        values = np.asarray([np.log(0.25) * len(ids) for ids in continuations])
        return Answers(values, tuple(Usage(1, len(prompt)) for prompt in prompts))

    def generate(self, prompts: Any, sampling: Any, /) -> Any:
        from rtk.retrieval.rerankers.base import Usage
        from rtk.retrieval.rerankers.language_model import Answers, Generation

        said = []
        for text in self._read(prompts):
            answers = [self._answer(text, sample) for sample in range(sampling.samples)]
            said.append([Generation(each, tuple(self.tokenizer.encode(each)), "stop") for each in answers])
        usages = [
            Usage(1, len(prompt), 0, sum(len(each.ids) for each in answers))
            for prompt, answers in zip(prompts, said, strict=True)
        ]
        return Answers(said, tuple(usages))

    def _answer(self, text: str, sample: int) -> str:
        if self.write is not None:
            return self.write(text, sample)
        known = self.grades(text)
        best = sorted(known, key=lambda label: -known[label])
        if "<score>" in text:
            return f"good\n<score>\n{known['']}\n</score>"
        if "number from 0" in text:
            return f"<think>hm</think><answer>{known['']}</answer>"
        if "<answer>" in text:
            return f"<think>hm</think>\n<answer>[{best[0]}]</answer>"
        return " > ".join(f"[{label}]" for label in best)


@pytest.fixture
def oracle_model(answer_tokenizer: Any) -> Callable[..., OracleModel]:
    """`oracle_model(context_length=…, write=…, fail=…)`: a language model that orders documents by their grade."""
    return lambda **settings: OracleModel(answer_tokenizer, **settings)


@pytest.fixture(scope="session")
def rerank_goldens() -> Path:
    """The folder with the rerankers' goldens and the tiny Llama of random weights that they were made with."""
    return Path(__file__).parent / "goldens" / "rerank"


# --- processes ---

_RANK = """
import os, runpy, sys
said = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
os.dup2(said, 1), os.dup2(said, 2)
os.environ.clear()
os.environ.update(environment)
os.chdir("/")
sys.argv = [script, *arguments]
runpy.run_path(script, run_name="__main__")
"""


@pytest.fixture(scope="session")
def forked() -> Any:
    """A multiprocessing context whose processes are forked from a server that has imported encoders and the trainer
    once: importing takes longer than most of them run."""
    import multiprocessing

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["rtk.retrieval.training.trainer", "sentence_transformers", "torch.distributed"])
    return context


@pytest.fixture(scope="session")
def run_on_ranks(forked: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., None]:
    """`run_on_ranks(script, *arguments, processes=2, environment=None)`: run a Python file in one process, or in
    several gloo processes with the environment that torchrun would give them."""
    logs = tmp_path_factory.mktemp("ranks")

    def run(script: Path, *arguments: object, processes: int = 2, environment: dict[str, str] | None = None) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        size = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
        ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank), **size, **meeting} for rank in range(processes)]
        given = {**os.environ, **(environment or {})}
        running = []
        for rank, settings in enumerate(ranks if processes > 1 else [{}]):
            place = {"script": str(script), "arguments": [*map(str, arguments)], "log": str(logs / str(rank))}
            running.append(forked.Process(target=exec, args=(_RANK, {**place, "environment": {**given, **settings}})))
            running[-1].start()
        try:
            # A rank that is lost leaves the others waiting.
            while None in (codes := [each.exitcode for each in running]) and not any(codes):
                time.sleep(0.02)
        finally:
            for each in running:
                each.kill()
                each.join()
        said = "\n".join((logs / str(rank)).read_text()[-4000:] for rank, code in enumerate(codes) if code)
        assert codes == [0] * processes, f"exit codes {codes}\n{said}"

    return run


@pytest.fixture
def without_dropout(tmp_path: Path) -> Callable[[str | Path], Path]:
    """`without_dropout(model)`: a copy of a saved model without dropout, so that one process and two agree."""

    def copy(model: str | Path) -> Path:
        folder = tmp_path / f"{Path(model).name}-without-dropout"
        shutil.copytree(model, folder)
        settings = json.loads((folder / "config.json").read_text())
        settings |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        (folder / "config.json").write_text(json.dumps(settings))
        return folder

    return copy


# --- collections ---


@pytest.fixture(scope="session", autouse=True)
def cache_of_this_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Derived files of the tests go to a folder of their own, never to the user's cache."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RTK_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with real collections: `$RTK_DATA`, else `shared/data` beside the repository; skips without it."""
    folder = Path(os.environ.get("RTK_DATA") or Path(__file__).resolve().parent.parent.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip("real collections are not here; set RTK_DATA to their folder")
    return folder


@pytest.fixture
def beir_folder(tmp_path: Path) -> Callable[..., Path]:
    """A maker of small folders in BEIR layout: `beir_folder(name="tiny", corpus=[...], queries=[...], qrels={...},
    compress=False)`. `corpus` and `queries` hold objects, or strings that stand for whole lines; `qrels` maps a split
    to (query id, document id, grade) rows. Left out, they are four documents, three queries and the split `test`."""

    def make(
        name: str = "tiny", corpus: Any = None, queries: Any = None, qrels: Any = None, compress: bool = False
    ) -> Path:
        if corpus is None:
            corpus = [
                {"_id": "007", "title": "Bond", "text": "a spy with a number"},
                {"_id": "7", "title": "", "text": "the number seven"},
                {"_id": "größe #1", "title": "Größe", "text": "日本語 text"},
                {"_id": "d4", "text": "merge sorted lists"},
            ]
        if queries is None:
            queries = [{"_id": f"q{number}", "text": text} for number, text in enumerate(["spy", "seven", "merge"])]
        if qrels is None:
            qrels = {"test": [("q0", "007", 2), ("q2", "d4", 1), ("q2", "7", 0)]}
        suffix = ".gz" if compress else ""
        folder = tmp_path / name
        (folder / "qrels").mkdir(parents=True)
        files = {"corpus.jsonl": corpus, "queries.jsonl": queries}
        texts = {
            file: "".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines)
            for file, lines in files.items()
        }
        for split, rows in qrels.items():
            texts[f"qrels/{split}.tsv"] = "query-id\tcorpus-id\tscore\n" + "".join(
                "\t".join(map(str, row)) + "\n" for row in rows
            )
        for file, text in texts.items():
            data = text.encode("utf-8")
            (folder / (file + suffix)).write_bytes(gzip.compress(data) if compress else data)
        return folder

    return make


@pytest.fixture
def scored_table(beir_folder: Callable[..., Path]) -> Callable[..., Any]:
    """A maker of training tables: `scored_table(lists, name="scored", texts=None)`. `lists` has one (scores of the
    positives, scores of the negatives) a query by the teacher "cat", NaN where it is silent; query n is `q{n}`, its
    documents are `q{n}p0`, …, `q{n}n0`, …. Without `teacher` nothing is scored. `texts` are the queries'."""
    import math

    from rtk.eval.collection import open_collection
    from rtk.eval.run import Run
    from rtk.retrieval.training.data import make_table
    from rtk.retrieval.training.examples import RoleRuns

    def make(lists: Any, name: str = "scored", texts: Any = None, teacher: bool = True) -> Any:
        named = [
            ({f"q{n}p{i}": s for i, s in enumerate(positives)}, {f"q{n}n{i}": s for i, s in enumerate(negatives)})
            for n, (positives, negatives) in enumerate(lists)
        ]
        folder = beir_folder(
            name=name,
            corpus=[{"_id": doc, "text": f"text of {doc}"} for pair in named for docs in pair for doc in docs],
            queries=[{"_id": f"q{n}", "text": texts[n] if texts else f"query {n}"} for n in range(len(named))],
            qrels={"train": [(f"q{n}", doc, 1) for n, (positives, _) in enumerate(named) for doc in positives]},
        )
        negatives = Run.from_lists(
            (f"q{n}", list(found), [-float(i) for i in range(len(found))]) for n, (_, found) in enumerate(named)
        )
        scores = [
            (f"q{n}", [(doc, s) for docs in pair for doc, s in docs.items() if not math.isnan(s)])
            for n, pair in enumerate(named)
        ]
        run = Run.from_lists((qid, [doc for doc, _ in found], [s for _, s in found]) for qid, found in scores if found)
        return make_table(open_collection(folder), "train", RoleRuns((negatives,), {"cat": run} if teacher else {}))

    return make


@pytest.fixture
def next_word(tmp_path: Path, beir_folder: Callable[..., Path]) -> tuple[Path, Path]:
    """(a collection, a run): six queries of a word over six documents of a word, the next word is the relevant one
    (split train); the run has all documents for every query, in the order of the words."""
    import numpy as np

    from rtk.eval.files import write_run
    from rtk.eval.run import Run

    words = ["cell", "gene", "protein", "vitamin", "risk", "cancer"]
    folder = beir_folder(
        corpus=[{"_id": f"d{n}", "text": word} for n, word in enumerate(words)],
        queries=[{"_id": f"q{n}", "text": word} for n, word in enumerate(words)],
        qrels={"train": [(f"q{n}", f"d{(n + 1) % 6}", 1) for n in range(6)]},
    )
    falling = -np.arange(6, dtype=np.float32)
    path = tmp_path / "all.run"
    write_run(Run.from_lists((f"q{n}", [f"d{m}" for m in range(6)], falling) for n in range(6)), path)
    return folder, path


# --- training runs ---


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`interrupted(config, at)`: train until step `at` + 1 begins, as if the process had been killed there."""
    from rtk.retrieval.training.loops import Progress
    from rtk.retrieval.training.trainer import train

    def run(config: Any, at: int) -> None:
        def stop(self: Any, arguments: Any, state: Any, control: Any, **settings: Any) -> None:
            if state.global_step == at:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(Progress, "on_step_begin", stop)
            with pytest.raises(KeyboardInterrupt):
                train(config)

    return run


_TRAIN = """
import json, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from rtk.retrieval.training.trainer import train
for config in json.loads(Path(sys.argv[1]).read_text()):
    train(config)
"""


def _train_here(config: dict[str, Any], environment: dict[str, str]) -> None:
    import torch

    from rtk.retrieval.training.trainer import train

    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        torch.set_num_threads(1)  # as the other processes have
        try:
            train(config)
        finally:
            torch.set_num_threads(threads)


@pytest.fixture
def train_on_ranks(run_on_ranks: Callable[..., None], tmp_path: Path) -> Callable[..., list[Path]]:
    """`train_on_ranks(config, batch, **trainer)`: the outputs of one process and of two that share its batches.

    `batch` is the size over all processes; `trainer` are further arguments of the trainer. Plain gradient descent
    unless told otherwise, because Adam blows rounding up where a gradient is 0. `environment(processes)` adds to the
    processes' environment, `script` runs in place of a plain training of the configurations in the file it is given.
    """

    def run(
        config: dict[str, Any], batch: int, *, environment: Any = None, script: str = _TRAIN, **trainer: Any
    ) -> list[Path]:
        (tmp_path / "train.py").write_text(script)
        outputs: list[Path] = []
        for processes in (1, 2):
            settings = {**config["trainer"], "optim": "sgd", **trainer}
            settings["per_device_train_batch_size"] = batch // processes
            outputs.append(Path(f"{config['output']}-by-{processes}"))
            chosen = json.loads(json.dumps({**config, "trainer": settings, "output": str(outputs[-1])}))
            more = environment(processes) if environment else {}
            if processes == 1 and script == _TRAIN:  # another process would only take longer to start
                _train_here(chosen, more)
                continue
            path = tmp_path / f"{processes}.json"
            path.write_text(json.dumps([chosen]))
            run_on_ranks(tmp_path / "train.py", path, processes=processes, environment=more)
        return outputs

    return run


# --- the command line ---


@pytest.fixture
def rtk(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], tuple[int, str, str]]:
    """`rtk("index folder --out x")` → (exit code, stdout, stderr), run inside `tmp_path`."""
    from rtk.retrieval.cli.main import run as program

    monkeypatch.chdir(tmp_path)

    def call(line: str) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            program(shlex.split(line))
        out, err = capsys.readouterr()
        return int(stopped.value.code or 0), out, err

    return call
