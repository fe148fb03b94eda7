"""Building an index that can be killed at any moment: fixed shards, manifest last, the same plan resumes.

While an index is made, building.json holds the plan and the number of shards. A second run with an equal plan goes on
at the first missing shard; another plan is refused with the keys that differ.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy.sparse import csr_matrix

from ..errors import BackendError, ConfigError, DataError, IndexMismatch, OutputExists
from ..files import final_name, fsync_dir, read_json, write_json
from ..ids import Ids, ids_file
from ..progress import task
from . import folder as folders
from .base import Index
from .manifest import BUILDING, FORMAT, LOCK, Kind, Manifest, read_manifest, record_files
from .plan import BuildPlan, sequential
from .registry import find_backend, open_index
from .shards import Shards, VectorKind, open_shards, writer_for
from .sparse import SparseShards
from .sparsity import write_activity
from .vectors import Writer, fixed_shards

__all__ = ["build_dense", "build_lexical", "build_sparse", "describe", "prepare", "refuse_other_plan", "unfinished"]

logger = logging.getLogger(__name__)


def build_dense(out: str | Path, ids: Ids, encode: Callable[[int, int], np.ndarray], *, plan: BuildPlan) -> Index:
    """Build a dense index and open it.

    Args:
        out: the index folder.
        ids: row → document id.
        encode: gives the vectors of rows start:stop, (stop - start, dim); a pure function of the shard, so that a
            resumed build equals an undisturbed one bit for bit. Not called when the plan has an executor.
        plan: what to build.

    Raises:
        OutputExists: there is an index already and the plan does not overwrite.
        ConfigError: `out` holds a build of another plan, something else, or another process builds there.
        DataError: a document id occurs twice; vectors that are not finite or of the wrong shape.
        BackendError: the engine failed, or the disk is full; finished shards are kept and the same plan resumes.
    """
    return _build_vectors("dense", Path(out), ids, encode, plan)


def build_sparse(out: str | Path, ids: Ids, encode: Callable[[int, int], csr_matrix], *, plan: BuildPlan) -> Index:
    """Build a sparse index and open it.

    Args:
        out: the index folder.
        ids: row → document id.
        encode: gives the vectors of rows start:stop as a scipy CSR matrix (stop - start, vocabulary), weights not
            negative; a pure function of the shard. Not called when the plan has an executor.
        plan: what to build; its similarity is "dot" and its dtype "float32".

    Raises: as `build_dense`.
    """
    return _build_vectors("sparse", Path(out), ids, encode, plan)


def _build_vectors(kind: VectorKind, out: Path, ids: Ids, encode: Callable[[int, int], Any], plan: BuildPlan) -> Index:
    engine = find_backend(plan.backend, kind).load(kind)
    engine.read_settings(plan.settings)  # refuses what the engine cannot take before anything is encoded
    writer_for(kind, out, plan)  # and what this kind cannot be
    ids.refuse_duplicates("document")
    shards = fixed_shards(len(ids), plan.shard_size)
    with _start(out, plan, ids) as site:
        if not site.finished:
            writer = writer_for(kind, site.folder, plan)
            with _explain_full_disk(
                site.folder, lambda: f"{len(shards) - len(writer.missing(shards))} of {len(shards)} vector shards"
            ):
                _encode(writer, len(ids), encode, plan)
                vectors = open_shards(kind, site.folder, plan)
                if len(vectors) != len(ids):
                    raise IndexMismatch(f"{len(vectors)} vectors for {len(ids)} document ids", path=writer.folder)
                ids.save(ids_file(site.folder))
                if isinstance(vectors, SparseShards):
                    write_activity(site.folder, vectors)
                built = getattr(engine, f"build_{kind}")(site.folder, vectors, ids, plan)
                if isinstance(vectors, SparseShards):
                    built = _count_empty(built, vectors, site.folder)
                site.finish(_manifest(site.folder, kind, plan, built, vectors))
    return open_index(out)


def build_lexical(out: str | Path, ids: Ids, texts: Callable[[int, int], Sequence[str]], *, plan: BuildPlan) -> Index:
    """Build a lexical (BM25) index and open it.

    Args:
        out: the index folder.
        ids: row → document id.
        texts: gives the texts of rows start:stop; called for at most `plan.shard_size` rows at a time, in order.
        plan: what to build; its similarity, dtype and executor have no meaning here.

    Raises: as `build_dense`. An interrupted build starts again from the first document.
    """
    backend = find_backend(plan.backend, "bm25")
    ids.refuse_duplicates("document")
    with _start(Path(out), plan, ids) as site:
        if not site.finished:
            with _explain_full_disk(site.folder, lambda: "nothing that can be used"):
                ids.save(ids_file(site.folder))
                built = backend.load("bm25").build_lexical(site.folder, ids, _checked(texts), plan)
                site.finish(_manifest(site.folder, "bm25", plan, built, ids))
    return open_index(out)


def _encode(writer: Writer, count: int, encode: Callable[[int, int], Any], plan: BuildPlan) -> None:
    shards = fixed_shards(count, plan.shard_size)
    missing = writer.missing(shards)
    if missing:
        with task("encode", count) as advance:
            advance(count - sum(map(len, missing)))
            executor = plan.executor or sequential(encode, advance)
            executor(writer, missing)
    left = writer.missing(shards)
    if left:
        raise BackendError(
            f"the executor returned, but {len(left)} of {len(missing)} shards are not written (first: "
            f"{writer.path(left[0]).name}); run the same command again to resume"
        )


def _count_empty(built: Mapping[str, Any], vectors: SparseShards, folder: Path) -> dict[str, Any]:
    """The engine's answer with `empty` among its settings: documents without a weight, which no query finds.

    An engine that rounds weights has counted those that it left without one itself.

    Raises:
        DataError: there are no others.
    """
    settings = {"empty": vectors.empty, **built["settings"]}
    if settings["empty"] and settings["empty"] == len(vectors):
        raise DataError(
            f"none of the {len(vectors)} documents has a weight that the index keeps, so no query would find any. If "
            "the model gives empty vectors (too strong a penalty on active terms does that), take another one; if all "
            "weights round to zero, a larger factor",
            path=folder,
        )
    if settings["empty"]:
        logger.warning(
            "%d of %d documents have no weight that the index keeps; they are never found",
            settings["empty"], len(vectors),
        )  # fmt: skip
    return {**built, "settings": settings}


def _checked(texts: Callable[[int, int], Sequence[str]]) -> Callable[[int, int], Sequence[str]]:
    def call(start: int, stop: int) -> Sequence[str]:
        found = texts(start, stop)
        if len(found) != stop - start:
            raise IndexMismatch(f"{len(found)} texts were given for the {stop - start} documents {start} to {stop}")
        return found

    return call


def _manifest(folder: Path, kind: Kind, plan: BuildPlan, built: Mapping[str, Any], indexed: Shards | Ids) -> Manifest:
    """The manifest of what the engine wrote. The engine's answer holds `settings`, `versions` and `keep_vectors`."""
    vectors = None if isinstance(indexed, Ids) else indexed
    keep = vectors is not None and (built["keep_vectors"] if plan.keep_vectors is None else plan.keep_vectors)
    return Manifest(
        kind=kind,
        backend=plan.backend.name,
        settings=dict(built["settings"]),
        count=len(indexed),
        dimension=None if vectors is None else vectors.dimension,
        similarity=None if vectors is None else plan.similarity,
        dtype=plan.dtype if keep else None,
        encoder=None if plan.encoder is None else dict(plan.encoder),
        collection=None if plan.collection is None else dict(plan.collection),
        versions=dict(built["versions"]),
        files=record_files(folder, vectors=keep),
    )


