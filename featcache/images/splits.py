"""Which train rows validate: the very rows torch's `random_split` takes, without torch. numpy only."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from featcache.errors import OptionError, unknown

if TYPE_CHECKING:
    from numpy.typing import NDArray

MODES = ("random", "stratified", "last")


def validation_split(
    labels: NDArray[np.int64], fraction: float = 0.2, seed: int = 42, mode: str = "random"
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split the train rows in two; return the positions (train, val) in `labels`, which is (N,).

    - "random": what `torch.utils.data.random_split(range(N), [1 - fraction, fraction], generator)` gives with
      `generator = torch.Generator().manual_seed(seed)`, the order of the positions included.
    - "stratified": about `fraction` of each class (rounded half up), always leaving one row to train on, in
      the order of the same permutation.
    - "last": the last rows as they stand, as many as "random" takes; the seed has no say. Rows of a folder
      are ordered by class, so there this holds out the last classes.

    Raises:
        OptionError: the fraction is not between 0 and 1, the seed is not one torch takes, the mode is
            unknown, or one of the two parts would be empty.
    """
    if mode not in MODES:
        raise unknown("split mode", mode, MODES)
    if not 0 < fraction < 1:
        raise OptionError(
            f"The validation fraction must lie between 0 and 1, got {fraction}.", "Try --val-fraction 0.2."
        )
    count = len(labels)
    train_size, _ = _lengths(count, fraction)
    if mode == "last":
        order = np.arange(count, dtype=np.int64)
    else:
        order = permutation(count, seed)
    if mode == "stratified":
        held_out = _held_out(np.asarray(labels)[order], fraction)
        train, val = order[~held_out], order[held_out]
    else:
        train, val = order[:train_size], order[train_size:]
    if not len(train) or not len(val):
        raise OptionError(
            f"A validation fraction of {fraction} of {count} train rows leaves {len(train)} to train on "
            f"and {len(val)} to validate with.",
            "Take another --val-fraction, or more images.",
        )
    return train, val


def permutation(count: int, seed: int) -> NDArray[np.int64]:
    """Return `torch.randperm(count, generator=torch.Generator().manual_seed(seed))` as int64 (count,).

    A Fisher-Yates shuffle on the 32-bit draws of MT19937 (Matsumoto and Nishimura, 1998), whose state is
    initialised from the low 32 bits of the seed; see `randperm_cpu` in ATen/native/TensorFactories.cpp.

    Raises:
        OptionError: the seed is outside -2**63 .. 2**64 - 1, the range torch takes.
    """
    if not -(2**63) <= seed < 2**64:
        raise OptionError(f"The seed must lie between -2**63 and 2**64 - 1, got {seed}.")
    steps = max(count - 1, 0)
    # RandomState's stream is frozen; over its whole range a uint32 is one draw of the generator.
    raw = np.random.RandomState(seed & 0xFFFFFFFF).randint(0, 2**32, steps, dtype=np.uint32).astype(np.int64)
    targets = (raw % np.arange(count, count - steps, -1)).tolist()
    rows = list(range(count))
    for at, offset in enumerate(targets):
        other = at + offset
        rows[at], rows[other] = rows[other], rows[at]
    return np.array(rows, dtype=np.int64)


def _lengths(count: int, fraction: float) -> tuple[int, int]:
    """Return (train, val) sizes by random_split's rule: rounded down, the remainder dealt in turn."""
    sizes = [math.floor(count * (1 - fraction)), math.floor(count * fraction)]
    for extra in range(count - sum(sizes)):
        sizes[extra % 2] += 1
    return sizes[0], sizes[1]


def _held_out(labels: NDArray[np.int64], fraction: float) -> NDArray[np.bool_]:
    """Mark, in each class, the first rows up to its share."""
    chosen = np.zeros(len(labels), dtype=np.bool_)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        chosen[rows[: min(math.floor(len(rows) * fraction + 0.5), len(rows) - 1)]] = True
    return chosen
