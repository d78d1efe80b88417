"""Chosen rows of a large array that is not copied, and whose pages are let go again where memory is short."""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

_AROUND = 1 << 21  # bytes that Linux maps at most for one that is missed: a huge page
_LARGE = 1 << 30  # bytes of a table that a process should not outgrow by its libraries' half a GiB


class Selection:
    """The rows `index` (N,) of `base` (n, D): `selection[10:20]` is an array of ten of them.

    It stands for an array (N, D) wherever rows are read in blocks; `np.asarray` copies the rows, or gives
    the base itself where they are a run of it. With a `budget` in bytes the pages of a mapped file that
    were read are let go whenever reading has made so many resident, so that the process stays that small;
    without one too, where the file is large, but seldom.
    """

    ndim = 2

    def __init__(self, base: NDArray[Any], index: NDArray[np.int64], budget: int | None = None) -> None:
        self.base, self.index, self.budget = base, index, budget
        run = len(index) > 0 and bool((np.diff(index) == 1).all())
        self.run = slice(int(index[0]), int(index[-1]) + 1) if run else None
        self._row_bytes = base.dtype.itemsize * base.shape[1]
        self._plain = isinstance(base, np.ndarray)  # other bases give arrays when they are indexed
        self._most = _most(base.nbytes, budget)  # bytes that may be resident before more are read
        self._gives_back = self._plain and self._most < base.nbytes and is_mapped_file(base)
        self._read, self._floor = 0, resident_file_bytes() if self._gives_back else 0

    def __len__(self) -> int:
        return len(self.index)

    @property
    def shape(self) -> tuple[int, int]:
        """(N, D)."""
        return len(self.index), self.base.shape[1]

    @property
    def dtype(self) -> np.dtype[Any]:
        """The base's."""
        return self.base.dtype

    @property
    def nbytes(self) -> int:
        """The bytes of the rows."""
        return len(self) * int(self._row_bytes)

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        """Return some of the rows (n, D): a view where they are a run of the base, else a copy."""
        if self.run is not None:
            found = self.base[self.run][rows]
            self.has_read(len(found))
            return found
        index = self.index[rows]
        copy = np.empty((len(index), self.base.shape[1]), dtype=self.base.dtype)
        for part in self.parts(len(index)):
            if self._plain:
                np.take(self.base, index[part], axis=0, out=copy[part], mode="clip")  # raise takes a buffer
            else:
                copy[part] = self.base[index[part]]
            self.has_read(part.stop - part.start)
        return copy

    def parts(self, rows: int) -> Iterator[slice]:
        """Yield slices of so many scattered rows; `has_read` should be told after each."""
        step = rows
        if self._gives_back:
            step = max(1, self._most // 2 // (self._row_bytes + _AROUND))
        for start in range(0, rows, max(1, step)):
            yield slice(start, min(start + step, rows))

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        whole = self.base[self.run] if self.run is not None else self.base[self.index]
        return np.array(whole, dtype=dtype) if copy else np.asarray(whole, dtype=dtype)

    def has_read(self, rows: int) -> None:
        """Take note that so many rows were read; let the pages go where they are too many by now.

        How many they are is asked of the system, as a row brings its surroundings along, up to a huge page;
        they are at least the rows themselves, where a system does not count.
        """
        if not self._gives_back:
            return
        self._read += rows * self._row_bytes
        if max(self._read, resident_file_bytes() - self._floor) > self._most:
            let_go(self.base)
            self._read, self._floor = 0, resident_file_bytes()


def _most(size: int, budget: int | None) -> int:
    """Return how much of a table may be resident: half a budget, so that the other half is left for what is
    read next; without one a small table as a whole, and of a large one so much that the process stays
    about as large as its table.
    """
    if budget is not None:
        return budget // 2
    return size if size < _LARGE else size // 2


def let_go(array: NDArray[Any]) -> None:
    """Drop this process' pages of a mapped file; they are read again, mostly from the page cache, if needed.

    The array must be one that `is_mapped_file` says yes to: of any other memory the contents would be lost.
    """
    start, size = _pages(array)
    if size:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        libc.madvise(start, size, mmap.MADV_DONTNEED)


def resident_file_bytes() -> int:
    """Return how much of files is mapped and in this process' memory, as Linux counts."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[2]) * mmap.PAGESIZE


def is_mapped_file(array: NDArray[Any]) -> bool:
    """Return whether all of an array lies in read-only maps of files, as Linux says; elsewhere False."""
    if not sys.platform.startswith("linux") or array.nbytes == 0 or not array.flags.c_contiguous:
        return False
    start = array.ctypes.data
    covered = start
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as lines:
        for line in lines:
            bounds, access, _, _, inode = line.split(maxsplit=5)[:5]
            low, high = (int(text, 16) for text in bounds.split("-"))
            if low <= covered < high and inode != "0" and access[:2] == "r-":
                covered = high
    return covered >= start + array.nbytes


def _pages(array: NDArray[Any]) -> tuple[int, int]:
    """Return where an array's own whole pages begin, and their size in bytes."""
    first = -(-array.ctypes.data // mmap.PAGESIZE) * mmap.PAGESIZE
    last = (array.ctypes.data + array.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    return first, max(0, last - first)
