"""Heads that are one convex problem with one solution: logistic regression and ridge classification."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

from featcache.errors import HeadError
from featcache.heads.base import STANDARDIZE, ArraySpec, Head, ScoredHead, Task, two_sided
from featcache.heads.hinge import targets_of
from featcache.heads.options import number, whole
from featcache.heads.scaling import Matrix, Moments, row_blocks, standardised
from featcache.heads.threads import threads_for

_Fitted = TypeVar("_Fitted")


class LinearScores(ScoredHead):
    """Scores rows @ coef_.T + intercept_, of standardised rows where the head standardises.

    Fitted: `coef_` (C, D) and `intercept_` (C,), with two classes (1, D) and (1,) for the second one.
    """

    coef_: NDArray[np.float64]
    intercept_: NDArray[np.float64]

    def arrays(self) -> dict[str, ArraySpec]:
        """Return what coef_ and intercept_ must be."""
        return linear_arrays(self)

    def _block_scores(self, block: Matrix) -> Matrix:
        return linear_scores(block, self.coef_, self.intercept_)


class LogisticHead(LinearScores):
    """Multinomial logistic regression: C · (sum of cross-entropies) + ½ ‖coef‖², solved by L-BFGS.

    The solver is scikit-learn's, on one float32 copy of the rows, until no entry of the gradient of the
    objective, divided by C and N, is above `tol`. Fitted besides coef_ and intercept_: `n_iter_`, and
    `converged_` and `notes_` (what the solver had to say).
    """

    KIND: ClassVar = "logreg"
    OPTIONS: ClassVar = {
        "C": number("weight of the data against the L2 penalty", above=0),
        "tol": number("largest gradient entry of a solution", above=0),
        "max_iter": whole("iterations, at most", least=1),
        "standardize": STANDARDIZE,
    }
    ATTRIBUTES: ClassVar = {"n_iter_": int, "converged_": bool, "notes_": list}

    n_iter_: int
    converged_: bool
    notes_: list[str]

    def __init__(
        self, C: float = 0.01, tol: float = 1e-4, max_iter: int = 1000, standardize: str = "auto"
    ) -> None:
        self.C = C
        self.tol = tol
        self.max_iter = max_iter
        self.standardize = standardize

    def _learn(self, task: Task) -> None:
        from sklearn.linear_model import LogisticRegression

        solver = LogisticRegression(C=float(self.C), tol=float(self.tol), max_iter=int(self.max_iter))
        rows = standardised(task.X, self._moments(task))
        with threads_for(2 * rows.size * len(self.classes_)):
            solved, self.notes_ = noted(lambda: solver.fit(rows, task.y))
        self.converged_ = not self.notes_
        # In C order, as a file keeps it: the order decides how products round.
        self.coef_ = np.ascontiguousarray(solved.coef_, dtype=np.float64)
        self.intercept_ = solved.intercept_.astype(np.float64)
        self.n_iter_ = int(np.max(solved.n_iter_))


class RidgeHead(LinearScores):
    """Least squares on targets -1 and +1, one against the rest, with the penalty alpha ‖coef‖².

    The same solution as scikit-learn's RidgeClassifier, by one Cholesky factorisation in float64: of the
    columns' products (D, D) where D <= N, else of the rows' (N, N). Rows are read in blocks and never copied.
    """

    KIND: ClassVar = "ridge"
    OPTIONS: ClassVar = {"alpha": number("factor of the L2 penalty", above=0), "standardize": STANDARDIZE}

    def __init__(self, alpha: float = 1.0, standardize: str = "auto") -> None:
        self.alpha = alpha
        self.standardize = standardize

    def _learn(self, task: Task) -> None:
        columns = self._moments(task)
        # Centring is what takes the intercept out of the penalty, so it is done in either case.
        centred = columns or Moments(
            task.columns.mean, np.ones_like(task.columns.mean), task.columns.variance
        )
        targets = targets_of(task.y, len(self.classes_))
        middle = targets.mean(axis=0)
        solve = _primal if task.X.shape[1] <= task.X.shape[0] else _dual
        self.coef_ = np.ascontiguousarray(solve(task.X, centred, targets - middle, float(self.alpha)))
        self.intercept_ = middle if columns else middle - self.coef_ @ centred.mean


def linear_arrays(head: Head) -> dict[str, ArraySpec]:
    """Return what a linear model's coef_ and intercept_ must be."""
    rows = 1 if len(head.classes_) == 2 else len(head.classes_)
    return {"coef_": ArraySpec((rows, head.n_features_in_)), "intercept_": ArraySpec((rows,))}


def linear_scores(block: Matrix, coef: NDArray[np.float64], intercept: NDArray[np.float64]) -> Matrix:
    """Return the scores (n, C) of rows (n, D) in the rows' own precision."""
    weights = coef.astype(block.dtype, copy=False)
    return two_sided(block @ weights.T + intercept.astype(block.dtype))


def noted(fit: Callable[[], _Fitted]) -> tuple[_Fitted, list[str]]:
    """Call a scikit-learn fit; return its result and what it warned of about convergence, in short."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = fit()
    notes = [str(w.message).splitlines()[0] for w in caught if issubclass(w.category, ConvergenceWarning)]
    for other in [w for w in caught if not issubclass(w.category, ConvergenceWarning)]:
        warnings.warn_explicit(other.message, other.category, other.filename, other.lineno)
    return result, list(dict.fromkeys(notes))


def _primal(X: Matrix, columns: Moments, targets: NDArray[np.float64], alpha: float) -> NDArray[np.float64]:
    """Solve (Z'Z + alpha I) coef' = Z'T for the standardised rows Z of X."""
    width = X.shape[1]
    products, right = np.zeros((width, width)), np.zeros((width, targets.shape[1]))
    for rows in row_blocks(len(X), X.shape[1]):
        block = standardised(X[rows], columns, np.float64)
        products += block.T @ block
        right += block.T @ targets[rows]
    coef: NDArray[np.float64] = _cholesky(products, right, alpha).T
    return coef


def _dual(X: Matrix, columns: Moments, targets: NDArray[np.float64], alpha: float) -> NDArray[np.float64]:
    """Solve coef' = Z' (Z Z' + alpha I)^-1 T, reading Z in blocks of columns."""
    parts = list(row_blocks(X.shape[1], X.shape[0]))
    products = np.zeros((len(X), len(X)))
    for part in parts:
        block = _column_block(X, columns, part)
        products += block @ block.T
    dual = _cholesky(products, targets, alpha)
    return np.concatenate([dual.T @ _column_block(X, columns, part) for part in parts], axis=1)


def _column_block(X: Matrix, columns: Moments, part: slice) -> Matrix:
    some = Moments(columns.mean[part], columns.scale[part], columns.variance[part])
    return standardised(X[:, part], some, np.float64)


def _cholesky(products: NDArray[np.float64], right: NDArray[np.float64], alpha: float) -> Any:
    from scipy.linalg import LinAlgError, cho_factor, cho_solve

    products.flat[:: len(products) + 1] += alpha
    try:
        factor = cho_factor(products, lower=True, overwrite_a=True, check_finite=False)
    except LinAlgError as error:
        raise HeadError(
            f"ridge cannot be solved with alpha={alpha:g}: {error}.", "Take a larger alpha."
        ) from error
    return cho_solve(factor, right, check_finite=False)
