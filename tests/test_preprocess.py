"""Fitting images: bit for bit what torchvision's preset does through Pillow; normalising; statistics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms._presets import ImageClassification
from torchvision.transforms.functional import InterpolationMode

from featcache.backbones import preprocess, weights
from featcache.backbones.preprocess import Normalise, dataset_statistics, fit, resolve_preprocess
from featcache.errors import BackboneError, BadImageError, DatasetError, OptionError
from featcache.recipe import Preprocess

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def picture(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def official(image: NDArray[np.uint8], resize: int, crop: int, interpolation: str) -> torch.Tensor:
    preset = ImageClassification(
        resize_size=resize,
        crop_size=crop,
        interpolation=InterpolationMode(interpolation),
        mean=(0, 0, 0),
        std=(1, 1, 1),
    )
    return preset(Image.fromarray(image))


@settings(max_examples=80, deadline=None)
@given(
    height=st.integers(1, 150),
    width=st.integers(1, 150),
    resize=st.integers(8, 90),
    crop=st.integers(1, 100),
    interpolation=st.sampled_from(["bilinear", "bicubic"]),
)
def test_fit_is_bit_for_bit_the_official_transform(
    height: int, width: int, resize: int, crop: int, interpolation: str
) -> None:
    """Scaling up and down, odd sizes, crops larger than the image."""
    image = picture(height, width)
    ours = fit(image, Preprocess("weights", resize, crop, interpolation))
    theirs = (official(image, resize, crop, interpolation) * 255).round().to(torch.uint8)
    assert ours.shape == (crop, crop, 3)
    assert np.array_equal(ours, theirs.permute(1, 2, 0).numpy())


@pytest.mark.parametrize("size", [(375, 500), (500, 333), (224, 224), (256, 256), (257, 1025), (31, 47)])
@pytest.mark.parametrize(
    ("resize", "crop", "how"), [(256, 224, "bilinear"), (320, 300, "bicubic"), (342, 299, "bilinear")]
)
def test_fit_at_the_sizes_people_use(size: tuple[int, int], resize: int, crop: int, how: str) -> None:
    image = picture(*size)
    theirs = (official(image, resize, crop, how) * 255).round().to(torch.uint8).permute(1, 2, 0)
    assert np.array_equal(fit(image, Preprocess("weights", resize, crop, how)), theirs.numpy())


def test_squash_is_pillows_resize() -> None:
    image = picture(33, 70)
    wanted = np.asarray(Image.fromarray(image).resize((24, 24), Image.Resampling.BILINEAR))
    assert np.array_equal(fit(image, Preprocess("squash", 24, 24)), wanted)


@pytest.mark.parametrize(
    ("height", "width", "as_"), [(23, 23, "squash"), (23, 24, "weights"), (24, 10, "weights")]
)
def test_auto_squashes_what_is_smaller_than_the_crop_on_both_sides(height: int, width: int, as_: str) -> None:
    image = picture(height, width)
    wanted = fit(image, Preprocess(as_, 30, 24))
    other = fit(image, Preprocess("weights" if as_ == "squash" else "squash", 30, 24))
    assert np.array_equal(fit(image, Preprocess("auto", 30, 24)), wanted)
    assert not np.array_equal(wanted, other)


def test_fit_takes_views_and_read_only_arrays_and_changes_nothing() -> None:
    image = picture(40, 60)
    view = image[::-1, ::2]
    image.flags.writeable = False
    before = image.copy()
    assert np.array_equal(fit(view, Preprocess("auto", 30, 24)), fit(view.copy(), Preprocess("auto", 30, 24)))
    assert np.array_equal(image, before)


@pytest.mark.parametrize(
    "bad", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)]
)
def test_fit_refuses_what_is_no_image(bad: NDArray[np.uint8]) -> None:
    with pytest.raises(BackboneError, match="must be uint8"):
        fit(bad, Preprocess("auto", 30, 24))


def blank(height: int, width: int) -> NDArray[np.uint8]:
    """An image that takes no memory."""
    return np.broadcast_to(np.uint8(7), (height, width, 3))


@pytest.mark.parametrize("size", [(1, 3000), (3000, 1), (1, 40_000_000), (50_000_000, 1), (40, 40_001)])
@pytest.mark.parametrize("mode", ["auto", "weights"])
def test_an_image_too_elongated_to_scale_is_a_bad_image(size: tuple[int, int], mode: str) -> None:
    with pytest.raises(BadImageError, match=f"too elongated: it is {size[1]} x {size[0]}, and"):
        fit(blank(*size), Preprocess(mode, 256, 224))


@pytest.mark.parametrize("size", [(1, 40_000_000), (50_000_000, 1), (4_000_000, 12)])
def test_squashing_needs_no_gigabytes_either(size: tuple[int, int]) -> None:
    with pytest.raises(BadImageError, match="too elongated"):
        fit(blank(*size), Preprocess("squash", 224, 224, "bicubic"))


@pytest.mark.parametrize("size", [(2, 900), (900, 2), (3, 60_000), (60_000, 3)])
def test_long_images_within_the_limit_are_fitted(size: tuple[int, int]) -> None:
    image = picture(*size)
    if max(size) < 1000:
        wanted = (official(image, 64, 56, "bicubic") * 255).round().to(torch.uint8).permute(1, 2, 0)
        assert np.array_equal(fit(image, Preprocess("weights", 64, 56, "bicubic")), wanted.numpy())
    assert fit(image, Preprocess("squash", 56, 56)).shape == (56, 56, 3)


def test_large_crops_are_no_reason_to_refuse_an_image() -> None:
    for side in (256, 9362):
        preprocess._check_elongation(300, 300, side, side)
        preprocess._check_elongation(300, 1200, side, 4 * side)


@pytest.mark.parametrize("error", [OverflowError("too big"), ValueError("no"), OSError("broken")])
def test_whatever_pillow_refuses_is_a_bad_image(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(Image.Image, "resize", fail)
    with pytest.raises(BadImageError, match=f"cannot be resized from 9 x 8 to 24 x 24: {error}"):
        fit(picture(8, 9), Preprocess("squash", 24, 24))


def test_unknown_interpolation() -> None:
    with pytest.raises(BackboneError, match="Unknown interpolation 'cubic'"):
        fit(picture(9, 9), Preprocess("squash", 24, 24, "cubic"))


@pytest.mark.parametrize(
    "mean_std", [IMAGENET, ((0.5,) * 3, (0.5,) * 3), ((0.48235, 0.45882, 0.40784), (1 / 255,) * 3)]
)
def test_normalise_is_the_official_one(mean_std: tuple[tuple[float, ...], tuple[float, ...]]) -> None:
    images = [picture(24, 24, seed) for seed in range(3)]
    mean, std = mean_std
    preset = ImageClassification(crop_size=24, resize_size=24, mean=mean, std=std)
    wanted = torch.stack([preset(Image.fromarray(image)) for image in images])
    got = Normalise(mean, std, "cpu", torch.float32)(np.stack(images))
    assert torch.equal(got, wanted)
    assert got.is_contiguous(memory_format=torch.channels_last)


def test_normalise_leaves_the_batch_alone() -> None:
    batch = np.stack([picture(8, 8)])
    before = batch.copy()
    batch.flags.writeable = False
    Normalise(*IMAGENET, "cpu", torch.bfloat16)(batch)
    Normalise(*IMAGENET, "cpu", torch.bfloat16)(batch[:, ::-1])
    Normalise((0.0,) * 3, (1.0,) * 3, "cpu", torch.float32)(torch.from_numpy(batch.copy()))
    assert np.array_equal(batch, before)


def test_resolve_takes_the_weights_own_values() -> None:
    step = resolve_preprocess(weights.resolve("efficientnet_b3"))
    assert step == Preprocess("auto", 320, 300, "bicubic", *IMAGENET)
    for spec in ("random:3", "somewhere/file.pth"):
        assert resolve_preprocess(weights.resolve("inception_v3", spec)) == Preprocess(
            "auto", 342, 299, "bilinear", *IMAGENET
        )
    features = resolve_preprocess(weights.resolve("vgg16", "IMAGENET1K_FEATURES"))
    assert features.mean == (0.48235, 0.45882, 0.40784)
    assert features.std == pytest.approx((1 / 255,) * 3)


def test_resolve_image_size_and_modes() -> None:
    choice = weights.resolve("squeezenet1_0", "random:0")
    assert resolve_preprocess(choice, "weights", 160) == Preprocess(
        "weights", 183, 160, "bilinear", *IMAGENET
    )
    assert resolve_preprocess(choice, "squash") == Preprocess("squash", 224, 224, "bilinear", *IMAGENET)
    with pytest.raises(OptionError, match="Unknown preprocess 'crop'"):
        resolve_preprocess(choice, "crop")
    for size in (0, -1, 10**6):
        with pytest.raises(OptionError, match="image size"):
            resolve_preprocess(choice, image_size=size)


def test_resolve_normalisations() -> None:
    choice = weights.resolve("vgg16", "IMAGENET1K_FEATURES")

    def values(normalize: str, given: object = None) -> object:
        step = resolve_preprocess(choice, normalize=normalize, dataset_mean_std=given)
        return step.mean, step.std

    assert values("imagenet") == IMAGENET
    assert values("half") == ((0.5,) * 3, (0.5,) * 3)
    assert values("none") == ((0.0,) * 3, (1.0,) * 3)
    assert values("dataset", ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    with pytest.raises(OptionError, match="needs the mean"):
        values("dataset")
    with pytest.raises(OptionError, match="same value everywhere"):
        values("dataset", ((0.1, 0.2, 0.3), (0.4, 0.0, 0.6)))
    with pytest.raises(OptionError, match="Unknown normalize"):
        values("zscore")


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=6), st.integers(0, 1000))
def test_statistics_are_those_of_all_pixels_together(sides: list[int], seed: int) -> None:
    images = [picture(side, side, seed + i) for i, side in enumerate(sides)]
    pixels = np.concatenate([image.reshape(-1, 3) for image in images]).astype(np.float64) / 255
    mean, std = dataset_statistics(iter(images))
    np.testing.assert_allclose(mean, pixels.mean(0), atol=6e-7)
    np.testing.assert_allclose(std, pixels.std(0), atol=6e-7)
    assert dataset_statistics(reversed(images)) == (mean, std)


def test_statistics_of_nothing() -> None:
    with pytest.raises(DatasetError, match="no image"):
        dataset_statistics([])


def test_statistics_of_one_colour() -> None:
    assert dataset_statistics([np.full((5, 5, 3), 51, np.uint8)]) == ((0.2,) * 3, (0.0,) * 3)
