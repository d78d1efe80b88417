"""Fused convolutions and pooling: the same network in fewer steps."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from featcache.backbones import catalogue, fused, graph, weights
from featcache.backbones.pool_kernel import can_pool, max_pool
from featcache.recipe import Node

SIZE = 64

FUSED = {  # how many convolutions each has that a ReLU follows, directly or after an addition
    "vgg16": 13,
    "resnet18": 17,
    "resnet50": 49,
    "squeezenet1_0": 25,
    "densenet121": 59,
    "googlenet": 57,
}
POOLED = {"vgg16": 5, "resnet18": 1, "resnet50": 1, "squeezenet1_0": 3, "densenet121": 1, "googlenet": 13}
SMALL = ("resnet18", "squeezenet1_0")  # weights for these are quickly made


def cut(name: str, nodes: tuple[Node, ...] = ()) -> Any:
    net = weights.assemble(name, weights.load(name, weights.resolve(name, "random:0"))[0])
    body = copy.deepcopy(graph.cut(graph.trace(net), nodes or catalogue.resolve_nodes(name, net))).eval()
    graph.fold_batch_norm(body)
    return body


@pytest.mark.parametrize("name", SMALL)
def test_fewer_steps_change_nothing(name: str) -> None:
    body = cut(name)
    x = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        before = body(x)
        assert fused.fuse(body) == FUSED[name]
        assert fused.replace_pooling(body) == POOLED[name]
        after = body(x)
    for node, rows in before.items():
        torch.testing.assert_close(after[node], rows, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", FUSED)
def test_every_step_that_can_be_is_fused(name: str) -> None:
    with torch.device("meta"):
        net = catalogue.build(name)
    body = graph.cut(graph.trace(net), catalogue.resolve_nodes(name, net))
    graph.fold_batch_norm(body)
    assert (fused.fuse(body), fused.replace_pooling(body)) == (FUSED[name], POOLED[name])
    assert (fused.fuse(body), fused.replace_pooling(body)) == (0, 0)
    assert not any(isinstance(module, nn.MaxPool2d) for module in body.modules())


def test_what_is_read_elsewhere_is_not_fused() -> None:
    asked = (Node("layer1.0.conv1", "avg"), Node("layer1.1.add", "avg"), Node("layer1.1.relu_1", "avg"))
    body = cut("resnet18", asked)
    x = torch.randn(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        before = {node: rows.clone() for node, rows in body(x).items()}
        assert (
            fused.fuse(body) == 3
        )  # the stem, the sum of layer1.0, the first of layer1.1: its sum is asked for
        after = body(x)
    assert before["layer1.1.add"].min() < before["layer1.1.relu_1"].min()
    for node, rows in before.items():
        torch.testing.assert_close(after[node], rows, rtol=1e-6, atol=1e-6)


class _Odd(nn.Module):
    """Sums and ReLUs that look like a residual block and are none."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 3, 3, padding="same"), nn.Conv2d(3, 3, 1)
        self.c, self.d = nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect"), nn.Conv2d(3, 3, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.a(x))
        x = torch.relu(torch.add(self.b(x), x, alpha=2))
        x = torch.relu(self.c(x) + 3)
        y = self.d(x)
        x = torch.relu(y + y)
        return torch.relu(self.d(x) + self.b(x))


def test_only_what_cudnn_computes_is_fused() -> None:
    odd = _Odd()
    body = torch.fx.symbolic_trace(odd)
    x = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        wanted = odd(x)
        assert fused.fuse(body) == 1
        torch.testing.assert_close(body(x), wanted)


def test_the_steps_of_a_fused_convolution() -> None:
    conv = nn.Conv2d(4, 5, 3, stride=2, padding=1)
    module = fused.FusedConvolution(conv)
    x, addend = torch.randn(2, 4, 8, 8), torch.randn(2, 5, 4, 4)
    with torch.inference_mode():
        torch.testing.assert_close(module(x), torch.relu(conv(x)))
        torch.testing.assert_close(module(x, addend), torch.relu(conv(x) + addend))


