"""Files in, classes and probabilities out, one after the other."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from featcache.errors import CacheError, DatasetError
from featcache.images.cores import cores
from featcache.images.memory import can_share
from featcache.images.stored import read_file
from featcache.inference.contained import Contained
from featcache.inference.files import Loaded, Read, load
from featcache.recipe import Preprocess


class Classifier(Protocol):
    """What predicts: backbone and head, or a whole network."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Their names, in the order of the probabilities."""
        ...

    @property
    def device(self) -> str:
        """Where it computes: "cpu" or "cuda:N"."""
        ...

    @property
    def preprocess(self) -> Preprocess:
        """How images are fitted."""
        ...

    @property
    def max_pixels(self) -> int:
        """Larger images count as unreadable."""
        ...

    def prepare(self, image: bytes | NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return an image as it is taken, uint8 (S, S, 3); called in threads."""
        ...

    def probabilities(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the probabilities (B, C) of prepared images (B, S, S, 3)."""
        ...


@dataclass(frozen=True)
class Predicted:
    """What is said of one file: (class, probability) of the likeliest classes, the best first.

    `error` says why nothing is, else it is "".
    """

    path: str
    top: tuple[tuple[str, float], ...]
    error: str = ""


def predict_files(
    predictor: Classifier,
    paths: Iterable[str],
    *,
    top: int = 1,
    batch_size: int | None = None,
    workers: int | None = None,
    skip_bad: bool = False,
) -> Iterator[Predicted]:
    """Yield what a predictor says of each file, in order.

    Args:
        predictor: backbone and head.
        paths: image files.
        top: how many classes to name.
        batch_size: images a forward pass; None: as suits the device.
        workers: decoding threads; None: one for each core.
        skip_bad: go on after a file that cannot be read, and say so of it. Files are decoded by processes
            then, where the system lets them share memory, so that a decoder that dies costs one file.

    Raises:
        DatasetError: a file cannot be read, unless `skip_bad`.
        CacheError: a feature is not finite.
    """
    size = batch_size or (128 if predictor.device.startswith("cuda") else 16)
    with _reading(predictor, workers, skip_bad) as read:
        yield from _predicted(predictor, load(paths, read, size, workers), top, skip_bad)


@contextlib.contextmanager
def _reading(predictor: Classifier, workers: int | None, skip_bad: bool) -> Iterator[Read]:
    """Give what reads a file: this process, or others that may die where bad files are to be left out."""
    if not (skip_bad and can_share()):
        yield lambda path: predictor.prepare(read_file(path))
        return
    contained = Contained(predictor.preprocess, predictor.max_pixels, workers or cores())
    try:
        yield contained
    finally:
        contained.close()


def _predicted(
    predictor: Classifier, files: Iterable[Loaded], top: int, skip_bad: bool
) -> Iterator[Predicted]:
    for loaded in files:
        bad = [(path, why) for path, why in zip(loaded.paths, loaded.errors, strict=True) if why]
        if bad and not skip_bad:
            path, why = bad[0]
            raise DatasetError(
                f"Cannot read the image {path}: {why}.",
                "Mend or remove it, or leave such images out with --on-bad-image skip.",
            )
        rows = iter(() if loaded.pixels is None else _named(predictor, loaded.pixels, loaded.paths, top))
        for path, why in zip(loaded.paths, loaded.errors, strict=True):
            yield Predicted(path, () if why else next(rows), why)


def _named(
    predictor: Classifier, pixels: np.ndarray, paths: list[str], top: int
) -> Iterator[tuple[tuple[str, float], ...]]:
    try:
        proba = predictor.probabilities(pixels)
    except CacheError as error:
        error.message = f"{error.message.rstrip('.')} (in the batch from {paths[0]} to {paths[-1]})."
        raise
    order = np.argsort(-proba, axis=1, kind="stable")[:, :top]
    for row, best in zip(proba, order, strict=True):
        yield tuple((predictor.classes[code], float(row[code])) for code in best.tolist())
