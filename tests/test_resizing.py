"""The kernel's resize is Pillow's, byte for byte; who may use it and when."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from featcache.backbones import fitting
from featcache.backbones.kernels import library, resizing
from featcache.backbones.kernels.resizing import Readiness, is_exact, resize_by_kernel
from featcache.backbones.preprocess import fit
from featcache.backbones.taps import BITS, FILTERS, taps
from featcache.errors import BackboneError, BadImageError
from featcache.images.decode import decode
from featcache.recipe import Preprocess

needs_compiler = pytest.mark.skipif(not library.compiler(), reason="no C compiler")
MEAN, STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)


def step(mode: str = "auto", resize: int = 36, crop: int = 32, interpolation: str = "bilinear") -> Preprocess:
    return Preprocess(mode, resize, crop, interpolation, MEAN, STD)


def noise(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Half of it flat black and white, where a filter with negative weights goes beyond both ends."""
    draw = np.random.default_rng(seed)
    image = draw.integers(0, 256, (height, width, 3), dtype=np.uint8)
    flat = draw.random((height, width)) < 0.5
    image[flat] = 255 * draw.integers(0, 2, (int(flat.sum()), 1), dtype=np.uint8)
    return image


def by_kernel(image: NDArray[np.uint8], preprocess: Preprocess) -> NDArray[np.uint8]:
    out = np.full((preprocess.crop, preprocess.crop, 3), 77, np.uint8)
    resize_by_kernel(image, preprocess, out)
    return out


@needs_compiler
@settings(deadline=None, max_examples=60)  # compiles at first
@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    mode=st.sampled_from(["auto", "weights", "squash"]),
    resize=st.integers(20, 50),
    crop=st.integers(17, 45),
    interpolation=st.sampled_from(["nearest", *FILTERS]),
    seed=st.integers(0, 9),
)
def test_every_byte_is_pillows(
    height: int, width: int, mode: str, resize: int, crop: int, interpolation: str, seed: int
) -> None:
    how, image = step(mode, resize, crop, interpolation), noise(height, width, seed)
    np.testing.assert_array_equal(by_kernel(image, how), fit(image, how))


@needs_compiler
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    "size", [(333, 500), (500, 333), (1200, 900), (64, 2000), (2000, 64), (1, 300), (300, 1)]
)
def test_photos_sizes(size: tuple[int, int], interpolation: str) -> None:
    how = Preprocess("auto", 256, 224, interpolation, MEAN, STD)
    image = noise(*size)
    np.testing.assert_array_equal(by_kernel(image, how), fit(image, how))


@needs_compiler
def test_hammings_constants_have_single_precision() -> None:
    """With more of it four bytes of this one differ."""
    how, image = step("squash", 224, 224, "hamming"), noise(672, 171, 7)
    np.testing.assert_array_equal(by_kernel(image, how), fit(image, how))


@needs_compiler
@pytest.mark.real
def test_every_byte_of_real_photos_is_pillows(real_data: Path) -> None:
    paths = sorted((real_data / "imagenet-photos-200").glob("*.JPEG"))
    assert len(paths) == 200
    assert len(paths) == 200
    for image in (decode(path.read_bytes()) for path in paths):
        for interpolation in ("bilinear", "bicubic"):
            how = Preprocess("auto", 256, 224, interpolation, MEAN, STD)
            np.testing.assert_array_equal(by_kernel(image, how), fit(image, how))


@needs_compiler
def test_views_of_arrays_and_what_is_refused() -> None:
    how, image = step(), noise(50, 60)
    for view in (image[::-1], image[:, ::-1], image.swapaxes(0, 1), image[5:40, 3:50]):
        np.testing.assert_array_equal(by_kernel(view, how), fit(view, how))
    with pytest.raises(BadImageError, match="too elongated"):
        by_kernel(np.zeros((1, 200_000, 3), np.uint8), how)
    with pytest.raises(BackboneError, match="must be uint8"):
        by_kernel(np.zeros((5, 5), np.uint8), how)
    with pytest.raises(BackboneError, match="Unknown interpolation"):
        by_kernel(image, step(interpolation="magic"))


# -- when it is used --------------------------------------------------------------------------------------


