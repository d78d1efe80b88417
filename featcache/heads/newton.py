"""Newton's method on linear problems of few weights, for the end of the way where the descent is slow.

Where rows are all but separable, or a penalty is next to nothing, the curvature at the end has little to do
with that of all rows, which L-BFGS begins with. The second derivatives of few weights can be had instead, by
one look at the table, and factorised: some ten steps in place of a thousand. The squared hinge has none where
a margin is just kept; those of one side do (Mangasarian, A finite Newton method for classification, 2002).
Shares of steps that go too far are found as in the descent.
"""

from __future__ import annotations

import torch
from torch import Tensor

from featcache.heads.descent import Descent, Stack, dot
from featcache.heads.losses import Loss
from featcache.heads.passes import Passes
from featcache.heads.precision import Precision
from featcache.heads.scaling import row_blocks
from featcache.heads.space import Space

_WEIGHTS = 1024  # of one problem, at most: its second derivatives are squared as many
_PASSES = 30  # of the descent, that a step may cost: it saves as many
_THIN = 8  # multiplications in the time that one of a pass takes, whose products are thin
_CALLS = 1 << 26  # multiplications in the time that a pass or a step takes besides
_BLOCK = 1 << 20  # values
_LIFTS = (1e-12, 1e-10, 1e-8, 1e-6, 1e-4)  # of the largest second derivative, added until there is a way down


def is_worth(passes: Passes, stack: Stack) -> bool:
    """Return whether the problems' second derivatives are cheap enough, beside passes over the table."""
    problems, rows, weights = len(stack), passes.rows, stack.weights[0].numel()
    step = problems * (rows * weights**2 + weights**3 // 6 + _CALLS)
    one_pass = problems * rows * weights * _THIN + _CALLS
    return weights <= _WEIGHTS and step <= _PASSES * one_pass


class Newton(Descent):
    """A descent whose steps are Newton's, in float64. `loss` must be float64, and stand at zero scores."""

    def __init__(self, passes: Passes, loss: Loss, stack: Stack) -> None:
        super().__init__(passes, loss, stack, Precision.DOUBLE)

    def direction(self) -> Tensor:
        """Return the next steps (P, C, D + 1): zero where a gradient has to be known first."""
        step = torch.zeros_like(self.gradient)
        for problem in torch.nonzero(~self.pending).flatten().tolist():
            step[problem] = self._step(problem)
        self.slope = dot(self.gradient, step)
        return step

    def _learn(self, step: Tensor, turn: Tensor, arrived: Tensor) -> None:
        """Nothing: every step looks at the table anew."""

    def _step(self, problem: int) -> Tensor:
        gradient = self.gradient[problem]
        hessian = self._hessian(problem)
        diagonal = hessian.diagonal()
        steepest = float(diagonal.max())
        for lift in _LIFTS:
            diagonal += lift * steepest
            factor, failed = torch.linalg.cholesky_ex(hessian)
            if not bool(failed):
                return -torch.cholesky_solve(gradient.reshape(-1, 1), factor).view_as(gradient)
        return -gradient / diagonal.sum()  # of a matrix without negative values, no rounding leads here

    def _hessian(self, problem: int) -> Tensor:
        """Return the objective's second derivatives (C · (D + 1), C · (D + 1))."""
        passes, stack = self.passes, self.stack
        columns, width = self.gradient[problem].shape
        total = torch.zeros((columns * width,) * 2, dtype=torch.float64, device=passes.device)
        space = Space(passes.device)
        for part in row_blocks(passes.rows, columns * width, _BLOCK):
            rows = space.copied("block", passes.table.read(part, space), torch.float64)
            rows.sub_(passes.mean).div_(passes.scale)
            rows = torch.cat([rows, torch.ones_like(rows[:, :1])], 1)
            total += self.loss.hessian(problem, part, rows)
        total /= passes.rows
        penalties = stack.penalty[problem].repeat(columns, width)
        penalties[:, -1] = stack.intercept_penalty[problem]
        total.diagonal().add_(penalties.flatten())
        return total
