"""Convolutions of few channels by direct.c."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor, nn

from featcache.backbones.fused import FusedConvolution
from featcache.backbones.kernels.base import (
    STEP,
    NativeConvolution,
    addresses,
    fields,
    is_plain,
    packed,
)

FEW = 16  # channels in, of fewer the lines of a window are one sum


class _Direct(ctypes.Structure):
    """`struct direct` of direct.c."""

    _fields_ = fields(
        ("maps", "packed", "bias", "result", "framed", "products"),
        (
            "images", "height", "width", "channels", "out", "padded", "high", "wide", "each", "down",
            "across", "above", "left", "stride", "relu",
        ),
    )  # fmt: skip


class DirectKernel(NativeConvolution):
    """A convolution of few channels by direct.c."""

    adds = False  # no network has a shortcut past its first layer

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
            *addresses(images, self.packed, self.bias, result, framed, products),
            *(count, high, wide, channels, self.out, self.padded, *self.window, self.each),
            *(height, width, above, left, self.stride, relu),
        )
        self.kernels.convolve_directly(ctypes.byref(call))
        return result


def has_few_channels(conv: nn.Conv2d | FusedConvolution) -> bool:
    """Return whether `DirectKernel` takes a convolution."""
    out, channels = conv.weight.shape[:2]
    return is_plain(conv) and channels < FEW and out % STEP == 0
