"""Resize and crop by resize.c: a third of Pillow's time, and proved to give Pillow's bytes."""

from __future__ import annotations

import ctypes
import threading
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from featcache.backbones.kernels.library import compiler, library
from featcache.backbones.preprocess import check_image, fit
from featcache.backbones.resize_plan import ResizePlan, Size, resize_plan
from featcache.backbones.taps import Taps
from featcache.errors import BadImageError
from featcache.recipe import Preprocess

WORTH = 400  # images, for which compiling and proving cost what they save
LINES = 16  # as in resize.c
TRIED = ((32, 32), (61, 47), (333, 500), (500, 333), (120, 40), (40, 400), (9, 7), (224, 224), (700, 300))

Pixels = NDArray[np.uint8]


class _Pass(ctypes.Structure):
    """`struct pass` of resize.c."""

    _fields_ = (
        ("first", ctypes.c_void_p), ("weight", ctypes.c_void_p),
        ("size", ctypes.c_long), ("taps", ctypes.c_long),
    )  # fmt: skip


@dataclass(frozen=True)
class _Passes:
    """What resize.c takes for images of one size."""

    plan: ResizePlan
    down: _Pass
    across: _Pass
    middle: int  # bytes between the passes
    room: int  # bytes of turned lines


def resize_by_kernel(image: Pixels, preprocess: Preprocess, out: Pixels) -> None:
    """Fit an image (H, W, 3) to out (crop, crop, 3), as `preprocess.fit` does.

    Raises:
        BackboneError: there is no compiler, the array is no uint8 image, or the interpolation is unknown.
        BadImageError: the image is too elongated.
    """
    check_image(image)
    passes = _passes((image.shape[0], image.shape[1]), preprocess)
    plan, pixels = passes.plan, np.ascontiguousarray(image)
    height, width = plan.filled
    if not plan.fills:
        out[...] = 0
    place = out[plan.top : plan.top + height, plan.left : plan.left + width]
    middle, room = np.empty(passes.middle, np.uint8), np.empty(passes.room, np.uint8)
    library(("resize.c",)).resize(
        ctypes.c_void_p(pixels.ctypes.data), ctypes.c_long(image.shape[1]),
        ctypes.byref(passes.down), ctypes.byref(passes.across), ctypes.c_long(plan.down_first),
        ctypes.c_void_p(place.ctypes.data), ctypes.c_long(place.strides[0]),
        ctypes.c_void_p(middle.ctypes.data), ctypes.c_void_p(room.ctypes.data),
    )  # fmt: skip


@lru_cache(maxsize=1024)
def _passes(source: Size, preprocess: Preprocess) -> _Passes:
    plan = resize_plan(source, preprocess)
    down, across = _pass(plan.down), _pass(plan.across)
    step, narrow = source[1] * 3, across.size * 3
    middle = down.size * step if plan.down_first else source[0] * narrow
    return _Passes(plan, down, across, middle, (step + narrow) * LINES)


def _pass(taps: Taps) -> _Pass:
    """Return a pass that points to the taps' own memory, which their plan keeps."""
    return _Pass(taps.first.ctypes.data, taps.weight.ctypes.data, len(taps.first), taps.count)


class Readiness:
    """Says when the kernel may resize: when images are many enough to compile it, and it was proved."""

    def __init__(self, worth: int = WORTH) -> None:
        self._worth, self._seen = worth, 0
        self._proved: dict[Preprocess, bool] = {}
        self._lock = threading.Lock()

    def takes(self, preprocess: Preprocess, count: int) -> bool:
        """Return whether the next `count` images may be resized by the kernel.

        While one thread compiles and proves it the others are told no, rather than made to wait.
        """
        if preprocess in self._proved:
            return self._proved[preprocess]
        if not self._lock.acquire(blocking=False):
            return False
        try:
            self._seen += count
            if self._seen > self._worth:
                self._proved[preprocess] = is_exact(preprocess)
            return self._proved.get(preprocess, False)
        finally:
            self._lock.release()


@lru_cache(maxsize=16)
def is_exact(preprocess: Preprocess) -> bool:
    """Return whether the kernel is to be had and gives Pillow's bytes, on noise of a few sizes."""
    if not compiler():
        return False
    draw = np.random.default_rng(0)
    out = np.empty((preprocess.crop, preprocess.crop, 3), np.uint8)
    try:
        return all(_alike(draw.integers(0, 256, (*size, 3), np.uint8), preprocess, out) for size in TRIED)
    except Exception:  # whatever keeps it from being compiled, loaded or called: Pillow does without
        return False


def _alike(image: Pixels, preprocess: Preprocess, out: Pixels) -> bool:
    try:
        wanted = fit(image, preprocess)
    except BadImageError:  # too elongated for so large a recipe: says nothing
        return True
    resize_by_kernel(image, preprocess, out)
    return np.array_equal(out, wanted)
