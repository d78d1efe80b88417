"""What resizing images of one size and cropping their centre comes to: two passes of taps, in Pillow's order.

Pillow resizes across, then down. Since version 13 it begins with the height where that loses more than twice
as many pixels as the width (python-pillow/Pillow#9549), which changes some pixels by one level. Which of the
two the installed Pillow does is asked of it once, and so is whether its pixels are ours at all: builds with
other arithmetic exist.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from featcache.backbones.preprocess import resize_with_pillow, scaled_size, squashes
from featcache.backbones.taps import BITS, HALF, Taps, taps
from featcache.recipe import Preprocess

Size = tuple[int, int]  # height, width


@dataclass(frozen=True)
class ResizePlan:
    """Two passes of taps from images (H, W, 3) to the middle of (crop, crop, 3), which is black around it."""

    source: Size
    crop: int
    down: Taps  # along the height
    across: Taps  # along the width
    down_first: bool
    top: int  # where the resized pixels begin in the crop; beyond 0 only where they do not fill it
    left: int

    @property
    def filled(self) -> Size:
        """Height and width of the part of the crop that is not padding."""
        return len(self.down.first), len(self.across.first)

    @property
    def fills(self) -> bool:
        """Whether there is no padding."""
        return self.filled == (self.crop, self.crop)


@lru_cache(maxsize=1024)
def resize_plan(source: Size, preprocess: Preprocess) -> ResizePlan:
    """Return the passes that fit images of one size, equal to `preprocess.fit`.

    Raises:
        BackboneError: the interpolation is unknown.
        BadImageError: the images are too elongated.
    """
    scaled = scaled_size(*source, preprocess)
    down, across = (taps(a, b, preprocess.interpolation) for a, b in zip(source, scaled, strict=True))
    first = down_first(source, scaled) and pillow_may_begin_down()
    crop = preprocess.crop
    if squashes(*source, preprocess):
        return ResizePlan(source, crop, down, across, first, 0, 0)
    (down, top), (across, left) = _centre(down, crop), _centre(across, crop)
    return ResizePlan(source, crop, down, across, first, top, left)


def _centre(whole: Taps, crop: int) -> tuple[Taps, int]:
    """Return the taps of the central `crop` pixels, and how much black comes before them."""
    size = len(whole.first)
    if size < crop:
        return whole, (crop - size) // 2
    return whole.part(round((size - crop) / 2.0), crop), 0  # half to even, as torchvision


def down_first(source: Size, target: Size) -> bool:
    """Return whether Pillow 13 resizes the height before the width."""
    lost = [a - b for a, b in zip(source, target, strict=True)]
    return lost[0] > 0 and lost[0] > 2 * lost[1]


@lru_cache(maxsize=1)
def pillow_may_begin_down() -> bool:
    """Return whether the installed Pillow knows that order."""
    image = _noise(40, 12)
    theirs = resize_with_pillow(image, (30, 10), "bilinear")
    return bool(np.array_equal(theirs, _resized(image, (10, 30), "bilinear", down_first=True)))


@lru_cache(maxsize=16)
def is_pillows(interpolation: str) -> bool:
    """Return whether the installed Pillow's pixels are those of our taps, on noise of a few sizes."""
    for source, target in (
        ((32, 32), (56, 56)),
        ((61, 47), (23, 31)),
        ((9, 40), (24, 24)),
        ((40, 9), (24, 24)),
    ):
        image = _noise(*source)
        first = down_first(source, target) and pillow_may_begin_down()
        theirs = resize_with_pillow(image, (target[1], target[0]), interpolation)
        if not np.array_equal(theirs, _resized(image, target, interpolation, first)):
            return False
    return True


def _noise(height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def _resized(
    image: NDArray[np.uint8], target: Size, interpolation: str, down_first: bool
) -> NDArray[np.uint8]:
    """Resize plainly, to compare with Pillow."""
    for axis in (0, 1) if down_first else (1, 0):
        image = _pass(image, taps(image.shape[axis], target[axis], interpolation), axis)
    return image


def _pass(image: NDArray[np.uint8], t: Taps, axis: int) -> NDArray[np.uint8]:
    weight = t.weight.astype(np.int64)[:, :, None, None]
    total = (np.moveaxis(image, axis, 0)[t.index] * weight).sum(axis=1)
    return np.moveaxis(np.clip((total + HALF) >> BITS, 0, 255).astype(np.uint8), 0, axis)
