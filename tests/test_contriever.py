"""Contriever: crops and momentum contrast against the authors' numbers, their properties, and training end to end."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from rtk.errors import ConfigError
from rtk.retrieval.losses.contrastive import in_batch_scores, info_nce
from rtk.retrieval.losses.moco import momentum_update, queue_loss, queue_scores, random_queue, write_queue
from rtk.retrieval.sampling.crops import (
    Chunking,
    Cropping,
    CropSampler,
    Replacements,
    chunk_count,
    crop_pair,
    delete_tokens,
    mask_tokens,
    permuted,
    random_crop,
    replace_tokens,
    source_probabilities,
)

GOLDENS = json.loads((Path(__file__).parent / "goldens" / "contriever.json").read_text())
DATA, LOSSES = GOLDENS["data"], GOLDENS["losses"]
BERT = Replacements(mask=103, first=999, last=30521)


class Published:
    """The published code's sources: Python's `random` for crops and replacements, numpy's global one for the rest."""

    def __init__(self, seed: int) -> None:
        self._python, self._numpy = random.Random(seed), np.random.RandomState(seed)

    def uniform(self, low: float, high: float, /) -> float:
        return self._python.uniform(low, high)

    def integer(self, low: int, high: int, /) -> int:
        return self._python.randint(low, high)

    def uniforms(self, count: int, /) -> np.ndarray:
        return self._numpy.rand(count)


def double(values: object) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


# --- crops ---


@pytest.mark.parametrize("case", DATA["crops_query_then_key_as_start_token_and_length"], ids=lambda case: case["seed"])
def test_published_crops(case: dict):
    source, chunk = Published(case["seed"]), np.arange(1000, 1256)
    for name in ("query", "key"):
        crop = random_crop(chunk, case["ratio_min"], case["ratio_max"], source)
        assert [crop[0], len(crop)] == case[name]


def test_published_dataset_of_chunks():
    expected, tokens = DATA["dataset"], np.arange(2000, 2040)
    source, length = Published(expected["seed_python_and_numpy"]), expected["chunk_length"]
    offset = source.integer(0, length - 1)
    assert offset == expected["offset"]
    assert chunk_count(len(tokens), offset, length) == expected["length"]
    cropping = Cropping(ratio_min=0.25, ratio_max=0.75, augmentation="none")
    for number, item in enumerate(expected["items"]):
        chunk = tokens[offset + number * length : offset + (number + 1) * length]
        for crop, name in zip(crop_pair(chunk, cropping, BERT, source), ("q_tokens", "k_tokens"), strict=True):
            assert [101, *crop.tolist(), 102] == item[name]


@pytest.mark.parametrize("name", ["mask", "replace", "delete"])
def test_published_augmentations(name: str):
    """The published `shuffle` writes a token twice and loses another; rtk has none."""
    given = DATA["augmentations"]
    tokens, source = np.arange(5000, 5012), Published(given["seed"])
    result = {
        "mask": lambda: mask_tokens(tokens, given["p"], source, given["mask_id"]),
        "replace": lambda: replace_tokens(tokens, given["p"], source, BERT),
        "delete": lambda: delete_tokens(tokens, given["p"], source),
    }[name]()
    assert result.tolist() == given["results"][name]
    assert tokens.tolist() == list(range(5000, 5012))


@pytest.mark.parametrize("exponent", ["0.0", "0.5", "1.0"])
def test_published_probabilities_of_sources(exponent: str):
    expected = DATA["dataset_probabilities_for_sizes_900_100"][exponent]
    assert source_probabilities([900, 100], float(exponent)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 64, 1000, 4097])
