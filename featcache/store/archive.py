"""An .npz piece by piece: the bytes that `numpy.savez` writes, without a copy of the arrays."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK = 1 << 24  # bytes that go through the checksum at once


class _Skeleton(io.RawIOBase):
    """A file that keeps what is written into it; of the bytes of arrays it counts the length alone."""

    def __init__(self) -> None:
        self.kept: dict[int, bytes] = {}
        self.passing, self._at = False, 0

    def seekable(self) -> bool:
        """Return True: headers are written again when the checksum is known."""
        return True

    def tell(self) -> int:
        """Return the place."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place, always one from the beginning."""
        self._at = offset
        return offset

    def write(self, data: Any) -> int:
        """Keep bytes, or pass them by."""
        size = memoryview(data).nbytes
        if not self.passing:
            self.kept[self._at] = bytes(data)
        self._at += size
        return size


def pieces(arrays: Mapping[str, NDArray[np.generic]]) -> list[memoryview]:
    """Return the bytes of an .npz in pieces; those of contiguous arrays are views of their memory.

    The arrays are read once, for their checksums.
    """
    skeleton, places = _Skeleton(), dict[int, memoryview]()
    with zipfile.ZipFile(skeleton, "w") as archive:
        for name, array in arrays.items():
            plain = np.ascontiguousarray(array)
            with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                header = np.lib.format.header_data_from_array_1_0(plain)
                np.lib.format.write_array_header_1_0(entry, header)
                places[skeleton.tell()] = data = plain.reshape(-1).view(np.uint8).data
                skeleton.passing = True
                for first in range(0, len(data), BLOCK):
                    entry.write(data[first : first + BLOCK])
                skeleton.passing = False
    found = {at: memoryview(kept) for at, kept in skeleton.kept.items()} | {
        at: data for at, data in places.items() if len(data)
    }
    return [found[at] for at in sorted(found)]
