"""Whether an encoder and an index belong together, and which encoder an index asks for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, IndexMismatch, RtkError
from ..indexes.base import Index
from ..indexes.manifest import Manifest, read_manifest
from .encoders.base import EncoderIdentity, identity

if TYPE_CHECKING:
    from .encoders.base import Encoder

__all__ = ["check_belonging", "check_encoder", "load_declared_encoder", "manifest_of"]


def manifest_of(index: Index) -> Manifest | None:
    """The manifest of an index that was opened from a folder."""
    folder = getattr(index, "folder", None)
    return None if folder is None else read_manifest(folder)


def check_belonging(encoder: Encoder | None, index: Index, manifest: Manifest | None) -> None:
    """Refuse an encoder whose queries do not belong to the index's documents.

    An index in memory says nothing about its vectors: whoever made it vouches for them.

    Raises:
        IndexMismatch: naming both.
    """
    if manifest is None:
        return
    folder = getattr(index, "folder", None)
    if manifest.kind == "bm25":
        if encoder is not None:
            raise IndexMismatch(
                f"a BM25 index takes texts; search it without the encoder {_named(encoder)}", path=folder
            )
        return
    if encoder is None:
        raise IndexMismatch(
            f"a {manifest.kind} index takes vectors; give the encoder of its documents, {_recorded(manifest)}",
            path=folder,
        )
    check_encoder(encoder, manifest, folder)


def check_encoder(encoder: Encoder, manifest: Manifest, folder: Any = None) -> None:
    """`check_belonging` by the manifest alone, for an index of vectors that need not be opened; `folder` is named.

    Raises:
        IndexMismatch: naming both.
    """
    declared = identity(encoder)
    if manifest.encoder is None and declared is None:
        return  # nobody declares anything: nothing to compare
    if manifest.encoder is None:
        raise IndexMismatch(
            f"the manifest names no encoder (its documents were encoded by a class without an identity, or elsewhere), "
            f"so the queries of {_named(encoder)} cannot be checked against it. Build the index with that encoder, or "
            "search it by an encoder without an identity",
            path=folder,
        )
    if declared is None:
        raise IndexMismatch(
            f"its documents were encoded by {_recorded(manifest)}, but {_named(encoder)} declares no identity. Give it "
            "an attribute `identity` (EncoderIdentity) with the document side that it searches",
            path=folder,
        )
    differences = EncoderIdentity.from_dict(manifest.encoder).differences(declared)
    if differences:
        raise IndexMismatch(
            f"its documents were encoded by {_recorded(manifest)}, but the queries come from {_named(encoder)}, which "
            f"declares another document side ({'; '.join(differences)}). Search with the encoder that made the index, "
            "or build the index again",
            path=folder,
        )


def _recorded(manifest: Manifest) -> str:
    if manifest.encoder is None:
        return "which the manifest does not name"
    return f"{manifest.encoder.get('name')!r} (fingerprint {str(manifest.encoder.get('fingerprint'))[:12]})"


def _named(encoder: Encoder) -> str:
    declared = identity(encoder)
    if declared is None:
        return f"{type(encoder).__module__}.{type(encoder).__qualname__}"
    return f"{declared.name!r} (fingerprint {declared.fingerprint[:12]})"


def load_declared_encoder(
    manifest: Manifest,
    model: Encoder | str | Path | None,
    *,
    device: str | None = None,
    query_length: int | None = None,
) -> Encoder | None:
    """The encoder to search an index with.

    Args:
        manifest: the index's.
        model: an encoder (returned as it is), or what `load_encoder` takes; None takes the manifest's own.
        device: where it runs.
        query_length: tokens that queries are cut to; None is what the manifest says with its own encoder, and that of
            the model.

    Raises:
        ConfigError: a query length for texts (BM25), or for an encoder that is loaded already.
        IndexMismatch: the manifest names no encoder, or one that cannot be loaded here, and no model was given.
    """
    if model is not None and not isinstance(model, str | Path):
        _refuse_length(query_length, "the encoder is loaded already")
        return model
    if manifest.kind == "bm25" and model is None:
        _refuse_length(query_length, "BM25 has no encoder that cuts queries")
        return None
    recorded = manifest.encoder or {}
    spec = model if model is not None else recorded.get("name")
    if spec is None:
        raise IndexMismatch("the manifest names no encoder; give the model whose queries belong to this index")
    from .encoders.load import load_encoder

    length = dict(recorded.get("lengths") or {}).get("document")
    asked = model is not None or query_length is not None
    if not asked:
        query_length = recorded.get("query_length")
    try:
        return load_encoder(spec, device=device, query_length=query_length, document_length=length)
    except RtkError as error:
        if asked:
            raise
        raise IndexMismatch(
            f"the index was made by {spec!r}, which cannot be loaded here ({error}). Give the model yourself"
        ) from error


def _refuse_length(query_length: int | None, why: str) -> None:
    if query_length is not None:
        raise ConfigError(f"query_length is {query_length}, but {why}; leave it out")
