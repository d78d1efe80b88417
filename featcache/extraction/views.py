"""Augmented views of images on their way to the backbone: drawn on decoded pixels, then fitted.

A view is drawn on the decoded uint8 image, before the backbone's resize. Where the policy takes a region,
what is left is squashed to the input size, since its proportions were drawn; else it is fitted like the image
itself. Light: torch is imported where a policy has a step that torchvision takes, h5py never.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from featcache.backbones.preprocess import fit
from featcache.images.dataset import Dataset, id_bytes
from featcache.images.policies import checked, keeps_size
from featcache.recipe import Preprocess, Recipe, Views, canonical_json

if TYPE_CHECKING:
    from featcache.extraction.pixels import Shape
    from featcache.images.augment import Augmenter

GROUP = 8  # views of an image that are in memory at once; it is decoded again for the next ones

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Drawn:
    """Which views of a handful of images are wanted, and the images' ids."""

    numbers: Sequence[int] = (0,)
    names: Sequence[str] = ()


CLEAN = Drawn()


@dataclass(frozen=True)
class Wanted:
    """Rows of a shard, in order, of which the same views are to be computed."""

    rows: NDArray[np.int64]  # of the plan
    views: range


@dataclass(frozen=True)
class Fitting:
    """What is done to every image."""

    preprocess: Preprocess
    max_pixels: int
    views: Views | None = None

    def shape(self) -> Shape:
        """The size of a fitted image."""
        return self.preprocess.crop, self.preprocess.crop

    def step(self, view: int) -> Preprocess:
        """Return how a view is fitted to the backbone's input."""
        if self.views is None or view == 0 or keeps_size(self.views.policy):
            return self.preprocess
        return replace(self.preprocess, mode="squash", resize=self.preprocess.crop)

    def made(self, image: Pixels, place: int, drawn: Drawn) -> list[Pixels]:
        """Return the views wanted of the decoded image at a place, each of a size of its own.

        Raises:
            BadImageError: a step of the policy cannot work on it.
        """
        if self.views is None or not any(drawn.numbers):
            return [image] * len(drawn.numbers)
        make, name = augmenter(self.views), id_bytes(drawn.names[place])
        return [make(image, name, number) for number in drawn.numbers]


def augmenter(views: Views) -> Augmenter:
    """Return what draws views, made once in a process."""
    return _augmenter(canonical_json(list(views.policy)), views.seed)


@lru_cache(maxsize=4)
def _augmenter(policy: str, seed: int) -> Augmenter:
    from featcache.images.augment import Augmenter  # which plain images do not need

    return Augmenter(checked(json.loads(policy)), seed)


def pixels_of(dataset: Dataset, row: int, view: int, recipe: Recipe) -> Pixels:
    """Return a view of one image, fitted: (crop, crop, 3).

    Raises:
        BadImageError: the image cannot be read, augmented or fitted.
    """
    fitting = Fitting(recipe.preprocess, recipe.decoding.max_pixels, recipe.views)
    image = dataset.image(row, fitting.max_pixels)
    (made,) = fitting.made(image, 0, Drawn((view,), (dataset.ids[row],)))
    return fit(made, fitting.step(view))


def keeps_sizes(views: Views | None) -> bool:
    """Return whether all views have the size of their image."""
    return views is None or keeps_size(views.policy)


def one_thread() -> None:
    """Let torch use one thread in the thread that calls."""
    import torch

    torch.set_num_threads(1)


def groups(views: range) -> Iterator[range]:
    """Yield the views that are decoded for at once."""
    for first in range(views.start, views.stop, GROUP):
        yield range(first, min(first + GROUP, views.stop))


def forward_passes(recipe: Recipe, rows: Mapping[str, int]) -> int:
    """Return how many images rows are made of, views included, for the number of rows of each split."""
    return sum(count * recipe.views_in(split) for split, count in rows.items())