class _Changed(nn.Module):
    """Two convolutions whose input is changed in place before the ReLU that follows."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.a, self.b, self.relu, self.how = (
            nn.Conv2d(3, 3, 1),
            nn.Conv2d(3, 3, 1),
            nn.ReLU(inplace=True),
            how,
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x * 2
        y = self.a(x)
        if self.how == "module":
            z = self.relu(x)
        elif self.how == "function":
            z = torch.relu_(x)
        elif self.how == "method":
            z = x.clamp_(min=0)
        else:
            z = torch.nn.functional.relu(x, inplace=True)
        first = torch.relu(y + z)
        w = self.b(first)
        first.sub_(1)
        return torch.relu(w) + first


@pytest.mark.parametrize("how", ["module", "function", "method", "option"])
def test_nothing_is_computed_after_its_input_has_changed(how: str) -> None:
    net = _Changed(how).requires_grad_(False)
    body = torch.fx.symbolic_trace(net)
    x = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    wanted = net(x)
    assert fused.fuse(body) == 0
    torch.testing.assert_close(body(x), wanted)


class _Added(nn.Module):
    """A convolution added in place to a map that is read once more."""

    def __init__(self, swapped: bool) -> None:
        super().__init__()
        self.a, self.b, self.swapped = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), swapped

    def forward(self, x: Tensor) -> Tensor:
        h, y = x * 2, self.a(x)
        if self.swapped:
            y += h  # y alone changes
        else:
            h += y
        z = torch.relu(y if self.swapped else h)
        return z + self.b(h)


@pytest.mark.parametrize("swapped", [False, True])
def test_what_a_sum_in_place_changes_is_seen_by_others(swapped: bool) -> None:
    net = _Added(swapped).requires_grad_(False)
    body = torch.fx.symbolic_trace(net)
    x = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    assert fused.fuse(body) == swapped
    torch.testing.assert_close(body(x), net(x))


def test_an_addend_may_be_larger_than_the_map() -> None:
    conv = nn.Conv2d(4, 4, 1).requires_grad_(False)
    x, addend = torch.randn(2, 4, 1, 1), torch.randn(2, 4, 5, 5)
    module = fused.FusedConvolution(conv)
    torch.testing.assert_close(module(x, addend), torch.relu(conv(x) + addend))
    torch.testing.assert_close(module(addend, x), torch.relu(conv(addend) + x))
    assert module._shape(addend) == conv(addend).shape and module._spreads(x, addend)
    odd = nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)).requires_grad_(False)
    assert fused.FusedConvolution(odd)._shape(addend) == odd(addend).shape


# -- pooling -----------------------------------------------------------------------------------------------


def test_the_kernel_is_for_gpus() -> None:
    assert not can_pool(torch.zeros(1, 2, 4, 4), {"dilation": 1})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("size", "pool"),
    [
        ((3, 64, 32, 32), nn.MaxPool2d(2)),
        ((2, 64, 56, 57), nn.MaxPool2d(3, 2, 1)),
        ((2, 96, 27, 29), nn.MaxPool2d(3, 2, ceil_mode=True)),
        ((2, 7, 9, 5), nn.MaxPool2d((3, 2), (1, 2), (1, 1))),
    ],
)
def test_the_kernel_gives_what_torch_gives(
    dtype: torch.dtype, size: tuple[int, ...], pool: nn.MaxPool2d
) -> None:
    x = torch.randn(size, device="cuda").to(dtype, memory_format=torch.channels_last)
    x[0, 1, 2, 2], x[-1, 0, 3, 3], x[-1, 2] = float("nan"), float("inf"), -float("inf")
    module = fused.Pooling(pool)
    assert can_pool(x, module.places)
    wanted = pool(x)
    for got in (max_pool(x, module.places), module(x)):
        assert got.dtype == dtype and got.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(got, wanted, rtol=0, atol=0, equal_nan=True)
    assert not module.refused and bool(wanted.isnan().any())


def test_images_are_filled_up_for_a_first_layer() -> None:
    """Black channels change no sum; only a dense 3 x 3 on three channels wants them."""
    conv = nn.Conv2d(3, 8, 3, padding=1)
    x = torch.randn(2, 3, 9, 9).to(memory_format=torch.channels_last)
    plain, wide = fused.FusedConvolution(conv), fused.FusedConvolution(conv)
    wide.widen(32)
    with torch.inference_mode():
        assert wide.weight.shape == (8, 32, 3, 3) and conv.weight.shape == (8, 3, 3, 3)
        torch.testing.assert_close(wide(x), plain(x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("name", "first"), [("vgg16", 1), ("resnet18", 0), ("squeezenet1_1", 0)])
def test_the_first_layer_that_is_filled_up(name: str, first: int) -> None:
    with torch.device("meta"):
        net = catalogue.build(name)
    body = graph.cut(graph.trace(net), catalogue.resolve_nodes(name, net))
    graph.fold_batch_norm(body)
    fused.fuse(body)
    assert fused.widen_first(body) == first and fused.widen_first(body) == 0
