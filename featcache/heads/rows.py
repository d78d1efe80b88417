"""Rows of a table as torch tensors: gathered as they are stored, then cast and standardised."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import torch
from torch import Tensor

from featcache.heads.base import Codes
from featcache.heads.scaling import BLOCK, Moments
from featcache.heads.tables import Place, Streamed

_AT_ONCE = 1 << 18  # values that a CPU gathers, casts and scales at once: its cores' caches hold them
_GPU_BLOCK = 1 << 26  # values that a GPU standardises at once: a quarter of a GiB of float32


class Rows:
    """A table (N, D) with class codes y (N,), whose rows come out standardised on its device.

    With `views` the table has so many rows for each sample, and orders of an epoch have one of each.

    Batches come as `dtype`, float32 or bfloat16, in a buffer that the next batch overwrites; blocks come
    as float32.
    """

    def __init__(
        self,
        place: Place,
        y: Codes,
        columns: Moments | None,
        batch_size: int,
        dtype: torch.dtype,
        views: int = 1,
    ) -> None:
        self.place, self.device = place, place.device
        self.classes = torch.from_numpy(y).to(self.device)
        self.views = views
        self.size = min(batch_size, len(self))
        self._dtype = dtype
        self._columns = None
        if columns is not None:
            factor, shift = 1 / columns.scale, -columns.mean / columns.scale
            self._columns = tuple(torch.from_numpy(v).float().to(self.device) for v in (factor, shift))

    def __len__(self) -> int:
        return len(self.classes) // self.views

    @property
    def steps(self) -> tuple[int, int]:
        """The number of whole batches, and of the rows left over."""
        return divmod(len(self), self.size)

    def batches(self, order: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield rows (n, D) and classes (n,) in the order (N,) given, which lies on the CPU."""
        there = order.to(self.device)
        gathered = order if isinstance(self.place, Streamed) else there
        for index, own in zip(gathered.split(self.size), there.split(self.size), strict=True):
            yield self._batch(index), self.classes[own]

    def batch(self, order: Tensor) -> tuple[Tensor, Tensor]:
        """Return the rows of an order of at most a batch."""
        return next(self.batches(order))

    def begin(self, order: Tensor) -> None:
        """Let `next` begin with the first batch of the order (N,) given."""
        if not hasattr(self, "_order"):
            self._order = torch.empty(len(self), dtype=torch.int64, device=self.device)
            self._at = torch.arange(self.size, device=self.device)
            self._start = self._at.clone()
            self._own = torch.empty(self.size, dtype=self.classes.dtype, device=self.device)
        self._order.copy_(order)
        self._at.copy_(self._start)

    def next(self) -> tuple[Tensor, Tensor]:
        """Return the next whole batch: all work is the device's, on tensors that stay where they are."""
        index = self._order.index_select(0, self._at)
        self._at += self.size
        torch.index_select(self.classes, 0, index, out=self._own)
        return self._batch(index), self._own

    def blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield large blocks of rows and their classes in the table's order."""
        for part, raw in self.place.blocks(BLOCK if self.device.type == "cpu" else _GPU_BLOCK):
            rows = raw.to(torch.float32, copy=True)
            yield self._standardised(rows), self.classes[part]

    @cached_property
    def _buffers(self) -> tuple[Tensor, Tensor, Tensor]:
        """Rows as they are stored and as float32, as many as are read at once, and a batch of `dtype`."""
        columns, at_once = self.place.shape[1], self.size
        if self.device.type == "cpu":
            at_once = max(1, min(at_once, _AT_ONCE // columns))
        raw = torch.empty((at_once, columns), dtype=self.place.dtype, device=self.device)
        rows = torch.empty((self.size, columns), dtype=self._dtype, device=self.device)
        wide = rows if rows.dtype == torch.float32 else torch.empty(raw.shape, device=self.device)
        return raw, wide, rows

    def _batch(self, index: Tensor) -> Tensor:
        raw, wide, rows = self._buffers
        batch = rows[: len(index)]
        for chosen, part in zip(index.split(len(raw)), batch.split(len(raw)), strict=True):
            self._read(chosen, raw[: len(chosen)], part if wide is rows else wide[: len(chosen)], part)
        return batch

    def _read(self, index: Tensor, raw: Tensor, wide: Tensor, out: Tensor) -> None:
        """Put the rows of an index (n,) into `out`, by way of `raw` and `wide`, all (n, D)."""
        self.place.take(index, raw)
        if self._columns is not None and raw.is_cuda:
            factor, shift = self._columns  # one kernel casts and standardises
            torch.addcmul(shift, raw, factor, out=out)
            return
        self._standardised(wide.copy_(raw))
        if wide is not out:
            out.copy_(wide)

    def _standardised(self, rows: Tensor) -> Tensor:
        if self._columns is None:
            return rows
        factor, shift = self._columns
        return torch.addcmul(shift, rows, factor, out=rows)
