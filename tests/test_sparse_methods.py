"""Training inference-free and echo encoders: they learn, load again, and refuse what makes no sense."""

from __future__ import annotations

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from sentence_transformers import SparseEncoder  # noqa: E402

from rtk.errors import ConfigError  # noqa: E402
from rtk.eval.files import write_run  # noqa: E402
from rtk.eval.run import Run  # noqa: E402
from rtk.retrieval.encoders import load_encoder  # noqa: E402
from rtk.retrieval.training import load_config, train  # noqa: E402

WORDS = ["file", "cell", "wing", "heat", "vitamin", "cancer", "json", "date", "path", "flow", "gene", "list"]
SIZE = len(WORDS) // 2


@pytest.fixture
def config(tmp_path, beir_folder):
    """Queries of a word; the document of each is another word, so that only training can match them."""
    folder = beir_folder(
        corpus=[{"_id": f"d{n}", "text": f"{WORDS[SIZE + n]} the"} for n in range(SIZE)],
        queries=[{"_id": f"q{n}", "text": WORDS[n]} for n in range(SIZE)],
        qrels={"train": [(f"q{n}", f"d{n}", 1) for n in range(SIZE)]},
    )
    everyone = [f"d{n}" for n in range(SIZE)]
    for name, spread in (("dense", 1.0), ("sparse", 40.0)):
        scores = [
            (f"q{n}", everyone, [spread * (doc == f"d{n}") + 0.01 * at for at, doc in enumerate(everyone)])
            for n in range(SIZE)
        ]
        write_run(Run.from_lists(scores), tmp_path / f"{name}.run")
    write_run(Run.from_lists((f"q{n}", everyone, -np.arange(SIZE)) for n in range(SIZE)), tmp_path / "all.run")
    teachers = [str(tmp_path / f"{name}.run") for name in ("dense", "sparse")]
    return {
        "lengths": {"query": 8, "document": 8},
        "data": {"collection": str(folder), "runs": {"negatives": str(tmp_path / "all.run"), "teachers": teachers}},
        "sampling": {"negatives": 3},
        "sparse": {"active": {"most": 1.0, "least": 0.0}},
        "trainer": {
            "per_device_train_batch_size": SIZE, "learning_rate": 3e-3, "max_steps": 80, "warmup_steps": 0,
            "use_cpu": True, "lr_scheduler_type": "constant", "logging_steps": 10, "save_strategy": "no",
        },
        "output": str(tmp_path / "model"),
    }  # fmt: skip


@pytest.fixture
def static(config, tiny_models):
    return {
        **config,
        "method": "inference-free",
        "model": str(tiny_models / "bert-mlm"),
        "loss": ["ensemble-kl", {"name": "flops", "weight": 1e-3, "steps": 10, "grouping": "by-rank"}],
    }


def right(encoder):
    """How many queries find their document first."""
    queries = encoder.encode_query(WORDS[:SIZE])
    scores = (queries @ encoder.encode_document([f"{word} the" for word in WORDS[SIZE:]]).T).toarray()
    return int((scores.argmax(axis=1) == np.arange(SIZE)).sum())


# --- inference-free ---


@pytest.mark.parametrize("mode", ["matching", "weighted"])
def test_documents_learn_the_queries_words(static, mode):
    penalty = "idf-flops" if mode == "weighted" else "flops"
    losses = ["ensemble-kl", {"name": penalty, "weight": 1e-3, "steps": 10, "grouping": "by-rank"}]
    folder = train(load_config({**static, "idf": mode, "loss": losses}))
    encoder = load_encoder(folder, device="cpu")
    assert right(encoder) >= SIZE - 1
    weights = set(encoder.encode_query(WORDS[:SIZE]).data.tolist())
    assert weights == {1.0}  # no query's word is in a document, so that none has an idf of the collection
    the = encoder.encode_query(["the"]).data.tolist()
    assert the == pytest.approx([1.0 if mode == "weighted" else np.log1p(0.5 / (SIZE + 0.5))], rel=1e-5)
    plain = SparseEncoder(str(folder), device="cpu")
    theirs = plain.encode_document(WORDS[:2], convert_to_sparse_tensor=False).numpy()
    assert np.allclose(encoder.encode_document(WORDS[:2]).toarray(), theirs, atol=1e-6)


