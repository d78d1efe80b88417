"""Room for the pixels of a few batches, used again and again; processes that decode share it."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featcache.images.memory import Memory

Pin = Callable[[NDArray[np.uint8]], Callable[[], None]]
"""Makes memory quick to copy to a device; what it returns takes that back."""

Shape = tuple[int, int]
"""Height and width."""


@dataclass(frozen=True)
class Room:
    """Room for one batch: `pixels` (V * n, H, W, 3) of some views, which begin at byte `at` of the memory."""

    pixels: NDArray[np.uint8]
    at: int
    views: tuple[int, ...] = (0,)

    @property
    def by_view(self) -> NDArray[np.uint8]:
        """The same pixels as (V, n, H, W, 3): one view lies behind the other."""
        return by_view(self.pixels, len(self.views))


class Ring:
    """Rooms for batches of images of one size.

    Args:
        memory: where they are.
        begin: their first byte in it.
        shape: height and width of an image.
        images: the most in a batch.
        count: of rooms.
        pin: called with the memory of all rooms when the first is taken.
    """

    def __init__(
        self, memory: Memory, begin: int, shape: Shape, images: int, count: int, pin: Pin | None = None
    ) -> None:
        self.shape, self._memory, self._pin = shape, memory, pin
        self._step = ring_bytes(shape, images, 1)
        self._range = slice(begin, begin + count * self._step)
        self._free = [begin + number * self._step for number in range(count)]
        self._unpin: Callable[[], None] | None = None

    def take(self, images: int) -> Room:
        """Return room for so many images."""
        if self._pin is not None and self._unpin is None:
            self._unpin = self._pin(self._memory.bytes[self._range])
        at, (height, width) = self._free.pop(), self.shape
        pixels = self._memory.bytes[at : at + images * height * width * 3]
        return Room(pixels.reshape(images, height, width, 3), at)

    def give(self, room: Room) -> None:
        """Take room back that nobody reads any more."""
        self._free.append(room.at)

    def close(self) -> None:
        """Unpin the memory."""
        if self._unpin is not None:
            self._unpin()
            self._unpin = None


def by_view(pixels: NDArray[np.uint8], views: int) -> NDArray[np.uint8]:
    """Return the pixels of a batch (V * n, H, W, 3), one view behind the other, as (V, n, H, W, 3)."""
    return pixels.reshape(views, -1, *pixels.shape[1:])


def ring_bytes(shape: Shape, images: int, count: int) -> int:
    """Return the bytes of a ring, whole pages a room."""
    step = images * shape[0] * shape[1] * 3
    return count * (-(-step // mmap.PAGESIZE) * mmap.PAGESIZE)
