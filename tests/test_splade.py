"""Training sparse encoders: they learn while they get sparse, resume, share batches, and load in plain libraries."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rtk.errors import BackendError, ConfigError
from rtk.eval.files import write_run
from rtk.eval.run import Run

WORDS = [
    "file",
    "cell",
    "wing",
    "heat",
    "vitamin",
    "cancer",
    "json",
    "date",
    "path",
    "flow",
    "gene",
    "list",
    "text",
    "risk",
    "air",
    "time",
]
SIZE = len(WORDS) // 2
MORE = (
    "of and in to is for with on by as that are from read write sort merge protein study query document number string"
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RTK_CACHE", str(tmp_path / "cache"))


def paired(folder: Path, words: list[str]) -> dict[str, Any]:
    """Queries of a word; the document of each is another word, so that only training can match them. `data` of it."""
    size = len(words) // 2
    (folder / "qrels").mkdir(parents=True)
    documents = [{"_id": f"d{n}", "title": "", "text": f"{words[size + n]} the"} for n in range(size)]
    queries = [{"_id": f"q{n}", "text": words[n]} for n in range(size)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(line) + "\n" for line in documents))
    (folder / "queries.jsonl").write_text("".join(json.dumps(line) + "\n" for line in queries))
    for split in ("train", "dev"):
        rows = "".join(f"q{n}\td{n}\t1\n" for n in range(size))
        (folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + rows)
    lists = [
        (f"q{n}", [f"d{(n + step) % size}" for step in range(size)], -np.arange(size, dtype=np.float32))
        for n in range(size)
    ]
    write_run(Run.from_lists(lists), folder / "all.run")
    return {"collection": str(folder), "runs": {"negatives": str(folder / "all.run")}}


@pytest.fixture
def config(tmp_path: Path, tiny_models: Path) -> dict[str, Any]:
    data = paired(tmp_path / "toy", WORDS)
    trainer = {"per_device_train_batch_size": 8, "learning_rate": 1e-3, "max_steps": 6, "warmup_steps": 0}
    return {
        "method": "splade",
        "model": str(tiny_models / "bert-mlm"),
        "lengths": {"query": 16, "document": 16},
        "data": data,
        "loss": [
            {"name": "infonce"},
            {"name": "flops", "side": "query", "weight": 1e-2, "steps": 20},
            {"name": "flops", "side": "document", "weight": 1e-2, "steps": 20, "grouping": "by-side"},
        ],
        "sparse": {"active": {"most": 1.0}},
        "trainer": {**trainer, "use_cpu": True, "lr_scheduler_type": "constant", "logging_steps": 10},
        "evaluation": {"collection": data["collection"], "split": "dev", "every": 3, "measure": "RR@10"},
        "output": str(tmp_path / "model"),
    }


def train(config: dict[str, Any], *overrides: str, **options: Any) -> Path:
    from rtk.retrieval.training.config import load_config
    from rtk.retrieval.training.trainer import train as run

    return run(load_config(config, overrides), **options)


def record(output: Path) -> dict[str, Any]:
    return json.loads((output / "rtk-run.json").read_text())


def logged(output: Path) -> list[dict[str, Any]]:
    """The log of the last checkpoint."""
    states = sorted((output / "checkpoints").glob("*/trainer_state.json"), key=lambda path: int(path.parent.name[11:]))
    return json.loads(states[-1].read_text())["log_history"]


def active(output: Path, side: str) -> list[float]:
    return [entry[f"active-{side}"] for entry in logged(output) if f"active-{side}" in entry]


def test_training_learns_32_pairs_while_fewer_terms_stay_active(
    config: dict[str, Any], tmp_path: Path, without_dropout: Any
):
    words = [*WORDS, *MORE.split(), *string.ascii_lowercase][: 2 * 32]
    config |= {"model": str(without_dropout(config["model"])), "data": paired(tmp_path / "pairs", words)}
    config["evaluation"]["collection"] = config["data"]["collection"]
    steps = ["trainer.max_steps=200", "evaluation.every=100", "trainer.per_device_train_batch_size=32"]
    output = train(config, *steps, "loss.1.weight=1e-3", "loss.2.weight=1e-3")
    values = [entry["RR@10"] for entry in record(output)["evaluations"]]
    assert values[0] < 0.6
    assert values[-1] == 1.0
    for side in ("query", "document"):
        assert active(output, side)[-1] < active(output, side)[0] * 0.7
    assert record(output)["score"] == {
        "similarity": "dot", "scale": 1.0, "learn_scale": False, "what": "scale times similarity, in the loss",
    }  # fmt: skip
    from sentence_transformers import SparseEncoder

    model = SparseEncoder(str(output), device="cpu")
    scores = model.similarity(model.encode_query(words[:32]), model.encode_document([f"{w} the" for w in words[32:]]))
    assert (scores.argmax(dim=1) == torch.arange(32)).all()


# --- what a vector is made of ---

POOLING = json.loads((Path(__file__).parent / "goldens" / "sparse" / "pooling.json").read_text())
GIVEN = POOLING["inputs"]
SPECIAL = [0, 1, 2, 3]


def close(found: torch.Tensor, expected: Any) -> None:
    torch.testing.assert_close(found, torch.tensor(expected, dtype=found.dtype), rtol=1e-5, atol=1e-6)


def pooled(pooling: str = "max", activation: str = "relu", chunk: int | None = None) -> torch.Tensor:
    from sentence_transformers.sparse_encoder.modules import SpladePooling

    module = SpladePooling(pooling, activation, chunk_size=chunk)  # type: ignore[arg-type]
    features = {
        "token_embeddings": torch.tensor(GIVEN["logits_2x4x6"]),
        "attention_mask": torch.tensor(GIVEN["attention_mask"]),
    }
    return module(features)["sentence_embedding"]


LIBRARY = sorted(name for name in POOLING["sentence_transformers"] if name.startswith("SpladePooling"))


@pytest.mark.parametrize("name", LIBRARY)
def test_poolings_in_chunks_and_at_once_are_the_library_s(name: str):
    pooling, activation, chunk = name[len("SpladePooling(") : -1].split(",")
    size = None if chunk.endswith("None") else int(chunk[-1])
    close(pooled(pooling, activation, size), POOLING["sentence_transformers"][name])


def test_poolings_are_naver_s_opensearch_s_and_tevatron_s():
    naver, opensearch = POOLING["naver"], POOLING["opensearch"]
    for name in ("Splade(agg=max)", "hf SPLADE.splade_max", "SpladeDoc document (agg=max)"):
        close(pooled(), naver[name])
    close(pooled("sum"), naver["Splade(agg=sum)"])
    close(pooled(), opensearch["document use_l0=False,prune_ratio=None"])
    close(pooled(activation="log1p_relu"), opensearch["document use_l0=True,prune_ratio=None"])
    close(pooled(), POOLING["tevatron_causal"]["pooling_strategy=max"])


@pytest.mark.parametrize("side", ["document", "query"])
def test_the_largest_terms_are_naver_s(side: str):
    from rtk.retrieval.encoders.top_terms import prune

    top = {"document": 2, "query": 1}[side]
    close(prune(pooled(), top=top), POOLING["naver"][f"SpladeTopK(agg=max,top_d=2,top_q=1) {side}"])
    if side == "document":
        close(prune(pooled(), top=2), POOLING["naver"]["pruning(k=2)"])


@pytest.mark.parametrize("ratio", [0.1, 0.5])
@pytest.mark.parametrize("activation", ["relu", "log1p_relu"])
def test_pruning_by_share_is_opensearch_s(ratio: float, activation: str):
    from rtk.retrieval.encoders.top_terms import prune

    name = f"document use_l0={activation != 'relu'},prune_ratio={ratio}"
    close(prune(pooled(activation=activation), ratio=ratio), POOLING["opensearch"][name])


def test_pruning_keeps_exactly_so_many_of_equal_weights_and_never_adds_any():
    from rtk.retrieval.encoders.top_terms import prune

    weights = torch.tensor([[1.0, 2, 2, 0, 2], [0, 0, 3, 0, 0.0]], requires_grad=True)
    found = prune(weights, top=2)
    assert found.tolist() == [[0, 2, 2, 0, 0], [0, 0, 3, 0, 0]]
    found.sum().backward()
    assert weights.grad is not None
    assert weights.grad[0].tolist() == [0, 1, 1, 0, 0]
    assert torch.equal(prune(weights, top=9), weights)


def test_sentence_transformers_prunes_to_the_same_weights():
    from sentence_transformers.util import select_max_active_dims

    from rtk.retrieval.encoders.top_terms import prune

    weights = torch.tensor([[1.0, 2, 2, 2, 0, 2], [5, 1, 4, 0, 2, 3]])  # which of equal weights it keeps is its own
    found, theirs = prune(weights, top=2), select_max_active_dims(weights.clone(), 2).to_dense()
    assert torch.equal(found.sort(dim=1).values, theirs.sort(dim=1).values)
    assert torch.equal(found[1], theirs[1])


class _Pieces:
    """Says which pieces are special, as the golden's vocabulary has them."""

    def __init__(self) -> None:
        self.all_special_ids = SPECIAL
        self.model_max_length = 8

    def get_vocab(self) -> dict[str, int]:
        return {piece: number for number, piece in enumerate(GIVEN["toy_vocabulary"])}

    def __len__(self) -> int:
        return len(GIVEN["toy_vocabulary"])