@dataclass
class _Site:
    """Where an index is being made: `folder` is `out` itself, or a folder beside an index that is to be replaced."""

    out: Path
    folder: Path
    finished: bool = False

    def finish(self, manifest: Manifest) -> None:
        """Make it an index: the manifest first, then the last steps."""
        manifest.write(self.folder)
        self.take_place(manifest)

    def take_place(self, manifest: Manifest) -> None:
        """Drop what the manifest does not name and, beside an index, take that one's place."""
        drop_unlisted(self.folder, manifest)
        if self.folder != self.out:
            folders.exchange(self.folder, self.out)
            (self.out / LOCK).unlink(missing_ok=True)  # ours, under the name it had beside
            folders.remove(self.folder)
        (self.out / BUILDING).unlink(missing_ok=True)
        self.finished = True


def drop_unlisted(folder: Path, manifest: Manifest) -> None:
    """Remove the vector shards that the manifest does not list (the engine's file holds the same values)."""
    vectors = folder / "vectors"
    if vectors.is_dir() and not any(name.startswith("vectors/") for name in manifest.files):
        for path in vectors.iterdir():
            path.unlink()
        vectors.rmdir()
        fsync_dir(folder)


def staging(out: Path) -> Path:
    """The folder beside `out` in which its replacement is made."""
    return out.with_name(f".{out.name}.building")


