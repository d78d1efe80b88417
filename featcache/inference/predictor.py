"""From images to class probabilities, by the very recipe that a head's features were computed with."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from featcache.backbones import weights as weight_files
from featcache.backbones.preprocess import fit
from featcache.backbones.runtime import Extractor
from featcache.errors import CacheError, HeadError
from featcache.heads import saving
from featcache.images.decode import decode
from featcache.recipe import Preprocess
from featcache.store.cache import Cache

if TYPE_CHECKING:
    from featcache.heads.base import Head
    from featcache.inference.network import Whole

Progress = Callable[[int, int], None]


class Predictor:
    """A backbone and a head that belong together.

    Everything between the pixels and the probabilities is what the cache's recipe says: decoding, resizing,
    normalising, weights (by their content), node, pooling, precision, and the type that features are stored
    in, so that an image gets the probabilities that its cached features would get. `classes` are the names
    in the order of the probabilities.

    Args:
        cache: the cache that the head was trained on; its features are not needed, only its records.
        head: the bytes of the stored head.
        node: the node whose features it was trained on.
        weights: where the weights are now, as `--weights`; None: where they were.
        device: "auto", "cpu", "cuda" or "cuda:N".
        progress: told of a download: bytes done, bytes in all.

    Raises:
        HeadError: the head is damaged, or was trained on other features.
        WeightsError: the weights cannot be had, or are not those of the features.
    """

    def __init__(
        self,
        cache: Cache,
        head: bytes,
        node: str,
        weights: str | None = None,
        device: str = "auto",
        progress: Progress | None = None,
    ) -> None:
        self.recipe, self.classes, self.node = cache.recipe, cache.classes, node
        self._row_dtype = cache.row_dtype  # rows in int8 are predicted without that rounding
        self.head: Head = saving.loads(head)
        saving.check_fit(
            saving.context_of(head),
            fingerprint=cache.recipe.fingerprint,
            node=node,
            columns=cache.columns.get(node, 0),
            classes=cache.classes,
        )
        self._codes = _codes(self.head, self.classes)
        where = weights or str(cache.record["request"].get("weights", "DEFAULT"))
        self._network = weight_files.network_of(cache.recipe, where, cache.name, progress)
        nodes = tuple(each for each in self.recipe.nodes if each.name == node)
        self.extractor = Extractor(
            self._network, nodes, self.recipe.preprocess, self.recipe.precision, device
        )

    @property
    def device(self) -> str:
        """Where it computes: "cpu" or "cuda:N"."""
        return self.extractor.device

    def __call__(self, images: Iterable[bytes | NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Return the probabilities (N, C) of images: encoded files' bytes, or uint8 (H, W), (H, W, 3).

        Raises:
            BadImageError: one cannot be decoded.
            CacheError: the backbone gives features that cannot be stored, and so were never trained on.
        """
        pixels = [self.prepare(image) for image in images]
        if not pixels:
            return np.empty((0, len(self.classes)), np.float32)
        return self.probabilities(np.stack(pixels))

    @property
    def preprocess(self) -> Preprocess:
        """How images are fitted to the backbone's input."""
        return self.recipe.preprocess

    @property
    def max_pixels(self) -> int:
        """Larger images count as unreadable."""
        return self.recipe.decoding.max_pixels

    def prepare(self, image: bytes | NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return an image as the backbone takes it, uint8 (S, S, 3); safe to call from many threads.

        Raises:
            BadImageError: it cannot be decoded.
        """
        return fit(decode(image, self.max_pixels), self.preprocess)

    def probabilities(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the probabilities (B, C) of prepared images (B, S, S, 3), all in one forward pass.

        A class without training rows has probability 0.

        Raises:
            CacheError: a feature is not finite as it would be stored.
        """
        rows = self.extractor(pixels)[self.node]
        with np.errstate(over="ignore"):
            stored = rows.astype(self.recipe.row_dtype)
        if not np.isfinite(stored).all():
            raise CacheError(
                f"A feature of node {self.node!r} is not finite as {self.recipe.row_dtype}.",
                "The image is unlike those the head was trained on, or the weights are damaged.",
            )
        proba = np.zeros((len(pixels), len(self.classes)), np.float32)
        proba[:, self._codes] = self.head.predict_proba(stored)
        return proba

    def network(self, takes: str = "normalized") -> Whole:
        """Return backbone and head as one torch module, see `featcache.inference.network.Whole`.

        Raises:
            HeadError: the head is of a kind that is no chain of layers.
        """
        from featcache.inference.network import Whole

        node = next(each for each in self.recipe.nodes if each.name == self.node)
        return Whole(self._network, node, self.recipe, self.head, self._codes, len(self.classes), takes)


def _codes(head: Head, classes: tuple[str, ...]) -> NDArray[np.int64]:
    """Return which of the data set's classes the head's own are."""
    codes = head.classes_
    if codes.dtype.kind not in "iu" or codes.min() < 0 or codes.max() >= len(classes):
        raise HeadError(f"The head's classes are no numbers from 0 to {len(classes) - 1}.", "Train it again.")
    return codes.astype(np.int64)
