"""1 x 1 convolutions by pointwise.c."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor, nn

from featcache.backbones.fused import FusedConvolution
from featcache.backbones.kernels.base import (
    LEAST_OUT,
    STEP,
    NativeConvolution,
    addresses,
    fields,
    is_plain,
    packed,
)

PIXELS = 96  # at a time


class _Pointwise(ctypes.Structure):
    """`struct pointwise` of pointwise.c."""

    _fields_ = fields(
        ("maps", "packed", "bias", "addend", "result", "chosen", "products"),
        (
            "images", "height", "width", "channels", "out", "padded", "down", "across", "stride", "block",
            "relu",
        ),
    )  # fmt: skip


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
            *addresses(images, self.packed, self.bias, addend, result, chosen, products),
            *(count, high, wide, channels, self.out, self.padded, height, width, self.stride, PIXELS, relu),
        )
        self.kernels.convolve_pixels(ctypes.byref(call))
        return result


def is_pointwise(conv: nn.Conv2d | FusedConvolution) -> bool:
    """Return whether `PointwiseKernel` takes a convolution."""
    out, channels, *window = conv.weight.shape
    alone = window == [1, 1] and tuple(conv.padding) == (0, 0)
    return is_plain(conv) and alone and out >= LEAST_OUT and not out % STEP and not channels % STEP
