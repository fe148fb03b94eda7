"""INDEX/manifest.json: what an index is, who made its vectors, and the size and hash of every file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from ..errors import DataError, IndexMismatch
from ..files import sha256_file, write_json

__all__ = ["BUILDING", "FORMAT", "LOCK", "MANIFEST", "FileRecord", "Kind", "Manifest", "check_files", "read_manifest"]

FORMAT = 1
MANIFEST, BUILDING, LOCK = "manifest.json", "building.json", "building.lock"
_OURS = {MANIFEST, BUILDING, LOCK}

Kind = Literal["bm25", "dense", "sparse", "multi-vector"]


class FileRecord(BaseModel):
    """Size in bytes and hex sha256 of one file."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    size: int
    sha256: str


class Manifest(BaseModel):
    """What is in an index folder. It holds nothing that depends on the time, so that equal builds have equal manifests.

    Attributes:
        format: version of this layout.
        kind: what queries look like.
        backend: registry name of the engine.
        settings: the engine's settings, build-time choices and search defaults alike.
        count: documents.
        dimension: of the vectors, None for lexical kinds.
        similarity: "dot" or "cosine", None for lexical kinds.
        dtype: how INDEX/vectors is stored, None where it is not kept.
        encoder: the document encoder's identity, None for lexical kinds or vectors from elsewhere.
        collection: name, fingerprint and count of what was indexed, None when it was not given.
        versions: of the libraries that wrote the files.
        files: relative path → size and hash, every file but this one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    format: int = FORMAT
    kind: Kind
    backend: str
    settings: dict[str, Any]
    count: int
    dimension: int | None = None
    similarity: Literal["dot", "cosine"] | None = None
    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    encoder: dict[str, Any] | None = None
    collection: dict[str, Any] | None = None
    versions: dict[str, str]
    files: dict[str, FileRecord]

    def write(self, folder: Path) -> None:
        """Write INDEX/manifest.json atomically; from then on the folder is an index."""
        write_json(folder / MANIFEST, self.model_dump(mode="json"))


def read_manifest(folder: str | Path) -> Manifest:
    """Read INDEX/manifest.json.

    Raises:
        DataError: the folder is missing, is not an index, or is one whose building was interrupted; or the manifest is
            broken, or of a format that this version does not know.
    """
    folder = Path(folder)
    path = folder / MANIFEST
    if not path.exists():
        raise _no_manifest(folder)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"not JSON ({error}); the index must be built again", path=path) from error
    if not isinstance(value, dict) or "format" not in value:
        raise DataError("no 'format' key: this manifest was not written by rtk", path=path)
    if value["format"] != FORMAT:
        raise DataError(
            f"index format {value['format']!r} is not known here (this version reads {FORMAT}); "
            "update rtk, or build the index again with this version",
            path=path,
        )
    try:
        return Manifest.model_validate(value)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        raise DataError(f"{problems}; the index must be built again", path=path) from error


def _no_manifest(folder: Path) -> DataError:
    if not folder.exists():
        return DataError("no such index folder", path=folder)
    if not folder.is_dir():
        return DataError("a file, expected an index folder", path=folder)
    if (folder / BUILDING).exists():
        return DataError(
            "this index is being built, or its building was interrupted: wait, or run the same command again to resume",
            path=folder,
        )
    return DataError(f"not an index: the folder has no {MANIFEST}", path=folder)


def record_files(
    folder: Path, *, vectors: bool = True, known: dict[str, FileRecord] | None = None
) -> dict[str, FileRecord]:
    """Size and hash of every file under `folder`, in order of name; `known` ones are not hashed again.

    Temporary files, and without `vectors` those of INDEX/vectors, are left out.
    """
    found: dict[str, FileRecord] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        hidden = path.name.startswith(".") or (not vectors and name.startswith("vectors/"))
        if path.is_file() and name not in _OURS and not hidden:
            record = (known or {}).get(name)
            found[name] = record or FileRecord(size=path.stat().st_size, sha256=sha256_file(path))
    return found


def check_files(folder: str | Path, manifest: Manifest, *, verify: bool = False) -> None:
    """Compare the files with the manifest: sizes, and hashes too with `verify`.

    Raises:
        DataError: a file is missing.
        IndexMismatch: a file has changed since the index was built.
    """
    folder = Path(folder)
    for name, record in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise DataError("this file of the index is missing; copy the whole folder again, or rebuild it", path=path)
        size = path.stat().st_size
        if size != record.size:
            raise IndexMismatch(
                f"{size:,} bytes, but the manifest says {record.size:,}: the file was altered or cut short; "
                "copy it again, or rebuild the index",
                path=path,
            )
        if verify and sha256_file(path) != record.sha256:
            raise IndexMismatch(
                "its sha256 is not the manifest's: the file was altered; copy it again, or rebuild the index", path=path
            )