def own_pieces(vectors: torch.Tensor | None = None) -> torch.Tensor:
    """The bag of the golden's texts, or `vectors` cut down to their own pieces."""
    from rtk.retrieval.encoders.inference_free import query_module

    features = {name: torch.tensor(GIVEN[name]) for name in ("input_ids", "attention_mask")}
    if vectors is not None:
        features["sentence_embedding"] = vectors
    return query_module(_Pieces(), np.ones(6, dtype=np.float32))(features)["sentence_embedding"].detach()


def test_bags_and_texts_without_expansion_are_naver_s_but_for_padding():
    naver = POOLING["naver"]
    bag = "SpladeDoc query (binary bag of words; pad, cls, sep zeroed)"
    close(own_pieces(), naver[bag])
    for name in ("lexical_type=query) query", "lexical_type=document) document", "lexical_type=both) query"):
        wanted = torch.tensor(naver[f"SpladeLexical(agg=max,{name}"])
        assert wanted[0, 0] > 0  # the reference lets [PAD] through where its id is 0
        wanted[:, SPECIAL] = 0
        close(own_pieces(pooled()), wanted.tolist())


# --- variants, end to end ---


def encoded(model: Any, side: str, texts: list[str]) -> torch.Tensor:
    encode = model.encode_query if side == "query" else model.encode_document
    return encode(texts, show_progress_bar=False).to_dense().cpu()


