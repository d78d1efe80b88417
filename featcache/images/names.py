"""Very many names as two arrays: their bytes one behind the other, and where each ends. numpy only.

A list of a hundred million texts takes nine gigabytes; these arrays take what the names have, and may be
mapped from a file, so that they take none.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import overload

import numpy as np
from numpy.typing import NDArray

BLOCK = 1 << 14  # names that are texts at once
_CODE = ("utf-8", "surrogateescape")  # a path that is no UTF-8 survives


class Names(Sequence[str]):
    """A sequence of texts that are made when they are asked for.

    Args:
        data: uint8 (B,), the names in UTF-8 one behind the other.
        ends: int64 (N,), where each ends; never falling, the last is B.
    """

    def __init__(self, data: NDArray[np.uint8], ends: NDArray[np.int64]) -> None:
        self.data, self.ends = data, ends

    @classmethod
    def packed(cls, names: Iterable[str]) -> Names:
        """Return names as such arrays, a block at a time; names that are so already as they are."""
        if isinstance(names, Names):
            return names
        data, ends, left = bytearray(), [np.zeros(0, np.int64)], iter(names)
        while block := [name.encode(*_CODE) for name in islice(left, BLOCK)]:
            ends.append(np.cumsum([len(name) for name in block], dtype=np.int64) + len(data))
            data += b"".join(block)
        return cls(np.frombuffer(bytes(data) if len(data) < BLOCK else data, np.uint8), np.concatenate(ends))

    @classmethod
    def joined(cls, parts: Iterable[tuple[bytearray, array[int]]]) -> Names:
        """Return the names of several such pairs, one behind the other, in memory of their own."""
        data, ends = bytearray(), [np.zeros(0, np.int64)]
        for part, stops in parts:
            ends.append(np.array(stops, np.int64) + len(data))
            data += part
        return cls(np.frombuffer(data, np.uint8), np.concatenate(ends))

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, at: int) -> str: ...
    @overload
    def __getitem__(self, at: slice) -> list[str]: ...
    def __getitem__(self, at: int | slice) -> str | list[str]:
        if isinstance(at, slice):
            rows = range(len(self))[at]
            if rows.step == 1:
                return self._texts(rows.start, rows.stop)
            return [self[row] for row in rows]
        row = range(len(self))[at]
        return self._texts(row, row + 1)[0]

    def __iter__(self) -> Iterator[str]:
        for first in range(0, len(self), BLOCK):
            yield from self._texts(first, min(first + BLOCK, len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(map(str.__eq__, self, other))

    __hash__ = None  # type: ignore[assignment]

    def _texts(self, first: int, stop: int) -> list[str]:
        if stop <= first:
            return []
        begin = int(self.ends[first - 1]) if first else 0
        ends = (self.ends[first:stop] - begin).tolist()
        data = self.data[begin : begin + ends[-1]].tobytes()
        return [data[a:b].decode(*_CODE) for a, b in zip([0, *ends], ends, strict=False)]
