"""Building: resuming, killing, locking, replacing, full disks, broken folders."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.sparse import csr_matrix, load_npz

from rtk.errors import BackendError, ConfigError, DataError, IndexMismatch, OutputExists
from rtk.ids import Ids
from rtk.indexes import (
    BuildPlan,
    Shard,
    ShardWriter,
    SparseShards,
    VectorShards,
    build_dense,
    build_lexical,
    build_sparse,
    open_index,
    parse_backend,
    read_manifest,
)
from rtk.indexes.folder import lock

COUNT, DIMENSION = 1000, 12
IDS = Ids([f"d{row}" for row in range(COUNT)])
VECTORS = np.random.default_rng(0).standard_normal((COUNT, DIMENSION)).astype(np.float32)
SPARSE = ("exact",)


def encode(start: int, stop: int) -> np.ndarray:
    return VECTORS[start:stop]


def encode_sparse(start: int, stop: int) -> csr_matrix:
    return csr_matrix(np.maximum(VECTORS[start:stop], 0))


def plan(backend: str = "torch", **changes: Any) -> BuildPlan:
    return BuildPlan(parse_backend(backend), **{"shard_size": 100, **changes})


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class InterruptedBuildError(Exception):
    """Stands for a process that ends."""


def interrupted_after(shards: int, vectors: Any = encode) -> Any:
    def run(start: int, stop: int) -> Any:
        if start >= 100 * shards:
            raise InterruptedBuildError
        return vectors(start, stop)

    return run


@pytest.mark.parametrize("backend", ["torch", "faiss:Flat", "faiss:IVF8,Flat", "exact"])
def test_resumed_equals_undisturbed_and_finished_shards_are_not_encoded_again(backend: str, tmp_path: Path) -> None:
    build: Any = build_sparse if backend in SPARSE else build_dense
    vectors: Any = encode_sparse if backend in SPARSE else encode
    build(tmp_path / "whole", IDS, vectors, plan=plan(backend))
    with pytest.raises(InterruptedBuildError):
        build(tmp_path / "cut", IDS, interrupted_after(4, vectors), plan=plan(backend))
    seen: list[int] = []

    def rest(start: int, stop: int) -> Any:
        seen.append(start)
        return vectors(start, stop)

    build(tmp_path / "cut", IDS, rest, plan=plan(backend))
    assert seen == list(range(400, 1000, 100))
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_another_plan_is_refused_with_what_differs(tmp_path: Path) -> None:
    with pytest.raises(InterruptedBuildError):
        build_dense(tmp_path / "index", IDS, interrupted_after(4), plan=plan(encoder={"name": "a"}))
    with pytest.raises(ConfigError) as caught:
        build_dense(tmp_path / "index", IDS, encode, plan=plan(encoder={"name": "b"}, dtype="float16"))
    assert caught.value.problems == (
        "dtype: it has 'float32', now 'float16'",
        "encoder.name: it has 'a', now 'b'",
    )
    other = build_dense(tmp_path / "index", IDS, encode, plan=plan(dtype="float16", overwrite=True))
    assert len(other.ids) == COUNT
    assert read_manifest(tmp_path / "index").dtype == "float16"


def test_an_unfinished_index_says_so_and_a_foreign_folder_too(tmp_path: Path) -> None:
    with pytest.raises(InterruptedBuildError):
        build_dense(tmp_path / "cut", IDS, interrupted_after(4), plan=plan())
    with pytest.raises(DataError, match="run the same command again to resume"):
        open_index(tmp_path / "cut")
    (tmp_path / "foreign").mkdir()
    with pytest.raises(DataError, match="not an index"):
        open_index(tmp_path / "foreign")
    with pytest.raises(DataError, match="no such index folder"):
        open_index(tmp_path / "nothing")


def test_what_is_there_is_kept_unless_it_is_ours_to_replace(tmp_path: Path) -> None:
    build_dense(tmp_path / "index", IDS, encode, plan=plan())
    with pytest.raises(OutputExists):
        build_dense(tmp_path / "index", IDS, encode, plan=plan())
    precious = tmp_path / "thesis"
    precious.mkdir()
    (precious / "chapter.txt").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(ConfigError):
            build_dense(precious, IDS, encode, plan=plan(overwrite=overwrite))
    assert contents(precious) == {"chapter.txt": b"years of work"}


def test_a_reader_sees_the_old_index_until_the_new_one_is_whole(tmp_path: Path) -> None:
    out = tmp_path / "index"
    build_dense(out, IDS, encode, plan=plan())
    reader = open_index(out)
    before = reader.search(VECTORS[:3], 5)

    def watched(start: int, stop: int) -> np.ndarray:
        assert len(open_index(out).ids) == COUNT
        return -encode(start, stop)[: stop - start]

    build_dense(out, IDS, watched, plan=plan(overwrite=True))
    np.testing.assert_array_equal(reader.search(VECTORS[:3], 5).rows, before.rows)
    assert open_index(out).search(VECTORS[:3], 5).rows[0, 0] != before.rows[0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


def test_an_interrupted_replacement_leaves_the_old_index_and_resumes(tmp_path: Path) -> None:
    out = tmp_path / "index"
    build_dense(out, IDS, encode, plan=plan())
    with pytest.raises(InterruptedBuildError):
        build_dense(out, IDS, interrupted_after(3), plan=plan(dtype="float16", overwrite=True))
    assert read_manifest(out).dtype == "float32"
    seen: list[int] = []

    def rest(start: int, stop: int) -> np.ndarray:
        seen.append(start)
        return encode(start, stop)

    build_dense(out, IDS, rest, plan=plan(dtype="float16", overwrite=True))
    assert seen[0] == 300
    assert read_manifest(out).dtype == "float16"


def test_two_builders_at_once(tmp_path: Path) -> None:
    with lock(tmp_path / "index"), pytest.raises(ConfigError, match="another process"):
        build_dense(tmp_path / "index", IDS, encode, plan=plan())
    build_dense(tmp_path / "index", IDS, encode, plan=plan())


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EDQUOT, "quota")])
def test_full_disk_says_what_is_kept(error: OSError, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = ShardWriter.write

    def full(self: ShardWriter, shard: Shard, vectors: np.ndarray) -> None:
        if shard.number == 3:
            raise error
        write(self, shard, vectors)

    monkeypatch.setattr(ShardWriter, "write", full)
    with pytest.raises(BackendError, match=r"3 of 10 vector shards.*same command again"):
        build_dense(tmp_path / "index", IDS, encode, plan=plan())
    monkeypatch.undo()
    assert len(build_dense(tmp_path / "index", IDS, encode, plan=plan()).ids) == COUNT


def test_a_really_full_disk_is_an_oserror_with_its_number() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full here")
    with open("/dev/full", "wb", buffering=0) as handle, pytest.raises(OSError, match="No space") as caught:
        handle.write(np.zeros(10).data)
    assert caught.value.errno == errno.ENOSPC


def test_bad_vectors_name_the_row(tmp_path: Path) -> None:
    broken = VECTORS.copy()
    broken[123, 4] = np.nan
    with pytest.raises(DataError, match="row 123"):
        build_dense(tmp_path / "nan", IDS, lambda start, stop: broken[start:stop], plan=plan())
    with pytest.raises(DataError, match="one vector for each document"):
        build_dense(tmp_path / "short", IDS, lambda start, stop: broken[start : stop - 1], plan=plan())


def test_altered_and_missing_files_are_named(tmp_path: Path) -> None:
    build_dense(tmp_path / "index", IDS, encode, plan=plan())
    shard = tmp_path / "index" / "vectors" / "00003.npy"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    open_index(tmp_path / "index")
    with pytest.raises(IndexMismatch, match=r"00003\.npy.*sha256"):
        open_index(tmp_path / "index", verify=True)
    shard.write_bytes(data[:-8])
    with pytest.raises(IndexMismatch, match=r"00003\.npy.*cut short"):
        open_index(tmp_path / "index")
    shard.unlink()
    with pytest.raises(DataError, match=r"00003\.npy.*missing"):
        open_index(tmp_path / "index")


@pytest.mark.parametrize(
    ("change", "message"),
    [({"format": 99}, "update rtk"), ({"surprise": 1}, "surprise"), ({"count": "many"}, "count")],
)
def test_manifests_of_others_are_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    build_dense(tmp_path / "index", IDS, encode, plan=plan())
    path = tmp_path / "index" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(DataError, match=message):
        open_index(tmp_path / "index")


def test_an_executor_runs_the_missing_shards_in_any_order(tmp_path: Path) -> None:
    def backwards(writer: ShardWriter, missing: Sequence[Shard]) -> None:
        for shard in reversed(missing):
            writer.write(shard, encode(shard.start, shard.stop))

    build_dense(tmp_path / "one", IDS, encode, plan=plan())
    build_dense(tmp_path / "two", IDS, encode, plan=plan(executor=backwards))
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    with pytest.raises(BackendError, match="not written"):
        build_dense(tmp_path / "three", IDS, encode, plan=plan(executor=lambda writer, missing: None))


def test_the_reader_opens_again_when_the_index_is_replaced_under_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "index"
    build_dense(out, IDS, encode, plan=plan())
    build_dense(tmp_path / "other", IDS[:50], encode, plan=plan())
    from rtk.indexes import registry

    real, calls = registry.check_files, []

    def replaced_in_between(*arguments: Any, **named: Any) -> None:
        if not calls:
            shutil.rmtree(out)
            shutil.copytree(tmp_path / "other", out)
        calls.append(1)
        real(*arguments, **named)

    monkeypatch.setattr(registry, "check_files", replaced_in_between)
    assert len(open_index(out).ids) == 50


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_stored_dtypes_round_trip(dtype: str, tmp_path: Path) -> None:
    import torch

    index = build_dense(tmp_path / "index", IDS, encode, plan=plan(dtype=dtype))
    expected = torch.from_numpy(VECTORS).to(getattr(torch, dtype)).float().numpy()
    np.testing.assert_array_equal(index.vectors(np.arange(COUNT)), expected)  # type: ignore[attr-defined]
    shards = VectorShards.open(tmp_path / "index" / "vectors", dtype)  # type: ignore[arg-type]
    blocks = list(shards.blocks(64))
    np.testing.assert_array_equal(np.concatenate([block for _, block in blocks]), expected)
    assert all(len(block) <= 64 for _, block in blocks)
    assert [start for start, _ in blocks][:3] == [0, 64, 100]


def test_sparse_shards_are_mapped_and_scipy_reads_them(tmp_path: Path) -> None:
    kept = plan("exact", keep_vectors=True)
    build_sparse(tmp_path / "index", IDS, encode_sparse, plan=kept)
    shards = SparseShards.open(tmp_path / "index" / "vectors")
    assert len(shards) == COUNT
    assert (load_npz(tmp_path / "index" / "vectors" / "00003.npz") != encode_sparse(300, 400)).nnz == 0
    wanted = [999, 3, 120, 3]
    assert (shards.rows(wanted) != encode_sparse(0, COUNT)[wanted]).nnz == 0
    part = shards.parts[3]
    assert isinstance(part.data.base, np.memmap) or isinstance(part.data.base.base, np.memmap)
    assert part.data.ctypes.data % 64 == 0


KILLED = """
import sys, time
import numpy as np
from rtk.ids import Ids
from scipy.sparse import csr_matrix
from rtk.indexes import BuildPlan, build_dense, build_lexical, build_sparse, parse_backend
backend, out = sys.argv[1:]
ids = Ids([f"d{row}" for row in range(1000)])
vectors = np.random.default_rng(0).standard_normal((1000, 12)).astype(np.float32)
plan = BuildPlan(parse_backend(backend), shard_size=100)
print("ready", flush=True)
def encode(start, stop):
    time.sleep(0.03)
    return vectors[start:stop]