def shaped(config: dict[str, Any]) -> Path:
    """The output of a training of no steps: the model as it begins, saved."""
    from rtk.retrieval.training.config import load_config
    from rtk.retrieval.training.models import finish_model, load_model

    chosen = load_config(config)
    finish_model(load_model(chosen), chosen).save_pretrained(chosen.output, create_model_card=False)
    return Path(chosen.output)


def loaded(output: Path) -> Any:
    from sentence_transformers import SparseEncoder

    return SparseEncoder(str(output), device="cpu")


TEXTS = ["file cell", "wing heat of the", "gene"]


@pytest.mark.parametrize(
    ("sparse", "expands"),
    [
        ({}, ("query", "document")),
        ({"pooling": "sum", "activation": "log1p_relu"}, ("query", "document")),
        ({"chunk": 2}, ("query", "document")),
        ({"query": "bag"}, ("document",)),
        ({"expansion": "document"}, ("document",)),
        ({"expansion": "query"}, ("query",)),
        ({"expansion": "none"}, ()),
        ({"query": "bag", "expansion": "none"}, ()),
    ],
)
def test_variants_are_saved_so_that_sentence_transformers_loads_them(
    config: dict[str, Any], sparse: dict[str, Any], expands: tuple[str, ...]
):
    config["sparse"] |= sparse
    config["loss"][1]["side"] = "document"
    model = loaded(shaped(config))
    own = np.zeros((3, model.tokenizer.vocab_size), dtype=bool)
    for row, text in enumerate(TEXTS):
        own[row, model.tokenizer(text, add_special_tokens=False)["input_ids"]] = True
    for side in ("query", "document"):
        active = (encoded(model, side, TEXTS) != 0).numpy()
        assert active.any(axis=1).all()
        assert (active & ~own).any() == (side in expands)
    if sparse.get("query") == "bag":
        assert (encoded(model, "query", TEXTS).numpy() == own).all()