@contextmanager
def _start(out: Path, plan: BuildPlan, ids: Ids) -> Iterator[_Site]:
    """Lock `out`, find where to build, and leave a building.json there that agrees with the plan."""
    out = out.absolute()
    _refuse_output(out, plan.overwrite)
    description = describe(plan, ids)
    with ExitStack() as stack:
        stack.enter_context(folders.lock(out))
        found = _refuse_output(out, plan.overwrite)
        if found == "index" and unfinished(out) == description:  # killed between its manifest and its last step
            yield _complete(out)
            return
        if found == "index" and not plan.overwrite:
            raise OutputExists(out)
        if found == "index":
            stack.enter_context(folders.lock(staging(out)))
            site = _Site(out, staging(out))
            if folders.state(site.folder) == "index" and unfinished(site.folder) == description:
                site.take_place(read_manifest(site.folder))  # killed between its manifest and the exchange
                yield site
                return
            if folders.state(site.folder) == "index":
                folders.clear(site.folder)
        else:
            site = _Site(out, out)
        prepare(site.folder, description, replace=plan.overwrite or site.folder != out)
        yield site


def _refuse_output(out: Path, overwrite: bool) -> folders.State:
    found = folders.state(out)
    if found == "other" and overwrite:
        raise ConfigError(
            f"{out} is neither an index nor an unfinished one, so it is not replaced. Remove it, or give another output"
        )
    if found == "other" or (found == "index" and not overwrite and unfinished(out) is None):
        raise OutputExists(out)
    return found


def _complete(out: Path) -> _Site:
    drop_unlisted(out, read_manifest(out))
    if folders.state(staging(out)) != "absent":
        with folders.lock(staging(out)):
            folders.remove(staging(out))
    (out / BUILDING).unlink(missing_ok=True)
    return _Site(out, out, finished=True)


def describe(plan: BuildPlan, ids: Ids) -> dict[str, Any]:
    """What building.json holds."""
    return {"format": FORMAT, "plan": plan.identity(ids)}


def refuse_other_plan(folder: Path, description: dict[str, Any]) -> None:
    """Raise `ConfigError` with the keys that differ when `folder` holds the unfinished build of another plan."""
    before = unfinished(folder)
    if before is not None and before != description:
        raise ConfigError(
            f"{folder} holds the unfinished build of another index. Give the arguments it was started with, "
            "--overwrite to begin again, or another output. It differs in:",
            _differences(before.get("plan", {}), description["plan"]),
        )


def prepare(folder: Path, description: dict[str, Any], *, replace: bool) -> None:
    """Leave `description` in a locked folder; the remains of killed writers go, and another plan's if `replace`."""
    if not replace:
        refuse_other_plan(folder, description)
    elif unfinished(folder) not in (None, description):
        folders.clear(folder)
    for path in [path for path in folder.rglob("*") if final_name(path.name)]:  # what a killed process was writing
        path.unlink()
    write_json(folder / BUILDING, description)


def unfinished(folder: Path) -> dict[str, Any] | None:
    """What building.json says, None without one."""
    path = folder / BUILDING
    return read_json(path) if path.exists() else None


def _differences(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    found: list[str] = []
    for key in sorted({*before, *now}):
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found += _differences(old, new, f"{prefix}{key}.")
        elif old != new:
            found.append(f"{prefix}{key}: it has {old!r}, now {new!r}")
    return found


@contextmanager
def _explain_full_disk(folder: Path, kept: Callable[[], str]) -> Iterator[Literal[None]]:
    """Turn "no space left" into an error that says what is kept."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise BackendError(
            f"no space left for {folder} ({error}). Kept: {kept()}. Free some space and run the same command again; "
            "it goes on from there"
        ) from error
