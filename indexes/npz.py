"""Sparse matrices on disk: .npz files as scipy writes them, laid out so that they can be memory-mapped."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
from scipy.sparse import csr_matrix

from ..errors import DataError
from ..files import atomic_path

__all__ = ["map_csr", "save_csr"]

_ALIGNMENT = 64
_LOCAL_HEADER = 30
_PADDING_TAG = 0xD935  # the extra field that other zip writers align with
_NAMES = ("indptr", "indices", "data")
_BIG = 1 << 30


def save_csr(path: Path, matrix: csr_matrix) -> None:
    """Write a CSR matrix atomically, uncompressed, readable by scipy.sparse.load_npz; equal matrices, equal bytes."""
    arrays = {
        "indptr": matrix.indptr.astype(np.int64),
        "indices": matrix.indices.astype(np.int32),
        "data": matrix.data.astype(np.float32),
        "shape": np.asarray(matrix.shape, dtype=np.int64),
        "format": np.asarray(b"csr"),
    }
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w", allowZip64=True) as archive:
        for name, array in arrays.items():
            _add(archive, f"{name}.npy", np.ascontiguousarray(array).reshape(array.shape))


def _add(archive: zipfile.ZipFile, name: str, array: np.ndarray) -> None:
    """One member whose bytes begin at a multiple of 64, so that the values behind numpy's own header do too."""
    info = zipfile.ZipInfo(name)  # dated 1980, whenever it is written
    big = array.nbytes > _BIG
    assert archive.fp is not None
    begin = archive.fp.tell() + _LOCAL_HEADER + len(name) + (20 if big else 0) + 4
    padding = -begin % _ALIGNMENT
    info.extra = _PADDING_TAG.to_bytes(2, "little") + padding.to_bytes(2, "little") + bytes(padding)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
    with archive.open(info, "w", force_zip64=big) as member:
        member.write(header.getvalue())
        member.write(array.reshape(-1).view(np.uint8).data)


def map_csr(path: Path) -> csr_matrix:
    """Memory-map what `save_csr` wrote, copy-on-write.

    Raises:
        DataError: not such a file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            places = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            if any(info.compress_type != zipfile.ZIP_STORED for info in places.values()):
                raise DataError("a compressed .npz cannot be memory-mapped; write it uncompressed", path=path)
            indptr, indices, data = (_map(path, places[name].header_offset) for name in _NAMES)
            shape = _map(path, places["shape"].header_offset)
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        raise DataError(f"not a readable sparse .npz file: {error}", path=path) from error
    return csr_matrix((data, indices, indptr), shape=(int(shape[0]), int(shape[1])), copy=False)


def _map(path: Path, header: int) -> np.ndarray:
    with open(path, "rb") as handle:
        handle.seek(header + 26)
        lengths = handle.read(4)
        handle.seek(int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little"), 1)
        np.lib.format.read_magic(handle)
        shape, _, dtype = np.lib.format.read_array_header_1_0(handle)
        if 0 in shape:
            return np.zeros(shape, dtype)
        return np.memmap(path, dtype=dtype, mode="c", offset=handle.tell(), shape=shape).view(np.ndarray)
