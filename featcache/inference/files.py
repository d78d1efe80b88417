"""Image files on their way to a predictor: found, then read and decoded in threads, a few batches ahead."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featcache.errors import BadImageError, DatasetError
from featcache.images.cores import cores
from featcache.images.listing import IMAGE_SUFFIXES

PREFETCH = 3  # batches being decoded ahead of the backbone

Read = Callable[[str], NDArray[np.uint8]]
"""From a file's path to an image."""


@dataclass(frozen=True)
class Loaded:
    """A batch of files: the images (G, S, S, 3) of those that could be read, and why the others could not.

    `errors` has an entry a path, "" where the image is good.
    """

    paths: list[str]
    errors: list[str]
    pixels: NDArray[np.uint8] | None  # None where no image is good


def image_files(places: Iterable[str]) -> Iterator[str]:
    """Yield the image files of files and folders in the order given, those of a folder by their names.

    A file is taken whatever its name; below a folder those with an image's suffix are, hidden ones not.

    Raises:
        DatasetError: there is nothing at a place, or no image in a folder.
    """
    for place in places:
        path = Path(place)
        if path.is_dir():
            yield from _below(place)
        elif path.exists() or path.is_symlink():
            yield place
        else:
            raise DatasetError(
                f"There is no image or folder {place!r}.", "Give files, folders, or - for stdin."
            )


def _below(folder: str) -> Iterator[str]:
    found = False
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES:
                found = True
                yield str(Path(root) / name)
    if not found:
        raise DatasetError(f"There is no image in the folder {folder!r}.", f"Known: {_suffixes()}.")


def _suffixes() -> str:
    return ", ".join(sorted(IMAGE_SUFFIXES))


def load(paths: Iterable[str], read: Read, batch_size: int, workers: int | None = None) -> Iterator[Loaded]:
    """Yield batches of files in order, while the next ones are being read and prepared in threads.

    Memory is bounded by a few batches, whatever the number of files.

    Args:
        paths: files, read as they are needed.
        read: from a file to an image; called in threads.
        batch_size: files a batch, at most.
        workers: threads; None: one for each core.
    """
    pool = ThreadPoolExecutor(workers or cores(), thread_name_prefix="decode")
    try:
        ahead: deque[list[tuple[str, Future[NDArray[np.uint8] | str]]]] = deque()
        batch: list[tuple[str, Future[NDArray[np.uint8] | str]]] = []
        for path in paths:
            batch.append((path, pool.submit(_read, path, read)))
            if len(batch) == batch_size:
                ahead.append(batch)
                batch = []
            if len(ahead) > PREFETCH:
                yield _gathered(ahead.popleft())
        for left in (*ahead, batch):
            if left:
                yield _gathered(left)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _read(path: str, read: Read) -> NDArray[np.uint8] | str:
    """Return the prepared image, or why there is none."""
    try:
        return read(path)
    except BadImageError as error:
        return error.message


def _gathered(batch: list[tuple[str, Future[NDArray[np.uint8] | str]]]) -> Loaded:
    found = [task.result() for _, task in batch]
    good = [image for image in found if not isinstance(image, str)]
    errors = [image if isinstance(image, str) else "" for image in found]
    return Loaded([path for path, _ in batch], errors, np.stack(good) if good else None)
