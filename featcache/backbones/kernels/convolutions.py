"""Convolutions of a cut network by the kernels of this folder: which are taken, how weights are laid out."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor, nn

from featcache.backbones import winograd
from featcache.backbones.fused import FusedConvolution, added
from featcache.backbones.kernels.library import library

SOURCES = ("winograd.c", "direct.c", "pointwise.c", "pool.c", "facts.c")
STEP = 16  # channels come by so many: the widest vector
LEAST_OUT = 32  # channels: with 16 of 64 columns of a product in use oneDNN's plain sum was faster
FEW = 16  # channels in, of fewer the lines of a window are one sum
PIXELS = 96  # of a 1 x 1 convolution at a time
PLACES = winograd.IN**2
GAP = 80  # as in winograd.c
BLOCK = 1 << 20  # bytes of the tiles of a block and their products: what a core's own cache holds
MOST = 64 << 20  # of a block where large weights, which every block reads, make it larger

_POINTERS = ("maps", "packed", "bias", "addend", "result", "tiles", "products", "zeros")
_NUMBERS = (
    "images",
    "height",
    "width",
    "channels",
    "out",
    "padded",
    "above",
    "left",
    "block",
    "relu",
    "pool",
)
_DIRECT_POINTERS = ("maps", "packed", "bias", "result", "framed", "products")
_DIRECT_NUMBERS = (
    "images", "height", "width", "channels", "out", "padded", "high", "wide", "each", "down", "across",
    "above", "left", "stride", "relu",
)  # fmt: skip


_POINTWISE_POINTERS = ("maps", "packed", "bias", "addend", "result", "chosen", "products")
_POINTWISE_NUMBERS = (
    "images", "height", "width", "channels", "out", "padded", "down", "across", "stride", "block", "relu",
)  # fmt: skip


class _Call(ctypes.Structure):
    """`struct call` of winograd.c."""

    _fields_ = [(name, ctypes.c_void_p) for name in _POINTERS] + [(name, ctypes.c_long) for name in _NUMBERS]


class _Direct(ctypes.Structure):
    """`struct direct` of direct.c."""

    _fields_ = [(name, ctypes.c_void_p) for name in _DIRECT_POINTERS] + [
        (name, ctypes.c_long) for name in _DIRECT_NUMBERS
    ]


class _Pointwise(ctypes.Structure):
    """`struct pointwise` of pointwise.c."""

    _fields_ = [(name, ctypes.c_void_p) for name in _POINTWISE_POINTERS] + [
        (name, ctypes.c_long) for name in _POINTWISE_NUMBERS
    ]


def kernels(dtype: torch.dtype) -> ctypes.CDLL:
    """Return the kernels for maps of float32 or bfloat16.

    Raises:
        BackboneError: they cannot be compiled here.
    """
    return library(SOURCES, ("BF16",) if dtype == torch.bfloat16 else ())


class NativeConvolution(nn.Module):
    """relu(conv(x) + bias + addend), and of 2 x 2 pixels the largest; each of these as asked for.

    Its tensors are no parameters: what casts or moves a network leaves them as they are.

    Args:
        conv: one that is taken here (see `native`).
        relu: whether to cut off what is negative.
        dtype: of the maps that come and go, torch.float32 or torch.bfloat16; products are summed in float32.
    """

    def __init__(self, conv: nn.Conv2d | FusedConvolution, relu: bool, dtype: torch.dtype) -> None:
        super().__init__()
        self.kernels, self.dtype, self.relu = kernels(dtype), dtype, relu
        weight, bias = conv.weight.detach(), conv.bias
        self.out, self.channels = weight.shape[:2]
        self.bias = torch.zeros(self.out) if bias is None else bias.detach().float().clone()
        self.padding = tuple(int(side) for side in conv.padding)

    def forward(self, input: Tensor, addend: Tensor | None = None) -> Tensor:  # torch's own name
        """Return the map (B, K, H', W') of maps (B, C, H, W), channels_last.

        An addend of another shape or dtype is added as torch does.

        Raises:
            TypeError: the maps are of another dtype, or not in memory.
        """
        if input.dtype != self.dtype or input.device.type != "cpu":
            raise TypeError(f"maps must be {self.dtype} on the CPU, not {input.dtype} on {input.device.type}")
        images = input.permute(0, 2, 3, 1).contiguous()
        height, width = self.sides(images)
        shape = (len(input), self.out, height, width)
        fits = addend is not None and addend.shape == shape and addend.dtype == self.dtype
        plus = addend.permute(0, 2, 3, 1).contiguous() if addend is not None and fits else None
        maps = self.convolved(images, height, width, plus, self.relu and (addend is None or fits))
        maps = maps.permute(0, 3, 1, 2)
        if addend is None or fits:
            return maps
        maps = added(maps, addend) if addend.dtype == self.dtype else maps + addend
        return maps.relu_() if self.relu else maps

    def sides(self, images: Tensor) -> tuple[int, int]:
        """Return height and width of the convolution's result for images (B, H, W, C)."""
        raise NotImplementedError

    def convolved(self, images: Tensor, height: int, width: int, addend: Tensor | None, relu: bool) -> Tensor:
        """Return the result (B, H', W', K) for images (B, H, W, C), contiguous."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        """Return what torch prints."""
        return f"{self.channels}, {self.out}, relu={self.relu}, {self.dtype}"


class WinogradKernel(NativeConvolution):
    """A 3 x 3 convolution by winograd.c."""

    def __init__(self, conv: nn.Conv2d | FusedConvolution, relu: bool, dtype: torch.dtype) -> None:
        super().__init__(conv, relu, dtype)
        places = winograd.transformed(conv.weight.detach().float(), by_line=True)
        self.packed, self.padded = packed(places, self.kernels, dtype)
        self.pool = False
        """Whether to return the largest of each 2 x 2 pixels, as the max pooling of 2 x 2 by 2 does."""

    def sides(self, images: Tensor) -> tuple[int, int]:
        """See `NativeConvolution`."""
        height, width = (
            side + 2 * pad - 2 for side, pad in zip(images.shape[1:3], self.padding, strict=True)
        )
        return height, width

    def convolved(self, images: Tensor, height: int, width: int, addend: Tensor | None, relu: bool) -> Tensor:
        """See `NativeConvolution`."""
        count, high, wide, channels = images.shape
        step = 2 if self.pool else 1
        result = images.new_empty(count, height // step, width // step, self.out)
        block = self._block(count * -(-height // winograd.OUT) * -(-width // winograd.OUT))
        tiles = images.new_empty(PLACES * (block * channels + GAP))
        products = torch.empty(PLACES * (block * self.padded + GAP) + self.padded)
        zeros = images.new_zeros(max(channels, self.out))
        call = _Call(
            *_addresses(images, self.packed, self.bias, addend, result, tiles, products, zeros),
            *(count, high, wide, channels, self.out, self.padded, *self.padding, block, relu, self.pool),
        )
        self.kernels.convolve(ctypes.byref(call))
        return result

    def _block(self, tiles: int) -> int:
        """Return how many tiles go together: the more, the less often large weights are read."""
        bytes_each = PLACES * (self.channels * self.packed.element_size() + self.padded * 4)
        most = max(1, max(BLOCK, min(self.packed.nbytes, MOST)) // bytes_each)
        even = -(-tiles // -(-tiles // most))
        return min(tiles, -(-even // 6) * 6)  # whole blocks of products (ROWS)


class DirectKernel(NativeConvolution):
    """A convolution of few channels by direct.c."""

    def __init__(self, conv: nn.Conv2d | FusedConvolution, relu: bool, dtype: torch.dtype) -> None:
        super().__init__(conv, relu, dtype)
        weight = conv.weight.detach().float()
        self.window, self.stride = tuple(weight.shape[2:]), int(conv.stride[0])
        lines = weight.permute(2, 3, 1, 0).flatten(1, 2)  # (lines, values of a line, K)
        lines = nn.functional.pad(lines, (0, 0, 0, -lines.shape[1] % int(self.kernels.together())))
        self.each = lines.shape[1]
        self.packed, self.padded = packed(lines.flatten(0, 1)[None], self.kernels, dtype)

    def sides(self, images: Tensor) -> tuple[int, int]:
        """See `NativeConvolution`."""
        around = zip(images.shape[1:3], self.padding, self.window, strict=True)
        height, width = ((side + 2 * pad - window) // self.stride + 1 for side, pad, window in around)
        return height, width

    def convolved(self, images: Tensor, height: int, width: int, addend: Tensor | None, relu: bool) -> Tensor:
        """See `NativeConvolution`."""
        count, high, wide, channels = images.shape
        result = images.new_empty(count, height, width, self.out)
        above, left = self.padding
        framed = images.new_empty((high + 2 * above) * (wide + 2 * left) * channels + 1)
        products = torch.empty(width * self.padded)
        call = _Direct(
            *_addresses(images, self.packed, self.bias, result, framed, products),
            *(count, high, wide, channels, self.out, self.padded, *self.window, self.each),
            *(height, width, above, left, self.stride, relu and addend is None),
        )
        self.kernels.convolve_directly(ctypes.byref(call))
        if addend is not None:
            result.add_(addend)
            return result.relu_() if relu else result
        return result


class PointwiseKernel(NativeConvolution):
    """A 1 x 1 convolution by pointwise.c."""

    def __init__(self, conv: nn.Conv2d | FusedConvolution, relu: bool, dtype: torch.dtype) -> None:
        super().__init__(conv, relu, dtype)
        self.stride = int(conv.stride[0])
        weight = conv.weight.detach().float()[:, :, 0, 0].T
        self.packed, self.padded = packed(weight[None], self.kernels, dtype)
        self.panel = int(self.kernels.panel())

    def sides(self, images: Tensor) -> tuple[int, int]:
        """See `NativeConvolution`."""
        height, width = ((side - 1) // self.stride + 1 for side in images.shape[1:3])
        return height, width

    def convolved(self, images: Tensor, height: int, width: int, addend: Tensor | None, relu: bool) -> Tensor:
        """See `NativeConvolution`."""
        count, high, wide, channels = images.shape
        result = images.new_empty(count, height, width, self.out)
        chosen = images.new_empty(PIXELS * channels if self.stride > 1 else 0)
        products = torch.empty(PIXELS * self.panel)
        call = _Pointwise(
            *_addresses(images, self.packed, self.bias, addend, result, chosen, products),
            *(count, high, wide, channels, self.out, self.padded, height, width, self.stride, PIXELS, relu),
        )
        self.kernels.convolve_pixels(ctypes.byref(call))
        return result


def _addresses(*tensors: Tensor | None) -> list[int | None]:
    return [None if tensor is None else tensor.data_ptr() for tensor in tensors]


def packed(weights: Tensor, kernels: ctypes.CDLL, dtype: torch.dtype) -> tuple[Tensor, int]:
    """Return weights (P, C, K) as product.h has them, in a dtype, and K filled up to whole panels."""
    panel, together = int(kernels.panel()), int(kernels.together())
    places, channels, out = weights.shape
    padded = -(-out // panel) * panel
    full = nn.functional.pad(weights, (0, padded - out))
    panels = full.view(places, channels // together, together, padded // panel, panel)
    return panels.permute(0, 3, 1, 4, 2).contiguous().to(dtype), padded


def can_transform(conv: nn.Conv2d | FusedConvolution) -> bool:
    """Return whether `WinogradKernel` takes a convolution."""
    return winograd.can_transform(conv, STEP, LEAST_OUT) and not any(
        size % STEP for size in conv.weight.shape[:2]
    )


def has_few_channels(conv: nn.Conv2d | FusedConvolution) -> bool:
    """Return whether `DirectKernel` takes a convolution."""
    out, channels = conv.weight.shape[:2]
    return _is_plain(conv) and channels < FEW and out % STEP == 0


def is_pointwise(conv: nn.Conv2d | FusedConvolution) -> bool:
    """Return whether `PointwiseKernel` takes a convolution."""
    out, channels, *window = conv.weight.shape
    alone = window == [1, 1] and tuple(conv.padding) == (0, 0)
    return _is_plain(conv) and alone and out >= LEAST_OUT and not out % STEP and not channels % STEP


def _is_plain(conv: nn.Conv2d | FusedConvolution) -> bool:
    """Return whether a convolution is dense, goes alike down and across, and has zeros around its images."""
    known = type(conv) in (nn.Conv2d, FusedConvolution) and isinstance(conv.padding, tuple)
    zeros = getattr(conv, "padding_mode", "zeros") == "zeros"
    return known and zeros and conv.groups == 1 and len(set(conv.stride)) == 1 and set(conv.dilation) == {1}


def native(conv: nn.Module, dtype: torch.dtype) -> NativeConvolution | None:
    """Return a convolution as one of these, or None where it is not taken."""
    if not isinstance(conv, nn.Conv2d | FusedConvolution):
        return None
    relu = isinstance(conv, FusedConvolution)
    if can_transform(conv):
        return WinogradKernel(conv, relu, dtype)
    if is_pointwise(conv):
        return PointwiseKernel(conv, relu, dtype)
    return DirectKernel(conv, relu, dtype) if has_few_channels(conv) else None