def test_teachers_beside_the_model_need_no_stored_scores(static, tiny_models):
    """A table of queries, documents of a network, taught by a dense, a sparse and a late-interaction model at once."""
    teachers = [str(tiny_models / name) for name in ("dense", "sparse", "multi_vector")]
    static["data"]["runs"] = {}
    static["sampling"] = {"negatives": 0}
    static["trainer"] |= {"save_strategy": "steps", "save_steps": 80}
    penalty = {"name": "flops", "weight": 1e-3, "steps": 10, "grouping": "by-rank"}
    term = {"name": "in-batch-ensemble-kl", "similarity": "dot", "teachers": teachers}
    folder = train(load_config({**static, "loss": [term, penalty]}))
    state = json.loads((folder / "checkpoints" / "checkpoint-80" / "trainer_state.json").read_text())
    found = [entry for entry in state["log_history"] if term["name"] in entry]
    assert found[-1][term["name"]] < 0.5 * found[0][term["name"]]
    assert found[-1]["in-batch-ensemble-kl-constant-teachers"] == 0


def test_a_trained_table_has_its_own_learning_rate(static, tmp_path):
    static["trainer"] |= {"max_steps": 3}
    still = train(load_config({**static, "idf": {"trainable": True, "learning_rate": 1e-9}}))
    before = load_encoder(still, device="cpu").encode_query(WORDS[:SIZE]).toarray()
    assert np.allclose(before[before > 0], 1.0, atol=1e-6)
    static["output"] = str(tmp_path / "moved")
    moved = train(load_config({**static, "idf": {"trainable": True, "learning_rate": 0.1}}))
    after = load_encoder(moved, device="cpu").encode_query([*WORDS[:SIZE], "[UNK]"]).toarray()
    assert np.abs(after[:-1][before > 0] - 1.0).max() > 0.05
    assert not after[-1].any()


def test_a_table_from_a_file(static, tmp_path):
    (tmp_path / "idf.json").write_text(json.dumps(dict.fromkeys(WORDS, 2.5)))
    static["trainer"] |= {"max_steps": 1}
    folder = train(load_config({**static, "idf": {"table": str(tmp_path / "idf.json")}}))
    found = load_encoder(folder, device="cpu").encode_query([WORDS[0], "the"])
    assert found.data.tolist() == [2.5, 1.0]


def test_a_collection_is_counted_once(static, tiny_sparse, monkeypatch):
    from rtk.retrieval.training import static_queries

    config = load_config(static)
    first = static_queries.open_table(config, tiny_sparse.tokenizer)
    monkeypatch.delattr(static_queries, "compute_idf")
    again = static_queries.open_table(config, tiny_sparse.tokenizer)
    assert np.array_equal(first.weights(), again.weights())
    assert (again.source, again.passages) == ("tiny", SIZE)


def test_uniform_is_the_ablation(static):
    static["trainer"] |= {"max_steps": 1}
    folder = train(load_config({**static, "idf": {"table": "uniform"}}))
    assert load_encoder(folder, device="cpu").encode_query(["the file"]).data.tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "splade", "idf": "matching"}, "idf: is for method inference-free"),
        ({"method": "splade", "loss": [{"name": "idf-flops", "weight": 1.0}]}, "goes with method inference-free"),
        ({"idf": "weighted"}, "take idf-flops"),
        ({"idf": {"learning_rate": 0.1}}, "not trained"),
        ({"idf": {"table": "no-such-file"}}, "no file no-such-file"),
        ({"sparse": {"query": "bag"}}, "follow from idf"),
        ({"mini_batch_size": 2}, "mini_batch_size"),
        ({"loss": [{"name": "flops", "weight": 1.0, "side": "both"}]}, "nothing to regularise"),
        ({"echo": {}}, "trains no causal language model"),
        ({"idf": {"tabel": "uniform"}}, "tabel"),
    ],
)
def test_what_makes_no_sense_is_refused(static, changes, message):
    with pytest.raises(ConfigError, match=message):
        load_config({**static, **changes})


