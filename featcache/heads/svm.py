"""Support vector machines: linear, or with a Gaussian (RBF) kernel, exact or by landmarks."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone

from featcache.errors import HeadError
from featcache.heads.base import STANDARDIZE, ArraySpec, Codes, ScoredHead, Task, two_sided
from featcache.heads.convex import DEVICE, linear_arrays, linear_scores, noted, resolved
from featcache.heads.kernels import gaussian, one_against_one
from featcache.heads.options import Option, choice, number, whole
from featcache.heads.scaling import Matrix, Moments, moments, row_blocks, standardised

if TYPE_CHECKING:
    from featcache.heads.linear import Solution

_LINEAR_C, _RBF_C, _APPROX_C = 0.01, 10.0, 10.0  # what C=None means
_LINEAR_TOL, _RBF_TOL = 1e-4, 1e-3
_GAMMA = number("gamma", above=0)
_INTELEX = "pip install 'featcache[intelex]'"
_FASTER = f" --solver intelex ({_INTELEX}) takes about a fifth of the time."
_MANY = 20_000  # rows from which on an exact kernel is worth a warning


class SVMHead(ScoredHead):
    """A support vector machine.

    kernel="linear": squared hinge loss, one class against the rest: LinearSVC's problem, intercept and all.
    solver="featcache" is `featcache.heads.linear` on `device`, until no entry of a class's gradient is above
    `tol` times the largest at w = 0; solver="sklearn" is LinearSVC itself on one float32 copy of the rows.
    Fitted: `coef_` (C, D), `intercept_` (C,), with two classes (1, D) and (1,).

    kernel="rbf": exp(-gamma ‖a - b‖²), one class against one, scikit-learn's SVC, whose time grows with N² to
    N³; solver="intelex" is the SVC of scikit-learn-intelex, the same solution within `tol`, several times as
    fast. gamma "scale" is 1 / (D · variance of the rows), "auto" 1 / D. Fitted: `support_vectors_` (S, D),
    `dual_coef_` (C - 1, S), `intercept_` (C (C - 1) / 2,), `n_support_` (C,), `gamma_`. The decision is votes
    plus squashed confidences, as SVC(break_ties=True) predicts.

    kernel="rbf-approx": the same kernel by the likeness to `landmarks` rows drawn by `seed`
    (`featcache.heads.nystrom`), and the linear problem above on these features: time and memory grow with N.
    Fitted: `landmarks_` (m, D), `dual_coef_` (C, m), with two classes (1, m), `intercept_`, `gamma_`.

    The probabilities are the softmax of the decision values: their order means something, their size only
    after `calibrate`. Both have `n_iter_`, `converged_` and `notes_` (what the solver had to say).
    """

    KIND: ClassVar = "svm"
    BLOCKWISE: ClassVar = True
    OPTIONS: ClassVar = {
        "kernel": choice("linear, or Gaussian", "linear", "rbf", "rbf-approx"),
        "C": number(
            f"weight of errors; None is {_LINEAR_C:g} linear, {_RBF_C:g} rbf, {_APPROX_C:g} rbf-approx",
            above=0,
            or_none=True,
        ),
        "gamma": Option(
            "scale, auto or a number above 0",
            "factor of the squared distance, not for linear",
            lambda value: value in ("scale", "auto") if isinstance(value, str) else _GAMMA.accepts(value),
        ),
        "tol": number(f"tolerance; None is {_RBF_TOL} rbf, else {_LINEAR_TOL}", above=0, or_none=True),
        "max_iter": whole("iterations, at most; None is unlimited rbf, else 1000", least=1, or_none=True),
        "standardize": STANDARDIZE,
        "solver": choice(
            "auto is featcache, for rbf scikit-learn; sklearn the reference; intelex for rbf alone",
            *("auto", "featcache", "sklearn", "intelex"),
        ),
        "device": DEVICE,
        "landmarks": whole("rows that stand for all, rbf-approx only", least=2),
        "seed": whole("of the landmarks", least=0),
    }
    ATTRIBUTES: ClassVar = {"n_iter_": int, "converged_": bool, "notes_": list, "gamma_": float}

    coef_: NDArray[np.float64]
    support_vectors_: NDArray[np.float32]
    landmarks_: NDArray[np.float32]
    dual_coef_: NDArray[np.float64]
    n_support_: NDArray[np.int64]
    intercept_: NDArray[np.float64]
    gamma_: float
    n_iter_: int
    converged_: bool
    notes_: list[str]

    def __init__(
        self,
        kernel: str = "linear",
        C: float | None = None,
        gamma: str | float = "scale",
        tol: float | None = None,
        max_iter: int | None = None,
        standardize: str = "auto",
        solver: str = "auto",
        device: str = "auto",
        landmarks: int = 2000,
        seed: int = 0,
    ) -> None:
        self.kernel = kernel
        self.C = C
        self.gamma = gamma
        self.tol = tol
        self.max_iter = max_iter
        self.standardize = standardize
        self.solver = solver
        self.device = device
        self.landmarks = landmarks
        self.seed = seed

    def check_options(self) -> None:
        """Refuse options that cannot be used, the solver of an extra that is not installed among them.

        Raises:
            HeadError: naming the option, what was expected and what was given.
        """
        super().check_options()
        if self.solver != "intelex":
            return
        if self.kernel != "rbf":
            raise HeadError(f"solver intelex is for the rbf kernel, not for {self.kernel}.", "Use auto.")
        if importlib.util.find_spec("sklearnex") is None:
            raise HeadError(
                "solver intelex needs scikit-learn-intelex, which is not installed.", f"{_INTELEX}."
            )

    @property
    def draws(self) -> bool:
        """Whether landmarks are drawn."""
        return self.kernel == "rbf-approx"

    def arrays(self) -> dict[str, ArraySpec]:
        """Return what the fitted arrays of this kernel must be."""
        if self.kernel == "linear":
            return linear_arrays(self)
        classes = len(self.classes_)
        if self.kernel == "rbf-approx":
            wide = classes if classes > 2 else 1
            return {
                "landmarks_": ArraySpec(("m", self.n_features_in_), ("float32",)),
                "dual_coef_": ArraySpec((wide, "m")),
                "intercept_": ArraySpec((wide,)),
            }
        return {
            "support_vectors_": ArraySpec(("S", self.n_features_in_), ("float32",)),
            "dual_coef_": ArraySpec((classes - 1, "S")),
            "intercept_": ArraySpec((classes * (classes - 1) // 2,)),
            "n_support_": ArraySpec((classes,), ("int64",)),
        }

    def damage(self) -> str:
        """Return a word on counts of support vectors that do not add up."""
        if self.kernel != "rbf":
            return ""
        adds_up = (self.n_support_ >= 0).all() and self.n_support_.sum() == len(self.support_vectors_)
        return "" if adds_up else "n_support_ does not add up to the rows of support_vectors_"

    def forewarning(
        self, shape: tuple[int, int], some: Callable[[Codes], tuple[Matrix, NDArray[Any]]]
    ) -> str:
        """Return what an exact rbf kernel will cost on more than 20 000 rows, from a fit to some of them."""
        rows, columns = shape
        if self.kernel != "rbf" or rows <= _MANY:
            return ""
        few = min(2000, max(200, (1 << 20) // columns))
        once = clone(self).fit(*some(np.linspace(0, rows - 1, few).astype(np.int64))).fit_seconds_
        minutes = once * (rows / few) ** 2 / 60
        return (
            f"svm with the rbf kernel on {rows} rows takes {minutes:.1f} minutes or more: {few} rows took "
            f"{once:.2f} s, and time grows with the square of the rows at least. --kernel rbf-approx comes "
            f"close in time that grows with the rows alone.{'' if self.solver == 'intelex' else _FASTER}"
        )

    def _learn(self, task: Task) -> None:
        if self.kernel == "rbf-approx":
            self._learn_approx(task)
        elif self.kernel == "rbf":
            self._learn_rbf(standardised(task.X, self._moments(task)), task)
        elif self.solver == "sklearn":
            self._learn_by_reference(task)
        else:
            self._learn_linear(task)
        self.converged_ = not self.notes_

    @property
    def penalty(self) -> float:
        """C as a number."""
        usual = {"linear": _LINEAR_C, "rbf": _RBF_C, "rbf-approx": _APPROX_C}
        return float(self.C or usual[self.kernel])

    @property
    def tolerance(self) -> float:
        """The tolerance as a number."""
        return float(self.tol or (_RBF_TOL if self.kernel == "rbf" else _LINEAR_TOL))

    def _learn_linear(self, task: Task) -> None:
        from featcache.heads.linear import Problem, solve

        columns, device = self._moments(task), resolved(self.device)
        problem = Problem("svm", task, columns, len(self.classes_), device)
        self._keep(solve(problem, [self.penalty], self.tolerance, int(self.max_iter or 1000))[0])

    def _keep(self, found: Solution) -> None:
        self.coef_, self.intercept_, self.gamma_ = found.coef, found.intercept, 0.0
        self.n_iter_, self.notes_ = found.iterations, list(found.notes)
        self.converged_ = not self.notes_

    def _learn_by_reference(self, task: Task) -> None:
        from sklearn.svm import LinearSVC

        solver = LinearSVC(
            C=self.penalty, tol=self.tolerance, max_iter=int(self.max_iter or 1000), random_state=0
        )
        rows = standardised(task.X, self._moments(task))
        solved, self.notes_ = noted(lambda: solver.fit(rows, task.y))
        self.coef_ = np.ascontiguousarray(solved.coef_, dtype=np.float64)
        self.intercept_, self.gamma_ = np.atleast_1d(solved.intercept_).astype(np.float64), 0.0
        self.n_iter_ = int(solved.n_iter_)

    def _learn_rbf(self, rows: Matrix, task: Task) -> None:
        if self.solver == "intelex":
            from sklearnex.svm import SVC
        else:
            from sklearn.svm import SVC

        self.gamma_ = self._gamma(task.columns)
        solver = SVC(
            C=self.penalty,
            gamma=self.gamma_,
            tol=self.tolerance,
            max_iter=int(self.max_iter or -1),
            cache_size=500,
            random_state=0,  # decides nothing here, but without it the global generator would be drawn from
        )
        solved, self.notes_ = noted(lambda: solver.fit(rows, task.y))
        self.intercept_ = solved.intercept_.astype(np.float64)
        self.n_iter_ = int(np.max(solved.n_iter_))
        self.support_vectors_ = solved.support_vectors_.astype(np.float32)
        self.dual_coef_ = np.ascontiguousarray(solved.dual_coef_, dtype=np.float64)
        self.n_support_ = solved.n_support_.astype(np.int64)

    def _learn_approx(self, task: Task) -> None:
        from featcache.heads.nystrom import nystrom

        columns, self.gamma_ = self._moments(task), self._gamma(task.columns)
        near = nystrom(task.X, columns, self.gamma_, int(self.landmarks), int(self.seed))
        options = {**self.get_params(deep=False), "kernel": "linear", "standardize": "no"}
        options["C"] = self.penalty
        linear = SVMHead(**options)
        linear.classes_ = self.classes_
        features = near.features(task.X, columns)
        linear._learned(Task(features, task.y, moments(features)), linear._learn, time.perf_counter())
        self.landmarks_ = near.landmarks
        self.dual_coef_ = np.ascontiguousarray((near.root @ linear.coef_.T).T)
        self.intercept_, self.n_iter_, self.notes_ = linear.intercept_, linear.n_iter_, linear.notes_

    def _gamma(self, columns: Moments) -> float:
        """Return gamma as a number; the variance of all values follows from the columns' moments."""
        if not isinstance(self.gamma, str):
            return float(self.gamma)
        if self.gamma == "auto":
            variance = 1.0
        elif self.standardizes:
            variance = float(np.mean(columns.variance > 0))
        else:
            variance = float(columns.variance.mean() + columns.mean.var())
        return 1.0 / (len(columns.mean) * variance) if variance > 0 else 1.0

    def _block_scores(self, block: Matrix) -> Matrix:
        if self.kernel == "linear":
            return linear_scores(block, self.coef_, self.intercept_)
        scores = np.empty((len(block), len(self.classes_)))
        vectors = self.support_vectors_ if self.kernel == "rbf" else self.landmarks_
        support = vectors.astype(np.float64)
        for rows in row_blocks(len(block), len(support)):
            scores[rows] = self._kernel_scores(gaussian(block[rows].astype(np.float64), support, self.gamma_))
        return scores.astype(block.dtype, copy=False)

    def _kernel_scores(self, kernel: Matrix) -> Matrix:
        if self.kernel == "rbf-approx" or len(self.classes_) == 2:
            return two_sided(kernel @ self.dual_coef_.T + self.intercept_)
        return one_against_one(kernel, self.dual_coef_, self.n_support_, self.intercept_)
