"""Which convolutions of a cut network the kernels of this folder take."""

from __future__ import annotations

import torch
from torch import nn

from featcache.backbones.fused import FusedConvolution
from featcache.backbones.kernels.base import NativeConvolution
from featcache.backbones.kernels.direct import DirectKernel, has_few_channels
from featcache.backbones.kernels.pointwise import PointwiseKernel, is_pointwise
from featcache.backbones.kernels.winograd import WinogradKernel, can_transform

Kind = type[WinogradKernel] | type[PointwiseKernel] | type[DirectKernel]


def kind_of(conv: nn.Module) -> Kind | None:
    """Return the kernel that takes a layer, None where there is none."""
    if not isinstance(conv, nn.Conv2d | FusedConvolution):
        return None
    if can_transform(conv):
        return WinogradKernel
    if is_pointwise(conv):
        return PointwiseKernel
    return DirectKernel if has_few_channels(conv) else None


def native(conv: nn.Module, dtype: torch.dtype) -> NativeConvolution | None:
    """Return a convolution as one of these, or None where it is not taken."""
    kind = kind_of(conv)
    if kind is None or not isinstance(conv, nn.Conv2d | FusedConvolution):
        return None
    return kind(conv, isinstance(conv, FusedConvolution), dtype)
