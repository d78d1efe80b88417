"""The images of a data set as a network's training sees them: decoded, fitted, in an order drawn by epoch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from featcache.backbones.preprocess import fit, writable
from featcache.errors import BadImageError, DatasetError
from featcache.finetuning.augment import Augment, draw
from featcache.images.dataset import Dataset as Source
from featcache.recipe import Preprocess

Batch = tuple[Tensor, Tensor, list[str]]
"""Pixels uint8 (B, S, S, 3), labels int64 (B,), and of each image why it cannot be read, else ""."""


class Images(Dataset[Any]):
    """Fitted images by (row of the data set, epoch); epoch 0 means as they are."""

    def __init__(
        self, source: Source, preprocess: Preprocess, max_pixels: int, augment: Augment | None
    ) -> None:
        self.source, self.preprocess, self.max_pixels, self.augment = source, preprocess, max_pixels, augment

    def __getitem__(self, which: tuple[int, int]) -> tuple[Tensor, int, str]:
        row, epoch = which
        size = self.preprocess.crop
        try:
            image = fit(self.source.image(row, self.max_pixels), self.preprocess)
        except BadImageError as error:
            return (
                torch.zeros(size, size, 3, dtype=torch.uint8),
                0,
                f"{self.source.ids[row]}: {error.message}",
            )
        pixels = torch.from_numpy(np.ascontiguousarray(writable(image)))
        if self.augment is not None and epoch:
            pixels = self.augment(pixels, epoch, row)
        return pixels, int(self.source.labels[row]), ""


def loader(images: Images, batches: list[list[tuple[int, int]]], workers: int, pin: bool) -> DataLoader[Any]:
    """Return a loader of these batches, in order; `workers` processes decode, none: the one that calls."""
    # A generator of its own: the loader would draw from torch's, which dropout draws from.
    generator = torch.Generator().manual_seed(0)
    options: dict[str, Any] = {"prefetch_factor": 4} if workers else {}
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
