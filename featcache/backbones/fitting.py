"""Fit many images at once on the CPU: small images of one size are upscaled together, all others one by one.

One by one by a kernel of our own once enough have come (`kernels.resizing`), before that by Pillow. Small
ones by torch's vectorised resize where it has been proved to give Pillow's bytes (`native`), else by numpy.
Pillow makes one pixel after the other. Where an image grows, several output rows are mixtures of the same
source rows, so they are made by a few long operations of numpy instead, in the same integers. In these numpy
lets go of the interpreter's lock and uses one core, so threads can fit side by side.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from featcache.backbones.kernels.resizing import Readiness, resize_by_kernel
from featcache.backbones.native import Chooser, resize_natively
from featcache.backbones.preprocess import check_image, fit, scaled_size
from featcache.backbones.resize_plan import ResizePlan, Size, is_pillows, resize_plan
from featcache.backbones.taps import BITS, HALF, Taps
from featcache.errors import BadImageError
from featcache.recipe import Preprocess

TOGETHER = 8  # images a step: their sums stay in a core's cache
GROWTH = 3.5  # times an image grows at least, and source pixels an output pixel is made of at most:
MOST_TAPS = 2  # beyond these Pillow is as quick
ONE, HALF32, BITS32 = np.int32(1 << BITS), np.int32(HALF), np.int32(BITS)

Pixels = NDArray[np.uint8]


def fit_all(images: Sequence[Pixels], preprocess: Preprocess, out: Pixels) -> None:
    """Fit images (H, W, 3), of any sizes, to out (n, crop, crop, 3): every byte as `preprocess.fit` gives it.

    Raises:
        BackboneError: an array is no uint8 image, or the interpolation is unknown.
        BadImageError: an image is too elongated; `out` is then filled in part.
    """
    for image in images:
        check_image(image)
    if len(images) > 1 and len({image.shape for image in images}) == 1:
        if _fitted_natively(images, preprocess, out):
            return
        upscaling = _kept.upscaling((images[0].shape[0], images[0].shape[1]), preprocess)
        if upscaling is not None:
            for first in range(0, len(images), TOGETHER):
                upscaling(np.stack(images[first : first + TOGETHER]), out[first : first + TOGETHER])
            return
    by_kernel = _readiness.takes(preprocess, len(images))
    for image, place in zip(images, out, strict=True):
        if by_kernel and place.flags.c_contiguous:
            resize_by_kernel(image, preprocess, place)
        else:
            place[...] = fit(image, preprocess)


def fit_what_can(images: Sequence[Pixels], preprocess: Preprocess, out: Pixels) -> list[tuple[int, str]]:
    """Fit images as `fit_all` does; return (place, reason) of those that cannot be, which become zeros.

    Raises:
        BackboneError: an array is no uint8 image, or the interpolation is unknown.
    """
    try:
        fit_all(images, preprocess, out)
        return []
    except BadImageError:
        return [bad for place, image in enumerate(images) for bad in _fit_one(place, image, preprocess, out)]


def _fit_one(place: int, image: Pixels, preprocess: Preprocess, out: Pixels) -> list[tuple[int, str]]:
    try:
        out[place] = fit(image, preprocess)
        return []
    except BadImageError as error:
        out[place] = 0
        return [(place, error.message)]


def _fitted_natively(images: Sequence[Pixels], preprocess: Preprocess, out: Pixels) -> bool:
    """Let torch resize images of one size if there is nothing but that to do and it does it exactly."""
    height, width, _ = images[0].shape
    target = preprocess.crop, preprocess.crop
    if preprocess.interpolation != "bilinear" or max(height, width) > preprocess.crop:
        return False
    if scaled_size(height, width, preprocess) != target or not _chooser.takes(
        (height, width), target, len(images)
    ):
        return False
    out[...] = resize_natively(np.stack(images), target)
    return True


@dataclass(frozen=True)
class _Run:
    """Output rows made of the same source rows, with the weights of each."""

    rows: slice
    first: int  # source row
    weights: tuple[NDArray[np.int32], ...]  # for each source row from the first on: (rows, 1)

    @property
    def mixes(self) -> bool:
        """Whether every row is a mixture of two, w of one and 1 - w of the other."""
        return len(self.weights) == 2 and bool((self.weights[0] + self.weights[1] == ONE).all())


class Upscaling:
    """Upscales images of one size, the width first. Not for several threads at once."""

    def __init__(self, plan: ResizePlan) -> None:
        height, width = plan.source
        self.size, crop3 = plan.crop, plan.crop * 3
        self._runs = [(run, run.mixes) for run in _runs(plan.down)]
        self._most = max(len(run.weights[0]) for run, _ in self._runs)
        self._clips = bool((plan.down.weight < 0).any() or (plan.across.weight < 0).any())
        used, channels = range(plan.across.weight.shape[1]), np.arange(3)
        self._columns = [(plan.across.index[:, k, None] * 3 + channels).ravel() for k in used]
        self._weights = [np.repeat(plan.across.weight[:, k], 3) for k in used]
        # Memory for all sums: fresh memory from the system for each would cost more than the sums.
        self._narrow = np.empty((TOGETHER * height, width * 3), np.int32)
        self._wide, self._other = (np.empty((TOGETHER * height, crop3), np.int32) for _ in range(2))
        self._sums, self._part = (np.empty(TOGETHER * self._most * crop3, np.int32) for _ in range(2))
        self._height = height

    def __call__(self, images: Pixels, out: Pixels) -> None:
        """Upscale images (n, H, W, 3), n at most `TOGETHER`, to out (n, crop, crop, 3)."""
        count, lines = len(images), len(images) * self._height
        narrow = self._narrow[:lines]
        np.copyto(narrow, images.reshape(lines, -1))
        wide = self._across(narrow, self._wide[:lines], self._other[:lines])
        self._down(wide.reshape(count, self._height, -1), out.reshape(count, self.size, -1))

    def _across(
        self, values: NDArray[np.int32], total: NDArray[np.int32], part: NDArray[np.int32]
    ) -> NDArray[np.int32]:
        # "clip" tells numpy that it may write at once; no index is out of range.
        np.take(values, self._columns[0], axis=1, out=total, mode="clip")
        total *= self._weights[0]
        for columns, weights in zip(self._columns[1:], self._weights[1:], strict=True):
            np.take(values, columns, axis=1, out=part, mode="clip")
            part *= weights
            total += part
        total += HALF32
        return self._shifted(total)

    def _down(self, values: NDArray[np.int32], out: Pixels) -> None:
        count, _, length = values.shape
        for run, mixes in self._runs:
            shape = (count, len(run.weights[0]), length)
            total, part = (
                room[: count * shape[1] * length].reshape(shape) for room in (self._sums, self._part)
            )
            if mixes:
                self._mix(values[:, run.first, None], values[:, run.first + 1, None], run.weights[1], total)
            else:
                self._sum(values, run, total, part)
            np.copyto(out[:, run.rows], self._shifted(total), casting="unsafe")

    def _mix(
        self,
        one: NDArray[np.int32],
        other: NDArray[np.int32],
        weight: NDArray[np.int32],
        total: NDArray[np.int32],
    ) -> None:
        """(1 - w) a + w b = a + w (b - a): one product less for each output pixel, the same integer."""
        np.multiply(other - one, weight, out=total)
        total += (one << BITS32) + HALF32

    def _sum(
        self, values: NDArray[np.int32], run: _Run, total: NDArray[np.int32], part: NDArray[np.int32]
    ) -> None:
        np.multiply(values[:, run.first, None], run.weights[0], out=total)
        for place, weight in enumerate(run.weights[1:], run.first + 1):
            np.multiply(values[:, place, None], weight, out=part)
            total += part
        total += HALF32

    def _shifted(self, total: NDArray[np.int32]) -> NDArray[np.int32]:
        """Return sums in units of 2**-22, one half added, as pixels; the sums are overwritten."""
        total >>= BITS32
        return np.clip(total, 0, 255, out=total) if self._clips else total


def _runs(taps: Taps) -> list[_Run]:
    """Cut the output rows where their first source row changes."""
    firsts = taps.first
    borders = [0, *(np.flatnonzero(np.diff(firsts)) + 1).tolist(), len(firsts)]
    return [_run(taps, slice(a, b)) for a, b in pairwise(borders)]


def _run(taps: Taps, rows: slice) -> _Run:
    weights = taps.weight[rows]
    used = int(np.flatnonzero(weights.any(axis=0)).max(initial=0)) + 1
    columns = tuple(np.ascontiguousarray(weights[:, k, None]) for k in range(used))
    return _Run(rows, int(taps.first[rows.start]), columns)


class _Kept(threading.local):
    """What each thread keeps: its own sums."""

    def __init__(self) -> None:
        self.upscaling = lru_cache(maxsize=16)(_upscaling)


def _upscaling(source: Size, preprocess: Preprocess) -> Upscaling | None:
    """Return what upscales images of a size, None where Pillow is to do it."""
    try:
        plan = resize_plan(source, preprocess)
    except BadImageError:
        return None
    few = max(plan.down.weight.shape[1], plan.across.weight.shape[1]) <= MOST_TAPS
    grows = max(source) * GROWTH <= plan.crop and plan.fills
    return Upscaling(plan) if few and grows and is_pillows(preprocess.interpolation) else None


_kept = _Kept()
_chooser = Chooser()
_readiness = Readiness()
