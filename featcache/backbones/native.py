"""Torch's own resize of bytes, which is vectorised, wherever it has been proved to be Pillow's.

Torch rounds its weights to 16 bits, Pillow to 22: for some sizes their pixels differ, for others never. A
bilinear pixel of an image that grows hangs on two source pixels alone, each a byte, so all 65 536 pairs can
be tried for every output row and column. That is done once a process for each pair of sizes; noise at the
images' own size is tried besides, for whatever else an implementation may do.
"""

from __future__ import annotations

import sys
import threading
from collections import Counter
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from featcache.backbones.preprocess import resize_with_pillow
from featcache.backbones.resize_plan import Size
from featcache.backbones.taps import BITS, HALF, taps

PAIRS = 256 * 256
NOISE = 5  # images
WORTH = 1000  # images, for which a proof costs less than it saves

Pixels = NDArray[np.uint8]


def resize_natively(images: Pixels, size: Size) -> Pixels:
    """Return images (n, H, W, 3) resized bilinearly to (n, *size, 3) by torch."""
    import torch

    from featcache.backbones.preprocess import writable

    pixels = torch.from_numpy(writable(np.ascontiguousarray(images))).permute(0, 3, 1, 2)
    done = torch.nn.functional.interpolate(pixels, size, mode="bilinear", antialias=True, align_corners=False)
    return done.permute(0, 2, 3, 1).numpy()


class Chooser:
    """Says when torch may resize: when so many images have come that a proof pays, and it held."""

    def __init__(self, worth: int = WORTH) -> None:
        self._worth, self._seen = worth, Counter[tuple[Size, Size]]()
        self._lock = threading.Lock()

    def takes(self, source: Size, target: Size, count: int) -> bool:
        """Return whether the next `count` images of a size may be resized by torch.

        While one thread proves it the others are told no, rather than made to wait. Where torch is not
        loaded it is not loaded for this: processes that only decode do without.
        """
        if "torch" not in sys.modules or not self._lock.acquire(blocking=False):
            return False
        try:
            self._seen[source, target] += count
            return self._seen[source, target] > self._worth and is_exact(source, target)
        finally:
            self._lock.release()


@lru_cache(maxsize=256)
def is_exact(source: Size, target: Size) -> bool:
    """Return whether `resize_natively` gives Pillow's bytes for all images of a size that grows."""
    if any(a > b for a, b in zip(source, target, strict=True)):
        return False
    noise = np.random.default_rng(0).integers(0, 256, (NOISE, *source, 3), dtype=np.uint8)
    wanted = [resize_with_pillow(image, (target[1], target[0]), "bilinear") for image in noise]
    try:
        alike = np.array_equal(resize_natively(noise, target), wanted)
    except (RuntimeError, NotImplementedError):  # not for bytes on this machine
        return False
    return alike and all(_axis_is_exact(source[axis], target[axis], axis) for axis in (0, 1))


def _axis_is_exact(source: int, target: int, axis: int) -> bool:
    """Try every pair of neighbours along one axis; the other keeps its size."""
    first, second = np.divmod(np.arange(PAIRS, dtype=np.int64), 256)
    lines = -(-PAIRS // 3)  # three pairs lie in the channels of one
    pairs = np.zeros((source, lines * 3), np.uint8)
    pairs[0::2, :PAIRS], pairs[1::2, :PAIRS] = first, second
    image = pairs.reshape(source, lines, 3)
    if axis == 1:
        image = image.transpose(1, 0, 2)
    size = (target, lines) if axis == 0 else (lines, target)
    done = np.moveaxis(resize_natively(image[None], size)[0], axis, 0).reshape(target, lines * 3)
    return all(
        np.array_equal(row, wanted) for row, wanted in zip(done, _expected(pairs, target), strict=True)
    )


def _expected(pairs: Pixels, target: int) -> list[Pixels]:
    """Return what Pillow makes of each row; rows of the same weights and neighbours are made once."""
    made: dict[tuple[object, ...], Pixels] = {}
    found = taps(len(pairs), target, "bilinear")
    rows = []
    for index, weight in zip(found.index.tolist(), found.weight.tolist(), strict=True):
        key = (*(place % 2 for place in index), *weight)
        if key not in made:
            total = sum(pairs[i].astype(np.int32) * np.int32(w) for i, w in zip(index, weight, strict=True))
            made[key] = np.clip((total + HALF) >> BITS, 0, 255).astype(np.uint8)
        rows.append(made[key])
    return rows
