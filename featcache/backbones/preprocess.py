"""Preprocessing: which transform a recipe states, an image fitted to it, and a data set's mean and deviation.

`fit` gives, bit for bit, what torchvision's `ImageClassification` preset gives for the same image through
Pillow, so features agree with everybody else's. Scaling and normalising follow on the device (`normalise`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from featcache.errors import BackboneError, BadImageError, DatasetError, OptionError, unknown
from featcache.recipe import Preprocess

if TYPE_CHECKING:
    import torch
    from PIL.Image import Resampling

    from featcache.backbones.weights import WeightsChoice

Statistics = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation of red, green and blue, of values in 0..1."""

MODES = ("auto", "weights", "squash")
NORMALISATIONS: dict[str, Statistics] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
DIGITS = 6  # of a data set's statistics in the recipe
LARGEST = 8192  # pixels a side
WORKED = 64_000_000  # pixels of what resizing makes before the crop; at huge crops this many times the crop:
WORKED_CROPS = 4
LONGEST = 1 << 22  # pixels a side of an image; Pillow's table of weights grows with it


def resolve_preprocess(
    choice: WeightsChoice,
    mode: str = "auto",
    image_size: int | None = None,
    normalize: str = "weights",
    dataset_mean_std: Statistics | None = None,
) -> Preprocess:
    """Return the preprocessing of a recipe as plain values.

    Sizes, interpolation and normalisation are those the weights were evaluated with; of random weights and
    of a file, those of the backbone's default weights. `image_size` replaces the crop, and the size before
    cropping in proportion. `normalize` may replace mean and std; "dataset" takes `dataset_mean_std`.

    Raises:
        OptionError: mode or normalisation is unknown, or the size is out of range.
    """
    if mode not in MODES:
        raise unknown("preprocess", mode, MODES)
    if normalize not in (*NORMALISATIONS, "weights", "dataset"):
        raise unknown("normalize", normalize, (*NORMALISATIONS, "weights", "dataset"))
    transform = choice.transform
    resize, crop = _sizes(transform.resize, transform.crop, image_size)
    mean, std = _statistics(normalize, (transform.mean, transform.std), dataset_mean_std)
    # Squashing has no size before the crop: one recipe for one result.
    return Preprocess(mode, crop if mode == "squash" else resize, crop, transform.interpolation, mean, std)


def _sizes(resize: int, crop: int, image_size: int | None) -> tuple[int, int]:
    if image_size is None:
        return resize, crop
    if not 1 <= image_size <= LARGEST:
        raise OptionError(f"The image size must be between 1 and {LARGEST} pixels, got {image_size}.")
    return round(resize * image_size / crop), image_size


def _statistics(normalize: str, of_weights: Statistics, of_dataset: Statistics | None) -> Statistics:
    if normalize == "weights":
        return of_weights
    if normalize != "dataset":
        return NORMALISATIONS[normalize]
    if of_dataset is None:
        raise OptionError("normalize='dataset' needs the mean and deviation of the training images.")
    mean, std = of_dataset
    if min(std) <= 0:
        raise OptionError(
            f"The training images have the same value everywhere in one channel (std {std}).",
            "Use --normalize weights.",
        )
    return tuple(mean), tuple(std)


def fit(image: NDArray[np.uint8], p: Preprocess) -> NDArray[np.uint8]:
    """Fit an image (H, W, 3) to (crop, crop, 3), read-only or not; what comes in is not changed.

    "squash" resizes to exactly the crop. "weights" resizes the shorter side to `resize`, the longer in
    proportion and rounded down, and crops the centre, padded with black where it is too small. "auto"
    squashes images whose two sides are both smaller than the crop. Safe in many threads at once: Pillow
    resizes without holding the interpreter's lock.

    The whole image is scaled before it is cropped, because Pillow's resize of a part rounds differently.
    An image so elongated that this would take gigabytes is refused.

    Raises:
        BackboneError: the array is no uint8 image, or the interpolation is unknown.
        BadImageError: the image is too elongated, or Pillow cannot resize it. Only MemoryError, which says
            nothing about the image, passes as it is.
    """
    check_image(image)
    scaled = scaled_size(image.shape[0], image.shape[1], p)
    resized = resize_with_pillow(image, (scaled[1], scaled[0]), p.interpolation)
    return resized if squashes(image.shape[0], image.shape[1], p) else _cropped(resized, p.crop)


