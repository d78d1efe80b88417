"""The images of a data set as a network's training sees them: decoded, fitted, in an order drawn by epoch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from featcache.backbones.fitting import fit_what_can
from featcache.backbones.preprocess import Normalise, writable
from featcache.backbones.resize import resizer
from featcache.backbones.resize_plan import is_pillows
from featcache.errors import BadImageError, DatasetError
from featcache.finetuning.augment import Augment, draw
from featcache.images.dataset import Dataset as Source
from featcache.images.dataset import content_hash
from featcache.images.decode import decode
from featcache.recipe import Preprocess

Batch = tuple[Tensor, Tensor, list[str]]
"""Pixels uint8 (B, S, S, 3), labels int64 (B,), and of each image why it cannot be read, else ""."""
Item = tuple[NDArray[np.uint8], int, str]
"""An image uint8 (H, W, 3), its label, and why it cannot be read, else ""."""


class Images(Dataset[Any]):
    """Decoded and augmented images by (row of the data set, epoch); epoch 0 means as they are.

    Args:
        source: the data set.
        preprocess: how images are fitted to the network's input.
        max_pixels: larger images count as unreadable.
        augment: None for images as they are.
        device: where they go: to a GPU small images of one size travel as they are, and are fitted there.
    """

    def __init__(
        self,
        source: Source,
        preprocess: Preprocess,
        max_pixels: int,
        augment: Augment | None,
        device: str = "cpu",
    ) -> None:
        self.source, self.preprocess, self.max_pixels, self.augment = source, preprocess, max_pixels, augment
        self._ships = device != "cpu" and is_pillows(preprocess.interpolation)

    def __getitem__(self, which: tuple[int, int]) -> Item:
        row, epoch = which
        try:
            data = self.source.raw(row)
            if content_hash(data) != self.source.content_hashes[row].tobytes():
                raise BadImageError("it changed since the training began")
            image = decode(data, self.max_pixels)
            if self.augment is not None and epoch:
                image = self.augment(image, epoch, row)
        except BadImageError as error:
            return np.zeros((1, 1, 3), np.uint8), 0, f"{self.source.ids[row]}: {error.message}"
        return image, int(self.source.labels[row]), ""

    def collate(self, items: Sequence[Item]) -> Batch:
        """Return a batch of items: fitted, or as they are where they are small and of one size."""
        images, labels, errors = (
            [item[0] for item in items],
            [item[1] for item in items],
            [item[2] for item in items],
        )
        crop = self.preprocess.crop
        small = images[0].shape[0] * images[0].shape[1] < crop**2
        if self._ships and small and len({image.shape for image in images}) == 1:
            pixels = np.stack(images)
        else:
            pixels = np.empty((len(images), crop, crop, 3), np.uint8)
            for place, why in fit_what_can(images, self.preprocess, pixels):
                errors[place] = errors[place] or f"an image that {why}"
        return torch.from_numpy(writable(pixels)), torch.tensor(labels), errors


class Intake:
    """From a batch's pixels to what a network reads, on its device: fitted where they are not, normalised."""

    def __init__(self, preprocess: Preprocess, device: str) -> None:
        self._step, self._device = preprocess, device
        self._normalise = Normalise(preprocess.mean, preprocess.std, device, torch.float32)

    def __call__(self, pixels: Tensor) -> Tensor:
        """Return float32 (B, 3, S, S) for uint8 (B, S, S, 3), or (B, H, W, 3) of smaller images."""
        pixels = pixels.to(self._device, non_blocking=True)
        height, width = pixels.shape[1:3]
        if (height, width) != (self._step.crop, self._step.crop):
            pixels = resizer((height, width), self._step, self._device)(pixels)
        return self._normalise(pixels)


def loader(images: Images, batches: list[list[tuple[int, int]]], workers: int, pin: bool) -> DataLoader[Any]:
    """Return a loader of these batches, in order; `workers` processes decode, none: the one that calls."""
    # A generator of its own: the loader would draw from torch's, which dropout draws from.
    generator = torch.Generator().manual_seed(0)
    options: dict[str, Any] = {"collate_fn": images.collate}
    options |= {"prefetch_factor": 4} if workers else {}
    return DataLoader(
        images,
        batch_sampler=batches,
        num_workers=workers,
        pin_memory=pin,
        generator=generator,
        **options,
    )


def checked(batch: Any) -> Batch:
    """Return a batch as it came, if all of its images could be read.

    Raises:
        DatasetError: naming the first that could not.
    """
    pixels, labels, errors = batch
    wrong = next((text for text in errors if text), "")
    if wrong:
        raise DatasetError(
            f"Cannot read the image {wrong}.", "Mend or remove it, and run the same command again."
        )
    return pixels, labels, list(errors)


def batches_of_epoch(
    rows: NDArray[np.int64], size: int, seed: int, epoch: int, rank: int = 0, devices: int = 1
) -> list[list[tuple[int, int]]]:
    """Return one epoch's batches of training rows (N,), in an order that seed and epoch alone decide.

    The last batch takes a row more where one would be left alone: batch norm needs two. Of several devices
    each gets every so-manieth row of the order, and as many as the others: up to `devices` - 1 rows wait for
    another epoch.
    """
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(draw(seed, epoch))).numpy()
    mine = rows[order[: len(order) // devices * devices][rank::devices]]
    cuts = list(range(0, len(mine), size))
    if len(cuts) > 1 and len(mine) - cuts[-1] == 1:
        cuts.pop()
    return [[(int(row), epoch) for row in part] for part in np.split(mine, cuts[1:])]


def plain_batches(rows: NDArray[np.int64], size: int) -> list[list[tuple[int, int]]]:
    """Return rows (N,) in order, in batches, to be seen as they are."""
    return [[(int(row), 0) for row in rows[at : at + size]] for at in range(0, len(rows), size)]
