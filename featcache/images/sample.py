"""One sample, and the three splits. Light to import: no numpy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SPLITS = ("train", "val", "test")
"""The names of the splits; the index into this tuple is the code that is stored."""


@dataclass(frozen=True, eq=False)
class Sample:
    """One image of a data set: its id, RGB pixels uint8 (H, W, 3), class index and the split's name."""

    id: str
    image: NDArray[np.uint8]
    label: int
    split: str
