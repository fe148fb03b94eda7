"""ONNX Runtime in place of torch: the same vectors, 8 bits near to them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rtk.errors import ConfigError, MissingExtra
from rtk.retrieval.encoders import load_encoder, onnx_runtime

TEXTS = ["gene", "", "the cell and the protein of a gene, for a study on cancer risk", "wing flow " * 60]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for the module: exporting takes seconds."""
    return tmp_path_factory.mktemp("onnx-cache")


@pytest.fixture(autouse=True)
def _use_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    monkeypatch.setenv("RTK_CACHE", str(cache))


@pytest.mark.slow
def test_onnx_equals_torch_and_is_exported_once(tiny_models: Path, cache: Path) -> None:
    torch_encoder = load_encoder(tiny_models / "dense", device="cpu")
    encoder = load_encoder(tiny_models / "dense", device="cpu", backend="onnx")
    expected = torch_encoder.encode_document(TEXTS)
    np.testing.assert_allclose(encoder.encode_document(TEXTS), expected, atol=1e-5)
    assert torch_encoder.identity.differences(encoder.identity) == []
    (file,) = (cache / "onnx").glob("*.onnx")
    stamp = file.stat().st_mtime_ns
    load_encoder(tiny_models / "dense", device="cpu", backend="onnx")
    assert file.stat().st_mtime_ns == stamp


def test_without_the_extra_the_message_names_it(tiny_models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(module: str, extra: str, purpose: str) -> None:
        raise MissingExtra(f"{purpose} needs {module!r}")

    monkeypatch.setattr(onnx_runtime, "require", missing)
    with pytest.raises(MissingExtra, match="ONNX Runtime needs 'onnx'"):
        load_encoder(tiny_models / "dense", device="cpu", backend="onnx")


def test_what_onnx_cannot_do_is_refused(tiny_models: Path) -> None:
    with pytest.raises(ConfigError, match="leave dtype='bfloat16' out"):
        load_encoder(tiny_models / "dense", backend="onnx", dtype="bfloat16")
    with pytest.raises(ConfigError, match="last hidden state"):
        load_encoder(tiny_models / "sparse", device="cpu", backend="onnx")
