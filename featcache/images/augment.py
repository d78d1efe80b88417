"""Augmented views of decoded images, each drawn from its own numbers.

A view's numbers are PCG64's, seeded by the views' seed, the sample's id and the view's number and taken raw:
numpy keeps both the same for good. So views may be made in any number of threads and processes and in any
order. Flips and regions are drawn here; for all other steps torchvision is imported.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.errors import BadImageError
from featcache.images.policies import Policy

Pixels = NDArray[np.uint8]

TRIES = 10  # regions drawn before the largest that fits the proportions is taken


class Draws:
    """The numbers that a view is drawn from."""

    def __init__(self, seed: int) -> None:
        self._bits = np.random.PCG64(seed)

    def whole(self) -> int:
        """Return the next number, 64 bits."""
        return int(self._bits.random_raw())

    def between(self, low: float, high: float) -> float:
        """Return a number from `low` to below `high`."""
        return low + (high - low) * (self.whole() >> 11) * 2.0**-53

    def below(self, count: int) -> int:
        """Return a whole number from 0 to `count` - 1."""
        return int(self.between(0, count))


Step = Callable[[Pixels, Draws], Pixels]


class Augmenter:
    """Makes views of images; safe in many threads at once.

    Args:
        policy: its steps, in order, checked.
        seed: of all views.
    """

    def __init__(self, policy: Policy, seed: int) -> None:
        self.seed = seed
        self._steps = [_step(step) for step in policy]

    def __call__(self, image: Pixels, name: bytes, view: int) -> Pixels:
        """Return a view (H', W', 3) of an image, uint8 (H, W, 3), of the sample with an id.

        View 0 is the image itself.

        Raises:
            BadImageError: a step cannot work on this image.
        """
        if view == 0:
            return image
        draws, made = Draws(seed_of(self.seed, name, view)), image
        try:
            for step in self._steps:
                made = step(made, draws)
        except (RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())[:120]
            raise BadImageError(f"cannot be augmented: {reason}") from error
        return np.ascontiguousarray(made)


def seed_of(seed: int, name: bytes, view: int) -> int:
    """Return the seed of a view's numbers, by the views' seed, the sample's id and the view's number."""
    digest = hashlib.sha256(b"featcache view 1\0%d %d " % (seed, view) + name).digest()
    return int.from_bytes(digest[:16], "big")


def region(height: int, width: int, options: Mapping[str, Any], draws: Draws) -> tuple[slice, slice]:
    """Return the rows and columns of a region: a share of the area in `scale`, width : height in `ratio`.

    Drawn as by torchvision's RandomResizedCrop, after Szegedy et al., "Going Deeper with Convolutions", CVPR
    2015, section 6: the area evenly, the logarithm of the proportions evenly, then the place. What does not
    fit is drawn again; at last the largest region in the middle whose proportions are allowed is taken.
    """
    (least, most), (narrow, wide) = options["scale"], options["ratio"]
    for _ in range(TRIES):
        area = height * width * draws.between(least, most)
        ratio = math.exp(draws.between(math.log(narrow), math.log(wide)))
        across, down = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < across <= width and 0 < down <= height:
            top, left = draws.below(height - down + 1), draws.below(width - across + 1)
            return slice(top, top + down), slice(left, left + across)
    down = min(height, max(1, round(width / narrow)))
    across = min(width, max(1, round(height * wide)))
    top, left = (height - down) // 2, (width - across) // 2
    return slice(top, top + down), slice(left, left + across)


def _step(options: Mapping[str, Any]) -> Step:
    if options["name"] in _OURS:
        return _OURS[options["name"]](options)
    from featcache.images.transforms import step_of  # torch and torchvision

    return step_of(options)


_OURS: dict[str, Callable[[Mapping[str, Any]], Step]] = {
    "flip": lambda o: lambda image, draws: image[:, ::-1] if draws.between(0, 1) < o["p"] else image,
    "vertical-flip": lambda o: lambda image, draws: image[::-1] if draws.between(0, 1) < o["p"] else image,
    "crop": lambda o: lambda image, draws: image[region(image.shape[0], image.shape[1], o, draws)],
}
