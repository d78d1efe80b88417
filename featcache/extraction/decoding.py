"""Decoding a handful of images into a batch, in the thread that calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.backbones.fitting import fit_what_can
from featcache.errors import BadImageError, DatasetError
from featcache.extraction.pixels import Room
from featcache.extraction.views import CLEAN, Drawn, Fitting
from featcache.images.dataset import Dataset, content_hash
from featcache.images.decode import decode


@dataclass
class Decoded:
    """What became of a handful of images, by their place in it."""

    bad: list[tuple[int, str]] = field(default_factory=list)
    odd: bool = False  # one is of another size than the batch has room for, and fitting was not asked for
    changed: int | None = None  # this one's bytes are not those of the plan


class Changed(Exception):
    """The bytes of an image are not those of the plan."""


def decode_into(
    out: NDArray[np.uint8],
    source: Any,
    hashes: Sequence[bytes],
    fitting: Fitting,
    fitted: bool,
    drawn: Drawn = CLEAN,
) -> Decoded:
    """Decode images into `out` (n, H, W, 3), or their views into (V, n, H, W, 3); zeros where that fails.

    Args:
        out: where the pixels go.
        source: place → the image's bytes or pixels; raises BadImageError where it cannot be read.
        hashes: the content hash of each in the plan; zeros for one that could not be read then either.
        fitting: what is done to every image.
        fitted: whether to fit the images to the backbone's input; if not, all must be of `out`'s size.
        drawn: which views.
    """
    out = out if out.ndim == 5 else out[None]
    found = Decoded()
    images: dict[int, list[NDArray[np.uint8]]] = {}
    for place, planned in enumerate(hashes):
        try:
            image = decode(unchanged(source, place, planned), fitting.max_pixels)
            views = fitting.made(image, place, drawn)
        except BadImageError as error:
            out[:, place] = 0
            found.bad.append((place, error.message))
            continue
        except Changed:
            found.changed = place
            return found
        if fitted:
            images[place] = views
            continue
        if any(view.shape != out.shape[2:] for view in views):
            found.odd = True
            return found
        for number, view in enumerate(views):
            out[number, place] = view
    return _fitted(images, fitting, out, found, drawn) if images else found


def _fitted(
    images: dict[int, list[NDArray[np.uint8]]],
    fitting: Fitting,
    out: NDArray[np.uint8],
    found: Decoded,
    drawn: Drawn,
) -> Decoded:
    """Fit the images that were decoded, together where that is faster."""
    places = list(images)
    failed: dict[int, str] = {}
    for number, (view, whole) in enumerate(zip(drawn.numbers, out, strict=True)):
        all_there = len(places) == len(whole)
        room = whole if all_there else np.empty((len(places), *whole.shape[1:]), np.uint8)
        some = [views[number] for views in images.values()]
        bad = fit_what_can(some, fitting.step(view), room)
        if not all_there:
            whole[places] = room
        failed |= {places[place]: why for place, why in bad}
    out[:, list(failed)] = 0
    found.bad = sorted([*found.bad, *failed.items()])
    return found


def unchanged(source: Any, place: int, planned: bytes) -> bytes | NDArray[np.uint8]:
    """Return what is stored for an image, if it is still that from which the plan was made.

    Raises:
        BadImageError: it cannot be read, and could not then.
        Changed: it is not.
    """
    try:
        data: bytes | NDArray[np.uint8] = source(place)
    except BadImageError:
        if not any(planned):
            raise  # it could not be read when the plan was made either
        data = b""
    if content_hash(data) != planned:
        raise Changed
    return data


class Threads:
    """Decodes in the thread that calls."""

    images = 8  # a task: they are fitted together, and there are enough tasks to keep every thread busy

    def __init__(self, dataset: Dataset, fitting: Fitting) -> None:
        self._dataset, self._fitting = dataset, fitting

    def decode(
        self, rows: Sequence[int], room: Room, place: int, fitted: bool, source: Any = None
    ) -> Decoded:
        """Decode rows into a batch's room from a place on, and so for every view.

        `source` gives what is stored for each by its place, where it was asked for before.
        """
        source = source or self._dataset.begin(rows)
        hashes = [self._dataset.content_hashes[row].tobytes() for row in rows]
        out = room.by_view[:, place : place + len(rows)]
        drawn = Drawn(room.views, [self._dataset.ids[row] for row in rows])
        return decode_into(out, source, hashes, self._fitting, fitted, drawn)

    def close(self) -> None:
        """Nothing to do."""


def raise_if_changed(decoded: Decoded, dataset: Dataset, rows: Sequence[int]) -> None:
    """Refuse an image whose bytes are not those from which the plan was made.

    Args:
        decoded: what became of the images.
        dataset: theirs.
        rows: theirs.

    Raises:
        DatasetError: naming it.
    """
    if decoded.changed is not None:
        raise DatasetError(
            f"The image {dataset.ids[rows[decoded.changed]]} changed while its features were being "
            "extracted.",
            "Run the same command again when the images are at rest.",
        )
