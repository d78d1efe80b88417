"""Max pooling on a GPU, one pass over channels_last maps; torch stores the place of every maximum besides."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

BLOCK = 1024  # output values a program

_log = logging.getLogger(__name__)

try:
    import triton  # type: ignore[import-untyped]
    import triton.language as tl  # type: ignore[import-untyped]
except ImportError:  # torch pools instead
    triton = None


def can_pool(x: Tensor, places: dict[str, Any]) -> bool:
    """Whether the kernel takes these maps and this window."""
    return (
        triton is not None
        and x.is_cuda
        and x.is_contiguous(memory_format=torch.channels_last)
        and _pair(places["dilation"]) == (1, 1)
        and x.numel() < 2**31
    )


def max_pool(x: Tensor, places: dict[str, Any]) -> Tensor:
    """Return what `functional.max_pool2d(x, **places)` does, NaN included, for maps (B, C, H, W)."""
    shape = functional.max_pool2d(torch.empty(x.shape, device="meta"), **places).shape
    out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    (down, across), (step_down, step_across) = _pair(places["kernel_size"]), _pair(places["stride"])
    top, left = _pair(places["padding"])
    with torch.cuda.device_of(x):
        _max_pool[(triton.cdiv(out.numel(), BLOCK),)](
            x,
            out,
            out.numel(),
            x.shape[2],
            x.shape[3],
            out.shape[2],
            out.shape[3],
            CHANNELS=x.shape[1],
            DOWN=down,
            ACROSS=across,
            STEP_DOWN=step_down,
            STEP_ACROSS=step_across,
            TOP=top,
            LEFT=left,
            BLOCK=BLOCK,
        )
    return out


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


if triton is not None:

    @triton.jit  # type: ignore[untyped-decorator]
    def _max_pool(  # type: ignore[no-untyped-def]
        x,
        out,
        size,
        height,
        width,
        rows,
        columns,
        CHANNELS: tl.constexpr,
        DOWN: tl.constexpr,
        ACROSS: tl.constexpr,
        STEP_DOWN: tl.constexpr,
        STEP_ACROSS: tl.constexpr,
        TOP: tl.constexpr,
        LEFT: tl.constexpr,
        BLOCK: tl.constexpr,
    ):
        place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        there = place < size
        channel = place % CHANNELS
        column = (place // CHANNELS) % columns
        row = (place // (CHANNELS * columns)) % rows
        image = place // (CHANNELS * columns * rows)
        best = tl.full((BLOCK,), float("-inf"), tl.float32)
        for i in tl.static_range(DOWN):
            for j in tl.static_range(ACROSS):
                y = row * STEP_DOWN + (i - TOP)
                z = column * STEP_ACROSS + (j - LEFT)
                inside = there & (y >= 0) & (y < height) & (z >= 0) & (z < width)
                at = ((image * height + y) * width + z) * CHANNELS + channel
                value = tl.load(x + at, mask=inside, other=float("-inf")).to(tl.float32)
                best = tl.maximum(best, value, propagate_nan=tl.PropagateNan.ALL)
        tl.store(out + place, best.to(out.dtype.element_ty), mask=there)
