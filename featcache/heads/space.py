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
