"""Memory for pixels, which other processes can be handed."""

from __future__ import annotations

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
    """

    def __init__(self, size: int, shared: bool = False) -> None:
        self.size, self.handle = size, -1
        if shared:
            self.handle = os.memfd_create("featcache-pixels")
            os.ftruncate(self.handle, size)
        self.bytes = np.frombuffer(mmap.mmap(self.handle, size), dtype=np.uint8)

    def close(self) -> None:
        """Give the memory up; it goes when no array lies in it any more."""
        self.bytes = np.empty(0, dtype=np.uint8)
        if self.handle >= 0:
            os.close(self.handle)
            self.handle = -1


def mapped(handle: int, size: int) -> NDArray[np.uint8]:
    """Return the memory that another process has handed here, by its descriptor."""
    return np.frombuffer(mmap.mmap(handle, size), dtype=np.uint8)