def texts(start, stop):
    time.sleep(0.03)
    return [f"word{row} word{row % 7} common" for row in range(start, stop)]
if backend in ("bm25s", "lucene"):
    build_lexical(out, ids, texts, plan=plan)
elif backend == "exact":
    build_sparse(out, ids, lambda start, stop: csr_matrix(np.maximum(encode(start, stop), 0)), plan=plan)
else:
    build_dense(out, ids, encode, plan=plan)
"""


def run_and_kill(backend: str, out: Path, after: float) -> None:
    """Start a builder and kill it `after` seconds into its work."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, backend, str(out)], stdout=subprocess.PIPE, cwd=out.parent, env=environment
    )
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(after)
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_a_builder_killed_at_its_first_file_leaves_no_obstacle(tmp_path: Path) -> None:
    """Before building.json has its name, only what was to become it lies there."""
    build_dense(tmp_path / "whole", IDS, encode, plan=plan("torch"))
    out = tmp_path / "cut"
    out.mkdir()
    (out / ".4711.tmp.building.json").write_text('{"kind": "de')
    (out / "building.lock").touch()
    build_dense(out, IDS, encode, plan=plan("torch"))
    assert contents(out) == contents(tmp_path / "whole")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / ".notes.json").touch()
    with pytest.raises(OutputExists):
        build_dense(tmp_path / "mine", IDS, encode, plan=plan("torch"))


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["faiss:IVF8,Flat", "torch", "bm25s", "exact"])
def test_kill_9_at_any_moment_and_run_again(backend: str, tmp_path: Path) -> None:
    def texts(start: int, stop: int) -> list[str]:
        return [f"word{row} word{row % 7} common" for row in range(start, stop)]

    def build(out: Path) -> None:
        if backend == "bm25s":
            build_lexical(out, IDS, texts, plan=plan(backend))
        elif backend in SPARSE:
            build_sparse(out, IDS, encode_sparse, plan=plan(backend))
        else:
            build_dense(out, IDS, encode, plan=plan(backend))

    build(tmp_path / "whole")
    expected = contents(tmp_path / "whole")
    for number, after in enumerate((0.02, 0.2, 0.36, 0.5)):
        out = tmp_path / f"cut{number}"
        run_and_kill(backend, out, after)
        if not (out / "manifest.json").exists() or (out / "building.json").exists():
            build(out)  # the lock of the killed builder is free
        found = contents(out)
        found.pop("building.lock", None)
        assert found == expected
