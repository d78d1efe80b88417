"""Augmentation of training images, drawn anew in every epoch from (seed, epoch, row) alone.

The steps are those of `featcache.images.policies`, each with its defaults and in the order given: an epoch of
a row is drawn like a view of a sample. They change images before they are fitted to the network's input.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.images.augment import Augmenter
from featcache.images.policies import checked


class Augment:
    """Steps in a row, for images of any size; safe in many threads at once."""

    def __init__(self, names: Sequence[str], seed: int) -> None:
        self._made_of = (tuple(names), seed)
        self._view = Augmenter(checked([{"name": name} for name in names]), seed)

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process makes the steps anew."""
        return Augment, self._made_of

    def __call__(self, image: NDArray[np.uint8], epoch: int, row: int) -> NDArray[np.uint8]:
        """Return an image uint8 (H, W, 3) as an epoch, from 1 on, sees it.

        Raises:
            BadImageError: a step cannot work on this image.
        """
        return self._view(image, b"%d" % row, epoch)


def draw(*numbers: int) -> int:
    """Return a seed, 0 … 2**63 - 1, that depends on all of the numbers."""
    text = " ".join(map(str, numbers)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1
