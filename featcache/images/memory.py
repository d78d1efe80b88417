"""Memory for pixels, which other processes can be handed."""

from __future__ import annotations

import errno
import mmap
import os

import numpy as np
from numpy.typing import NDArray


def can_share() -> bool:
    """Whether this system has memory that another process can be handed."""
    return hasattr(os, "memfd_create")


class Memory:
    """A block of memory; its pages exist from when they are first touched.

    Args:
        size: in bytes.
        shared: whether other processes get at it, by the descriptor `handle`.

    Raises:
        MemoryError: there is no room for it.
    """

    def __init__(self, size: int, shared: bool = False) -> None:
        self.size, self.handle = size, -1
        if shared:
            self.handle = os.memfd_create("featcache-pixels")
            os.ftruncate(self.handle, size)
        self.bytes = mapped(self.handle, size)

    def close(self) -> None:
        """Give the memory up; it goes when no array lies in it any more."""
        self.bytes = np.empty(0, dtype=np.uint8)
        if self.handle >= 0:
            os.close(self.handle)
            self.handle = -1


def mapped(handle: int, size: int) -> NDArray[np.uint8]:
    """Return the memory that another process has handed here, by its descriptor; fresh memory for -1.

    Raises:
        MemoryError: there is no room for it, which mmap calls an error of the system.
    """
    try:
        return np.frombuffer(mmap.mmap(handle, size), dtype=np.uint8)
    except OSError as error:
        if error.errno != errno.ENOMEM:
            raise
        raise MemoryError(f"no room for {size} bytes of pixels") from error
