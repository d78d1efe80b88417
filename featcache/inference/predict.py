"""Files in, classes and probabilities out, one after the other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from featcache.errors import CacheError, DatasetError
from featcache.inference.files import load


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
        skip_bad: go on after a file that cannot be read, and say so of it.

    Raises:
        DatasetError: a file cannot be read, unless `skip_bad`.
        CacheError: a feature is not finite.
    """
    size = batch_size or (128 if predictor.device.startswith("cuda") else 16)
    for loaded in load(paths, predictor.prepare, size, workers):
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
