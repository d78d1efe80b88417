"""Which convolutions of a cut network the kernels of this folder take."""

from __future__ import annotations

import torch
from torch import nn

from featcache.backbones.fused import FusedConvolution
from featcache.backbones.kernels.base import NativeConvolution
from featcache.backbones.kernels.direct import DirectKernel, has_few_channels
from featcache.backbones.kernels.pointwise import PointwiseKernel, is_pointwise
from featcache.backbones.kernels.winograd import WinogradKernel, can_transform


def is_taken(conv: nn.Conv2d | FusedConvolution) -> bool:
    """Return whether a kernel takes a convolution."""
    return can_transform(conv) or is_pointwise(conv) or has_few_channels(conv)


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
