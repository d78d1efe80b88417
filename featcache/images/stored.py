"""The two kinds of data set: images in files, read one by one, and images in arrays, held in memory."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from typing import TYPE_CHECKING

from featcache import limits
from featcache.errors import BadImageError
from featcache.images.dataset import Dataset, Rows

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# A named pipe must not hold up the run, nor a line ending be translated.
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)


class FileDataset(Dataset):
    """Images in files below `root`; `files` are their paths relative to it, by default the ids."""

    def __init__(self, rows: Rows, root: str, files: Sequence[str] | None = None) -> None:
        super().__init__(rows)
        self._root = root
        self._files = rows.ids if files is None else files

    def raw(self, i: int) -> bytes:
        """Return the bytes of the file of sample i.

        Raises:
            BadImageError: it has vanished, is no regular file, is too large or may not be read.
        """
        return read_file(self.file(i))

    def file(self, i: int) -> str:
        """Return the path of sample i."""
        return os.path.join(self._root, self._files[i])  # noqa: PTH118 (a million times)


class ArrayDataset(Dataset):
    """Images in arrays: `blocks` are uint8 (n, H, W) or (n, H, W, 3) whose rows in turn are the samples."""

    def __init__(self, rows: Rows, blocks: Sequence[NDArray[np.uint8]]) -> None:
        super().__init__(rows)
        self._blocks = list(blocks)

    def raw(self, i: int) -> NDArray[np.uint8]:
        """Return the pixels of sample i, uint8 (H, W) or (H, W, 3), a view."""
        for block in self._blocks:
            if i < len(block):
                pixels: NDArray[np.uint8] = block[i]
                return pixels
            i -= len(block)
        raise IndexError(i)


def read_file(path: str) -> bytes:
    """Return the bytes of a regular file.

    Raises:
        BadImageError: the reason it cannot be read.
        OptionError: the limit on its bytes is no number.
    """
    most = limits.IMAGE_BYTES()  # not in the try: no image is bad for a limit that is none
    try:
        handle = os.open(path, _FLAGS)
        try:
            return _read(handle, most)
        finally:
            os.close(handle)
    except FileNotFoundError as error:
        raise BadImageError("the file has vanished") from error
    except (OSError, ValueError) as error:
        raise BadImageError(f"cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _read(handle: int, most: int) -> bytes:
    state = os.fstat(handle)
    if stat.S_ISDIR(state.st_mode):
        raise BadImageError("is a folder, not a file")
    if not stat.S_ISREG(state.st_mode):
        raise BadImageError("is no regular file")
    if state.st_size > most:
        raise BadImageError(f"the file has {state.st_size / 1e9:.3g} GB, the limit is {most / 1e9:.3g}")
    data = os.read(handle, state.st_size + 1)
    if len(data) == state.st_size:
        return data
    parts = [data]  # a signal came between, or the file is growing
    while part := os.read(handle, 1 << 20):
        parts.append(part)
    return b"".join(parts)
