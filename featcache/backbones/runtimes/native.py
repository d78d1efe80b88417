"""Kernels of our own in C for 3 x 3, 1 x 1 and first convolutions and for poolings; the rest by torch."""

from __future__ import annotations

import torch
from torch import Tensor

from featcache.backbones import fused, graph
from featcache.backbones.devices import cpu_capabilities
from featcache.backbones.kernels import convolutions, pooling
from featcache.backbones.kernels.library import compiler
from featcache.backbones.runtimes.base import Body, Work, in_chunks
from featcache.backbones.winograd import replace_convolutions

CHUNK = 8  # images of a call: as with winograd


class NativeBody(Body):
    """The network as a module whose convolutions are `kernels.convolutions`, as far as they are taken."""

    name = "native"
    most_threads = 1

    @staticmethod
    def absent(device: str, precision: str) -> str:
        """It is for the CPU, and needs a C compiler; in bf16 a processor with instructions for it."""
        if device != "cpu":
            return f"it is for the CPU, not for {device}"
        if precision not in ("fp32", "bf16"):
            return f"it computes in fp32 and bf16, not in {precision}"
        if not compiler():
            return "there is no C compiler (cc, gcc or clang, or what $CC names)"
        if precision == "bf16" and not cpu_capabilities().get("avx512_bf16"):
            return "this processor has no AVX-512 instructions for bfloat16"
        return ""

    @staticmethod
    def helps(work: Work) -> bool:
        """Return whether there is a convolution that a kernel takes."""
        return any(convolutions.kind_of(module) for module in work.cast.modules())

    def __init__(self, work: Work) -> None:
        self.dtype = work.dtype
        self.chunk = -(-work.chunk // -(-work.chunk // CHUNK))  # what fills its calls best
        module = work.exact()
        fused.fuse(module)
        replace_convolutions(module, lambda conv: convolutions.native(conv, self.dtype))
        pooling.replace_pooling(module, self.dtype)
        graph.cast(module, self.dtype)
        self.module = module.to(memory_format=torch.channels_last)

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """See `Body`."""
        return in_chunks(images, self.chunk, self.module)
