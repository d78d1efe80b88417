"""A data set as a plan holds it: for who joins in when all images have been listed and hashed once.

Nothing is listed or hashed again. That an image is still the one of the plan is seen when it is read: its
bytes must have the plan's hash (`featcache.extraction.decoding`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from featcache.errors import DatasetError
from featcache.images.stored import FileDataset

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from featcache.images.dataset import Dataset, Rows
    from featcache.images.source import Source


def planned(source: Source, rows: Rows, hashes: NDArray[np.uint8], limit: int | None) -> Dataset:
    """Return the data set of a plan's rows.

    Args:
        source: where the images are. One whose ids are paths below its `root` is not listed again.
        rows: ids, labels and splits of the plan, and the classes; kept as they are, so they may be mapped.
        hashes: uint8 (N, 16), the content hash of every sample.
        limit: the first so many images of each class and split, as the plan was made with.

    Raises:
        DatasetError: the source cannot be opened, or holds other images than the plan.
    """
    root = getattr(source, "root", None)
    if isinstance(root, str):
        dataset: Dataset = FileDataset(rows, root)
    else:
        dataset = source.open()
        dataset = dataset if limit is None else dataset.limited(limit)
        _check_same(dataset, rows)
    dataset.content_hashes = hashes
    return dataset


def _check_same(dataset: Dataset, rows: Rows) -> None:
    same = (
        len(dataset) == len(rows.ids)
        and np.array_equal(dataset.labels, rows.labels)
        and np.array_equal(dataset.splits, rows.splits)
        and all(ours == theirs for ours, theirs in zip(dataset.ids, rows.ids, strict=True))
    )
    if not same:
        raise DatasetError(
            f"The images of {dataset.name} are not those that the cache was planned for.",
            "Run the command again when the images are at rest.",
        )
