"""3 x 3 convolutions by winograd.c."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor, nn

from featcache.backbones import winograd
from featcache.backbones.fused import FusedConvolution
from featcache.backbones.kernels.base import (
    LEAST_OUT,
    STEP,
    NativeConvolution,
    addresses,
    fields,
    packed,
)

PLACES = winograd.IN**2
GAP = 80  # as in winograd.c
BLOCK = 1 << 20  # bytes of the tiles of a block and their products: what a core's own cache holds
MOST = 64 << 20  # of a block where large weights, which every block reads, make it larger


class _Call(ctypes.Structure):
    """`struct call` of winograd.c."""

    _fields_ = fields(
        ("maps", "packed", "bias", "addend", "result", "tiles", "products", "zeros"),
        ("images", "height", "width", "channels", "out", "padded", "above", "left", "block", "relu", "pool"),
    )


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
            *addresses(images, self.packed, self.bias, addend, result, tiles, products, zeros),
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


def can_transform(conv: nn.Conv2d | FusedConvolution) -> bool:
    """Return whether `WinogradKernel` takes a convolution."""
    return winograd.can_transform(conv, STEP, LEAST_OUT) and not any(
        size % STEP for size in conv.weight.shape[:2]
    )
