"""Which rows of a plan are a split, the validation rows carved out of train included."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from featcache.images.splits import validation_split
from featcache.store.plan import Plan


def positions_of(
    plan: Plan, split: str, fraction: float, seed: int, mode: str
) -> tuple[str, NDArray[np.int64]]:
    """Return the stored split to read and the positions in it, rising.

    A data set with a validation split of its own is taken as it is; otherwise `fraction`, `seed` and `mode`
    choose the validation rows among the training rows (`featcache.images.splits`). With fraction 0 there are
    none.

    Raises:
        OptionError: an option cannot be used.
    """
    own_val = len(plan.range_of("val")) > 0
    if split == "test" or own_val or (split == "train" and fraction == 0):
        return split, np.arange(len(plan.range_of(split)), dtype=np.int64)
    if fraction == 0:
        return "val", np.empty(0, dtype=np.int64)
    rows = plan.range_of("train")
    train, val = validation_split(plan.labels[rows.start : rows.stop], fraction, seed, mode)
    return "train", np.sort(train if split == "train" else val)


def rows_of(plan: Plan, split: str, fraction: float, seed: int, mode: str) -> NDArray[np.int64]:
    """Return the rows of the plan that are a split, rising; see `positions_of`."""
    stored, positions = positions_of(plan, split, fraction, seed, mode)
    return positions + plan.range_of(stored).start
