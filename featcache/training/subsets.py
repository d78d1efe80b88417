"""Which of the training rows a head sees: some of each class, for learning curves, or all but one fold."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.errors import OptionError
from featcache.store.table import Table

Positions = NDArray[np.int64]


@dataclass(frozen=True)
class Size:
    """How many training rows: `per_class` of each class, or about `fraction` of each class's, at least one.

    Raises:
        OptionError: neither or both are given, or one is out of range.
    """

    per_class: int | None = None
    fraction: float | None = None

    def __post_init__(self) -> None:
        if (self.per_class is None) == (self.fraction is None):
            raise OptionError("A size is either a number of rows a class or a fraction.", "Give one of them.")
        if self.per_class is not None and self.per_class < 1:
            raise OptionError(f"There must be at least 1 row a class, got {self.per_class}.")
        if self.fraction is not None and not 0 < self.fraction <= 1:
            raise OptionError(f"A fraction lies above 0 and is at most 1, got {self.fraction}.")

    def __str__(self) -> str:
        if self.per_class is not None:
            return f"{self.per_class} per class"
        return f"{100 * (self.fraction or 0):g} %"

    def of(self, rows: int) -> int:
        """Return how many rows of a class that has `rows` are taken."""
        if self.per_class is not None:
            return min(self.per_class, rows)
        return max(1, math.floor((self.fraction or 0) * rows + 0.5))


def sizes_of(few_shot: Iterable[int], fractions: Iterable[float]) -> list[Size]:
    """Return the sizes of a learning curve, those by number first.

    Raises:
        OptionError: one is out of range.
    """
    return [*(Size(number) for number in few_shot), *(Size(None, share) for share in fractions)]


@dataclass(frozen=True)
class Draw:
    """A size's rows, drawn without replacement in each class, by `seed` and `trial` (0-based) alone.

    The draws of one trial are nested: a smaller size's rows are among a larger one's.
    """

    size: Size
    trial: int = 0
    seed: int = 0

    def __str__(self) -> str:
        return f"{self.size}, trial {self.trial}" + (f", seed {self.seed}" if self.seed else "")

    def positions(self, labels: NDArray[np.int64]) -> Positions:
        """Return the positions (n,), rising, of the rows drawn from those with these labels (N,)."""
        taken = []
        for label in np.unique(labels).tolist():
            rows = np.flatnonzero(labels == label)
            order = np.random.default_rng([self.seed, self.trial, label]).permutation(len(rows))
            taken.append(rows[order[: self.size.of(len(rows))]])
        return np.sort(np.concatenate(taken)).astype(np.int64)


@dataclass(frozen=True)
class Fold:
    """All training rows but the fold `fold` (0-based) of `folds`, which validates.

    Rows are shuffled by `seed` class by class and dealt out in turn, so that folds have as many rows of
    each class, give or take one, and as many rows.
    """

    fold: int
    folds: int
    seed: int = 0

    def __str__(self) -> str:
        return f"fold {self.fold} of {self.folds}" + (f", seed {self.seed}" if self.seed else "")

    def positions(self, labels: NDArray[np.int64]) -> tuple[Positions, Positions]:
        """Return the positions, rising, of the rows (N,) to train on and of those held out.

        Raises:
            OptionError: there are fewer rows than folds.
        """
        check_folds(self.folds, len(labels))
        dealt = []
        for label in np.unique(labels).tolist():
            rows = np.flatnonzero(labels == label)
            dealt.append(rows[np.random.default_rng([self.seed, label]).permutation(len(rows))])
        held = np.zeros(len(labels), dtype=np.bool_)
        held[np.concatenate(dealt)[self.fold :: self.folds]] = True
        return np.flatnonzero(~held), np.flatnonzero(held)


def check_folds(folds: int, rows: int) -> None:
    """Refuse more folds than there are training rows, or fewer than two.

    Raises:
        OptionError: naming both numbers.
    """
    if not 2 <= folds <= rows:
        raise OptionError(f"{rows} training rows cannot make {folds} folds.", "Take 2 to 10 folds: --cv 5.")


Subset = Draw | Fold


def to_record(subset: Subset | None) -> dict[str, Any] | None:
    """Return a subset as a run's record holds it."""
    if isinstance(subset, Draw):
        return {**asdict(subset.size), "trial": subset.trial, "seed": subset.seed}
    return None if subset is None else asdict(subset)


def from_record(record: Mapping[str, Any] | None) -> Subset | None:
    """Return the subset of a run's record; None: all training rows."""
    if record is None:
        return None
    if "folds" in record:
        return Fold(record["fold"], record["folds"], record["seed"])
    return Draw(Size(record["per_class"], record["fraction"]), record["trial"], record["seed"])


def select(table: Table, val: Table | None, subset: Subset | None) -> tuple[Table, Table | None]:
    """Return the rows to train on and to validate with, out of all training rows and the validation split.

    Rows that validate are clean, those of a fold too.

    Nothing is copied before a table's X is asked for.

    Raises:
        OptionError: there are fewer rows than folds.
    """
    if isinstance(subset, Fold):
        train, held = subset.positions(table.y)
        return table.take(train), replace(table.take(held, "val"), every_view=False)
    return (table if subset is None else table.take(subset.positions(table.y))), val
