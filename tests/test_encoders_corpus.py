"""Corpus encoding: shards, devices, job arrays."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtk.errors import BackendError, ConfigError
from rtk.indexes.vectors import ShardWriter, VectorShards, fixed_shards
from rtk.retrieval.encoders import as_encoder, load_encoder
from rtk.retrieval.encoders.corpus import DeviceExecutor, OpenDocuments, Part, array_part, encode_shards, shard_encoding
from rtk.retrieval.encoders.load import EncoderSource

WORDS = ["cell", "gene", "protein", "list", "file", "sort", "merge", "wing", "flow", "heat"]


class _Texts(list[str]):
    def texts(self, rows: slice, /) -> Sequence[str]:
        return self[rows]


def make_texts(count: int) -> _Texts:
    return _Texts(" ".join(WORDS[(i * k) % 10] for k in range(1 + i % 7)) for i in range(count))


def test_shards_are_encoded_by_themselves(tiny_dense: Any, tmp_path: Path) -> None:
    encoder, documents = as_encoder(tiny_dense), make_texts(25)
    writer, shards = ShardWriter(tmp_path / "vectors"), fixed_shards(25, 10)
    done: list[int] = []
    encode_shards(encoder, documents, writer, shards, advance=done.append)
    assert done == [10, 10, 5]
    stored = VectorShards.open(tmp_path / "vectors", "float32").rows(np.arange(25))
    np.testing.assert_allclose(stored, tiny_dense.encode(documents), atol=1e-5)
    assert np.array_equal(stored[10:20], shard_encoding(encoder, documents)(10, 20))  # bit for bit


def test_bfloat16_storage_keeps_its_precision(tiny_dense: Any, tmp_path: Path) -> None:
    documents = make_texts(8)
    writer = ShardWriter(tmp_path / "vectors", "bfloat16")
    encode_shards(as_encoder(tiny_dense), documents, writer, fixed_shards(8, 8))
    stored = VectorShards.open(tmp_path / "vectors", "bfloat16").rows(np.arange(8))
    np.testing.assert_allclose(stored, tiny_dense.encode(documents), rtol=2**-8)
    assert (tmp_path / "vectors" / "00000.npy").stat().st_size < 8 * 32 * 2 + 200


@pytest.mark.slow
def test_a_process_of_a_device_writes_the_same_shards(tiny_models: Path, tmp_path: Path) -> None:
    """A new process, as users have it; two of them share the shards in tests/test_cli.py."""
    texts = make_texts(30)
    lines = [json.dumps({"_id": str(row), "title": "", "text": text}) for row, text in enumerate(texts)]
    (tmp_path / "corpus.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "queries.jsonl").write_text('{"_id": "q", "text": "gene"}\n')
    writer, shards = ShardWriter(tmp_path / "vectors"), fixed_shards(30, 8)
    source = EncoderSource(str(tiny_models / "dense"))
    DeviceExecutor(source, OpenDocuments(str(tmp_path)), ("cpu",))(writer, shards)
    assert writer.missing(shards) == []
    expected = load_encoder(tiny_models / "dense", device="cpu").encode_document(texts)
    np.testing.assert_allclose(VectorShards.open(writer.folder, "float32").rows(np.arange(30)), expected, atol=1e-5)


@pytest.mark.slow
def test_a_failing_process_is_reported(
    tiny_models: Path, tmp_path: Path, forked: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rtk.retrieval.encoders.corpus.multiprocessing.get_context", lambda _: forked)
    source = EncoderSource(str(tiny_models / "nothing"))
    executor = DeviceExecutor(source, OpenDocuments(str(tmp_path)), ("cpu",))
    with pytest.raises(BackendError, match="encoding on cpu failed: ConfigError: no encoder at"):
        executor(ShardWriter(tmp_path / "vectors"), fixed_shards(9, 9))


def test_no_devices_are_refused() -> None:
    with pytest.raises(ConfigError, match="no devices"):
        DeviceExecutor(EncoderSource("minilm"), OpenDocuments("pydocs"), ())


def test_parts_cover_every_shard_once() -> None:
    shards = fixed_shards(100, 7)
    parts = [Part(number, 4).of(shards) for number in range(4)]
    assert sorted(shard.number for part in parts for shard in part) == list(range(len(shards)))
    assert Part(1, 4).of(shards[3:]) == [shard for shard in parts[1] if shard.number >= 3]
    with pytest.raises(ConfigError, match="0 to 3"):
        Part(4, 4)


@pytest.mark.parametrize(("environment", "expected"), [
    ({}, None),
    ({"RANK": "2", "WORLD_SIZE": "4"}, Part(2, 4)),
    ({"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_COUNT": "3", "SLURM_ARRAY_TASK_MIN": "4"}, Part(1, 3)),
])  # fmt: skip
def test_the_environment_says_which_part(environment: dict[str, str], expected: Part | None) -> None:
    assert array_part(environment) == expected