@needs_compiler
def test_it_is_used_once_images_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    how, images = step(), [noise(40 + n, 70) for n in range(6)]
    wanted = np.stack([fit(image, how) for image in images])
    used: list[int] = []

    def kernel(image: NDArray[np.uint8], preprocess: Preprocess, out: NDArray[np.uint8]) -> None:
        used.append(len(image))
        resize_by_kernel(image, preprocess, out)

    monkeypatch.setattr(fitting, "_readiness", Readiness(worth=7))
    monkeypatch.setattr(fitting, "resize_by_kernel", kernel)
    for expected in ([], [len(image) for image in images]):
        out = np.zeros_like(wanted)
        fitting.fit_all(images, how, out)
        np.testing.assert_array_equal(out, wanted)
        assert used == expected
    wide = np.zeros((6, 32, 64, 3), np.uint8)  # places that are no array of their own
    fitting.fit_all(images, how, wide[:, :, :32])
    np.testing.assert_array_equal(wide[:, :, :32], wanted)


def test_nobody_waits_while_it_is_proved(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slowly(preprocess: Preprocess) -> bool:
        begun.set()
        return go_on.wait(30)

    monkeypatch.setattr(resizing, "is_exact", slowly)
    readiness, answers = Readiness(worth=0), []
    first = threading.Thread(target=lambda: answers.append(readiness.takes(step(), 1)))
    first.start()
    assert begun.wait(30)
    assert readiness.takes(step(), 1) is False
    go_on.set()
    first.join()
    assert answers == [True]
    monkeypatch.setattr(resizing, "is_exact", lambda preprocess: pytest.fail("again"))
    assert readiness.takes(step(), 1) is True


def test_it_is_not_used_without_a_compiler_or_where_bytes_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    is_exact.cache_clear()
    try:
        monkeypatch.setenv("CC", "no-such-compiler")
        assert not is_exact(step())
        is_exact.cache_clear()
        monkeypatch.undo()
        monkeypatch.setattr(resizing, "resize_by_kernel", lambda image, how, out: out.fill(0))
        assert not is_exact(step())
        is_exact.cache_clear()
        monkeypatch.undo()

        for error in (BackboneError("cc does not compile resize.c: odd."), AttributeError("no such symbol")):

            def broken(*arguments: object, error: Exception = error) -> None:
                raise error

            monkeypatch.setattr(resizing, "resize_by_kernel", broken)
            assert not is_exact(step())
            is_exact.cache_clear()
    finally:
        is_exact.cache_clear()


@needs_compiler
def test_images_too_elongated_for_a_large_recipe_are_no_counterproof(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resizing, "TRIED", ((60, 50), (40, 400)))
    large = Preprocess("weights", 3000, 2800, "bilinear", MEAN, STD)
    with pytest.raises(BadImageError):
        fit(noise(40, 400), large)
    assert is_exact(large)


@needs_compiler
def test_it_is_proved_for_the_usual_recipes() -> None:
    for resize, crop, interpolation in (
        (256, 224, "bilinear"),
        (232, 224, "bicubic"),
        (342, 299, "bilinear"),
    ):
        assert is_exact(Preprocess("auto", resize, crop, interpolation, MEAN, STD))


# -- weights ----------------------------------------------------------------------------------------------


def pillows_weights(source: int, target: int, interpolation: str) -> list[tuple[int, list[int]]]:
    """Return (first, weights) of every output pixel, one number after the other as Pillow's C has it."""
    function, support = FILTERS[interpolation]
    scale = source / target
    stretch = max(scale, 1.0)
    reach, found = support * stretch, []
    for i in range(target):
        centre = (i + 0.5) * scale
        first, stop = max(int(centre - reach + 0.5), 0), min(int(centre + reach + 0.5), source)
        values = [
            float(function(np.float64((x + first - centre + 0.5) * (1.0 / stretch))))
            for x in range(stop - first)
        ]
        total = 0.0
        for value in values:
            total += value
        shares = [value / total if total != 0.0 else value for value in values]
        found.append((first, [int(v * (1 << BITS) + (0.5 if v >= 0 else -0.5)) for v in shares]))
    return found


@settings(deadline=None, max_examples=60)  # compiles at first
@given(source=st.integers(1, 700), target=st.integers(1, 300), interpolation=st.sampled_from(sorted(FILTERS)))
def test_weights_are_those_of_one_at_a_time(source: int, target: int, interpolation: str) -> None:
    if source == target:
        return
    found = taps(source, target, interpolation)
    for row, (first, weights) in enumerate(pillows_weights(source, target, interpolation)):
        wanted, dense = np.zeros(source, np.int64), np.zeros(source, np.int64)
        wanted[first : first + len(weights)] = weights
        dense[found.index[row]] = found.weight[row]
        assert np.array_equal(wanted, dense)
