"""Model soup: averages, their record, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from rtk.errors import ConfigError, OutputExists
from rtk.retrieval.training.soup import SOUP_FILE, make_soup


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def changed(source: Path, target: Path, seed: int, dtype: torch.dtype = torch.float32) -> Path:
    """A copy of a model with other parameters."""
    shutil.copytree(source, target)
    generator = torch.Generator().manual_seed(seed)
    values = {
        name: (value + torch.randn(value.shape, generator=generator)).to(dtype) if value.is_floating_point() else value
        for name, value in weights(source).items()
    }
    save_file(values, target / "model.safetensors", metadata={"format": "pt"})
    return target


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def edit(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize("given", [None, [1, 2, 4]])
def test_a_soup_of_equal_models_is_the_model_bit_for_bit(tiny_models: Path, tmp_path: Path, given: list | None):
    model = changed(tiny_models / "dense", tmp_path / "a", seed=1)
    soup = make_soup([model] * 3, tmp_path / "soup", weights=given)
    expected = weights(model)
    assert weights(soup).keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in weights(soup).items())


def test_negative_zeros_that_all_models_share_stay_so(tiny_models: Path, tmp_path: Path):
    """A frozen document side has -0.0 in places; its fingerprint is over bytes, and must not change in a soup."""
    parts = [changed(tiny_models / "dense", tmp_path / name, seed) for seed, name in enumerate("ab")]
    name = next(name for name, value in weights(parts[0]).items() if value.is_floating_point() and value.ndim == 2)
    for part in parts:
        tensors = weights(part)
        tensors[name][0] = -0.0
        save_file(tensors, part / "model.safetensors", metadata={"format": "pt"})
    soup = weights(make_soup(parts, tmp_path / "soup"))
    assert torch.signbit(soup[name][0]).all()
    assert not torch.equal(soup[name][1], weights(parts[0])[name][1])


@pytest.mark.parametrize("given", [None, [1, 3]])
def test_parameters_are_averaged_by_weight(tiny_models: Path, tmp_path: Path, given: list | None):
    parts = [changed(tiny_models / "dense", tmp_path / name, seed) for seed, name in enumerate("ab")]
    soup = weights(make_soup(parts, tmp_path / "soup", weights=given))
    share = 0.5 if given is None else 0.25
    first, second = map(weights, parts)
    for name, value in soup.items():
        if value.is_floating_point():
            expected = share * first[name].double() + (1 - share) * second[name].double()
            torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6)


def test_low_precision_is_averaged_in_float32(tiny_models: Path, tmp_path: Path):
    parts = [changed(tiny_models / "dense", tmp_path / name, seed, torch.bfloat16) for seed, name in enumerate("abc")]
    soup = weights(make_soup(parts, tmp_path / "soup"))
    name = next(name for name, value in soup.items() if value.is_floating_point())
    assert soup[name].dtype == torch.bfloat16
    expected = torch.stack([weights(part)[name].double() for part in parts]).mean(dim=0)
    assert ((soup[name].double() - expected).abs() <= expected.abs() * 2**-8 + 1e-6).all()


@pytest.mark.parametrize("kind", ["dense", "sparse", "multi_vector", "cross_encoder"])
def test_the_folder_is_complete_and_loads(tiny_models: Path, tmp_path: Path, kind: str):
    import sentence_transformers

    names = {"dense": "SentenceTransformer", "sparse": "SparseEncoder", "multi_vector": "MultiVectorEncoder"}
    soup = make_soup([tiny_models / kind, tiny_models / kind], tmp_path / "soup")
    load = getattr(sentence_transformers, names.get(kind, "CrossEncoder"))
    model, before = load(str(soup), device="cpu"), load(str(tiny_models / kind), device="cpu")
    assert all(torch.equal(value, before.state_dict()[name]) for name, value in model.state_dict().items())


def test_lengths_are_the_first_model_s(tiny_dense: Any, tmp_path: Path):
    from sentence_transformers import SentenceTransformer

    from rtk.retrieval.encoders.sides import keep_length

    for name, length in (("long", 64), ("short", 16)):
        keep_length(tiny_dense, "document", length)
        tiny_dense.save_pretrained(str(tmp_path / name), create_model_card=False)
    soup = SentenceTransformer(str(make_soup([tmp_path / "long", tmp_path / "short"], tmp_path / "soup")), device="cpu")
    assert soup[0].document_length == 64


def test_the_record_says_what_went_in(tiny_models: Path, tmp_path: Path):
    parts = [changed(tiny_models / "dense", tmp_path / name, seed) for seed, name in enumerate("ab")]
    record = json.loads((make_soup(parts, tmp_path / "soup", weights=[3, 1]) / SOUP_FILE).read_text())
    assert [item["weight"] for item in record["models"]] == [0.75, 0.25]
    assert [item["path"] for item in record["models"]] == [str(part) for part in parts]
    assert record["models"][0]["sha256"] != record["models"][1]["sha256"]


def test_files_of_a_training_stay_behind(tiny_models: Path, tmp_path: Path):
    model = changed(tiny_models / "dense", tmp_path / "a", seed=1)
    for name in ("optimizer.pt", "trainer_state.json", "loss.safetensors", "rtk-run.json", "rng_state.pth"):
        (model / name).write_bytes(b"x")
    (model / "checkpoints" / "checkpoint-1").mkdir(parents=True)
    (model / "checkpoints" / "checkpoint-1" / "model.safetensors").write_bytes(b"x")
    soup = make_soup([model, tiny_models / "dense"], tmp_path / "soup")
    left = {path.relative_to(soup).as_posix() for path in soup.rglob("*") if path.is_file()}
    there = {
        path.relative_to(tiny_models / "dense").as_posix()
        for path in (tiny_models / "dense").rglob("*")
        if path.is_file()
    }
    assert left == (there - {"README.md"}) | {SOUP_FILE}


def refused(first: Path, second: Path, tmp_path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        make_soup([first, second], tmp_path / "soup")
    assert not (tmp_path / "soup").exists()
    return str(caught.value)


def test_every_difference_is_named(tiny_models: Path, tmp_path: Path):
    first = tiny_models / "dense"
    other = changed(first, tmp_path / "other", seed=1)
    edit(other / "config.json", hidden_act="relu", _name_or_path="elsewhere")
    edit(other / "tokenizer_config.json", do_lower_case=False)
    values = weights(other)
    values["embeddings.word_embeddings.weight"] = values["embeddings.word_embeddings.weight"][:-1].contiguous()
    del values["embeddings.LayerNorm.bias"]
    save_file(values, other / "model.safetensors")
    text = refused(first, other, tmp_path)
    assert 'config.json: hidden_act is "relu", in the first "gelu"' in text
    assert "tokenizer_config.json: do_lower_case is false" in text
    assert "embeddings.word_embeddings.weight: shape" in text
    assert "embeddings.LayerNorm.bias: missing" in text
    assert "_name_or_path" not in text


def test_other_kinds_of_models_are_refused(tiny_models: Path, tmp_path: Path):
    assert "model_type" in refused(tiny_models / "dense", tiny_models / "sparse", tmp_path)


def test_integers_must_be_equal(tiny_models: Path, tmp_path: Path):
    parts = []
    for number in range(2):
        part = changed(tiny_models / "dense", tmp_path / str(number), seed=number)
        save_file(weights(part) | {"counter": torch.tensor([number])}, part / "model.safetensors")
        parts.append(part)
    assert "counter: integers differ" in refused(*parts, tmp_path)


def test_precisions_must_be_equal(tiny_models: Path, tmp_path: Path):
    other = changed(tiny_models / "dense", tmp_path / "a", 1, torch.float16)
    assert "F16, in the first F32" in refused(tiny_models / "dense", other, tmp_path)


@pytest.mark.parametrize(
    ("file", "message"),
    [("adapter_config.json", "adapter"), ("pytorch_model.bin", "pickle")],
    ids=["adapter", "pickle"],
)
def test_adapters_and_pickles_are_refused(tiny_models: Path, tmp_path: Path, file: str, message: str):
    other = changed(tiny_models / "dense", tmp_path / "a", 1)
    (other / file).write_text("{}")
    assert message in refused(tiny_models / "dense", other, tmp_path)


@pytest.mark.parametrize("given", [[1], [1, 0], [1, float("nan")], [1, 1, 1]])
def test_bad_weights_are_refused(tiny_models: Path, tmp_path: Path, given: list):
    with pytest.raises(ConfigError, match="weights"):
        make_soup([tiny_models / "dense"] * 2, tmp_path / "soup", weights=given)


def test_one_model_is_no_soup_and_an_output_is_kept(tiny_models: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match="two models"):
        make_soup([tiny_models / "dense"], tmp_path / "soup")
    model = changed(tiny_models / "dense", tmp_path / "a", 1)
    make_soup([model, model], tmp_path / "soup")
    with pytest.raises(OutputExists):
        make_soup([model, model], tmp_path / "soup")
    make_soup([model, tiny_models / "dense"], tmp_path / "soup", overwrite=True)
    with pytest.raises(ConfigError, match="one of the models"):
        make_soup([model, tmp_path / "soup"], tmp_path / "soup", overwrite=True)


def test_the_verb(tiny_models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from rtk.retrieval.cli.main import run

    model = str(tiny_models / "dense")
    with pytest.raises(SystemExit) as stopped:
        run(["soup", model, model, "--weights", "1,3", "--out", str(tmp_path / "soup"), "--json"])
    assert stopped.value.code == 0
    assert [item["weight"] for item in json.loads(capsys.readouterr().out)["models"]] == [0.25, 0.75]