@pytest.mark.parametrize("tops", [{"query": 3, "document": 9}, {"query": 5, "document": 5}])
def test_pruned_encoders_keep_so_many_terms_and_load_again(config: dict[str, Any], tops: dict[str, int]):
    from rtk.retrieval.encoders.load import load_encoder

    config["sparse"] |= {f"top_{side}": top for side, top in tops.items()}
    output = shaped(config)
    encoder: Any = load_encoder(str(output), device="cpu")
    for side, encode in (("query", encoder.encode_query), ("document", encoder.encode_document)):
        assert set(np.diff(encode(TEXTS).indptr)) == {tops[side]}
    if tops["query"] == tops["document"]:  # which sentence-transformers can say by itself
        assert set((encoded(loaded(output), "query", TEXTS) != 0).sum(dim=1).tolist()) == {5}


def test_vectors_do_not_depend_on_padding_or_on_their_neighbours(config: dict[str, Any]):
    model = loaded(shaped(config)).double()  # what is left of rounding in float32 is not what this is about
    together = encoded(model, "document", [*TEXTS, "of the and in to a is for with on by"])
    for row, text in enumerate(TEXTS):
        alone = encoded(model, "document", [text])[0]
        torch.testing.assert_close(together[row], alone, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sparse", [{"activation": "log1p_relu"}, {"expansion": "none"}, {"query": "bag"}])
def test_a_head_in_chunks_gives_the_same_vectors_gradients_and_files(
    config: dict[str, Any], sparse: dict[str, Any], tmp_path: Path, without_dropout: Any
):
    from rtk.retrieval.training.config import load_config
    from rtk.retrieval.training.models import load_model

    config["model"] = str(without_dropout(config["model"]))
    found: list[tuple[torch.Tensor, dict[str, torch.Tensor]]] = []
    for chunk in (None, 3):
        config["loss"][1]["side"] = "document"
        model = load_model(load_config({**config, "sparse": {**sparse, "chunk": chunk}})).train()
        features = model.preprocess([*TEXTS, "of the and in to a is for with"], task="document")
        vectors = model(features, task="document")["sentence_embedding"]
        vectors.square().sum().backward()
        gradients = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
        found.append((vectors.detach(), gradients))
        model.save_pretrained(str(tmp_path / str(chunk)), create_model_card=False)
    (plain, wanted), (lean, gradients) = found
    torch.testing.assert_close(lean, plain, rtol=1e-5, atol=1e-6)
    assert wanted.keys() == gradients.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(gradients[name], value, rtol=1e-4, atol=1e-5)
    again = encoded(loaded(tmp_path / "3"), "document", TEXTS)
    torch.testing.assert_close(again, encoded(loaded(tmp_path / "None"), "document", TEXTS))


def test_weights_from_a_head_in_chunks_are_float32_under_autocast(config: dict[str, Any]):
    from rtk.retrieval.training.config import load_config
    from rtk.retrieval.training.models import load_model

    model = load_model(load_config({**config, "sparse": {"chunk": 3}}))
    features = model.preprocess(TEXTS, task="document")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model(features, task="document")["sentence_embedding"].detach()
    assert found.dtype == torch.float32
    weights = found[found > 0]
    logits = weights.expm1()  # which the head gives in bfloat16: what comes after it loses nothing more
    torch.testing.assert_close(logits.bfloat16().float(), logits, rtol=1e-5, atol=1e-6)
    assert (weights != weights.bfloat16().float()).float().mean() > 0.5


def test_adapters_leave_the_head_tied_and_are_merged_into_what_is_saved(config: dict[str, Any]):
    pytest.importorskip("peft")
    from rtk.retrieval.training.config import load_config
    from rtk.retrieval.training.models import finish_model, load_model

    chosen = load_config({**config, "lora": {"rank": 2, "target_modules": ["query", "value"]}})
    model = load_model(chosen)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.normal_(std=0.5)
    trained = {name for name, value in model.named_parameters() if value.requires_grad}
    assert trained
    assert all("lora" in name for name in trained)
    wanted = encoded(model, "document", TEXTS)
    finish_model(model, chosen).save_pretrained(chosen.output, create_model_card=False)
    again = loaded(Path(chosen.output))
    torch.testing.assert_close(encoded(again, "document", TEXTS), wanted, rtol=1e-4, atol=1e-5)
    network = again[0].model
    assert network.get_output_embeddings().weight is network.get_input_embeddings().weight


def test_several_teachers_are_runs(config: dict[str, Any], tmp_path: Path):
    lists = [(f"q{n}", [f"d{m}" for m in range(SIZE)]) for n in range(SIZE)]
    for name, best in (("cat", 4.0), ("dog", 8.0)):
        scores = [np.where(np.arange(SIZE) == n, best, 0.0).astype(np.float32) for n in range(SIZE)]
        run = Run.from_lists((qid, docs, row) for (qid, docs), row in zip(lists, scores, strict=True))
        write_run(run, tmp_path / f"{name}.run")
    config["data"]["runs"] |= {"teachers": [str(tmp_path / "cat.run"), str(tmp_path / "dog.run")]}
    losses = [{"name": "margin-mse"}, {"name": "margin-mse", "pairs": "all", "teacher": "dog"}, {"name": "kl"}]
    output = train({**config, "loss": [*losses, *config["loss"][1:]], "evaluation": None}, "trainer.logging_steps=1")
    told = [entry for entry in logged(output) if "loss" in entry]
    assert {"margin-mse", "margin-mse-1", "kl", "flops", "flops-4"} <= set(told[0])
    assert told[-1]["margin-mse"] < told[0]["margin-mse"]


# --- checks ---


def test_an_encoder_without_a_masked_lm_head_is_refused_and_told_the_way(config: dict[str, Any], tiny_models: Path):
    for name in ("bert", "dense"):
        with pytest.raises(ConfigError, match="method: masked-lm"):
            shaped({**config, "model": str(tiny_models / name)})


def test_a_head_with_missing_weights_is_refused(config: dict[str, Any], tiny_models: Path, tmp_path: Path):
    import shutil

    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(tiny_models / "bert-mlm", tmp_path / "headless")
    weights = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in weights.items() if "transform" not in name}
    assert len(kept) < len(weights)
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"lacks weights of it: cls\.predictions\.transform"):
        shaped({**config, "model": str(folder)})