def test_permuted_is_a_permutation_and_another_one_for_another_state(size: int):
    places = np.arange(size)
    first = permuted(places, size, np.random.default_rng(1))
    assert sorted(first.tolist()) == places.tolist()
    assert np.array_equal(permuted(places[size // 2 :], size, np.random.default_rng(1)), first[size // 2 :])
    if size > 60:
        assert not np.array_equal(first, permuted(places, size, np.random.default_rng(2)))
        assert abs(np.corrcoef(places, first)[0, 1]) < 0.3


def rows(*lengths: int) -> Any:
    """A corpus whose token is its own place, in documents of these lengths."""
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return SimpleNamespace(name="rows", tokens=np.arange(offsets[-1]), offsets=offsets)


def sampler(*sources: Any, cropping: Cropping | None = None, **settings: Any) -> CropSampler:
    chunking = Chunking(**{"batch_size": 4, "seed": 3, "length": 10, **settings})
    return CropSampler(sources, chunking, cropping or Cropping(0.2, 0.8, "none"), replacements=BERT)


def test_an_epoch_goes_through_every_chunk_once_and_the_next_behind_another_offset():
    made = sampler(rows(89))
    assert made.batches_per_epoch == 2
    epochs = [np.concatenate([made.draw(number).starts for number in (2 * e, 2 * e + 1)]) for e in range(6)]
    for starts in epochs:
        assert len(set(starts.tolist())) == 8
        assert len(set((starts % 10).tolist())) == 1
    assert len({int(starts[0] % 10) for starts in epochs}) > 2
    assert all(made.draw(number).stops.max() <= 89 for number in range(12))


def test_a_batch_is_a_function_of_seed_and_number_and_slots_can_be_asked_apart():
    made, again = sampler(rows(400)), sampler(rows(400))
    draw = made.draw(5)
    assert np.array_equal(draw.starts, again.draw(5).starts)
    whole = made.pairs(draw, 5, range(4))
    parts = [*again.pairs(draw, 5, range(2)), *again.pairs(draw, 5, range(2, 4))]
    for mine, other in zip(whole, parts, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(mine, other, strict=True))
    other_seed = sampler(rows(400), seed=4)
    assert not np.array_equal(draw.starts, other_seed.draw(5).starts)


def test_both_crops_come_from_the_chunk_and_differ():
    made = sampler(rows(4000), length=100, cropping=Cropping(0.05, 0.5, "none"))
    lengths, equal = [], 0
    for number in range(10):
        draw = made.draw(number)
        for slot, pair in enumerate(made.pairs(draw, number, range(4))):
            for crop in pair:
                assert draw.starts[slot] <= crop[0] <= crop[-1] < draw.stops[slot]
                assert np.array_equal(crop, np.arange(crop[0], crop[0] + len(crop)))
                lengths.append(len(crop))
            equal += int(np.array_equal(*pair))
    assert min(lengths) >= 5
    assert max(lengths) <= 50
    assert equal == 0


def test_deletion_leaves_its_share():
    kept = len(delete_tokens(np.arange(20000), 0.1, Published(0)))
    assert kept == pytest.approx(18000, abs=200)


def test_chunks_can_end_where_their_document_ends():
    source = rows(3, 14, 4, 30, 1, 60)
    made = sampler(source, across_documents=False)
    for number in range(6):
        draw = made.draw(number)
        for start, stop in zip(draw.starts, draw.stops, strict=True):
            assert sum((source.offsets[:-1] <= start) & (stop <= source.offsets[1:])) == 1
            assert stop > start


@pytest.mark.parametrize(
    ("settings", "share"), [({"exponent": 0.0}, 0.5), ({"exponent": 1.0}, 0.9), ({"weights": (1, 3)}, 0.25)]
)
def test_sources_are_drawn_by_size_or_weight(settings: dict, share: float):
    made = sampler(rows(9009), rows(1009), batch_size=50, **settings)
    drawn = np.concatenate([made.draw(number).sources for number in range(60)])
    assert (drawn == 0).mean() == pytest.approx(share, abs=0.03)


def test_too_few_tokens_are_refused():
    with pytest.raises(ConfigError, match="not one chunk of 10"):
        sampler(rows(18), batch_size=1)
    with pytest.raises(ConfigError, match=r"give 3 chunks .* needs 4"):
        sampler(rows(40))


# --- momentum contrast ---


def moco_step(case: dict, query: torch.Tensor, key: torch.Tensor, queue: torch.Tensor) -> tuple[torch.Tensor, int]:
    momentum_update([key], [query], case["momentum"])
    queries, keys = double(case["x_query"]) @ query, double(case["x_key"]) @ key
    if case["normalize"]:
        queries, keys = (torch.nn.functional.normalize(values, dim=1) for values in (queries, keys))
    scores = queue_scores(queries, keys, queue.clone(), temperature=case["temperature"])
    loss = queue_loss(scores, label_smoothing=case["label_smoothing"])
    return loss, write_queue(queue, keys, 0)


@pytest.mark.parametrize("case", LOSSES["moco"], ids=lambda case: f"{case['normalize']}-{case['label_smoothing']}")
def test_published_moco(case: dict):
    query, key = double(case["W_query"]).requires_grad_(), double(case["W_key_before"])
    queue = double(case["queue_before"]).T.contiguous()
    loss, pointer = moco_step(case, query, key, queue)
    loss.backward()
    assert loss.item() == pytest.approx(case["loss"], rel=1e-9)
    torch.testing.assert_close(query.grad, double(case["grad_W_query"]), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(key, double(case["W_key_after"]), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(queue.T, double(case["queue_after"]), rtol=1e-9, atol=1e-12)
    assert pointer == case["queue_ptr_after"]
    for _ in range(2):
        pointer = write_queue(queue, double(case["x_query"])[:, :4], pointer)
    assert pointer == case["queue_ptr_after_3_steps"]
    assert not key.requires_grad


@pytest.mark.parametrize("case", LOSSES["inbatch"], ids=lambda case: f"normalize {case['normalize']}")
def test_published_in_batch_loss(case: dict):
    weights = double(case["W"]).requires_grad_()
    queries, keys = double(case["x_query"]) @ weights, double(case["x_keys_gold_then_negatives"]) @ weights
    similarity = "cosine" if case["normalize"] else "dot"
    scores = in_batch_scores(queries, keys, similarity=similarity, scale=1 / case["temperature"])
    loss = info_nce(scores, torch.arange(len(queries)))
    loss.backward()
    assert loss.item() == pytest.approx(case["loss"], rel=1e-9)
    torch.testing.assert_close(weights.grad, double(case["grad_W"]), rtol=1e-9, atol=1e-12)


def test_queue_loss_equals_its_formula():
    generator = torch.Generator().manual_seed(0)
    queries, keys, queue = (torch.randn(n, 4, generator=generator, dtype=torch.float64) for n in (3, 3, 6))
    every = [torch.cat([keys[i : i + 1], queue]) @ queries[i] / 0.07 for i in range(3)]
    expected = torch.stack([-(scores[0] - scores.exp().sum().log()) for scores in every]).mean()
    assert queue_loss(queue_scores(queries, keys, queue, temperature=0.07)).item() == pytest.approx(expected.item())


def test_the_queue_is_first_in_first_out():
    queue, pointer = torch.zeros(6, 1), 0
    for step in range(5):
        pointer = write_queue(queue, torch.full((2, 1), float(step)), pointer)
    assert queue.flatten().tolist() == [3, 3, 4, 4, 2, 2]
    assert pointer == 4
    with pytest.raises(ValueError, match="whole batches"):
        write_queue(queue, torch.zeros(4, 1), 0)


def test_a_queue_begins_with_unit_vectors_of_its_generator():
    first, again = (random_queue(32, 8, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first, again)
    torch.testing.assert_close(first.norm(dim=1), torch.ones(32))


def test_low_precision_vectors_are_scored_in_float32():
    queries = torch.randn(2, 4).bfloat16()
    queue = torch.randn(4, 4)
    plain = queue_scores(queries, queries, queue, temperature=0.05)
    assert plain.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(queue_scores(queries, queries, queue, temperature=0.05), plain)


# --- corpora as tokens, and batches from them ---

WORDS = ["file", "read", "write", "list", "sort", "merge", "text", "cell", "protein", "gene", "vitamin", "risk"]
WORDS += ["cancer", "study", "wing", "flow", "heat", "air", "query", "document", "string", "number", "time", "date"]


@pytest.fixture
def corpus(beir_folder: Callable[..., Path]) -> Path:
    """Eighty documents of five to thirty-nine known words, one token each, and one without a token."""
    generator = random.Random(0)
    texts = [" ".join(generator.choices(WORDS, k=generator.randint(5, 39))) for _ in range(80)]
    lines = [{"_id": f"d{number}", "title": "", "text": text} for number, text in enumerate([*texts, ""])]
    return beir_folder("corpus", corpus=lines, qrels={"dev": [("q0", "d0", 1), ("q1", "d3", 1)]})


def tokens_of(folder: Path, tokenizer: Any) -> Any:
    from rtk.eval.collection import open_collection
    from rtk.retrieval.training.tokens import open_tokens

    return open_tokens(open_collection(str(folder)), tokenizer)


def test_tokens_are_the_documents_own_and_written_once(corpus: Path, tiny_dense: Any, monkeypatch: pytest.MonkeyPatch):
    from rtk.eval.collection import open_collection
    from rtk.retrieval.training import tokens

    table, documents = tokens_of(corpus, tiny_dense.tokenizer), open_collection(str(corpus)).documents
    for row in (0, 7, 79, 80):
        expected = tiny_dense.tokenizer(documents.texts([row])[0], add_special_tokens=False)["input_ids"]
        assert table.tokens[table.offsets[row] : table.offsets[row + 1]].tolist() == expected
    assert table.tokens.dtype == np.uint16
    assert table.report.documents == 81
    assert table.report.without_tokens == 1
    assert not set(table.tokens.tolist()) & set(tiny_dense.tokenizer.all_special_ids)
    monkeypatch.setattr(tokens, "_build", None)
    assert np.array_equal(tokens_of(corpus, tiny_dense.tokenizer).tokens, table.tokens)


def test_another_tokenizer_makes_another_file(corpus: Path, tiny_dense: Any):
    from transformers import BertTokenizerFast

    vocabulary = {token: number for token, number in tiny_dense.tokenizer.get_vocab().items() if token != "file"}
    other = BertTokenizerFast(vocab=dict(zip(vocabulary, range(len(vocabulary)), strict=True)))
    assert tokens_of(corpus, other).fingerprint != tokens_of(corpus, tiny_dense.tokenizer).fingerprint


def test_replacements_are_never_special_tokens():
    from rtk.retrieval.training.tokens import ordinary_range

    assert ordinary_range([0, 100, 101, 102, 103], 30522) == (104, 30521)
    assert ordinary_range([999, 1000], 1001) == (0, 998)
    assert ordinary_range([], 5) == (0, 4)
    with pytest.raises(ConfigError, match="special tokens only"):
        ordinary_range([0, 1], 2)


def test_crops_are_collated_as_published():
    from rtk.retrieval.training.crop_examples import CropCollator

    fields = {"pad_token_id": 0, "padding_side": "right", "model_input_names": ["input_ids", "attention_mask"]}

    class Tokenizer:
        def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
            return {"input_ids": [101, 7, 102] if add_special_tokens else [7]}

    tokenizer = Tokenizer()
    for name, value in fields.items():
        setattr(tokenizer, name, value)
    expected = DATA["dataset"]
    collated = expected["collated_first3"]
    for name in "qk":
        crops = [np.array(item[f"{name}_tokens"][1:-1], np.uint16) for item in expected["items"][:3]]
        features = CropCollator(tokenizer).collate(crops)
        assert features["input_ids"].tolist() == collated[f"{name}_tokens"]
        assert features["attention_mask"].bool().tolist() == collated[f"{name}_mask"]


def test_collated_crops_are_what_the_model_makes_of_their_text(tiny_dense: Any):
    from rtk.retrieval.training.crop_examples import CropCollator

    texts = ["read the file", "cell protein gene vitamin"]
    rows = [np.array(tiny_dense.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
    ours, theirs = CropCollator(tiny_dense.tokenizer).collate(rows), tiny_dense.preprocess(texts)
    for name in ("input_ids", "attention_mask", "token_type_ids"):
        assert torch.equal(ours[name], theirs[name])
    tiny_dense.tokenizer.padding_side = "left"
    left = CropCollator(tiny_dense.tokenizer).collate(rows)
    assert left["attention_mask"][0].tolist() == [0, *theirs["attention_mask"][0].tolist()[:-1]]


# --- the loss as a module ---


def moco_loss(model: Any, **options: Any) -> Any:
    from rtk.retrieval.losses.momentum import MocoLoss
    from rtk.retrieval.losses.options import MocoOptions

    return MocoLoss(model, MocoOptions(name="moco", **{"queue_size": 8, "momentum": 0.5, **options}))


def columns(model: Any) -> list[dict[str, torch.Tensor]]:
    return [model.preprocess(texts) for texts in (["file read", "cell gene"], ["read the file", "a cell"])]


def test_no_gradient_reaches_the_key_encoder_and_it_follows_the_model(tiny_dense: Any):
    loss = moco_loss(tiny_dense)
    with torch.no_grad():
        for parameter in tiny_dense.parameters():
            parameter.add_(0.1)
    before = [parameter.clone() for parameter in loss.key_encoder.parameters()]
    value = loss(columns(tiny_dense), {})["moco"]
    value.backward()
    assert any(parameter.grad is not None for parameter in tiny_dense.parameters())
    for key, old, query in zip(loss.key_encoder.parameters(), before, tiny_dense.parameters(), strict=True):
        assert key.grad is None
        torch.testing.assert_close(key, (old + query.detach()) / 2)
    assert int(loss.pointer) == 2


def test_the_queue_takes_the_keys_of_each_step_in_turn(tiny_dense: Any):
    loss = moco_loss(tiny_dense, key_encoder_train=False)
    start = loss.queue.clone()
    torch.testing.assert_close(start.norm(dim=1), torch.ones(8))
    for step in range(5):
        loss(columns(tiny_dense), {})
        if step == 0:
            keys = loss.key_encoder(columns(tiny_dense)[1])["sentence_embedding"]
            torch.testing.assert_close(loss.queue[:2], keys, atol=1e-6, rtol=1e-5)
            assert torch.equal(loss.queue[2:], start[2:])
    assert int(loss.pointer) == 2


@pytest.mark.parametrize("train", [True, False])
def test_the_key_encoder_drops_out_unless_told_otherwise(tiny_dense: Any, train: bool):
    tiny_dense.train()
    loss = moco_loss(tiny_dense, key_encoder_train=train, momentum=0.0)
    for _ in range(2):
        loss(columns(tiny_dense), {})
    assert torch.equal(loss.queue[0], loss.queue[2]) is not train


def test_frozen_parameters_of_the_key_encoder_stay_bit_for_bit(tiny_dense: Any):
    frozen = dict(tiny_dense.named_parameters())
    for name, parameter in frozen.items():
        parameter.requires_grad_("layer.1" in name)
    loss = moco_loss(tiny_dense, momentum=0.9)
    loss(columns(tiny_dense), {})
    for name, parameter in loss.key_encoder.named_parameters():
        assert "layer.1" in name or torch.equal(parameter, frozen[name])


def test_a_model_in_low_precision_is_followed_in_float32(tiny_dense: Any):
    """1 − m = 0.0005 of a value is less than bfloat16 can add to it."""
    tiny_dense.to(torch.bfloat16)
    loss = moco_loss(tiny_dense, momentum=0.9995)
    before = [parameter.clone() for parameter in loss.key_encoder.parameters()]
    with torch.no_grad():
        for parameter in tiny_dense.parameters():
            parameter.add_(0.5)
    loss(columns(tiny_dense), {})["moco"].backward()
    for key, old, query in zip(loss.key_encoder.parameters(), before, tiny_dense.parameters(), strict=True):
        torch.testing.assert_close(key - old, 0.0005 * (query.detach().float() - old), rtol=1e-2, atol=1e-6)


def test_a_dry_run_says_what_would_be_read(config: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    import yaml

    from rtk.retrieval.cli.main import run

    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(SystemExit) as stopped:
        run(["train", str(tmp_path / "c.yaml"), "--dry-run"])
    assert stopped.value.code == 0
    assert "81 documents" in capsys.readouterr().out
    assert not Path(config["output"]).exists()


# --- training ---


@pytest.fixture
def config(corpus: Path, tiny_models: Path, tmp_path: Path) -> dict[str, Any]:
    return {
        "method": "contriever",
        "model": str(tiny_models / "dense"),
        "data": {"collection": str(corpus)},
        "sampling": {"chunk_length": 16, "ratio_min": 0.2},
        "loss": [{"name": "moco", "queue_size": 24, "momentum": 0.9}],
        "drop_normalisation": True,
        "trainer": {
            **{"per_device_train_batch_size": 8, "learning_rate": 1e-3, "max_steps": 8, "warmup_steps": 0},
            **{"use_cpu": True, "save_steps": 4, "logging_steps": 1},
        },
        "output": str(tmp_path / "model"),
    }


def train(config: dict[str, Any], *overrides: str) -> Path:
    from rtk.retrieval.training.config import load_config
    from rtk.retrieval.training.trainer import train as run

    return run(load_config(config, overrides))


def state(output: Path) -> dict[str, torch.Tensor]:
    """The model's weights and those of the loss in the last checkpoint."""
    from safetensors.torch import load_file

    last = max((output / "checkpoints").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    loss = load_file(last / "loss.safetensors") if (last / "loss.safetensors").is_file() else {}
    return load_file(output / "model.safetensors") | {f"loss.{name}": value for name, value in loss.items()}


def test_pre_training_writes_a_model_with_free_lengths_and_says_what_it_did(config: dict[str, Any]):
    from sentence_transformers import SentenceTransformer

    output = train(config)
    record = json.loads((output / "rtk-run.json").read_text())
    assert record["score"]["similarity"] == "dot"
    assert record["data"][0]["documents"] == 81
    model = SentenceTransformer(str(output), device="cpu")
    assert model.similarity_fn_name == "dot"
    lengths = torch.as_tensor(model.encode(["file", "cell gene study"])).norm(dim=1)
    assert (lengths - 1).abs().max() > 0.05
    log = json.loads((output / "checkpoints" / "checkpoint-8" / "trainer_state.json").read_text())["log_history"]
    assert all(0 <= entry["accuracy"] <= 1 for entry in log if "loss" in entry)


def test_the_best_checkpoint_on_dev_is_kept(config: dict[str, Any]):
    evaluation = {"collection": config["data"]["collection"], "split": "dev", "every": 4, "measure": "RR@100"}
    output = train({**config, "evaluation": evaluation})
    record = json.loads((output / "rtk-run.json").read_text())
    assert [entry["step"] for entry in record["evaluations"]] == [0, 4, 8]
    assert record["best"] == max(entry["RR@100"] for entry in record["evaluations"][1:])


def test_pre_training_learns_to_tell_its_own_key_from_others(config: dict[str, Any]):
    config["trainer"] |= {"max_steps": 120, "save_steps": 120, "logging_steps": 30, "lr_scheduler_type": "constant"}
    config["sampling"] = {"chunk_length": 30, "ratio_min": 0.3}
    output = train(config, "drop_normalisation=false")
    log = json.loads((output / "checkpoints" / "checkpoint-120" / "trainer_state.json").read_text())["log_history"]
    found = [entry["accuracy"] for entry in log if "accuracy" in entry]
    assert found[-1] > 2 * found[0]


@pytest.mark.parametrize("loss", ["moco", "infonce"])
def test_resumed_equals_uninterrupted_bit_for_bit(config: dict[str, Any], loss: str, interrupted: Callable[..., None]):
    if loss == "infonce":
        config["loss"] = [{"name": "infonce", "similarity": "dot", "scale": 20}]
    config["trainer"]["max_steps"] = 10
    whole = state(train({**config, "output": config["output"] + "-whole"}))
    interrupted(config, 6)
    halves = state(train(config))
    assert halves.keys() == whole.keys()
    assert ("loss.queue" in whole) == (loss == "moco")
    assert all(torch.equal(value, whole[name]) for name, value in halves.items())


def test_several_collections_are_drawn_from(config: dict[str, Any], beir_folder: Callable[..., Path]):
    lines = [{"_id": f"e{number}", "title": "", "text": "air heat flow wing " * 20} for number in range(5)]
    other = beir_folder("other", corpus=lines)
    parts = [{"collection": config["data"]["collection"]}, {"collection": str(other)}]
    output = train({**config, "data": {"mixture": parts}}, "trainer.max_steps=2", "sampling.size_exponent=0.5")
    assert [part["documents"] for part in json.loads((output / "rtk-run.json").read_text())["data"]] == [81, 5]


def test_a_batch_that_is_no_number_names_its_documents(config: dict[str, Any], tmp_path: Path):
    from safetensors.torch import load_file, save_file

    from rtk.errors import BackendError

    broken = tmp_path / "broken"
    shutil.copytree(config["model"], broken)
    values = load_file(broken / "model.safetensors")
    values["embeddings.word_embeddings.weight"][:] = float("nan")
    save_file(values, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BackendError, match=r"at step 1 \(batch 0\).* queries: d\d+, d\d+"):
        train({**config, "model": str(broken)})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": [{"name": "moco", "queue_size": 20}]}, "20 is no multiple of the batch over all processes, 8; 16"),
        ({"sampling": {"chunk_length": 140, "ratio_max": 1}}, "up to 142 tokens .* reads 128"),
        ({"sampling": {"ratio_min": 0.9}}, "ratio_min 0.9 is above"),
        ({"lengths": {"query": 8}}, "leave lengths out"),
        ({"loss": ["margin-mse"]}, "take moco or infonce"),
        ({"data": {"collection": "x", "runs": {"negatives": __file__}}}, "data.runs: this method reads documents only"),
        ({"method": "contrastive", "sampling": {}}, "'moco' goes with method contriever"),
    ],
    ids=["queue", "length", "ratios", "lengths", "loss", "runs", "method"],
)
def test_what_does_not_fit_is_refused(config: dict[str, Any], changes: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        train(config | changes)


def test_normalisation_that_is_not_there_cannot_be_dropped(config: dict[str, Any], tiny_models: Path):
    with pytest.raises(ConfigError, match="ends with Pooling"):
        train({**config, "model": str(tiny_models / "bert")})


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["moco", "infonce"])
def test_two_processes_end_where_one_does(
    train_on_ranks: Callable[..., list[Path]],
    without_dropout: Callable[[str | Path], Path],
    config: dict[str, Any],
    loss: str,
):
    config["model"] = str(without_dropout(config["model"]))
    if loss == "infonce":
        config["loss"] = [{"name": "infonce", "similarity": "dot", "scale": 20}]
    states = [state(output) for output in train_on_ranks(config, 8, learning_rate=0.01, max_steps=4)]
    one, two = states
    assert one.keys() == two.keys()
    for name, value in two.items():
        torch.testing.assert_close(value, one[name], rtol=1e-4, atol=1e-5)
