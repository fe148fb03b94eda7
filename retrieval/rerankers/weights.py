"""What a model's weights are, in a few characters."""

from __future__ import annotations

import hashlib
from typing import Any

__all__ = ["weights_fingerprint"]


def weights_fingerprint(model: Any) -> str:
    """Hex sha256 over names, types, shapes and bytes of a torch module's state, on whichever device it lies."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
