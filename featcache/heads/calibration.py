"""Temperature scaling: one number that makes a head's probabilities mean what they say.

The probabilities become softmax(scores / T). The order of the classes stays as it is; T is what makes the
validation rows' cross-entropy least, a convex problem in 1/T with one unknown.

Source: Guo, Pleiss, Sun and Weinberger, On Calibration of Modern Neural Networks, ICML 2017, section 4.2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featcache.heads.scaling import Matrix, row_blocks

LEAST, MOST = 1e-4, 1e4  # temperatures looked at


@dataclass(frozen=True)
class Calibration:
    """What calibrating on some rows did: T, and the expected calibration error (0..1) without and with it."""

    temperature: float
    ece_before: float
    ece_after: float
    note: str = ""


def best_temperature(scores: Matrix, y: NDArray[np.int64]) -> tuple[float, str]:
    """Return the temperature for scores (N, C) and class codes y (N,), and a note, "" in ordinary cases.

    Where every row is right, ever smaller temperatures would be ever better. Then each row counts as Platt's
    targets do: right with (N + 1) / (N + 2), the rest spread over the other classes (Platt, Probabilistic
    Outputs for Support Vector Machines, 1999). Where the scores say nothing about the classes, T is `MOST`.
    """
    from scipy.optimize import brentq

    n = len(scores)
    perfect = bool((scores[np.arange(n), y] >= scores.max(axis=1)).all())
    target = _mean_target(scores, y, 1 / (n + 2) if perfect else 0.0)
    note = f"All {n} rows are right: the temperature is a cautious guess." if perfect else ""

    def slope(log_temperature: float) -> float:
        return _mean_score(scores, math.exp(-log_temperature)) - target

    low, high = math.log(LEAST), math.log(MOST)
    if slope(high) >= 0:
        return MOST, "The scores say nothing about the classes of these rows."
    if slope(low) <= 0:
        return LEAST, "No temperature is small enough for these scores."
    return math.exp(brentq(slope, low, high, xtol=1e-12, rtol=1e-12)), note


def tempered(scores: Matrix, temperature: float) -> Matrix:
    """Return softmax(scores / temperature) (N, C); the likeliest class is the one of the largest score.

    Rounding may make two probabilities equal whose scores are not; then the right one is raised by a hair.
    """
    best = scores.argmax(axis=1)
    P: Matrix = scores - scores.max(axis=1, keepdims=True)
    P /= temperature
    np.exp(P, out=P)
    P /= P.sum(axis=1, keepdims=True)
    moved = np.flatnonzero(P.argmax(axis=1) != best)
    P[moved, best[moved]] = np.nextafter(P[moved].max(axis=1), P.dtype.type(2))
    return P


def _mean_score(scores: Matrix, inverse: float) -> float:
    """Return the rows' mean of sum_c p_c s_c: p the softmax of inverse · s, s relative to the largest."""
    total = 0.0
    for rows in row_blocks(*scores.shape):
        s = scores[rows].astype(np.float64)
        s -= s.max(axis=1, keepdims=True)
        p = np.exp(inverse * s)
        total += float((np.einsum("ij,ij->i", p, s) / p.sum(axis=1)).sum())
    return total / len(scores)


def _mean_target(scores: Matrix, y: NDArray[np.int64], spread: float) -> float:
    """Return the rows' mean of sum_c q_c s_c, where q is 1 - spread for the true class."""
    total = 0.0
    for rows in row_blocks(*scores.shape):
        s = scores[rows].astype(np.float64)
        s -= s.max(axis=1, keepdims=True)
        own = s[np.arange(len(s)), y[rows]]
        others = (s.sum(axis=1) - own) / (s.shape[1] - 1)
        total += float(((1 - spread) * own + spread * others).sum())
    return total / len(scores)
