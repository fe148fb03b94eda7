"""Training end to end with tiny random models: it learns, resumes bit for bit, stops at NaN, and says what it did."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from rtk.errors import BackendError, ConfigError, OutputExists
from rtk.eval.files import write_run
from rtk.eval.run import Run

QUERIES = ["file", "cell", "wing", "heat", "vitamin", "cancer"]
DOCUMENTS = ["json", "date", "path", "flow", "gene", "list"]
SIZE = len(QUERIES)
SPLITS = ("train", "dev")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RTK_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """Six queries of a word; the document of each is an unlike word, so that only training can match them."""
    folder = tmp_path / "toy"
    (folder / "qrels").mkdir(parents=True)
    documents = [{"_id": f"d{n}", "title": "", "text": DOCUMENTS[n]} for n in range(SIZE)]
    queries = [{"_id": f"q{n}", "text": QUERIES[n]} for n in range(SIZE)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(line) + "\n" for line in documents))
    (folder / "queries.jsonl").write_text("".join(json.dumps(line) + "\n" for line in queries))
    for split in SPLITS:
        rows = "".join(f"q{n}\td{n}\t1\n" for n in range(SIZE))
        (folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + rows)
    lists = [
        (f"q{n}", [f"d{(n + step) % SIZE}" for step in range(SIZE)], -np.arange(SIZE, dtype=np.float32))
        for n in range(SIZE)
    ]
    write_run(Run.from_lists(lists), tmp_path / "all.run")
    return folder


@pytest.fixture
def config(toy: Path, tiny_models: Path, tmp_path: Path) -> dict[str, Any]:
    return {
        "method": "contrastive",
        "model": str(tiny_models / "dense"),
        "data": {"collection": str(toy), "runs": {"negatives": str(tmp_path / "all.run")}},
        "trainer": {"per_device_train_batch_size": 3, "learning_rate": 3e-3, "max_steps": 6, "use_cpu": True},
        "evaluation": {"collection": str(toy), "split": "dev", "every": 3, "measure": "RR@10"},
        "output": str(tmp_path / "model"),
    }


def reranker(config: dict[str, Any], tiny_models: Path, loss: str) -> dict[str, Any]:
    run = config["data"]["runs"]["negatives"]
    return {
        **config,
        "method": "cross-encoder",
        "model": str(tiny_models / "cross_encoder"),
        "sampling": {"negatives": 3},
        "loss": [{"name": loss}],
        "evaluation": {**config["evaluation"], "run": run},
    }


def train(config: dict[str, Any], *overrides: str, **options: Any) -> Path:
    from rtk.retrieval.training.config import load_config
    from rtk.retrieval.training.trainer import train as run

    return run(load_config(config, overrides), **options)


def record(output: Path) -> dict[str, Any]:
    return json.loads((output / "rtk-run.json").read_text())


def weights(output: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(output / "model.safetensors")


def test_contrastive_training_learns_and_the_model_loads_in_sentence_transformers(config: dict, toy: Path):
    given = {"max_steps": 100, "per_device_train_batch_size": 6, "lr_scheduler_type": "constant", "learning_rate": 2e-3}
    config["trainer"] |= given
    output = train(config, "evaluation.every=50", "sampling.negatives=0")
    values = [entry["RR@10"] for entry in record(output)["evaluations"]]
    assert values[0] < 0.6
    assert max(values) > 0.8
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(output), device="cpu")
    scores = model.similarity(model.encode_query(QUERIES), model.encode_document(DOCUMENTS))
    assert (scores.argmax(dim=1) == torch.arange(SIZE)).float().mean() > 0.6


def test_bfloat16_needs_no_further_word_on_a_machine_without_an_accelerator(config: dict, toy: Path):
    """transformers takes it there only with `use_cpu`, and refuses with a sentence about GPUs."""
    if torch.accelerator.is_available():
        pytest.skip("this machine has an accelerator")
    del config["trainer"]["use_cpu"]
    changes = ("trainer.max_steps=1", "evaluation=null", "trainer.save_strategy='no'")
    whole = weights(train(config, *changes))
    mixed = weights(train(config, *changes, "trainer.bf16=true", f"output={config['output']}-mixed"))
    assert all(value.dtype == torch.float32 for value in mixed.values()), "only products are rounded"
    assert any(not torch.equal(mixed[name], value) for name, value in whole.items())
    for name, value in whole.items():
        torch.testing.assert_close(mixed[name], value, atol=1e-2, rtol=0)


def test_of_several_processes_one_says_what_was_written(
    config: dict, run_on_ranks: Callable[..., None], tmp_path: Path
):
    file, script = tmp_path / "config.yaml", tmp_path / "script.py"
    config["trainer"] |= {"max_steps": 1, "save_strategy": "no", "per_device_train_batch_size": 2}
    del config["evaluation"]
    file.write_text(json.dumps(config))  # JSON is YAML
    script.write_text(
        "import contextlib, os, sys\n"
        "from rtk.retrieval.cli.main import run\n"
        "with open(sys.argv[1] + os.environ['RANK'], 'w') as said, contextlib.redirect_stdout(said):\n"
        "    run(['train', sys.argv[2]])\n"
    )
    run_on_ranks(script, tmp_path / "said", file)
    assert (tmp_path / "said0").read_text().startswith("written: ")
    assert (tmp_path / "said1").read_text() == ""


@pytest.mark.parametrize(("loss", "rate"), [("binary-cross-entropy", 3e-3), ("listnet", 1e-2)])
def test_cross_encoder_training_learns_and_the_model_loads(config: dict, tiny_models: Path, loss: str, rate: float):
    config["trainer"] |= {"max_steps": 80, "per_device_train_batch_size": 6, "learning_rate": rate}
    output = train(reranker(config, tiny_models, loss), "evaluation.every=40")
    values = [entry["RR@10"] for entry in record(output)["evaluations"]]
    assert max(values) > values[0] + 0.25
    from sentence_transformers import CrossEncoder

    assert CrossEncoder(str(output), device="cpu").predict([("file cell", "wing heat")]).shape == (1,)


def test_what_a_run_leaves_beside_its_model(config: dict, toy: Path):
    from rtk.retrieval.training.config import load_config

    output = train(config)
    found = record(output)
    assert found["status"] == "finished"
    assert found["seed"] == 42
    assert found["score"]["similarity"] == "cosine"
    assert found["score"]["scale"] == 20
    assert found["data"][0]["positives"] == SIZE
    assert found["data"][0]["negatives_judged_relevant"] == SIZE
    assert {"rtk", "torch", "sentence-transformers", "python"} <= found["versions"].keys()
    assert [entry["step"] for entry in found["evaluations"]] == [0, 3, 6]
    assert load_config(output / "rtk-config.yaml") == load_config(config)


def test_an_output_that_is_there_is_refused_and_overwritten_on_demand(config: dict):
    output = train(config)
    with pytest.raises(OutputExists):
        train(config)
    before = weights(output)
    train(config, "seed=7", overwrite=True)
    assert any(not torch.equal(value, before[name]) for name, value in weights(output).items())


def test_the_best_checkpoint_is_kept_and_patience_stops(config: dict):
    output = train(config, "trainer.learning_rate=0.2", "trainer.max_steps=60", "evaluation.patience=2")
    found = record(output)
    values = {entry["step"]: entry["RR@10"] for entry in found["evaluations"]}
    after = {step: value for step, value in values.items() if step}
    assert found["best"] == max(after.values())
    assert found["steps"] < 60
    best = output / "checkpoints" / f"checkpoint-{found['best_step']}"
    assert (output / "README.md").exists()
    assert not (best / "README.md").exists()  # the card is the result's, and dear to write
    assert all(torch.equal(value, weights(best)[name]) for name, value in weights(output).items())


def loss_state(output: Path, step: int) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(output / "checkpoints" / f"checkpoint-{step}" / "loss.safetensors")


@pytest.mark.parametrize("kind", ["contrastive", "cross-encoder", "learned scale"])
def test_resumed_equals_uninterrupted_bit_for_bit(
    config: dict, tiny_models: Path, kind: str, interrupted: Callable[..., None]
):
    if kind == "cross-encoder":
        config = reranker(config, tiny_models, "listnet")
    if kind == "learned scale":
        config["loss"] = [{"name": "infonce", "learn_scale": True}]
    config["trainer"]["max_steps"] = 12
    whole = train({**config, "output": config["output"] + "-whole"})
    interrupted(config, 7)  # the checkpoint of step 6 is in the middle of the third epoch's batches
    assert record(Path(config["output"]))["status"] == "running"
    halves = train(config)
    expected = weights(whole)
    assert all(torch.equal(value, expected[name]) for name, value in weights(halves).items())
    assert record(halves)["evaluations"] == record(whole)["evaluations"]
    if kind == "learned scale":
        states = [loss_state(output, 12) for output in (whole, halves)]
        assert [*states[0]] == ["stateful.0.scorer.log_scale"]
        assert torch.equal(*(state["stateful.0.scorer.log_scale"] for state in states))
        assert float(states[0]["stateful.0.scorer.log_scale"]) != float(torch.tensor(20.0).log())


def test_patience_goes_on_counting_after_a_stop(config: dict, interrupted: Callable[..., None]):
    config["trainer"] |= {"max_steps": 60, "learning_rate": 0.2}
    config["evaluation"]["patience"] = 3
    whole = record(train({**config, "output": config["output"] + "-whole"}))
    assert whole["steps"] < 60
    interrupted(config, whole["steps"] - 2)  # two evaluations without a better one are behind it
    halves = record(train(config))
    assert (halves["steps"], halves["best_step"]) == (whole["steps"], whole["best_step"])


def test_a_step_is_told_in_five_digits(caplog: pytest.LogCaptureFixture):
    from types import SimpleNamespace

    from rtk.retrieval.training.loops import Progress

    state: Any = SimpleNamespace(is_world_process_zero=True, global_step=7)
    with caplog.at_level("INFO"):
        Progress().on_log(None, state, None, logs={"loss": 0.2838465174039205, "learning_rate": 9.25926e-05, "left": 3})
    assert "step 7: loss 0.28385, learning_rate 9.2593e-05, left 3" in caplog.text


def test_a_learned_scale_is_not_decayed(config: dict):
    """It has no zero to go to: towards 1 would be as arbitrary as towards 20."""
    config |= {"loss": [{"name": "infonce", "learn_scale": True}], "evaluation": None}
    config["trainer"] |= {"max_steps": 1, "save_steps": 1, "learning_rate": 1e-2}
    scales = [
        loss_state(train({**config, "output": f"{config['output']}-{decay}"}, f"trainer.weight_decay={decay}"), 1)
        for decay in (0, 0.5)
    ]
    assert torch.equal(*(state["stateful.0.scorer.log_scale"] for state in scales))


def test_a_learned_scale_can_have_a_learning_rate_of_its_own(config: dict):
    config |= {"loss": [{"name": "infonce", "learn_scale": True}], "evaluation": None}
    config["trainer"] |= {"max_steps": 1, "save_steps": 1, "learning_rate_mapping": {"log_scale": 0.5}}
    moved = loss_state(train(config), 1)["stateful.0.scorer.log_scale"] - torch.tensor(20.0).log()
    assert abs(float(moved)) == pytest.approx(0.5, rel=1e-3), "a first step of Adam is the rate"


def test_matryoshka_sums_the_loss_over_truncations(config: dict):
    config |= {"matryoshka": {"dims": [32, 8], "weights": [1, 0.5]}, "evaluation": None}
    output = train(config, "trainer.logging_steps=2", "trainer.save_steps=6")
    state = json.loads((output / "checkpoints" / "checkpoint-6" / "trainer_state.json").read_text())
    entry = state["log_history"][0]
    assert entry["loss"] == pytest.approx(entry["infonce@32"] + entry["infonce@8"], abs=1e-3)
    with pytest.raises(ConfigError, match="the largest is 16, the model has 32"):
        train({**config, "output": config["output"] + "2", "matryoshka": {"dims": [16]}})


def test_another_configuration_does_not_resume(config: dict, interrupted: Callable[..., None]):
    interrupted(config, 4)
    with pytest.raises(ConfigError) as caught:
        train(config, "seed=1", "trainer.learning_rate=1e-4", "trainer.logging_steps=7")
    assert [problem.split(":")[0] for problem in caught.value.problems] == ["trainer.learning_rate", "seed"]


def test_another_model_under_the_same_path_does_not_resume(
    config: dict, tmp_path: Path, interrupted: Callable[..., None]
):
    model = tmp_path / "start"
    shutil.copytree(config["model"], model)
    config = {**config, "model": str(model)}
    interrupted(config, 4)
    weights = model / "model.safetensors"
    state = load_file(weights)
    save_file({name: value + 1e-3 for name, value in state.items()}, weights, metadata={"format": "pt"})
    with pytest.raises(ConfigError, match="model, its weights: there"):
        train(config)
    save_file(state, weights, metadata={"format": "pt"})
    assert record(train(config))["models"].keys() == {"model"}


def test_other_data_do_not_resume(config: dict, toy: Path, interrupted: Callable[..., None]):
    interrupted(config, 4)
    qrels = toy / "qrels" / "train.tsv"
    qrels.write_text(qrels.read_text() + "q0\td3\t1\n")
    with pytest.raises(ConfigError, match=r"data\.0\.fingerprint"):
        train(config)


def test_prompts_are_trained_with_and_stay_with_the_model(config: dict, tiny_dense: Any):
    from sentence_transformers import SentenceTransformer

    from rtk.retrieval.training.config import load_config

    given = {"query": "file list ", "document": ""}
    output = train({**config, "prompts": given, "evaluation": None})
    model = SentenceTransformer(str(output), device="cpu")
    assert {name: model.prompts[name] for name in given} == given
    assert load_config(output / "rtk-config.yaml").prompts is not None
    plain = train({**config, "output": config["output"] + "-plain", "evaluation": None})
    assert any(not torch.equal(value, weights(plain)[name]) for name, value in weights(output).items())


def test_a_document_prompt_of_another_name_is_trained_with_too(config: dict, tiny_dense: Any):
    """sentence-transformers encodes documents with the prompt "passage" where there is no "document"."""
    from rtk.retrieval.training.collate import dense_collator
    from rtk.retrieval.training.config import load_config

    tiny_dense.prompts = {"query": "", "passage": "wing heat "}
    rows = [({"query": "file", "positive": "cell"}, {})]
    batch = dense_collator(tiny_dense, load_config(config))(rows)
    told = tiny_dense.tokenizer.decode(batch["positive_input_ids"][0], skip_special_tokens=True)
    assert told == "wing heat cell"
    assert tiny_dense.tokenizer.decode(batch["query_input_ids"][0], skip_special_tokens=True) == "file"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "cross-encoder", "loss": ["listnet"]}, "prompts: are for bi-encoders"),
        ({"method": "contriever", "loss": ["moco"]}, "which have none"),
    ],
)
def test_prompts_where_there_is_no_place_for_them_are_refused(config: dict, change: dict, message: str):
    from rtk.retrieval.training.config import load_config

    with pytest.raises(ConfigError, match=message):
        load_config({**config, "prompts": {"query": "q: "}, "sampling": {}, **change})


def test_a_loss_that_is_no_number_stops_with_step_and_queries(config: dict, tmp_path: Path):
    broken = tmp_path / "broken"
    shutil.copytree(config["model"], broken)
    from safetensors.torch import save_file

    values = weights(broken)
    values["embeddings.word_embeddings.weight"][:] = float("nan")
    save_file(values, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BackendError, match=r"at step 1 \(batch 0\).* queries: q\d, q\d, q\d$"):
        train({**config, "model": str(broken), "evaluation": None})


def test_a_mixture_trains_on_all_its_collections(config: dict, toy: Path):
    parts = [{"collection": str(toy), "weight": 1}, {"collection": str(toy), "split": "dev", "weight": 3}]
    output = train({**config, "data": {"mixture": parts}, "evaluation": None})
    assert len(record(output)["data"]) == 2


def test_several_losses_are_summed_and_logged_by_name(config: dict, tiny_models: Path):
    given = reranker(config, tiny_models, "listnet")
    given["loss"] = [{"name": "listnet", "weight": 0.5}, "binary-cross-entropy"]
    output = train({**given, "evaluation": None}, "trainer.logging_steps=2", "trainer.save_steps=6")
    state = json.loads((output / "checkpoints" / "checkpoint-6" / "trainer_state.json").read_text())
    for entry in state["log_history"][:3]:
        assert entry["loss"] == pytest.approx(entry["listnet"] + entry["binary-cross-entropy"], abs=1e-3)


def test_candidates_of_a_run_can_stand_for_the_dev_collection(config: dict):
    run = config["data"]["runs"]["negatives"]
    reranked = train({**config, "output": config["output"] + "2"}, f"evaluation.run={run}", "evaluation.depth=6")
    searched = train(config)
    assert record(reranked)["evaluations"] == record(searched)["evaluations"]


def test_the_sampler_decides_what_the_trainer_sees(config: dict):
    """The texts of a batch are those that the sampler drew for its number."""
    from rtk.retrieval.training.config import load_config
    from rtk.retrieval.training.data import open_tables
    from rtk.retrieval.training.trainer import _arguments, _make_trainer

    loaded = load_config({**config, "evaluation": None}, ["trainer.num_train_epochs=2", "trainer.max_steps=-1"])
    trainer = _make_trainer(loaded, _arguments(loaded, resuming=False), open_tables(loaded.data.parts()), None)
    batches = list(trainer.get_train_dataloader())
    assert [int(batch["label"]["number"][0]) for batch in batches] == [0, 1]
    assert all(batch["label"]["allowed"].shape == (3, 6) for batch in batches)
    assert all(batch["positive_input_ids"].shape[0] == 3 for batch in batches)


def test_yaml_file_and_lengths(config: dict, tmp_path: Path):
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump({**config, "lengths": {"query": 3, "document": 2}, "evaluation": None}))
    from rtk.retrieval.training.config import load_config
    from rtk.retrieval.training.data import open_tables
    from rtk.retrieval.training.trainer import _arguments, _make_trainer

    loaded = load_config(path)
    trainer = _make_trainer(loaded, _arguments(loaded, resuming=False), open_tables(loaded.data.parts()), None)
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch["query_input_ids"].shape[1] == 3
    assert batch["negative_1_input_ids"].shape[1] == 2


_WATCHED = """
import json, sys
import torch
from pathlib import Path
torch.set_num_threads(1)
from rtk.retrieval.training import loops, trainer