def check_image(image: NDArray[np.uint8]) -> None:
    """Refuse what is no uint8 (H, W, 3).

    Raises:
        BackboneError: naming what it is.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise BackboneError(f"An image must be uint8 (H, W, 3), got {image.dtype} {image.shape}.")


def squashes(height: int, width: int, p: Preprocess) -> bool:
    """Return whether an image is resized to exactly the crop, whatever its proportions."""
    return p.mode == "squash" or (p.mode == "auto" and max(height, width) < p.crop)


def scaled_size(height: int, width: int, p: Preprocess) -> tuple[int, int]:
    """Return the height and width that an image is resized to before the centre is cropped.

    Raises:
        BadImageError: the image is so elongated that this would take gigabytes.
    """
    if squashes(height, width, p):
        _check_elongation(height, width, p.crop, height)  # Pillow resizes across first
        return p.crop, p.crop
    short, long = min(height, width), max(height, width)
    scaled = int(p.resize * long / short)
    _check_elongation(height, width, p.resize, scaled)
    return (scaled, p.resize) if width <= height else (p.resize, scaled)


def _check_elongation(height: int, width: int, short: int, long: int) -> None:
    """Refuse an image that would become short x long pixels before it is cropped, where that is too many."""
    if max(height, width) > LONGEST:
        why = f"no side may be longer than {LONGEST} pixels"
    elif short * long > max(WORKED, WORKED_CROPS * short**2):
        why = f"resizing it would take {short * long / 1e6:.0f} megapixels"
    else:
        return
    raise BadImageError(f"too elongated: it is {width} x {height}, and {why}")


def resize_with_pillow(
    image: NDArray[np.uint8], size: tuple[int, int], interpolation: str
) -> NDArray[np.uint8]:
    """Return an image (H, W, 3) resized to (width, height) by Pillow itself.

    Raises:
        BackboneError: the interpolation is unknown.
        BadImageError: Pillow refuses the image.
    """
    if (image.shape[1], image.shape[0]) == size:
        return image
    from PIL import Image

    how = _filter(interpolation)
    try:
        return np.asarray(Image.fromarray(np.ascontiguousarray(image)).resize(size, how))
    except (ValueError, OverflowError, OSError) as error:
        was = f"{image.shape[1]} x {image.shape[0]}"
        raise BadImageError(f"cannot be resized from {was} to {size[0]} x {size[1]}: {error}") from error


def _filter(interpolation: str) -> Resampling:
    from PIL.Image import Resampling

    try:
        return Resampling[interpolation.upper()]
    except KeyError:
        known = [each.name.lower() for each in Resampling]
        raise unknown("interpolation", interpolation, known, BackboneError) from None


def _cropped(image: NDArray[np.uint8], crop: int) -> NDArray[np.uint8]:
    """Crop the centre as torchvision's `center_crop` does, rounding half to even."""
    image = _padded(image, crop)
    height, width, _ = image.shape
    top, left = round((height - crop) / 2.0), round((width - crop) / 2.0)
    return image[top : top + crop, left : left + crop]


def _padded(image: NDArray[np.uint8], crop: int) -> NDArray[np.uint8]:
    missing = [max(crop - side, 0) for side in image.shape[:2]]
    if not any(missing):
        return image
    before_after = [(side // 2, (side + 1) // 2) for side in missing]
    return np.pad(image, [*before_after, (0, 0)])


def dataset_statistics(images: Iterable[NDArray[np.uint8]]) -> Statistics:
    """Return mean and standard deviation per channel over all pixels of fitted images (…, crop, crop, 3).

    Exact: values are summed as integers. The deviation is the population's. Rounded to 6 digits, so that
    the recipe does not hang on the last bit.

    Raises:
        DatasetError: there is no image.
    """
    total, squares, pixels = [0, 0, 0], [0, 0, 0], 0
    levels = np.arange(256, dtype=np.int64)
    for image in images:
        pixels += image.size // 3
        for channel in range(3):
            counts = np.bincount(image[..., channel].reshape(-1), minlength=256)
            total[channel] += int(counts @ levels)
            squares[channel] += int(counts @ (levels * levels))
    if pixels == 0:
        raise DatasetError("There is no image to take mean and deviation from.")
    # n·Σx² − (Σx)² is an exact integer: no cancellation.
    spread = [(pixels * s - t * t) ** 0.5 for s, t in zip(squares, total, strict=True)]
    mean = tuple(round(t / pixels / 255, DIGITS) for t in total)
    std = tuple(round(s / pixels / 255, DIGITS) for s in spread)
    return mean, std


class Normalise:
    """Turns fitted images, uint8 (B, S, S, 3), into what a network reads, float (B, 3, S, S) on its device.

    The pixels travel as bytes. On the device (x / 255 - mean) / std is computed in float32 and in that order,
    as torchvision's preset does, then cast to `dtype`. The result is channels_last in memory, as pixels are.
    A row of pixels is treated as one vector: by threes, pixel after pixel, it would take eight times as long.
    """

    def __init__(self, mean: Iterable[float], std: Iterable[float], device: str, dtype: torch.dtype) -> None:
        import torch

        self.device, self.dtype = device, dtype
        self.mean = torch.tensor(tuple(mean), dtype=torch.float32, device=device)
        self.std = torch.tensor(tuple(std), dtype=torch.float32, device=device)

    def __call__(self, batch: NDArray[np.uint8] | torch.Tensor) -> torch.Tensor:
        """Return a new tensor; from pinned memory the copy to a GPU does not wait."""
        import torch

        pixels = torch.from_numpy(writable(batch)) if isinstance(batch, np.ndarray) else batch
        moved = pixels.to(self.device, non_blocking=True)
        shape, width = moved.shape, moved.shape[2]
        rows = moved.reshape(*shape[:2], width * 3).to(torch.float32)
        rows.div_(255.0).sub_(self.mean.repeat(width)).div_(self.std.repeat(width))
        return rows.to(self.dtype).view(shape).permute(0, 3, 1, 2)


def writable(batch: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the batch, or a copy of one that torch would warn about: read-only, or with negative strides."""
    plain = batch.flags.writeable and all(stride >= 0 for stride in batch.strides)
    return batch if plain else batch.copy()
