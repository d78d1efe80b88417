"""The linear support vector machine's problem, all classes at once, by L-BFGS on float32 rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featcache.heads.base import Codes
from featcache.heads.scaling import Matrix, row_blocks
from featcache.heads.threads import threads_for

_MEMORY = 20  # pairs of steps that L-BFGS remembers


@dataclass(frozen=True)
class Solution:
    """Weights (R, D) and intercepts (R,), how many iterations they took, and what went wrong if anything."""

    coef: NDArray[np.float64]
    intercept: NDArray[np.float64]
    iterations: int
    notes: list[str]


def solve_squared_hinge(
    rows: Matrix, targets: NDArray[np.float64], C: float, tol: float, max_iter: int
) -> Solution:
    """Minimise ½ ‖w‖² + C · sum max(0, 1 - t (w·x + b))² for each column of targets -1 and +1 (N, R).

    It is LinearSVC's problem (Fan et al., LIBLINEAR, JMLR 2008), the intercept penalised like a weight.
    Products are taken in the rows' precision, sums over blocks in float64. The end is reached when no entry
    of the gradient is above `tol` times the largest at w = 0, or when rounding allows no further descent.
    """
    from scipy.optimize import minimize

    shape = (targets.shape[1], rows.shape[1] + 1)
    signs = targets.astype(rows.dtype)

    def objective(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        loss, gradient = _loss(rows, signs, flat.reshape(shape))
        return C * loss + 0.5 * float(flat @ flat), 2 * C * gradient.ravel() + flat

    start = np.zeros(shape[0] * shape[1])
    largest = float(np.abs(objective(start)[1]).max())
    enough = tol * largest
    limits = {"maxiter": max_iter, "maxfun": 10 * max_iter, "maxcor": _MEMORY, "gtol": enough, "ftol": 0.0}
    with threads_for(2 * rows.size * shape[0]):
        found = minimize(objective, start, jac=True, method="L-BFGS-B", options=limits)
    weights = found.x.reshape(shape)
    notes = []
    stalled = found.status != 0 and np.abs(found.jac).max() > 10 * enough
    if found.status == 1 or stalled:  # 1: out of iterations
        notes = [f"The solver did not converge: {found.message} after {found.nit} iterations."]
    return Solution(np.ascontiguousarray(weights[:, :-1]), weights[:, -1].copy(), int(found.nit), notes)


def targets_of(y: Codes, classes: int) -> NDArray[np.float64]:
    """Return targets -1 and +1 (N, C), one against the rest, or (N, 1) for the second of two classes."""
    wanted = np.arange(classes) if classes > 2 else np.array([1])
    return np.where(y[:, None] == wanted, 1.0, -1.0)


def _loss(rows: Matrix, signs: Matrix, weights: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
    """Return the sum of squared hinges and half its gradient (R, D + 1)."""
    coef, intercept = weights[:, :-1].astype(rows.dtype), weights[:, -1].astype(rows.dtype)
    loss, gradient = 0.0, np.zeros_like(weights)
    for part in row_blocks(len(rows), rows.shape[1]):
        short = rows[part] @ coef.T
        short += intercept
        short *= -signs[part]
        short += 1
        np.maximum(short, 0, out=short)  # by how much each row falls short of its margin
        loss += float(np.einsum("ij,ij->", short, short, dtype=np.float64))
        short *= signs[part]
        gradient[:, :-1] -= short.T @ rows[part]
        gradient[:, -1] -= short.sum(axis=0, dtype=np.float64)
    return loss, gradient
