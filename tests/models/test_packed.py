"""Packed layers give the numbers of those they replace; what runs on a GPU is tried here unpacked, in lanes."""

from __future__ import annotations

from functools import cache
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from serpipe.models import batching, emotion2vec_network, exhubert_network, transformers_encoder
from serpipe.models.lanes import Lanes
from serpipe.models.packed import (
    PackedConvolution,
    PackedFrontEnd,
    PackedLinear,
    attend,
    exact_gelu,
    layer_norm,
    packable,
)
from serpipe.models.registry import resolve
from serpipe.testing import make_checkpoint

from . import transformers_checks as checks

FAMILIES = (
    "hubert-large-superb-er",
    "wav2vec2-base-superb-er",
    "odyssey-categorical",
    "emotion2vec-plus-base",
    "exhubert",
)

pytestmark = pytest.mark.skipif(
    not packable(torch.device("cpu"), torch.float32), reason="oneDNN has no kernels of its own for this CPU"
)


@cache
def written(name: str) -> str:
    return f"{name}={make_checkpoint(name, mkdtemp(prefix='serpipe-packed-'))}"


def waves() -> list[checks.Wave]:
    return [checks.cut(*piece) for piece in checks.MIXED]


def unpacked(name: str, patch: pytest.MonkeyPatch) -> Any:
    for module in (transformers_encoder, emotion2vec_network, exhubert_network):
        patch.setattr(module, "packable", lambda device, dtype: False)
    return resolve(written(name)).load("cpu")


@pytest.mark.parametrize("name", FAMILIES)
def test_a_packed_network_answers_as_the_plain_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fast = resolve(written(name)).load("cpu")
    plain = unpacked(name, monkeypatch)
    assert any(isinstance(part, PackedLinear) for part in fast._network.modules())  # type: ignore[attr-defined]
    assert not any(isinstance(part, PackedLinear) for part in plain._network.modules())
    ours, theirs = fast.forward(waves(), frames=True), plain.forward(waves(), frames=True)
    limit = 1e-4 * float(theirs.logits.std(axis=0).mean())
    assert np.abs(ours.logits - theirs.logits).max() <= limit
    np.testing.assert_allclose(ours.embeddings, theirs.embeddings, atol=2e-5)
    for left, right in zip(checks.frames_of(ours), checks.frames_of(theirs), strict=True):
        np.testing.assert_allclose(left, right, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "plain"), [(FAMILIES[0], False), (FAMILIES[0], True), (FAMILIES[2], True), (FAMILIES[3], True)]
)
def test_lanes_share_a_network(name: str, plain: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: threads that run one network at once keep their numbers apart."""
    adapter = unpacked(name, monkeypatch) if plain else resolve(written(name)).load("cpu")
    clips = waves() * 3
    one = batching.run(adapter, clips, budget_s=1.0)
    two = batching.run(adapter, clips, budget_s=1.0, lanes=Lanes(4))
    np.testing.assert_allclose(two.logits, one.logits, atol=1e-6)
    np.testing.assert_allclose(two.embeddings, one.embeddings, atol=1e-6)


@torch.inference_mode()
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_front_end_is_its_convolutions(dtype: torch.dtype, bias: bool) -> None:
    torch.manual_seed(0)
    sizes = ((1, 10, 5), (6, 3, 2), (6, 2, 2))
    layers = [nn.Conv1d(width, 6, kernel, stride, bias=bias).to(dtype) for width, kernel, stride in sizes]
    norm = nn.LayerNorm(6).to(dtype)
    made = PackedFrontEnd(layers, [None, layer_norm(norm), None])
    for samples in (60, 61, 400, 1_003):
        waveforms = torch.randn(2, samples, dtype=dtype)
        hidden = nn.functional.gelu(layers[0](waveforms[:, None]))
        hidden = nn.functional.gelu(norm(layers[1](hidden).transpose(1, 2)).transpose(1, 2))
        hidden = nn.functional.gelu(layers[2](hidden)).transpose(1, 2)
        found = made(waveforms, torch.full((2,), samples))
        torch.testing.assert_close(found, hidden, atol=1e-5 if dtype is torch.float32 else 0.05, rtol=0.0)


@torch.inference_mode()
@pytest.mark.parametrize("kernel", [3, 16, 19])
def test_a_positional_convolution_is_cropped_to_its_input(kernel: int) -> None:
    torch.manual_seed(0)
    plain = nn.Conv1d(32, 32, kernel, padding=kernel // 2, groups=4)
    for places in (1, 7, 250):
        values = torch.randn(2, places, 32)
        expected = nn.functional.gelu(plain(values.transpose(1, 2))[:, :, :places]).transpose(1, 2)
        torch.testing.assert_close(PackedConvolution(plain, gelu=True)(values), expected, atol=1e-5, rtol=0.0)


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["none", "bias", "keys"])
def test_attention_in_bfloat16_is_that_of_the_fused_kernel(kind: str) -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 3, 17, 8) for _ in range(3))
    bias = {"none": None, "bias": torch.randn(1, 3, 17, 17), "keys": torch.rand(2, 1, 1, 17) > 0.3}[kind]
    expected = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    torch.testing.assert_close(attend(query, key, value, bias), expected)
    half = bias.bfloat16() if kind == "bias" and bias is not None else bias
    found = attend(query.bfloat16(), key.bfloat16(), value.bfloat16(), half)
    torch.testing.assert_close(found.float(), expected, atol=0.05, rtol=0.0)


def test_only_the_exact_gelu_is_folded_into_a_map() -> None:
    from transformers.activations import ACT2FN

    assert all(exact_gelu(activation) for activation in (nn.GELU(), ACT2FN["gelu"]))
    others = (nn.GELU(approximate="tanh"), nn.ReLU(), nn.Identity(), None, *(ACT2FN[name] for name in ("gelu_new",)))
    assert not any(exact_gelu(activation) for activation in others)


@pytest.mark.parametrize(("device", "dtype"), [("cuda", torch.float32), ("cpu", torch.float16)])
def test_what_onednn_has_no_kernels_for_stays_plain(device: str, dtype: torch.dtype) -> None:
    assert not packable(torch.device(device), dtype)
