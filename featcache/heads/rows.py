"""Rows of a table as torch tensors: gathered as they are stored, then cast and standardised."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from featcache.heads.base import Codes
from featcache.heads.scaling import Matrix, Moments, row_blocks


class _Writable:
    """Says of a read-only array that it may be written to. We never do; torch has no read-only tensors."""

    def __init__(self, array: NDArray[Any]) -> None:
        self._owner = array
        interface = dict(array.__array_interface__)
        interface["data"] = (interface["data"][0], False)
        self.__array_interface__ = interface


def shared_tensor(X: NDArray[Any]) -> Tensor:
    """Return X as a tensor over the same memory, read-only memory maps included, without a warning.

    An array that torch cannot stand on (negative strides) is copied. The tensor must not be written to.
    """
    if any(stride < 0 for stride in X.strides):
        X = np.ascontiguousarray(X)
    return torch.from_numpy(np.asarray(_Writable(X)))


class Rows:
    """A table X (N, D) with class codes y (N,), whose rows come out as standardised float32 on a device."""

    def __init__(
        self, X: Matrix, y: Codes, columns: Moments | None, batch_size: int, device: torch.device
    ) -> None:
        self.table = shared_tensor(X).to(device)
        self.classes = torch.from_numpy(y).to(device)
        self.device = device
        shape = (min(batch_size, len(X)), X.shape[1])
        self._raw = torch.empty(shape, dtype=self.table.dtype, device=device)
        self._rows = torch.empty(shape, device=device)
        self._columns = None
        if columns is not None:
            factor, shift = 1 / columns.scale, -columns.mean / columns.scale
            self._columns = tuple(torch.from_numpy(v.astype(np.float32)).to(device) for v in (factor, shift))

    def __len__(self) -> int:
        return len(self.table)

    def batches(self, order: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield rows (n, D), which the next batch overwrites, and classes (n,) in the order (N,) given."""
        for index in order.to(self.device).split(len(self._raw)):
            raw, rows = self._raw[: len(index)], self._rows[: len(index)]
            torch.index_select(self.table, 0, index, out=raw)
            yield self._standardised(rows.copy_(raw)), self.classes[index]

    def blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield large blocks of rows and their classes in the table's order."""
        for part in row_blocks(len(self), self.table.shape[1]):
            rows = self.table[part].to(torch.float32, copy=True)
            yield self._standardised(rows), self.classes[part]

    def _standardised(self, rows: Tensor) -> Tensor:
        if self._columns is None:
            return rows
        factor, shift = self._columns
        return torch.addcmul(shift, rows, factor, out=rows)
