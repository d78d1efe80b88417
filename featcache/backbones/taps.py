"""The weights of Pillow's resize: which source pixels make an output pixel, and how much each counts.

Pillow resizes 8-bit images in integers (its file `Resample.c`): per axis, an output pixel is the sum of a few
source pixels times weights in units of 2**-22, plus one half, shifted right and clipped to a byte. Those very
integers are here; what is done with them is in `featcache.backbones.resize`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from featcache.errors import BackboneError, unknown

BITS = 22
"""Digits after the binary point: 32 less the 8 of a pixel and 2 for sums beyond 255."""

HALF = 1 << (BITS - 1)


@dataclass(frozen=True)
class Taps:
    """For each of n output pixels along one axis, K neighbouring source pixels and their weights.

    All of them exist: pixels of weight 0 fill up where fewer count, at the image's end those before.
    """

    first: NDArray[np.int32]  # (n,), contiguous
    weight: NDArray[np.int32]  # (n, K), contiguous, in units of 2**-22

    @property
    def index(self) -> NDArray[np.int64]:
        """The source pixels, (n, K)."""
        return self.first[:, None] + np.arange(self.count)

    def part(self, first: int, count: int) -> Taps:
        """Return the taps of `count` output pixels from the `first` on, in the same memory."""
        return Taps(self.first[first : first + count], self.weight[first : first + count])

    @property
    def count(self) -> int:
        """K, the source pixels that make an output pixel at most."""
        return int(self.weight.shape[1])

    @property
    def copies(self) -> bool:
        """Whether every output pixel is one source pixel as it is."""
        return self.weight.shape[1] == 1 and bool((self.weight == 1 << BITS).all())


Values = NDArray[np.float64]


def _bilinear(x: Values) -> Values:
    return np.maximum(1.0 - np.abs(x), 0.0)


def _bicubic(x: Values) -> Values:
    x, a = np.abs(x), -0.5
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    far = (((x - 5.0) * x + 8.0) * x - 4.0) * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


def _box(x: Values) -> Values:
    return np.where((x > -0.5) & (x <= 0.5), 1.0, 0.0)


_SHARE, _REST = float(np.float32(0.54)), float(np.float32(0.46))  # single precision in Pillow


def _hamming(x: float) -> float:
    x = abs(x)
    if x == 0.0:
        return 1.0
    x *= math.pi
    return math.sin(x) / x * (_SHARE + _REST * math.cos(x)) if x < math.pi else 0.0


def _sinc(x: float) -> float:
    if x == 0.0:
        return 1.0
    x *= math.pi
    return math.sin(x) / x


def _lanczos(x: float) -> float:
    return _sinc(x) * _sinc(x / 3) if -3.0 <= x < 3.0 else 0.0


def _one_by_one(function: Callable[[float], float]) -> Callable[[Values], Values]:
    """Return a function of arrays with the C library's sine, as Pillow: numpy's may round otherwise."""
    return np.vectorize(function, otypes=[np.float64])


FILTERS: dict[str, tuple[Callable[[Values], Values], float]] = {
    "bilinear": (_bilinear, 1.0),
    "bicubic": (_bicubic, 2.0),
    "box": (_box, 0.5),
    "hamming": (_one_by_one(_hamming), 1.0),
    "lanczos": (_one_by_one(_lanczos), 3.0),
}
"""Name → the filter's function and how far from its centre it is not zero, in source pixels."""


@lru_cache(maxsize=1024)  # photos of many sizes share most of their sides
def taps(source: int, target: int, interpolation: str) -> Taps:
    """Return the taps that resize `source` pixels to `target` along one axis.

    Raises:
        BackboneError: the interpolation is unknown.
    """
    if interpolation != "nearest" and interpolation not in FILTERS:
        raise unknown("interpolation", interpolation, ("nearest", *FILTERS), BackboneError)
    if source == target:  # Pillow leaves out the pass
        return _copying(np.arange(source, dtype=np.int32))
    if interpolation == "nearest":
        return _copying(_nearest(source, target))
    return _filtered(source, target, *FILTERS[interpolation])


def _copying(index: NDArray[np.int32]) -> Taps:
    return Taps(index, np.full((len(index), 1), 1 << BITS, dtype=np.int32))


def _nearest(source: int, target: int) -> NDArray[np.int32]:
    """The position is summed up step by step, as Pillow's affine scaling does, with its rounding."""
    step = source / target
    at, index = step * 0.5, np.empty(target, dtype=np.int32)
    for i in range(target):
        index[i] = min(int(at), source - 1)
        at += step
    return index


def _filtered(source: int, target: int, function: Callable[[Values], Values], support: float) -> Taps:
    """All output pixels at once, each with the operations of Pillow's doubles in their order."""
    scale = source / target
    stretch = max(scale, 1.0)  # antialiasing: the filter is as wide as an output pixel
    reach = support * stretch
    centre = (np.arange(target) + 0.5) * scale
    first = np.maximum((centre - reach + 0.5).astype(np.int64), 0)
    count = np.minimum((centre + reach + 0.5).astype(np.int64), source) - first
    place = np.arange(max(1, int(count.max())))
    at = (place + first[:, None] - centre[:, None] + 0.5) * (1.0 / stretch)
    values = np.where(place < count[:, None], function(at), 0.0)
    total = np.zeros((target, 1))
    for column in values.T:  # one after the other, as Pillow does: numpy would sum in pairs
        total[:, 0] += column
    return _packed(first, _fixed(values / np.where(total == 0.0, 1.0, total)), source)


def _fixed(values: Values) -> NDArray[np.int32]:
    """Return weights in units of 2**-22, rounded half away from zero."""
    return np.trunc(values * (1 << BITS) + np.where(values >= 0, 0.5, -0.5)).astype(np.int32)


def _packed(first: NDArray[np.int64], weight: NDArray[np.int32], source: int) -> Taps:
    used = max(1, int(np.flatnonzero(weight.any(axis=0)).max(initial=0)) + 1)
    begin = np.minimum(first, source - used)
    place = np.arange(used) - (first - begin)[:, None]
    moved = np.where(place < 0, 0, np.take_along_axis(weight, np.maximum(place, 0), axis=1))
    return Taps(begin.astype(np.int32), np.ascontiguousarray(moved, dtype=np.int32))
