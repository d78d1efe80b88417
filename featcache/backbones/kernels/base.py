"""What convolutions by the kernels of this folder have in common: their maps, how weights are laid out."""

from __future__ import annotations

import ctypes
from typing import ClassVar

import torch
from torch import Tensor, nn

from featcache.backbones.fused import FusedConvolution, added
from featcache.backbones.kernels.library import library

SOURCES = ("winograd.c", "direct.c", "pointwise.c", "pool.c", "facts.c")
STEP = 16  # channels come by so many: the widest vector
LEAST_OUT = 32  # channels: with 16 of 64 columns of a product in use oneDNN's plain sum was faster

Fields = list[tuple[str, type]]


def fields(pointers: tuple[str, ...], numbers: tuple[str, ...]) -> Fields:
    """Return the fields of a structure that a kernel takes: first its pointers, then its numbers."""
    return [(name, ctypes.c_void_p) for name in pointers] + [(name, ctypes.c_long) for name in numbers]


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

    adds: ClassVar[bool] = True
    """Whether the kernel adds an addend of the map's own shape and dtype itself."""

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
        fits = self.adds and addend is not None and addend.shape == shape and addend.dtype == self.dtype
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


def addresses(*tensors: Tensor | None) -> list[int | None]:
    """Return where tensors begin in memory, None for none."""
    return [None if tensor is None else tensor.data_ptr() for tensor in tensors]


def packed(weights: Tensor, kernels: ctypes.CDLL, dtype: torch.dtype) -> tuple[Tensor, int]:
    """Return weights (P, C, K) as product.h has them, in a dtype, and K filled up to whole panels."""
    panel, together = int(kernels.panel()), int(kernels.together())
    places, channels, out = weights.shape
    padded = -(-out // panel) * panel
    full = nn.functional.pad(weights, (0, padded - out))
    panels = full.view(places, channels // together, together, padded // panel, panel)
    return panels.permute(0, 3, 1, 4, 2).contiguous().to(dtype), padded


def is_plain(conv: nn.Conv2d | FusedConvolution) -> bool:
    """Return whether a convolution is dense, goes alike down and across, and has zeros around its images."""
    known = type(conv) in (nn.Conv2d, FusedConvolution) and isinstance(conv.padding, tuple)
    zeros = getattr(conv, "padding_mode", "zeros") == "zeros"
    return known and zeros and conv.groups == 1 and len(set(conv.stride)) == 1 and set(conv.dilation) == {1}
