"""The batched resize: Pillow's own bytes, at every size, for every filter, on whatever device there is."""

from __future__ import annotations

from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from featcache.backbones import fitting, native, resize_kernel
from featcache.backbones import resize_plan as plans
from featcache.backbones.preprocess import fit
from featcache.backbones.resize import Resizer, resizer
from featcache.backbones.taps import BITS, taps
from featcache.errors import BackboneError, BadImageError
from featcache.images.decode import decode
from featcache.recipe import Preprocess

FILTERS = ["bilinear", "bicubic", "lanczos", "hamming", "box", "nearest"]
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def batch(count: int, height: int, width: int, seed: int = 0, hard: bool = False) -> NDArray[np.uint8]:
    """Noise; hard: black and white only, which makes filters with negative weights leave 0..255."""
    values = np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    return np.where(values > 127, 255, 0).astype(np.uint8) if hard else values


def fitted(images: NDArray[np.uint8], p: Preprocess) -> NDArray[np.uint8]:
    return np.stack([fit(image, p) for image in images])


@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=120, deadline=None)
@given(
    height=st.integers(1, 130),
    width=st.integers(1, 130),
    resize=st.integers(1, 90),
    crop=st.integers(1, 100),
    mode=st.sampled_from(["auto", "weights", "squash"]),
    how=st.sampled_from(FILTERS),
    hard=st.booleans(),
)
def test_every_byte_is_pillows(
    device: str, height: int, width: int, resize: int, crop: int, mode: str, how: str, hard: bool
) -> None:
    images = batch(2, height, width, seed=height * 131 + width, hard=hard)
    p = Preprocess(mode, resize, crop, how)
    try:
        wanted = fitted(images, p)
    except BadImageError:
        with pytest.raises(BadImageError, match="too elongated"):
            Resizer((height, width), p, device)
        return
    got = Resizer((height, width), p, device)(torch.from_numpy(images).to(device))
    assert got.is_contiguous() and got.dtype == torch.uint8
    assert np.array_equal(got.cpu().numpy(), wanted)


