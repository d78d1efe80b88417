"""float32 with fewer multiplications: torch, its 3 x 3 convolutions by Winograd's algorithm."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from featcache.backbones import fused
from featcache.backbones.runtimes.base import Body, Work, in_chunks
from featcache.backbones.winograd import can_transform, in_products, replace_convolutions

CHUNK = 8  # images of a call: their maps of VGG16 are 100 MB; more make small maps' products little quicker


class WinogradBody(Body):
    """The network as a module whose 3 x 3 convolutions are `winograd.WinogradConvolution`."""

    name = "winograd"
    most_threads = 1
    stands_in_for = "native"

    @staticmethod
    def absent(device: str, precision: str) -> str:
        """It is for the CPU (a GPU's libraries do so themselves) and for float32, whose digits it needs."""
        if device != "cpu":
            return f"it is for the CPU, not for {device}"
        return "" if precision == "fp32" else f"it computes in fp32, not in {precision}"

    @staticmethod
    def helps(work: Work) -> bool:
        """Return whether there is a convolution to transform."""
        return any(isinstance(module, nn.Conv2d) and can_transform(module) for module in work.cast.modules())

    def __init__(self, work: Work) -> None:
        self.dtype = work.dtype
        self.chunk = -(-work.chunk // -(-work.chunk // CHUNK))  # what fills its calls best
        module = work.exact()
        fused.fuse(module)
        replace_convolutions(module, in_products)
        self.module = module.to(memory_format=torch.channels_last)

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """See `Body`."""
        return in_chunks(images, self.chunk, self.module)
