"""Kernel values of rows, and the votes of a support vector machine that was fitted one class against one."""

from __future__ import annotations

from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from featcache.heads.scaling import Matrix


def gaussian(a: Matrix, b: Matrix, gamma: float) -> Matrix:
    """Return exp(-gamma ‖a_i - b_j‖²), (n, m), for rows a (n, D) and b (m, D) of one type."""
    distances: Matrix = a @ b.T
    distances *= -2
    distances += np.einsum("ij,ij->i", a, a)[:, None]
    distances += np.einsum("ij,ij->i", b, b)
    np.maximum(distances, 0, out=distances)
    distances *= -gamma
    np.exp(distances, out=distances)
    return distances


def one_against_one(
    kernel: Matrix,
    dual: NDArray[np.float64],
    support: NDArray[np.int64],
    intercept: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return the scores (n, C) of more than two classes from the kernel values (n, S).

    The S support vectors lie class by class, `support` (C,) of each; row j of `dual` (C - 1, S) is for the
    j-th other class; `intercept` is for the pairs (0, 1), (0, 2), … Every pair votes for one of its two
    classes, and the sum of a class's margins, squashed below 1/2, decides between equal votes, as in
    scikit-learn's `_ovr_decision_function`.
    """
    ends = np.concatenate([[0], np.cumsum(support)])
    parts = [kernel[:, ends[c] : ends[c + 1]] @ dual[:, ends[c] : ends[c + 1]].T for c in range(len(support))]
    votes, margins = np.zeros((2, len(kernel), len(support)))
    for pair, (i, j) in enumerate(combinations(range(len(support)), 2)):
        margin = parts[i][:, j - 1] + parts[j][:, i] + intercept[pair]
        margins[:, i] += margin
        margins[:, j] -= margin
        votes[:, i] += margin >= 0
        votes[:, j] += margin < 0
    votes += margins / (3 * (np.abs(margins) + 1))
    return votes
