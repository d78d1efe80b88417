"""float32 with fewer multiplications: torch, its 3 x 3 convolutions by Winograd's algorithm."""

from __future__ import annotations

import torch
from torch import Tensor

from featcache.backbones import fused
from featcache.backbones.runtimes.base import Body, Work, in_chunks
from featcache.backbones.winograd import transform_convolutions

CHUNK = 8  # images of a call: their maps of VGG16 are 100 MB; more make small maps' products little quicker


class WinogradBody(Body):
    """The network as a module whose 3 x 3 convolutions are `winograd.WinogradConvolution`."""

    name = "winograd"

    @staticmethod
    def absent(device: str, precision: str) -> str:
        """It is for the CPU (a GPU's libraries do so themselves) and for float32, whose digits it needs."""
        if device != "cpu":
            return f"it is for the CPU, not for {device}"
        return "" if precision == "fp32" else f"it computes in fp32, not in {precision}"

    def __init__(self, work: Work) -> None:
        self.dtype, self.chunk = work.dtype, min(CHUNK, work.chunk)
        module = work.exact()
        fused.fuse(module)
        transform_convolutions(module)
        self.module = module.to(memory_format=torch.channels_last)

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """See `Body`."""
        return in_chunks(images, self.chunk, self.module)
