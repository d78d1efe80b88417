"""Winograd's convolution is the convolution, and rounds about as float32's own does."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from featcache.backbones import fused, winograd
from featcache.backbones.fused import FusedConvolution
from featcache.backbones.winograd import WinogradConvolution, can_transform, in_products, replace_convolutions
from tests import kit_runtimes as kit

TOLERANCE = 5e-5  # of the deviation of the exact result, largest difference; eager float32 has up to 2e-5


def maps(count: int, channels: int, height: int, width: int, seed: int = 0) -> Tensor:
    made = torch.randn(count, channels, height, width, generator=torch.Generator().manual_seed(seed))
    return made.relu_().contiguous(memory_format=torch.channels_last)


def convolution(channels: int, out: int, padding: int | tuple[int, int] = 1, bias: bool = True) -> nn.Conv2d:
    torch.manual_seed(channels * out)
    return nn.Conv2d(channels, out, 3, padding=padding, bias=bias).requires_grad_(False)


def exact(conv: nn.Conv2d, x: Tensor) -> Tensor:
    made: Tensor = copy.deepcopy(conv).double()(x.double())
    return made


def off(got: Tensor, wanted: Tensor) -> float:
    """Return the largest difference over the deviation of what is wanted."""
    assert got.shape == wanted.shape and got.dtype == torch.float32
    return float((got - wanted).abs().max() / wanted.std().clamp(min=1e-30))


@given(
    count=st.integers(1, 5),
    height=st.integers(2, 23),
    width=st.integers(2, 23),
    pads=st.tuples(st.integers(0, 1), st.integers(0, 1)),
    channels=st.sampled_from([1, 3, 64]),
    out=st.sampled_from([1, 5, 64]),
    bias=st.booleans(),
    relu=st.booleans(),
    block=st.sampled_from([1, 30_000, 200_000, 2 << 20]),
)
def test_it_is_the_convolution(
    count: int,
    height: int,
    width: int,
    pads: tuple[int, int],
    channels: int,
    out: int,
    bias: bool,
    relu: bool,
    block: int,
) -> None:
    """Of every shape, whether a block is one line of tiles, some, an image or several."""
    height, width = max(height, 3 - 2 * pads[0]), max(width, 3 - 2 * pads[1])
    conv, x = convolution(channels, out, pads, bias), maps(count, channels, height, width)
    wanted = exact(conv, x).relu() if relu else exact(conv, x)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(winograd, "BLOCK", block)
        got = WinogradConvolution(conv, relu)(x)
    scale = exact(conv, x).std() if wanted.numel() > 1 else wanted.abs().max()
    assert (got - wanted).abs().max() <= TOLERANCE * scale + 1e-6


@pytest.mark.parametrize(("channels", "size"), [(64, 56), (128, 28), (256, 14), (512, 7)])
def test_it_rounds_about_as_the_plain_sum_does(channels: int, size: int) -> None:
    conv, x = convolution(channels, channels), maps(2, channels, size, size)
    wanted = exact(conv, x)
    plain, ours = off(conv(x), wanted), off(WinogradConvolution(conv, False)(x), wanted)
    assert ours < TOLERANCE and ours < 4 * plain


def test_the_usual_points_would_round_worse(monkeypatch: pytest.MonkeyPatch) -> None:
    conv, x = convolution(256, 64), maps(2, 256, 16, 16)
    wanted = exact(conv, x)
    ours = off(WinogradConvolution(conv, False)(x), wanted)
    forth, weights, transposed = winograd._matrices(1.0, 2.0)
    monkeypatch.setattr(winograd, "_FORTH", forth)
    monkeypatch.setattr(winograd, "_WEIGHTS", weights)
    monkeypatch.setattr(winograd, "_BACK", [list(column) for column in zip(*transposed, strict=True)])
    usual = off(WinogradConvolution(conv, False)(x), wanted)
    assert 1.5 * ours < usual < 1e-3


def test_addend_and_relu_are_those_of_the_fused_convolution() -> None:
    conv, x = convolution(64, 96), maps(3, 64, 14, 14)
    addend = torch.randn(3, 96, 14, 14, generator=torch.Generator().manual_seed(1))
    kept = addend.clone()
    module = FusedConvolution(conv)
    ours = WinogradConvolution(module, True)
    assert off(ours(x, addend), module(x, addend).double()) < TOLERANCE
    assert off(ours(x), module(x).double()) < TOLERANCE
    assert torch.equal(addend, kept) and ours(x).is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(x, maps(3, 64, 14, 14)) and (ours(x) >= 0).all()


def test_which_convolutions_are_taken() -> None:
    assert can_transform(convolution(64, 64)) and can_transform(convolution(64, 100, 0))
    assert can_transform(FusedConvolution(convolution(64, 64)))
    options: list[dict[str, object]] = [
        {"stride": 2}, {"dilation": 2}, {"groups": 2}, {"padding": 2}, {"padding": "same"},
        {"kernel_size": 5}, {"kernel_size": (3, 1)}, {"in_channels": 63}, {"out_channels": 63},
        {"padding": 1, "padding_mode": "reflect"},
    ]  # fmt: skip
    for option in options:
        asked = {"in_channels": 64, "out_channels": 64, "kernel_size": 3, **option}
        assert not can_transform(nn.Conv2d(**asked)), option  # type: ignore[arg-type]

    class Other(nn.Conv2d):
        pass

    assert not can_transform(Other(64, 64, 3))


class _Tied(nn.Module):
    """One convolution whose weight is read by itself, too, and one that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = convolution(64, 64), convolution(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x) + nn.functional.conv2d(x, self.a.weight, padding=1)
        return torch.relu(self.b(torch.relu(self.b(x)) + x.mean(dim=(2, 3), keepdim=True)))


def test_shared_weights_and_convolutions() -> None:
    net, x = _Tied(), maps(2, 64, 12, 12)
    body = fx.symbolic_trace(net)
    wanted = copy.deepcopy(net).double()(x.double())
    fused.fuse(body)
    assert replace_convolutions(body, in_products) == 2, "b, fused with either of its ReLUs"
    assert off(body(x), wanted) < TOLERANCE
    plain, larger = WinogradConvolution(net.b, True), maps(2, 64, 12, 12, seed=1)
    small = maps(2, 64, 3, 3)[:, :, :1, :1]
    assert off(plain(larger, small), torch.relu(exact(net.b, larger) + small)) < TOLERANCE


@pytest.mark.parametrize(("backbone", "count"), [("resnet18", 13), ("vgg11", 7), ("mobilenet_v3_small", 0)])
def test_a_network_keeps_its_features(backbone: str, count: int) -> None:
    of, x = kit.work(backbone), kit.images(3)
    wanted = {node: rows.double() for node, rows in kit.exact(of, x).items()}
    body = of.exact()
    fused.fuse(body)
    assert replace_convolutions(body, in_products) == count
    with torch.inference_mode():
        rows = body.to(memory_format=torch.channels_last)(x)
    assert all(off(rows[node], wanted[node]) < 1e-4 for node in wanted), (
        "a tenth of what a runtime may differ"
    )