@pytest.mark.parametrize("query", ["model", "bag"])  # a bag beside the model makes a Router, which has subfolders
def test_a_saved_encoder_with_missing_weights_is_refused(query: str, config: dict[str, Any], tmp_path: Path):
    from safetensors.torch import load_file, save_file

    config["loss"] = [config["loss"][0], config["loss"][2]]  # a bag has nothing to regularise
    folder = shaped({**config, "sparse": {"query": query}, "output": str(tmp_path / "saved")})
    shaped({**config, "model": str(folder), "sparse": {}})
    file = next(folder.rglob("model.safetensors"))
    assert (file.parent == folder) == (query == "model")
    kept = {name: value for name, value in load_file(file).items() if not name.startswith("cls.")}
    save_file(kept, file, metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"lacks weights of it: cls\.predictions\.bias"):
        shaped({**config, "model": str(folder), "sparse": {}})


@pytest.mark.parametrize("query", ["model", "bag"])
def test_encoders_of_earlier_versions_are_checked_too(
    query: str, config: dict[str, Any], tmp_path: Path, as_saved_before_5_4: Any
):
    from safetensors.torch import load_file, save_file

    from rtk.retrieval.training.sparse_models import has_masked_lm

    config["loss"] = [config["loss"][0], config["loss"][2]]
    folder = as_saved_before_5_4(shaped({**config, "sparse": {"query": query}, "output": str(tmp_path / "saved")}))
    assert has_masked_lm(str(folder))
    again = shaped({**config, "model": str(folder), "sparse": {}})
    assert torch.equal(encoded(loaded(again), "document", TEXTS), encoded(loaded(folder), "document", TEXTS))
    file = next(folder.rglob("model.safetensors"))
    kept = {name: value for name, value in load_file(file).items() if "transform.dense" not in name}
    save_file(kept, file, metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"lacks weights of it: cls\.predictions\.transform"):
        shaped({**config, "model": str(folder), "sparse": {}})