seen, original = [], loops._Loop.compute_loss

def watch(self, model, inputs, *rest, **settings):
    seen.append([int(inputs["label"]["number"][0]), inputs["query_input_ids"].tolist()])
    return original(self, model, inputs, *rest, **settings)

loops._Loop.compute_loss = watch
[config] = json.loads(Path(sys.argv[1]).read_text())
trainer.train(config)
import os
Path(config["output"] + f"-rank{os.environ.get('RANK', 0)}.json").write_text(json.dumps(seen))
"""


@pytest.mark.slow
def test_two_processes_share_the_batches_of_one_and_end_at_its_weights(
    train_on_ranks: Callable[..., list[Path]], without_dropout: Callable[[str | Path], Path], config: dict
):
    """The loss gathers documents with gradient, so the mean over two processes is the gradient of one."""
    config = {**config, "evaluation": {**config["evaluation"], "every": 2}}
    config["model"] = str(without_dropout(config["model"]))
    config["loss"] = [{"name": "infonce", "learn_scale": True}]  # a parameter of the loss, which DDP knows nothing of
    by_one, by_two = train_on_ranks(config, 6, script=_WATCHED, learning_rate=0.1, max_steps=4)
    one = json.loads(Path(f"{by_one}-rank0.json").read_text())
    halves = [json.loads(Path(f"{by_two}-rank{rank}.json").read_text()) for rank in (0, 1)]
    for whole, first, second in zip(one, *halves, strict=True):
        assert whole[0] == first[0] == second[0]
        assert whole[1] == first[1] + second[1]
    expected = weights(by_one)
    for name, value in weights(by_two).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-6)
    scales = [loss_state(output, 4)["stateful.0.scorer.log_scale"] for output in (by_one, by_two)]
    torch.testing.assert_close(scales[0], scales[1], rtol=1e-5, atol=0)
    assert float(scales[0]) != float(torch.tensor(20.0).log())
    assert record(by_two)["processes"] == 2


def test_pooling_is_changed_and_saved(config: dict, tiny_models: Path):
    from sentence_transformers import SentenceTransformer

    output = train({**config, "model": str(tiny_models / "bert"), "pooling": "cls", "evaluation": None})
    model = SentenceTransformer(str(output), device="cpu")
    assert [module.pooling_mode for module in model if hasattr(module, "pooling_mode")] == ["cls"]
