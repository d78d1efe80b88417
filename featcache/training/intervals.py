"""What chance alone can do to an accuracy, and to the difference of two: intervals and tests.

Everything rests on which rows a head got right, arrays of booleans (N,) over the same rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featcache.errors import OptionError

RESAMPLES = 10_000
LEVEL = 0.95
Hits = NDArray[np.bool_]


@dataclass(frozen=True)
class Interval:
    """An estimate with the ends of its interval, all in shares of 1."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Discordant:
    """Of rows on which two heads differ: how many only the first and how many only the second got right."""

    only_a: int
    only_b: int


def accuracy_interval(right: Hits, *, seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """Return the accuracy with its percentile bootstrap interval.

    A resample draws N rows with replacement. Only how many of them are right matters, so that number is
    drawn directly, from the distribution it has: `resamples` numbers, whatever N is.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.

    Raises:
        OptionError: there are no rows, or resamples < 1.
    """
    n = _rows(right, resamples)
    hits = int(np.count_nonzero(right))
    drawn = np.random.default_rng(seed).binomial(n, hits / n, resamples) / n
    return _percentiles(hits / n, drawn)


def difference_interval(a: Hits, b: Hits, *, seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """Return accuracy of b - accuracy of a with its paired percentile bootstrap interval.

    Both heads are looked at on the same resampled rows. A row counts +1 where b alone is right, -1 where a
    alone is, else 0; how many of each a resample holds is multinomial and drawn as such.

    Raises:
        OptionError: a and b are of different lengths, there are no rows, or resamples < 1.
    """
    n, apart = _rows(a, resamples), discordant(a, b)
    counts = np.array([apart.only_b, apart.only_a, n - apart.only_a - apart.only_b])
    drawn = np.random.default_rng(seed).multinomial(n, counts / n, resamples)
    return _percentiles((apart.only_b - apart.only_a) / n, (drawn[:, 0] - drawn[:, 1]) / n)


def discordant(a: Hits, b: Hits) -> Discordant:
    """Count the rows that only one of two heads got right.

    Raises:
        OptionError: a and b are of different lengths.
    """
    if a.shape != b.shape:
        raise OptionError(f"Two heads can only be compared on the same rows, got {len(a)} and {len(b)}.")
    return Discordant(int(np.count_nonzero(a & ~b)), int(np.count_nonzero(b & ~a)))


def mcnemar(apart: Discordant) -> float:
    """Return the p-value of McNemar's exact test: are the rows that differ split like fair coins?

    1 where no row differs. Source: McNemar, Psychometrika 12, 1947; exact (binomial, two-sided) form.
    """
    from scipy.stats import binomtest

    differing = apart.only_a + apart.only_b
    return float(binomtest(apart.only_b, differing, 0.5).pvalue) if differing else 1.0


def holm(p: Sequence[float]) -> list[float]:
    """Return p-values corrected for how many there are, in the order given.

    Source: Holm, A simple sequentially rejective multiple test procedure, Scand. J. Statistics 6, 1979.
    """
    order = sorted(range(len(p)), key=lambda i: p[i])
    corrected, so_far = [0.0] * len(p), 0.0
    for place, i in enumerate(order):
        so_far = max(so_far, min(1.0, p[i] * (len(p) - place)))
        corrected[i] = so_far
    return corrected


def least_plausible(n: int) -> float:
    """Return the lower end of the exact interval of an accuracy of n out of n rows.

    The bootstrap sees no spread there. Source: Clopper and Pearson, Biometrika 26, 1934.
    """
    return float(((1 - LEVEL) / 2) ** (1 / n))


def _rows(right: Hits, resamples: int) -> int:
    if right.ndim != 1 or not len(right):
        raise OptionError(f"Expected one value for each of at least one row, got shape {right.shape}.")
    if resamples < 1:
        raise OptionError(f"resamples must be at least 1, got {resamples}.")
    return len(right)


def _percentiles(value: float, drawn: NDArray[np.float64]) -> Interval:
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value, float(low), float(high))