@pytest.mark.parametrize("sparse", [{"query": "bag"}, {"expansion": "none"}, {"top_document": 3}])
def test_a_model_with_two_sides_of_its_own_gets_no_others(
    sparse: dict[str, Any], config: dict[str, Any], tmp_path: Path
):
    config["loss"] = [config["loss"][0], config["loss"][2]]
    folder = shaped({**config, "sparse": {"expansion": "document"}, "output": str(tmp_path / "router")})
    with pytest.raises(ConfigError, match="a query side and a document side of its own"):
        shaped({**config, "model": str(folder), "sparse": sparse})


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["loss.2.weight=1000", "loss.1.weight=1000", "trainer.learning_rate=0.01"], "have collapsed"),
        (["sparse.active.most=0.1"], "stay dense"),
    ],
)
def test_training_stops_where_vectors_collapse_or_stay_dense(config: dict[str, Any], overrides: list[str], reason: str):
    short = ["loss.1.steps=2", "loss.2.steps=2", "sparse.active.every=2", "trainer.max_steps=80"]
    with pytest.raises(BackendError, match=reason):
        train({**config, "evaluation": None}, *short, *overrides)


def test_configurations_that_make_no_sense_are_refused_with_their_place(config: dict[str, Any], tiny_models: Path):
    from rtk.retrieval.training.config import load_config

    cases = {
        "loss.0.similarity=cosine": "loss.0.similarity: an inverted index",
        "pooling=mean": "see sparse.pooling",
        "loss.1.weight=null": "loss.1.weight",
        "loss.1.grouping=by-sides": "loss.1.grouping",
    }
    for override, message in cases.items():
        with pytest.raises(ConfigError, match=message):
            load_config(config, [override])
    with pytest.raises(ConfigError, match=r"loss\.1\.side: a bag"):
        load_config({**config, "sparse": {"query": "bag"}})
    with pytest.raises(ConfigError, match="expansion: a bag"):
        load_config({**config, "sparse": {"query": "bag", "expansion": "query"}})
    with pytest.raises(ConfigError, match="sparse: is for sparse encoders"):
        load_config({**config, "method": "contrastive", "loss": [{"name": "infonce"}]})
    with pytest.raises(ConfigError, match="'flops' is for a sparse-encoder"):
        load_config({**config, "method": "contrastive", "sparse": None})


# --- the run's record, interruption, several processes ---


def test_the_record_says_lambda_convention_and_schedule(config: dict[str, Any]):
    config["evaluation"] = None
    output = train(config, "trainer.max_steps=1", "loss.2.convention=opensearch", "loss.2.threshold=3")
    told = record(output)["loss"][2]
    wanted = {"weight": 0.01, "side": "document", "grouping": "by-side", "steps": 20, "schedule": "quadratic"}
    assert wanted.items() <= told.items()
    assert (told["convention"], told["threshold"]) == ("opensearch", 3)


def weights(output: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(output / "model.safetensors")


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(config: dict[str, Any], interrupted: Any):
    whole = train({**config, "output": config["output"] + "-whole"})
    from rtk.retrieval.training.config import load_config

    interrupted(load_config(config), 4)
    halves = train(config)
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(halves)[name]), name


def test_two_processes_train_what_one_does(config: dict[str, Any], train_on_ranks: Any, without_dropout: Any):
    config |= {"model": str(without_dropout(config["model"])), "evaluation": None}
    config["loss"][1] |= {"side": "both", "grouping": "by-rank", "steps": 0}
    config["loss"] += [{"name": "l1", "side": "query", "weight": 0.01, "steps": 2}, {"name": "anti-collapse"}]
    one, two = train_on_ranks(config, 8, max_steps=3, learning_rate=0.1)
    before = weights(Path(config["model"]))
    for name, value in weights(one).items():
        torch.testing.assert_close(value, weights(two)[name], rtol=1e-4, atol=1e-6)
    assert any((value - before[name]).abs().max() > 1e-3 for name, value in weights(one).items() if name in before)


def test_cached_gradients_are_the_plain_ones(config: dict[str, Any], without_dropout: Any):
    config |= {"model": str(without_dropout(config["model"])), "evaluation": None}
    config["trainer"] |= {"max_steps": 2, "optim": "sgd", "learning_rate": 0.1}
    plain = train({**config, "output": config["output"] + "-plain"})
    cached = train(config, "mini_batch_size=3")
    for name, value in weights(plain).items():
        torch.testing.assert_close(value, weights(cached)[name], rtol=1e-4, atol=1e-6)
