"""Heads that are one convex problem with one solution: logistic regression and ridge classification."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

from featcache.heads.base import STANDARDIZE, ArraySpec, Head, ScoredHead, Task, two_sided
from featcache.heads.options import Option, choice, number, whole
from featcache.heads.scaling import Matrix, standardised
from featcache.heads.threads import threads_for

if TYPE_CHECKING:
    import torch

    from featcache.heads.linear import Solution

SOLVER = choice("who solves it: auto is featcache, sklearn the reference", "auto", "featcache", "sklearn")
DEVICE = Option(
    "auto, cpu, cuda or cuda:N",
    "where to solve",
    lambda value: isinstance(value, str) and re.fullmatch(r"auto|cpu|cuda(:\d+)?", value) is not None,
)

FACTORISED = 4096  # columns or rows whose products fit in 128 MiB, and are factorised in seconds
RIDGE_TOL, RIDGE_PASSES = 1e-6, 1000
_Fitted = TypeVar("_Fitted")


class LinearScores(ScoredHead):
    """Scores rows @ coef_.T + intercept_, of standardised rows where the head standardises.

    Fitted: `coef_` (C, D) and `intercept_` (C,), with two classes (1, D) and (1,) for the second one.
    """

    BLOCKWISE: ClassVar = True

    coef_: NDArray[np.float64]
    intercept_: NDArray[np.float64]

    def arrays(self) -> dict[str, ArraySpec]:
        """Return what coef_ and intercept_ must be."""
        return linear_arrays(self)

    def _block_scores(self, block: Matrix) -> Matrix:
        return linear_scores(block, self.coef_, self.intercept_)


class LogisticHead(LinearScores):
    """Multinomial logistic regression: C · (sum of cross-entropies) + ½ ‖coef‖², until no entry of the
    gradient of the objective, divided by C and N, is above `tol`.

    solver="featcache" is `featcache.heads.linear` on `device`: the rows are read in blocks as they are
    stored, never copied as a whole. solver="sklearn", the reference, is scikit-learn's L-BFGS on one float32
    copy of the rows. "auto" is featcache. Fitted besides coef_ and intercept_: `n_iter_`, `converged_` and
    `notes_` (what the solver had to say).
    """

    KIND: ClassVar = "logreg"
    OPTIONS: ClassVar = {
        "C": number("weight of the data against the L2 penalty", above=0),
        "tol": number("largest gradient entry of a solution", above=0),
        "max_iter": whole("iterations, at most", least=1),
        "standardize": STANDARDIZE,
        "solver": SOLVER,
        "device": DEVICE,
    }
    ATTRIBUTES: ClassVar = {"n_iter_": int, "converged_": bool, "notes_": list}

    n_iter_: int
    converged_: bool
    notes_: list[str]

    def __init__(
        self,
        C: float = 0.01,
        tol: float = 1e-4,
        max_iter: int = 1000,
        standardize: str = "auto",
        solver: str = "auto",
        device: str = "auto",
    ) -> None:
        self.C = C
        self.tol = tol
        self.max_iter = max_iter
        self.standardize = standardize
        self.solver = solver
        self.device = device

    def _learn(self, task: Task) -> None:
        if self.solver == "sklearn":
            self._learn_by_reference(task)
            return
        from featcache.heads.linear import Problem, solve

        columns, device = self._moments(task), resolved(self.device)
        problem = Problem("logreg", task, columns, len(self.classes_), device)
        self._keep(solve(problem, [float(self.C)], float(self.tol), int(self.max_iter))[0])

    def _keep(self, found: Solution) -> None:
        self.coef_, self.intercept_ = found.coef, found.intercept
        self.n_iter_, self.notes_ = found.iterations, list(found.notes)
        self.converged_ = not self.notes_

    def _learn_by_reference(self, task: Task) -> None:
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

    The same solution as scikit-learn's RidgeClassifier, by one Cholesky factorisation in float64 on `device`
    (`featcache.heads.squares`), or where there are more than 4096 both of rows and of columns by
    `featcache.heads.linear`, until no entry of a class's gradient is above a millionth of the largest at
    w = 0. Rows are read in blocks and never copied.
    """

    KIND: ClassVar = "ridge"
    OPTIONS: ClassVar = {
        "alpha": number("factor of the L2 penalty", above=0),
        "standardize": STANDARDIZE,
        "device": DEVICE,
    }

    def __init__(self, alpha: float = 1.0, standardize: str = "auto", device: str = "auto") -> None:
        self.alpha = alpha
        self.standardize = standardize
        self.device = device

    def _learn(self, task: Task) -> None:
        from featcache.heads.linear import Problem, solve
        from featcache.heads.squares import Squares

        columns, device = self._moments(task), resolved(self.device)
        if not direct(task):
            problem = Problem("ridge", task, columns, len(self.classes_), device)
            self._keep(solve(problem, [1 / float(self.alpha)], RIDGE_TOL, RIDGE_PASSES)[0])
            return
        squares = Squares(task, columns, len(self.classes_), device)
        self.coef_, self.intercept_ = squares.solve(float(self.alpha))

    def _keep(self, found: Solution) -> None:
        self.coef_, self.intercept_, self.notes_ = found.coef, found.intercept, list(found.notes)


def direct(task: Task) -> bool:
    """Return whether ridge is solved by products of all columns or rows, which are few enough for that."""
    return bool(min(task.X.shape) <= FACTORISED)


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


def resolved(device: str) -> torch.device:
    """Return the device that an option names.

    Raises:
        HeadError: a GPU is asked for and there is none of that number.
    """
    from featcache.heads.epochs import resolve_device

    return resolve_device(device)
