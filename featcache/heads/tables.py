"""Tables where a network trains: on the CPU their own memory, on a GPU a copy or a stream of them."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from featcache.heads.scaling import Matrix, row_blocks
from featcache.heads.space import Space
from featcache.selection import Selection

_STAGED = 1 << 25  # bytes of one buffer between the table and a GPU
_SHARE = 0.8  # of a GPU's free memory that tables may take, if nobody says how much


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


class Shared:
    """A table's own memory. Rows of it are gathered as they are stored."""

    device = torch.device("cpu")

    def __init__(self, X: Matrix | Selection) -> None:
        self._selection = X if isinstance(X, Selection) else None
        if isinstance(X, Selection):
            run = X.run or slice(None)
            self.table = shared_tensor(X.base[run])
            self._index = None if X.run is not None else torch.from_numpy(X.index)
        else:
            self.table, self._index = shared_tensor(X), None
        self.shape, self.dtype = X.shape, self.table.dtype

    def take(self, index: Tensor, out: Tensor) -> None:
        """Copy the rows of an index (n,) to out (n, D) of the table's type."""
        chosen = index if self._index is None else self._index[index]
        if self._selection is None:
            torch.index_select(self.table, 0, chosen, out=out)
            return
        for part in self._selection.parts(len(index)):
            torch.index_select(self.table, 0, chosen[part], out=out[part])
            self._selection.has_read(part.stop - part.start)

    def read(self, part: slice, space: Space | None = None) -> Tensor:
        """Return some rows in their order: the table's own memory where they are a run of it, else a copy, in
        `space` if there is any."""
        if self._selection is None:
            return self.table[part]
        if self._index is None or space is None:
            return shared_tensor(self._selection[part])
        rows = torch.arange(part.start, part.stop)
        out = space.of("rows", (len(rows), self.shape[1]), self.dtype)
        self.take(rows, out)
        return out

    def read_columns(self, part: slice) -> Tensor:
        """Return some columns (N, n) of all rows, in the table's type."""
        if self._index is None:
            found = self.table[:, part]
        else:
            found = torch.index_select(self.table[:, part], 0, self._index)
        if self._selection is not None:
            self._selection.has_read(len(found) * found.shape[1] // self.shape[1])
        return found

    def blocks(self, values: int) -> Iterator[tuple[slice, Tensor]]:
        """Yield the rows in order, about so many values at once, and which they are."""
        for part in row_blocks(self.shape[0], self.shape[1], values):
            yield part, self.read(part)


class Made:
    """A selection whose rows become floats when they are read, such as one in eight bits: no copy of all."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, X: Selection) -> None:
        self._selection, self.shape = X, X.shape

    def take(self, index: Tensor, out: Tensor) -> None:
        """Copy the rows of an index (n,) to out (n, D), float32."""
        rows = self._selection.base[self._selection.index[index.numpy()]]
        out.copy_(torch.from_numpy(rows))

    def read(self, part: slice, space: Space | None = None) -> Tensor:
        """Return some rows in their order."""
        return torch.from_numpy(self._selection[part])

    def read_columns(self, part: slice) -> Tensor:
        """Return some columns (N, n) of all rows, which are made block by block."""
        parts = row_blocks(self.shape[0], self.shape[1])
        return torch.cat([self.read(rows)[:, part] for rows in parts])

    def blocks(self, values: int) -> Iterator[tuple[slice, Tensor]]:
        """Yield the rows in order, about so many values at once, and which they are."""
        for part in row_blocks(self.shape[0], self.shape[1], values):
            yield part, self.read(part)


def here(X: Matrix | Selection) -> Shared | Made:
    """Return a table where it is: its own memory, or rows that become floats when they are read."""
    made = isinstance(X, Selection) and not isinstance(X.base, np.ndarray)
    return Made(X) if made else Shared(X)  # type: ignore[arg-type]


class Held:
    """A copy of a table in a GPU's memory, in the table's type."""

    def __init__(self, X: Matrix | Selection, device: torch.device) -> None:
        source = here(X)
        self.device, self.shape, self.dtype = device, source.shape, source.dtype
        self.table = torch.empty(self.shape, dtype=self.dtype, device=device)
        for part, rows in Streamed(X, device).blocks(_STAGED // self.dtype.itemsize):
            self.table[part] = rows

    def take(self, index: Tensor, out: Tensor) -> None:
        """Copy the rows of an index (n,) on the device to out (n, D) of the table's type."""
        torch.index_select(self.table, 0, index, out=out)

    def read(self, part: slice, space: Space | None = None) -> Tensor:
        """Return some rows in their order, which are not copied."""
        return self.table[part]

    def blocks(self, values: int) -> Iterator[tuple[slice, Tensor]]:
        """Yield the rows in order, about so many values at once, and which they are."""
        for part in row_blocks(self.shape[0], self.shape[1], values):
            yield part, self.table[part]


class Streamed:
    """A table that stays where it is: its rows go to the device when they are needed.

    They go by two page-locked buffers in turn, so that one is filled while the other's rows are under way
    and the device computes on those before them.
    """

    def __init__(self, X: Matrix | Selection, device: torch.device) -> None:
        self._source, self.device = here(X), device
        self.shape, self.dtype = self._source.shape, self._source.dtype
        self._buffers: list[Tensor] = []
        self._sent = [torch.cuda.Event(), torch.cuda.Event()] if device.type == "cuda" else []
        self._turn = 0

    def take(self, index: Tensor, out: Tensor) -> None:
        """Send the rows of an index (n,) on the CPU to out (n, D) of the table's type on the device."""
        buffer = self._buffer(len(index))
        self._source.take(index, buffer)
        self._send(buffer, out)

    def read(self, part: slice, space: Space | None = None) -> Tensor:
        """Return some rows in their order, on the device."""
        out = (space or Space(self.device)).of("rows", (part.stop - part.start, self.shape[1]), self.dtype)
        self.take(torch.arange(part.start, part.stop), out)
        return out

    def blocks(self, values: int) -> Iterator[tuple[slice, Tensor]]:
        """Yield the rows in order on the device, about so many values at once, and which they are."""
        most = _STAGED // self.dtype.itemsize
        out: Tensor | None = None
        for part in row_blocks(self.shape[0], self.shape[1], min(values, most)):
            count = part.stop - part.start
            if out is None:
                out = torch.empty((count, self.shape[1]), dtype=self.dtype, device=self.device)
            self.take(torch.arange(part.start, part.stop), out[:count])
            yield part, out[:count]

    def _buffer(self, rows: int) -> Tensor:
        """Return the buffer whose turn it is, once its rows before have arrived."""
        self._turn = 1 - self._turn
        if self._sent:
            self._sent[self._turn].synchronize()
        if not self._buffers or len(self._buffers[0]) < rows:
            shape, dtype = (rows, self.shape[1]), self.dtype
            pinned = self.device.type == "cuda"
            self._buffers = [torch.empty(shape, dtype=dtype, pin_memory=pinned) for _ in range(2)]
        return self._buffers[self._turn][:rows]

    def _send(self, buffer: Tensor, out: Tensor) -> None:
        out.copy_(buffer, non_blocking=True)
        if self._sent:
            self._sent[self._turn].record(torch.cuda.current_stream(self.device))


Place = Shared | Made | Held | Streamed


def placed(X: Matrix | Selection, device: torch.device, copies: MutableMapping[str, Place]) -> Place:
    """Return a table where `device` can read it; a copy made once is found again in `copies`.

    On a GPU the table is held where it fits its budget, or where it has none most of the free memory.
    """
    if device.type == "cpu":
        return here(X)
    key = f"{device} {id(X)}"
    if key not in copies:
        fits = X.nbytes <= _room(X, device)
        copies[key] = Held(X, device) if fits else Streamed(X, device)
    return copies[key]


def _room(X: Matrix | Selection, device: torch.device) -> float:
    if isinstance(X, Selection) and X.budget is not None:
        return X.budget
    return _SHARE * torch.cuda.mem_get_info(device)[0]