# --- echo ---


@pytest.fixture
def causal(tmp_path, tiny_models):
    """A folder with a random Llama over the tiny models' word pieces."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(tiny_models / "bert")
    settings = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 64, "max_position_embeddings": 64, "initializer_range": 0.2,
    }  # fmt: skip
    folder = tmp_path / "llama"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(LlamaConfig(**settings)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def echo(config, causal):
    losses = ["infonce", {"name": "flops", "side": "both", "weight": 1e-3, "steps": 10}]
    return {**config, "method": "echo-splade", "model": str(causal), "loss": losses, "lora": None}


def test_an_echo_encoder_learns_and_loads(echo, tmp_path):
    templates = {"query": "Query:{text} again:{echo}", "document": "{text} again:{echo}"}
    folder = train(load_config({**echo, "echo": {**templates, "logit_scale": "hidden-size"}}))
    encoder = load_encoder(folder, device="cpu")
    assert right(encoder) >= SIZE - 1
    module = encoder.model[0]
    assert module.templates == templates
    assert module.logit_scale == pytest.approx(32**-0.25)
    assert (module.query_length, module.document_length) == (8, 8)
    # what the configuration leaves open is the trained model's own
    echo["trainer"] |= {"max_steps": 1, "learning_rate": 1e-12}
    again = train(load_config({**echo, "model": str(folder), "output": str(tmp_path / "again")}))
    assert load_encoder(again, device="cpu").model[0].templates == templates
    texts = WORDS[:3]
    first, second = (load_encoder(path, device="cpu").encode_document(texts).toarray() for path in (folder, again))
    assert np.allclose(first, second, atol=1e-5)


def test_adapters_are_merged(echo):
    pytest.importorskip("peft")
    folder = train(load_config({**echo, "lora": {"rank": 4, "alpha": 64}, "attention": "bidirectional"}))
    assert not (folder / "adapter_config.json").exists()
    assert load_encoder(folder, device="cpu").model[0].config.is_causal is False
    assert right(load_encoder(folder, device="cpu")) > 1


def test_a_resumed_training_equals_one_that_was_not_stopped(echo, tmp_path, interrupted):
    pytest.importorskip("peft")
    trainer = {**echo["trainer"], "max_steps": 6, "save_strategy": "steps", "save_steps": 3}
    config = {**echo, "lora": {"rank": 4}, "trainer": trainer}
    whole = load_encoder(train(load_config({**config, "output": str(tmp_path / "whole")})), device="cpu")
    interrupted(load_config(config), 4)
    resumed = load_encoder(train(load_config(config)), device="cpu")
    texts = WORDS[:3]
    assert np.allclose(whole.encode_query(texts).toarray(), resumed.encode_query(texts).toarray(), atol=1e-6)


# --- several processes ---


@pytest.mark.parametrize("method", ["echo", "frozen table", "learned table"])
def test_two_processes_train_what_one_does(method, request, train_on_ranks, without_dropout):
    config = request.getfixturevalue("echo" if method == "echo" else "static")
    if method != "echo":
        learned = method == "learned table"
        config |= {"model": str(without_dropout(config["model"])), "idf": {"trainable": learned}}
    config["trainer"] |= {"max_grad_norm": 0.5}
    one, two = (load_encoder(path, device="cpu") for path in train_on_ranks(config, 6, max_steps=3, learning_rate=0.1))
    for encode in ("encode_query", "encode_document"):
        first, second = (getattr(encoder, encode)(WORDS).toarray() for encoder in (one, two))
        assert np.allclose(first, second, rtol=1e-4, atol=1e-5)
    if method != "echo":
        assert (set(one.encode_query(WORDS[:SIZE]).data.tolist()) != {1.0}) == (method == "learned table")
