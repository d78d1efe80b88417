"""Mean and deviation of a data set's training images, fitted as for the backbone."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from featcache.backbones.preprocess import Statistics, dataset_statistics
from featcache.errors import DatasetError
from featcache.extraction.reader import Reader, Reading
from featcache.images.dataset import Dataset
from featcache.images.sample import SPLITS
from featcache.progress import Progress
from featcache.recipe import Preprocess
from featcache.store.plan import ShardPlan

BATCH = 64  # images; a few batches are in memory at once


def training_statistics(
    dataset: Dataset, step: Preprocess, max_pixels: int, progress: Progress, contained: bool
) -> Statistics:
    """Return mean and standard deviation per channel over the training images, values in 0..1.

    Images that cannot be read are left out; extraction names them.

    Args:
        dataset: its train split is taken.
        step: how images are fitted; its own mean and deviation play no part.
        max_pixels: larger images count as unreadable.
        progress: told of the images done.
        contained: whether to decode in processes that may die.

    Raises:
        DatasetError: there is no image to take them from, or one changed since its content was hashed.
    """
    train = np.flatnonzero(np.asarray(dataset.splits) == SPLITS.index("train"))
    if not len(train):
        raise DatasetError(f"{dataset.name} has no training images to take mean and deviation from.")
    reader = Reader(dataset, step, Reading(BATCH, None, max_pixels, contained=contained))
    try:
        return dataset_statistics(_images(reader, train, progress))
    finally:
        reader.close()


def _images(reader: Reader, rows: NDArray[np.intp], progress: Progress) -> Iterator[NDArray[np.uint8]]:
    """Yield the images of a batch that could be read, (n, S, S, 3)."""
    runs = np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1)
    parts = (ShardPlan("train-00000", int(run[0]), int(run[-1]) + 1) for run in runs)
    done = 0
    for batch in reader.batches(parts):
        bad = np.searchsorted(batch.rows, [row for row, _ in batch.bad])
        yield np.delete(batch.pixels, bad, axis=0) if len(bad) else batch.pixels
        reader.give(batch)
        done += len(batch.rows)
        progress("statistics", done, len(rows))
