"""8-bit linear layers: what they compute, and encoders made of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from rtk.errors import ConfigError
from rtk.retrieval.encoders import load_encoder
from rtk.retrieval.encoders.int8 import Int8Linear, to_int8

TEXTS = ["merge sorted lists", "vitamin", "heat flow over a wing of the air " * 4, "", "read a file and write a file"]


def layer(bias: bool = True) -> nn.Linear:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Linear(64, 24, bias=bias)


@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_computes_the_equation(bias):
    full = layer(bias)
    rows = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(0)) * torch.tensor([[[1.0]], [[50.0]]])
    step_x = rows.abs().amax(-1, keepdim=True) / 127
    step_w = full.weight.abs().amax(1, keepdim=True) / 127
    expected = (torch.round(rows / step_x) * step_x) @ (torch.round(full.weight / step_w) * step_w).T
    expected = expected + full.bias if bias else expected
    with torch.inference_mode():
        found = Int8Linear(full)(rows)
    torch.testing.assert_close(found, expected.detach(), rtol=1e-5, atol=1e-5)


def test_a_token_does_not_see_the_others():
    quantised = Int8Linear(layer())
    rows = torch.randn(6, 64, generator=torch.Generator().manual_seed(0))
    loud = torch.cat([rows, 1000 * torch.ones(1, 64)])
    torch.testing.assert_close(quantised(loud)[:6], quantised(rows), rtol=0, atol=0)


def test_zeros_and_no_rows_are_fine():
    quantised = Int8Linear(layer())
    torch.testing.assert_close(quantised(torch.zeros(3, 64)), quantised.bias.expand(3, 24))
    assert quantised(torch.zeros(0, 7, 64)).shape == (0, 7, 24)


def test_a_model_without_linear_layers_is_refused():
    with pytest.raises(ConfigError, match="linear layers"):
        to_int8(nn.Sequential(nn.ReLU()))


@pytest.mark.parametrize("kind", ["dense", "sparse", "multi_vector"])
def test_an_encoder_is_near_its_full_form(tiny_models: Path, kind: str):
    full = load_encoder(tiny_models / kind, device="cpu")
    small = load_encoder(tiny_models / kind, device="cpu", quantise="int8")
    assert small.identity.dtype == "int8"
    assert small.identity.differences(full.identity) == []

    def flat(encoder):
        found = encoder.encode_document(TEXTS[:3])
        return found.toarray() if kind == "sparse" else found.flat if kind == "multi_vector" else found

    a, b = flat(full), flat(small)
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert cosine.min() > 0.98
    assert not np.allclose(a, b, atol=1e-6)


def test_the_batch_changes_next_to_nothing(tiny_models: Path):
    encoder = load_encoder(tiny_models / "dense", device="cpu", quantise="int8")
    together = encoder.encode_document(TEXTS)
    alone = np.concatenate([encoder.encode_document([text]) for text in TEXTS])
    # attention and normalisation differ in the last bit between shapes, which can move a rounding by one step
    np.testing.assert_allclose(together, alone, atol=5e-3)
