"""Linear classifiers as convex problems, any number of penalties of one kind at once, on CPU or GPU.

    logreg   mean cross-entropy + ½ λ ‖W‖², the intercept free: scikit-learn's LogisticRegression
    svm      mean squared hinge + ½ λ (‖w‖² + b²), one class against the rest: scikit-learn's LinearSVC
    ridge    half the mean square of scores - targets + ½ λ ‖w‖², the intercept free: RidgeClassifier

with λ = 1 / (C · N); ridge's alpha is 1 / C. All penalties share every pass over the table, in the coarsest
precision that still leads anywhere; finer ones finish, and the last look at the gradient is in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from featcache.heads.base import Task
from featcache.heads.curvature import Curvature, curvature
from featcache.heads.descent import Outcome, Stack, descend
from featcache.heads.gram import Rotation, RowSpace
from featcache.heads.lbfgs import Lbfgs, Memory
from featcache.heads.losses import CrossEntropy, HalfSquares, Logistic, Loss, SquaredHinge
from featcache.heads.newton import Newton, is_worth
from featcache.heads.passes import NARROW, Passes
from featcache.heads.precision import Precision
from featcache.heads.scaling import Moments
from featcache.heads.tables import here
from featcache.heads.threads import torch_threads_for

_SMALL = {"cpu": 1 << 20, "cuda": 1 << 26}  # values of a table that is worked on in float64 from the start
_FEW = 1024  # rows, up to which it is worth turning a table that is wider; for several penalties twice that
_SLOW = 100  # passes, after which problems of few weights are finished by Newton's method
_COARSE, _FINE = 0.7, 0.9  # of the tolerance, what is asked before the next precision takes over


@dataclass(frozen=True)
class Solution:
    """Weights (R, D) and intercepts (R,), how many passes they took, and what went wrong if anything.

    `gradient` is the largest entry of the objective's gradient, in float64, relative to what `tol` is.
    """

    coef: NDArray[np.float64]
    intercept: NDArray[np.float64]
    iterations: int
    gradient: float
    notes: list[str]


@dataclass(frozen=True)
class Problem:
    """A kind of problem on a task: what it loses by, and on what device it is solved."""

    kind: str  # "logreg", "svm" or "ridge"
    task: Task
    columns: Moments | None  # what rows are standardised with
    classes: int
    device: torch.device

    @property
    def width(self) -> int:
        """How many columns of weights the solution has."""
        return self.classes if self.classes > 2 else 1

    @property
    def by_class(self) -> bool:
        """Whether each class is a problem of its own, against the rest."""
        return self.kind != "logreg"

    def targets(self) -> Tensor:
        """Return class codes (N,) where there are more than two classes and one loss, else signs (R, N)."""
        codes = torch.from_numpy(self.task.y)
        if not self.by_class and self.classes > 2:
            return codes.to(self.device)
        wanted = torch.arange(self.classes) if self.classes > 2 else torch.tensor([1])
        return torch.where(wanted[:, None] == codes, 1.0, -1.0).to(self.device)

    def loss(self, heads: int, targets: Tensor, dtype: torch.dtype) -> Loss:
        """Return the loss of so many heads, standing at zero scores."""
        if self.by_class:
            loss = SquaredHinge if self.kind == "svm" else HalfSquares
            return loss(heads * self.width, 1, targets.to(dtype)[:, None].repeat(heads, 1, 1), dtype)
        if self.classes > 2:
            return CrossEntropy(heads, self.classes, targets, dtype)
        return Logistic(heads, 1, targets.to(dtype), dtype)

    def shape(self, heads: int) -> tuple[int, int]:
        """Return how many separate problems so many heads are, and the columns of each."""
        return (heads * self.width, 1) if self.by_class else (heads, self.width)


def solve(
    problem: Problem,
    Cs: Sequence[float],
    tol: float,
    max_iter: int,
    on_pass: Callable[[int], None] = lambda alive: None,
) -> list[Solution]:
    """Solve a problem for each of `Cs`, all at once.

    The end of logreg is reached when no entry of the gradient is above `tol`, of the others when none is
    above `tol` times the largest at w = 0, class by class. `on_pass` is called before each pass with how
    many separate problems are in it.
    """
    return _Solver(problem, Cs, tol, max_iter, on_pass).solutions()


class _Solver:
    def __init__(
        self, problem: Problem, Cs: Sequence[float], tol: float, max_iter: int, on_pass: Callable[[int], None]
    ) -> None:
        self.problem, self.Cs, self.tol, self.max_iter, self.on_pass = problem, Cs, tol, max_iter, on_pass
        columns = problem.columns
        if columns is None and problem.kind != "svm":  # a free intercept takes any mean out
            mean = problem.task.columns.mean
            columns = Moments(mean, np.ones_like(mean), problem.task.columns.variance)
        self.passes = Passes(problem.task.X, columns, problem.device)
        self.targets = problem.targets()
        self.centred = columns is not None and problem.columns is None

    def solutions(self) -> list[Solution]:
        """Return a solution for each of the penalties."""
        rows, width = self.passes.rows, self.passes.width
        few = rows <= _FEW * min(len(self.Cs), 2)
        if few and max(rows, NARROW) < width and (found := self._turned()) is not None:
            return found
        precisions = self.passes.precisions()
        if self.passes.rows * self.passes.width <= _SMALL.get(self.problem.device.type, 0):
            precisions = precisions[-1:]
        stack = self._stack(precisions[0])
        wanted = stack.tolerance
        look = curvature(self.passes)
        spent = torch.zeros(len(stack), dtype=torch.int64)
        memory: Memory | None = None
        most = self._most(stack)
        for precision in precisions:
            factor = 1.0 if precision is precisions[-1] else _FINE if precision.fine else _COARSE
            stack.tolerance = wanted * factor
            state = self._lbfgs(stack, precision, look, memory)
            outcome = self._descended(state, most - int(spent.max()))
            stack.weights, memory = outcome.weights, state.memory()
            spent += outcome.passes
        outcome.passes = spent
        self._finish(stack, outcome)
        return self._kept(outcome, wanted)

    def _descended(self, state: Lbfgs, limit: int) -> Outcome:
        """Take the steps. Between the passes of a narrow table torch has one thread: OpenMP's others would
        go on spinning for milliseconds where the lanes of the next pass are."""
        with torch_threads_for(self.passes.width, NARROW + 1):
            return descend(state, limit, self.on_pass)

    def _most(self, stack: Stack) -> int:
        """Return how many passes the descent may take."""
        return min(self.max_iter, _SLOW) if is_worth(self.passes, stack) else self.max_iter

    def _finish(self, stack: Stack, outcome: Outcome) -> None:
        """Bring problems that have not arrived to their end, and write that into the outcome."""
        late = torch.nonzero(~(outcome.largest <= stack.tolerance)).flatten().tolist()
        left = self.max_iter - int(outcome.passes.max())
        if not late or left < 1 or not is_worth(self.passes, stack):
            return
        loss = self.problem.loss(len(self.Cs), self.targets, torch.float64)
        loss.keep(late)
        stack.weights = outcome.weights
        found = descend(Newton(self.passes, loss, stack.some(late)), left, self.on_pass)
        outcome.weights[late], outcome.largest[late] = found.weights, found.largest
        outcome.passes[late] += found.passes

    def _turned(self) -> list[Solution] | None:
        """Solve in coordinates of the rows; return None where all rows are the same.

        No entry of a gradient is longer here than the whole of it is there.
        """
        problem, passes = self.problem, self.passes
        turn = Rotation.of(RowSpace(here(problem.task.X), passes.mean, passes.scale))
        size = turn.rows.shape[1]
        if size == 0:
            return None
        moments = Moments(np.zeros(size), np.ones(size), turn.values.cpu().numpy())
        task = Task(turn.rows.cpu().numpy(), problem.task.y, moments)
        inner = _Solver(
            Problem(problem.kind, task, None, problem.classes, problem.device),
            *(self.Cs, self.tol, self.max_iter, self.on_pass),
        )
        wanted, longer = self._stack(Precision.DOUBLE).tolerance, (size + 1) ** 0.5
        stack = inner._stack(Precision.DOUBLE)
        stack.tolerance = wanted / longer
        directions = torch.eye(size, dtype=torch.float64, device=problem.device)
        look = Curvature(directions, turn.values, 0.0)
        state = inner._lbfgs(stack, Precision.DOUBLE, look)
        outcome = inner._descended(state, inner._most(stack))
        inner._finish(stack, outcome)
        flat = outcome.weights.flatten(0, 1).cpu().numpy()
        weights = np.concatenate([turn.back(flat[:, :-1]), flat[:, -1:]], axis=1)
        there = torch.from_numpy(weights).view(*outcome.weights.shape[:2], -1)
        return self._kept(Outcome(there, outcome.largest * longer, outcome.passes), wanted)

    def _lbfgs(
        self, stack: Stack, precision: Precision, look: Curvature, memory: Memory | None = None
    ) -> Lbfgs:
        dtype = torch.float64 if precision is Precision.DOUBLE else torch.float32
        loss = self.problem.loss(len(self.Cs), self.targets, dtype)
        return Lbfgs(self.passes, loss, stack, precision, look, memory)

    def _stack(self, precision: Precision) -> Stack:
        heads, device = len(self.Cs), self.problem.device
        many, columns = self.problem.shape(heads)
        rows, width = self.passes.rows, self.passes.width
        penalty = torch.tensor([1 / (C * rows) for C in self.Cs], dtype=torch.float64, device=device)
        penalty = penalty.repeat_interleave(many // heads)
        svm = self.problem.kind == "svm"
        by_class = self.problem.by_class
        tolerance = self._largest_at_zero(precision).repeat(heads) if by_class else torch.ones_like(penalty)
        weights = torch.zeros((many, columns, width + 1), dtype=torch.float64, device=device)
        return Stack(weights, penalty, penalty * svm, self.tol * tolerance)

    def _largest_at_zero(self, precision: Precision) -> Tensor:
        """Return the largest entry of each class's gradient at w = 0, (R,)."""
        loss = self.problem.loss(1, self.targets, torch.float32)
        zero = torch.zeros((self.problem.width, self.passes.width + 1), dtype=torch.float64)
        _, gradient = self.passes.run(zero.to(self.problem.device), loss.residuals, precision)
        largest: Tensor = gradient.abs().amax(dim=1) / self.passes.rows
        return largest

    def _kept(self, outcome: Outcome, wanted: Tensor) -> list[Solution]:
        heads = len(self.Cs)
        shape = (heads, self.problem.width, self.passes.width + 1)
        weights = outcome.weights.reshape(shape).cpu().numpy()
        missed = (outcome.largest / wanted * self.tol).view(heads, -1).amax(dim=1).tolist()
        passes = outcome.passes.view(heads, -1).amax(dim=1).tolist()
        found = []
        for own, worst, count in zip(weights, missed, passes, strict=True):
            coef, intercept = np.ascontiguousarray(own[:, :-1]), own[:, -1].copy()
            if self.centred:
                intercept -= coef @ self.passes.mean.cpu().numpy()
            notes = []
            if not worst <= self.tol:
                notes = [
                    f"The solver did not converge: after {count} iterations the largest entry of the "
                    f"gradient is {worst:.2g}, tol is {self.tol:g}."
                ]
            found.append(Solution(coef, intercept, int(count), float(worst), notes))
        return found


def objective(problem: Problem, C: float, coef: Any, intercept: Any) -> float:
    """Return the mean loss plus penalty, in float64, of weights (R, D) and intercepts (R,)."""
    passes = Passes(problem.task.X, problem.columns, problem.device)
    loss = problem.loss(1, problem.targets(), torch.float64)
    step = torch.from_numpy(np.concatenate([coef, np.reshape(intercept, (-1, 1))], axis=1))
    passes.run(step.to(problem.device), loss.residuals, Precision.DOUBLE)
    held = step if problem.kind == "svm" else step[:, :-1]  # what the penalty is on
    squares = float(held.square().sum())
    value, _ = loss.taken()
    return float(value.sum()) + squares / (2 * float(C) * passes.rows)
