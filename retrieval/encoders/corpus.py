"""Encoding a corpus into vector shards: in this process, one process a device, or as part of a job array.

No batch crosses a shard, so a shard's vectors are a pure function of its texts, whoever makes it.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ...errors import BackendError, ConfigError, RtkError
from ...indexes.vectors import Shard, Writer
from ...progress import task
from .base import Encoder, Vectors

__all__ = [
    "DeviceExecutor",
    "OpenDocuments",
    "Part",
    "Texts",
    "array_part",
    "encode_range",
    "encode_shards",
    "shard_encoding",
]

_WAIT = 1.0  # seconds between looks at whether a silent process is still alive


class Texts(Protocol):
    """A corpus that gives its texts by rows (`rtk.eval.Documents` is one)."""

    def __len__(self) -> int: ...

    def texts(self, rows: slice, /) -> Sequence[str]: ...


class Source(Protocol):
    """How a process gets its own encoder; `EncoderSource` is one."""

    def load(self, *, device: str | None = None) -> Encoder: ...


def encode_range(encoder: Encoder, documents: Texts, start: int, stop: int) -> Vectors:
    """Vectors of rows start:stop, (stop - start, dim): a pure function of these texts."""
    return encoder.encode_document(documents.texts(slice(start, stop)))


def shard_encoding(encoder: Encoder, documents: Texts) -> Callable[[int, int], Any]:
    """`encode(start, stop)` as `rtk.indexes.build_dense` and `build_sparse` call it for every missing shard."""

    def encode(start: int, stop: int) -> Vectors:
        return encode_range(encoder, documents, start, stop)

    return encode


def encode_shards(
    encoder: Encoder,
    documents: Texts,
    writer: Writer,
    shards: Sequence[Shard],
    *,
    advance: Callable[[int], object] = lambda rows: None,
) -> None:
    """Encode shards one after another and write each as soon as it is there."""
    for shard in shards:
        writer.write(shard, encode_range(encoder, documents, shard.start, shard.stop))
        advance(len(shard))


@dataclass(frozen=True)
class Part:
    """One of `count` tasks that share a list of shards: task `number` takes every count-th."""

    number: int
    count: int

    def __post_init__(self) -> None:
        if not 0 <= self.number < self.count:
            raise ConfigError(f"part {self.number} of {self.count}: expected a number from 0 to {self.count - 1}")

    def of(self, shards: Sequence[Shard]) -> list[Shard]:
        """The shards of this task. By shard number, so that tasks agree even if some shards are there already."""
        return [shard for shard in shards if shard.number % self.count == self.number]


def array_part(environment: Mapping[str, str] | None = None) -> Part | None:
    """The part that torchrun (RANK, WORLD_SIZE) or a SLURM job array gives this process; None outside both."""
    known = os.environ if environment is None else environment
    if "WORLD_SIZE" in known:
        return Part(int(known["RANK"]), int(known["WORLD_SIZE"]))
    if "SLURM_ARRAY_TASK_COUNT" in known:
        first = int(known.get("SLURM_ARRAY_TASK_MIN", "0"))
        return Part(int(known["SLURM_ARRAY_TASK_ID"]) - first, int(known["SLURM_ARRAY_TASK_COUNT"]))
    return None


@dataclass(frozen=True)
class OpenDocuments:
    """Opens the documents of a collection; picklable, so that each process can."""

    collection: str

    def __call__(self) -> Texts:
        from ...eval import open_collection

        return open_collection(self.collection).documents


@dataclass(frozen=True)
class DeviceExecutor:
    """Runs the missing shards of an index build on several devices, one process each (a build plan's `executor`).

    Attributes:
        source: how each process loads its encoder.
        documents: opens the corpus; called in each process, so it must be picklable (`OpenDocuments`).
        devices: "cuda:0", "cuda:1", …; a device that stands twice gets two processes.
    """

    source: Source
    documents: Callable[[], Texts]
    devices: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.devices:
            raise ConfigError("no devices to encode on; expected at least one, such as 'cpu' or 'cuda:0'")

    def __call__(self, writer: Writer, missing: Sequence[Shard]) -> None:
        """Write all of `missing`.

        Raises:
            BackendError: a process failed; shards that are written stay, and the others can be made by a next call.
        """
        context = multiprocessing.get_context("spawn")
        messages: Any = context.Queue()
        works = [list(missing[number :: len(self.devices)]) for number in range(len(self.devices))]
        processes = [
            context.Process(target=_work, args=(self, device, writer, work, messages), daemon=True)
            for device, work in zip(self.devices, works, strict=True)
            if work
        ]
        for process in processes:
            process.start()
        try:
            self._wait(processes, messages, sum(map(len, missing)))
        finally:
            for process in processes:
                process.terminate()
                process.join()

    def _wait(self, processes: Sequence[Any], messages: Any, rows: int) -> None:
        running = len(processes)
        with task("encode", rows) as advance:
            while running:
                try:
                    message = messages.get(timeout=_WAIT)
                except queue.Empty:
                    died = [process for process in processes if process.exitcode not in (None, 0)]
                    if died:
                        raise BackendError(
                            f"an encoding process ended with exit code {died[0].exitcode}; run the same command again "
                            "to go on from the shards that are written"
                        ) from None
                    continue
                if isinstance(message, str):
                    raise BackendError(message)
                if message is None:
                    running -= 1
                else:
                    advance(message)


def _work(executor: DeviceExecutor, device: str, writer: Writer, shards: Sequence[Shard], messages: Any) -> None:
    """One process: sends rows done, None at the end, or a string saying what failed."""
    try:
        encoder = executor.source.load(device=device)
        encode_shards(encoder, executor.documents(), writer, shards, advance=messages.put)
    except (RtkError, OSError, RuntimeError, ValueError) as error:
        messages.put(f"encoding on {device} failed: {type(error).__name__}: {error}")
    else:
        messages.put(None)
