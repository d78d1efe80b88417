"""Memory for what a loop makes again and again: asked for once, so that the system finds it once."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class Space:
    """Buffers on a device by name; each is as large as it ever had to be, and overwritten by its next use."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._held: dict[tuple[str, torch.dtype], Tensor] = {}

    def of(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return the buffer of a name and type in a shape, holding anything."""
        size = math.prod(shape)
        held = self._held.get((name, dtype))
        if held is None or held.numel() < size:
            held = self._held[name, dtype] = torch.empty(size, dtype=dtype, device=self.device)
        return held[:size].view(shape)

    def copied(self, name: str, rows: Tensor, dtype: torch.dtype) -> Tensor:
        """Return a copy of rows as another type. From float16 to float64 it goes by float32: in one step a
        CPU takes twice as long."""
        if rows.dtype == torch.float16 and dtype == torch.float64:
            rows = self.of(f"{name}, half way", tuple(rows.shape), torch.float32).copy_(rows)
        return self.of(name, tuple(rows.shape), dtype).copy_(rows)