@pytest.mark.parametrize("how", ["bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize(
    "size", [(28, 28), (32, 32), (96, 96), (160, 213), (375, 500), (500, 333), (900, 224)]
)
def test_sizes_people_use(size: tuple[int, int], how: str) -> None:
    images, p = batch(2, *size), Preprocess("auto", 256, 224, how)
    assert np.array_equal(Resizer(size, p)(torch.from_numpy(images)).numpy(), fitted(images, p))


@pytest.mark.parametrize("how", FILTERS)
def test_both_orders_of_the_passes_are_reproduced(how: str) -> None:
    """Sizes on both sides of the border where Pillow 13 begins with the rows."""
    for source, target in [
        ((60, 40), (40, 30)),
        ((61, 40), (40, 30)),
        ((40, 60), (30, 80)),
        ((41, 40), (40, 40)),
    ]:
        image = batch(1, *source)[0]
        theirs = np.asarray(Image.fromarray(image).resize(target[::-1], Image.Resampling[how.upper()]))
        first = plans.down_first(source, target) and plans.pillow_may_begin_down()
        assert np.array_equal(plans._resized(image, target, how, first), theirs)
    assert plans.down_first((61, 40), (40, 30)) and not plans.down_first((60, 40), (40, 30))
    assert not plans.down_first((40, 40), (40, 50))


@pytest.mark.parametrize(
    ("size", "p"),
    [
        ((20, 20), Preprocess("auto", 30, 40)),
        ((61, 40), Preprocess("weights", 30, 24)),
        ((9, 30), Preprocess("weights", 20, 28, "bicubic")),
        ((40, 20), Preprocess("weights", 12, 16, "lanczos")),
        ((20, 30), Preprocess("squash", 8, 8, "nearest")),
    ],
)
def test_the_kernel_of_a_gpu(size: tuple[int, int], p: Preprocess, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interpreted, where there is no GPU."""
    triton = pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(resize_kernel, "_resize", triton.jit(resize_kernel._passes))
    monkeypatch.setattr(torch.cuda, "device_of", lambda _: nullcontext())
    images = batch(3, *size, hard=p.interpolation != "bilinear")
    fused = resize_kernel._Fused(plans.resize_plan(size, p), torch.device("cpu"))
    assert np.array_equal(fused(torch.from_numpy(images)).numpy(), fitted(images, p))


def test_the_order_matters() -> None:
    """Else the test above could not fail."""
    image = batch(1, 61, 40)[0]
    one, other = (plans._resized(image, (40, 30), "bilinear", first) for first in (True, False))
    assert not np.array_equal(one, other) and np.abs(one.astype(int) - other).max() == 1


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 400), st.integers(1, 400), st.sampled_from(FILTERS))
def test_weights_add_up_and_fit_32_bits(source: int, target: int, how: str) -> None:
    found = taps(source, target, how)
    assert found.index.min() >= 0 and found.index.max() < source
    total = found.weight.astype(np.int64).sum(axis=1)
    assert np.abs(total - (1 << BITS)).max() <= found.weight.shape[1]  # each is rounded
    assert np.abs(found.weight.astype(np.int64)).sum(axis=1).max() * 255 < 2**31 - (1 << 21)


def test_a_row_does_not_depend_on_its_batch() -> None:
    images, p = torch.from_numpy(batch(7, 32, 32)), Preprocess("auto", 256, 224)
    work = Resizer((32, 32), p)
    whole = work(images)
    assert torch.equal(whole, torch.cat([work(images[:3]), work(images[3:])]))
    assert work(images[:0]).shape == (0, 224, 224, 3)


def test_views_are_taken_and_nothing_is_changed() -> None:
    images, p = torch.from_numpy(batch(2, 40, 60)), Preprocess("auto", 30, 24)
    before, view = images.clone(), images[:, ::2].flip(2)
    assert torch.equal(Resizer((20, 60), p)(view), Resizer((20, 60), p)(view.clone()))
    same = Resizer((24, 24), Preprocess("squash", 24, 24))(images[:, :24, :24])
    same.zero_()
    assert torch.equal(images, before)


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(1, 8, 9, 3, dtype=torch.uint8),
        torch.zeros(1, 8, 8, 3),
        torch.zeros(8, 8, 3, dtype=torch.uint8),
    ],
)
def test_other_batches_are_refused(images: torch.Tensor) -> None:
    with pytest.raises(BackboneError, match=r"must be uint8 \(\d, 8, 8, 3\) on cpu, got"):
        Resizer((8, 8), Preprocess("squash", 24, 24))(images)


def test_unknown_interpolation_and_a_pillow_that_computes_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackboneError, match="Unknown interpolation 'cubic'"):
        Resizer((8, 8), Preprocess("squash", 24, 24, "cubic"))
    plans.is_pillows.cache_clear()
    honest = plans.resize_with_pillow
    monkeypatch.setattr(plans, "resize_with_pillow", lambda *a: honest(*a) ^ np.uint8(1))
    with pytest.raises(BackboneError, match="Pillow's box resize is not the one known here"):
        Resizer((8, 8), Preprocess("squash", 24, 24, "box"))
    plans.is_pillows.cache_clear()


def many(count: int, size: tuple[int, int], hard: bool = False) -> list[NDArray[np.uint8]]:
    return list(batch(count, *size, hard=hard))


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("count", [1, 2, fitting.TOGETHER, fitting.TOGETHER + 1, 19])
@pytest.mark.parametrize(
    "size", [(32, 32), (28, 28), (8, 8), (1, 1), (31, 17), (64, 64), (65, 65), (40, 300)]
)
def test_many_images_at_once_on_the_cpu(size: tuple[int, int], count: int, hard: bool) -> None:
    images, p = many(count, size, hard), Preprocess("auto", 256, 224)
    out = np.full((count, 224, 224, 3), 7, np.uint8)
    fitting.fit_all(images, p, out)
    assert np.array_equal(out, fitted(np.stack(images), p))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(20, 150),
    st.sampled_from(["bilinear", "bicubic", "box", "nearest", "hamming"]),
)
def test_the_upscaling_is_pillows_whatever_the_sizes(height: int, width: int, crop: int, how: str) -> None:
    """Also where it would not be chosen because it is not faster."""
    p = Preprocess("squash", crop, crop, how)
    plan = plans.resize_plan((height, width), p)
    if plan.down_first or max(height, width) > crop:
        return
    images, out = batch(5, height, width, seed=crop), np.zeros((5, crop, crop, 3), np.uint8)
    fitting.Upscaling(plan)(images, out)
    assert np.array_equal(out, fitted(images, p))


def test_which_sizes_are_upscaled_together() -> None:
    p = Preprocess("auto", 256, 224)
    kept = fitting._Kept()
    assert all(kept.upscaling((side, side), p) is not None for side in (1, 8, 28, 32, 64))
    assert all(
        kept.upscaling(size, p) is None for size in [(96, 96), (224, 224), (375, 500), (1, 100_000_000)]
    )
    assert kept.upscaling((32, 32), Preprocess("auto", 256, 224, "bicubic")) is None


def test_images_of_several_sizes_and_bad_ones_on_the_cpu() -> None:
    p = Preprocess("auto", 60, 56)
    mixed = [batch(1, height, 9)[0] for height in (9, 9, 10, 80)]
    out = np.zeros((4, 56, 56, 3), np.uint8)
    fitting.fit_all(mixed, p, out)
    assert all(np.array_equal(got, fit(image, p)) for got, image in zip(out, mixed, strict=True))
    with pytest.raises(BackboneError, match="must be uint8"):
        fitting.fit_all([mixed[0], np.zeros((9, 9, 3))], p, out)
    with pytest.raises(BadImageError, match="too elongated"):
        fitting.fit_all([np.zeros((1, 90_000, 3), np.uint8)] * 2, p, out[:2])


def test_what_can_be_fitted_is() -> None:
    p, good = Preprocess("auto", 60, 56), batch(2, 9, 9)
    images = [good[0], np.zeros((1, 90_000, 3), np.uint8), good[1]]
    out = np.full((3, 56, 56, 3), 7, np.uint8)
    ((place, why),) = fitting.fit_what_can(images, p, out)
    assert place == 1 and "too elongated" in why and not out[1].any()
    assert np.array_equal(out[[0, 2]], fitted(good, p))
    assert fitting.fit_what_can(list(good), p, out[:2]) == [] and np.array_equal(out[:2], fitted(good, p))


def test_threads_fit_side_by_side() -> None:
    images, p = many(24, (32, 32)), Preprocess("auto", 256, 224)
    outs = [np.zeros((24, 224, 224, 3), np.uint8) for _ in range(6)]
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda out: fitting.fit_all(images, p, out), outs))
    wanted = fitted(np.stack(images), p)
    assert all(np.array_equal(out, wanted) for out in outs)


@pytest.mark.parametrize(("source", "target"), [(32, 224), (28, 224), (96, 224), (32, 256)])
def test_where_torch_is_exact_it_is(source: int, target: int) -> None:
    if not native.is_exact((source, source), (target, target)):
        pytest.skip("torch has no vectorised resize of bytes on this machine")
    p = Preprocess("squash", target, target)
    for hard in (False, True):
        images = batch(12, source, source, seed=1, hard=hard)
        assert np.array_equal(native.resize_natively(images, (target, target)), fitted(images, p))


def test_where_torch_is_not_exact_it_is_not_taken() -> None:
    images, p = batch(12, 64, 64), Preprocess("squash", 224, 224)
    if np.array_equal(native.resize_natively(images, (224, 224)), fitted(images, p)):
        pytest.skip("torch's resize of bytes is another one on this machine")
    assert not native.is_exact((64, 64), (224, 224))
    assert not native._axis_is_exact(64, 224, 0) and not native._axis_is_exact(64, 224, 1)
    assert not native.is_exact((256, 256), (224, 224))  # not tried: it shrinks


@pytest.mark.parametrize("axis", [0, 1])
def test_one_pair_that_differs_is_found(axis: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resize that is Pillow's but for one pair of bytes in one output row."""
    wrong = [True]

    def nearly(images: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
        done = np.stack([plans.resize_with_pillow(image, size[::-1], "bilinear") for image in images])
        place = (0, 9, 12345, 1) if axis == 0 else (0, 12345, 9, 1)
        done[place] ^= wrong[0]
        return done

    monkeypatch.setattr(native, "resize_natively", nearly)
    assert not native._axis_is_exact(10, 30, axis)
    wrong[0] = False
    assert native._axis_is_exact(10, 30, axis)


def test_torch_is_taken_when_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    exact = native.resize_natively
    monkeypatch.setattr(fitting, "_chooser", native.Chooser(worth=20))
    monkeypatch.setattr(fitting, "resize_natively", lambda i, size: (taken.append(len(i)), exact(i, size))[1])
    images, p, out = many(8, (32, 32)), Preprocess("auto", 256, 224), np.zeros((8, 224, 224, 3), np.uint8)
    for _ in range(4):
        fitting.fit_all(images, p, out)
        assert np.array_equal(out, fitted(np.stack(images), p))
    assert taken == ([8, 8] if native.is_exact((32, 32), (224, 224)) else [])
    fitting.fit_all(images, Preprocess("auto", 256, 224, "bicubic"), out)
    assert np.array_equal(out, fitted(np.stack(images), Preprocess("auto", 256, 224, "bicubic")))


def test_resizers_are_kept() -> None:
    p = Preprocess("auto", 256, 224)
    assert resizer((32, 32), p) is resizer((32, 32), p)
    assert resizer((32, 33), p) is not resizer((32, 32), p)


def of_one_size(folder: Path, suffix: str, limit: int) -> dict[tuple[int, ...], list[NDArray[np.uint8]]]:
    groups = defaultdict(list)
    for path in sorted(folder.rglob(f"*.{suffix}"))[:limit]:
        image = decode(path.read_bytes())
        groups[image.shape[:2]].append(image)
    return groups


@pytest.mark.real
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("folder", "suffix", "step"),
    [
        ("cifar10/test", "jpg", Preprocess("auto", 256, 224)),
        ("imagenet-photos-200", "JPEG", Preprocess("auto", 256, 224)),
        ("imagenet-photos-200", "JPEG", Preprocess("weights", 640, 600, "bicubic")),
        ("imagenette160-subset/val", "JPEG", Preprocess("weights", 320, 300, "bicubic")),
    ],
)
def test_real_images(real_data: Path, device: str, folder: str, suffix: str, step: Preprocess) -> None:
    """Down and up. All 60 000 images of CIFAR-10 were compared once; here a part."""
    for size, images in of_one_size(real_data / folder, suffix, 300).items():
        got = resizer((size[0], size[1]), step, device)(torch.from_numpy(np.stack(images)).to(device))
        assert np.array_equal(got.cpu().numpy(), fitted(np.stack(images), step)), size
