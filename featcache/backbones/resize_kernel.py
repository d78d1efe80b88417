"""One GPU kernel for both passes of a resize: every thread makes output bytes straight from source bytes.

The rounded result of the inner pass is computed again for each outer tap: a few integer products on cached
bytes cost less than writing the image between the passes to memory and reading it back.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from featcache.backbones.resize_plan import ResizePlan
from featcache.backbones.taps import BITS, HALF, Taps

BLOCK = 1024  # output bytes a program

_log = logging.getLogger(__name__)
_compiled: set[tuple[object, ...]] = set()  # what has run: other images of as many taps need no trial

try:
    import triton  # type: ignore[import-untyped]
    import triton.language as tl  # type: ignore[import-untyped]
except ImportError:  # without it the passes are torch's
    triton = None


def kernel_for(plan: ResizePlan, device: torch.device) -> Callable[[Tensor], Tensor] | None:
    """Return a function from uint8 (B, H, W, 3) to uint8 (B, crop, crop, 3).

    None where there is no Triton, or it cannot compile here (it wants a C compiler besides).
    """
    if triton is None:
        return None
    fused = _Fused(plan, device)
    if fused.compiled not in _compiled:
        try:
            fused(torch.zeros((1, *plan.source, 3), dtype=torch.uint8, device=device))
            torch.cuda.current_stream(device).synchronize()
        except Exception as error:  # a compiler raises anything; torch's own passes do as well, if slower
            _log.info("the resize kernel cannot be used: %s", str(error).splitlines()[:1])
            return None
        _compiled.add(fused.compiled)
    return fused


class _Fused:
    def __init__(self, plan: ResizePlan, device: torch.device) -> None:
        self.plan = plan
        self.compiled = (str(device), plan.down.count, plan.across.count, plan.down_first)
        self.down, self.across = (_on_device(taps, device) for taps in (plan.down, plan.across))

    def __call__(self, images: Tensor) -> Tensor:
        plan, (batch, height, width, _) = self.plan, images.shape
        new = torch.empty if plan.fills else torch.zeros
        out = new((batch, plan.crop, plan.crop, 3), dtype=torch.uint8, device=images.device)
        rows, columns = plan.filled
        if batch:
            with torch.cuda.device_of(images):
                _resize[(triton.cdiv(rows * columns * 3, BLOCK), batch)](
                    images,
                    out,
                    *self.down,
                    *self.across,
                    height * width * 3,
                    width * 3,
                    rows,
                    columns,
                    plan.crop,
                    plan.top,
                    plan.left,
                    DOWN=plan.down.count,
                    ACROSS=plan.across.count,
                    DOWN_FIRST=plan.down_first,
                    BITS=BITS,
                    HALF=HALF,
                    BLOCK=BLOCK,
                )
        return out


def _on_device(taps: Taps, device: torch.device) -> tuple[Tensor, Tensor]:
    tables = (np.ascontiguousarray(taps.index, dtype=np.int32), np.ascontiguousarray(taps.weight))
    index, weight = (torch.from_numpy(table).to(device) for table in tables)
    return index, weight


def _passes(  # type: ignore[no-untyped-def]
    images,
    out,
    down_index,
    down_weight,
    across_index,
    across_weight,
    image_bytes,
    row_bytes,
    rows,
    columns,
    crop,
    top,
    left,
    DOWN: tl.constexpr,  # taps along the height; capitals are known when the kernel is compiled
    ACROSS: tl.constexpr,
    DOWN_FIRST: tl.constexpr,
    BITS: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    image = tl.program_id(1).to(tl.int64)
    inside = at < rows * columns * 3
    channel, x, y = at % 3, (at // 3) % columns, at // (3 * columns)
    source = images + image * image_bytes + channel
    total = tl.full((BLOCK,), HALF, tl.int32)
    if DOWN_FIRST:
        for outer in tl.static_range(ACROSS):
            column = source + 3 * tl.load(across_index + x * ACROSS + outer, mask=inside, other=0)
            part = tl.full((BLOCK,), HALF, tl.int32)
            for inner in tl.static_range(DOWN):
                row = tl.load(down_index + y * DOWN + inner, mask=inside, other=0)
                pixel = tl.load(column + row * row_bytes, mask=inside, other=0).to(tl.int32)
                part += pixel * tl.load(down_weight + y * DOWN + inner, mask=inside, other=0)
            part = tl.minimum(tl.maximum(part >> BITS, 0), 255)
            total += part * tl.load(across_weight + x * ACROSS + outer, mask=inside, other=0)
    else:
        for outer in tl.static_range(DOWN):
            row = source + row_bytes * tl.load(down_index + y * DOWN + outer, mask=inside, other=0)
            part = tl.full((BLOCK,), HALF, tl.int32)
            for inner in tl.static_range(ACROSS):
                column = tl.load(across_index + x * ACROSS + inner, mask=inside, other=0)
                pixel = tl.load(row + 3 * column, mask=inside, other=0).to(tl.int32)
                part += pixel * tl.load(across_weight + x * ACROSS + inner, mask=inside, other=0)
            part = tl.minimum(tl.maximum(part >> BITS, 0), 255)
            total += part * tl.load(down_weight + y * DOWN + outer, mask=inside, other=0)
    value = tl.minimum(tl.maximum(total >> BITS, 0), 255).to(tl.uint8)
    place = ((y + top) * crop + x + left) * 3 + channel
    tl.store(out + image * crop * crop * 3 + place, value, mask=inside)


if triton is not None:
    _resize = triton.jit(
        _passes,
    )
