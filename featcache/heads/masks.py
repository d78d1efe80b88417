"""Dropout masks, drawn on the CPU, so that every device drops the same values."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Masks:
    """The masks of hidden layers of `widths`, whose values are dropped at `rates`, one for each layer.

    They are drawn from `generator` when they are needed; or, where a step must do without the CPU, for many
    steps `ahead`, to be looked up by the number of the step.
    """

    def __init__(self, generator: torch.Generator, widths: Sequence[int], rates: Sequence[float]) -> None:
        self._generator = generator
        self._shapes = list(zip(widths, rates, strict=True))
        self._ahead: list[Tensor] = []
        self._step: Tensor | None = None

    def hide(self, values: Tensor, layer: int) -> None:
        """Drop values (n, width) of a layer, or (K, n, width), where all K drop the same; scale the rest."""
        rate = self._shapes[layer][1]
        if not rate:
            return
        if self._step is not None:
            mask = self._ahead[layer].index_select(0, self._step)[0].to(values.dtype)
        else:
            mask = self._drawn(values.shape[-2:], rate).to(values.device)
        values.mul_(mask.div_(1 - rate))

    def bytes_ahead(self, steps: int, rows: int) -> int:
        """Return what `look_ahead` takes."""
        return steps * rows * sum(width for width, rate in self._shapes if rate)

    def look_ahead(self, steps: int, rows: int, step: Tensor) -> None:
        """Draw the masks of so many steps of `rows` rows, to be chosen among by `step` (1,) on its device.

        The numbers are those that as many steps would draw for themselves, in their order.
        """
        new = [torch.empty((steps if p else 0, rows, width), dtype=torch.uint8) for width, p in self._shapes]
        for number in range(steps):
            for masks, (_, rate) in zip(new, self._shapes, strict=True):
                if rate:
                    masks[number] = self._drawn(masks.shape[1:], rate)
        if not self._ahead:
            self._ahead = [masks.to(step.device, copy=True) for masks in new]
        for there, masks in zip(self._ahead, new, strict=True):
            there.copy_(masks)
        self._step = step

    def look_no_more(self) -> None:
        """Draw again when needed."""
        self._step = None

    def _drawn(self, shape: Sequence[int], rate: float) -> Tensor:
        return torch.empty(tuple(shape)).bernoulli_(1 - rate, generator=self._generator)
