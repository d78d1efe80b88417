"""What linear problems lose by their scores: cross-entropy, logistic loss, squared hinge, squares.

A stack of P problems over the same N rows, each with C columns of scores, keeps the scores of where
it stands and those of the step it tries, so that going part of a step needs no look at the table.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from featcache.heads.scaling import row_blocks

_BLOCK = 1 << 20  # scores that are worked on at once where the table is not looked at


class Loss(ABC):
    """The mean loss over rows of P problems of C columns at `scores`, and at `scores` + a step's scores.

    Scores are kept as (P, C, N): one column's lie side by side, as thin products give and take them.
    """

    def __init__(self, problems: int, columns: int, targets: Tensor, dtype: torch.dtype) -> None:
        self.targets = targets
        shape = (problems, columns, targets.shape[-1])
        self.scores = torch.zeros(shape, dtype=dtype, device=targets.device)
        self.step = torch.zeros_like(self.scores)
        self._found: dict[int, tuple[Tensor, Tensor]] = {}

    @abstractmethod
    def terms(self, scores: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return of scores (P, C, n), which may be overwritten, the losses' sum (P,), residuals (P, C, n)
        and curvatures' sum (P,).

        A row's residual is the derivative of its loss by its scores; its curvature is what the second
        derivative is on average in the directions in which it is not zero.
        """

    def residuals(self, part: slice, scores: Tensor) -> Tensor:
        """Note a step's scores (P · C, n) of rows `part`; return the residuals (P · C, n) after the step."""
        own = scores.view(*self.step.shape[:2], -1)
        self.step[:, :, part] = own
        value, residual, curvature = self.terms(own + self.scores[:, :, part], self.targets[..., part])
        self._found[part.start] = (value.double(), curvature.double())
        return residual.view(scores.shape)

    def hessian(self, problem: int, part: slice, rows: Tensor) -> Tensor:
        """Return the second derivatives (C · d, C · d), by the weights, of the sum over rows (n, d)."""
        targets = self._of(problem)[..., part]
        _, residual, _ = self.terms(self.scores[problem : problem + 1, :, part].clone(), targets)
        return self._bent(residual[0], targets, rows)

    def _of(self, problem: int) -> Tensor:
        return self.targets

    @abstractmethod
    def _bent(self, residual: Tensor, targets: Tensor, rows: Tensor) -> Tensor:
        """Return what `hessian` does, from the residuals (C, n)."""

    def taken(self) -> tuple[Tensor, Tensor]:
        """Return the mean losses (P,) and curvatures (P,) that a finished pass found, float64."""
        found = [self._found[start] for start in sorted(self._found)]
        self._found = {}
        value, curvature = (torch.stack(each).sum(dim=0) for each in zip(*found, strict=True))
        rows = self.scores.shape[2]
        return value / rows, curvature / rows

    def slopes(self, share: Tensor) -> Tensor:
        """Return the derivatives (P,) of the mean losses by `share` (P,) of the step, where it is so far."""
        many, columns, rows = self.scores.shape
        total = torch.zeros(many, dtype=torch.float64, device=self.scores.device)
        factor = share.to(self.scores.dtype)[:, None, None]
        for part in row_blocks(rows, many * columns, _BLOCK):
            step = self.step[:, :, part]
            _, residual, _ = self.terms(self.scores[:, :, part] + factor * step, self.targets[..., part])
            total += (residual * step).sum(dim=(1, 2), dtype=torch.float64)
        return total / rows

    def move(self, share: Tensor) -> None:
        """Go `share` (P,) of the step."""
        self.scores.addcmul_(self.step, share.to(self.scores.dtype)[:, None, None])

    def keep(self, stay: Sequence[int]) -> None:
        """Keep these problems alone."""
        self.scores, self.step = self.scores[stay], self.step[stay]


class CrossEntropy(Loss):
    """Multinomial logistic loss; targets are class codes (N,)."""

    def terms(self, scores: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return losses, residuals p - 1[own class], and p (1 - p), averaged over C - 1 directions."""
        own = targets.expand(len(scores), 1, -1)
        p = torch.log_softmax(scores, 1)
        value = -p.gather(1, own).sum(dim=(1, 2), dtype=torch.float64)
        squares = torch.linalg.vector_norm(p.exp_(), dim=(1, 2), dtype=torch.float64).square()
        curvature = (p.shape[2] - squares) / (p.shape[1] - 1)
        less = torch.full((1, 1, 1), -1.0, dtype=p.dtype, device=p.device).expand(own.shape)
        return value, p.scatter_add_(1, own, less), curvature

    def _bent(self, residual: Tensor, targets: Tensor, rows: Tensor) -> Tensor:
        p = residual.scatter_add(0, targets[None], torch.ones_like(residual[:1]))
        each = (p.t()[:, :, None] * rows[:, None, :]).flatten(1)
        total: Tensor = torch.block_diag(*((rows * own[:, None]).t() @ rows for own in p))
        return total - each.t() @ each


class _OneColumn(Loss):
    """Losses of one column: residuals say what the second derivatives are."""

    @abstractmethod
    def _second(self, residual: Tensor) -> Tensor:
        """Return the second derivatives (n,) from residuals (n,)."""

    def _bent(self, residual: Tensor, targets: Tensor, rows: Tensor) -> Tensor:
        return (rows * self._second(residual[0])[:, None]).t() @ rows


class Logistic(_OneColumn):
    """Logistic loss of one column; targets are signs (1, N), -1 and +1."""

    def terms(self, scores: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return log(1 + exp(-t s)), -t σ(-t s), and σ (1 - σ)."""
        margin = scores * targets
        value = torch.nn.functional.softplus(-margin).sum(dim=(1, 2), dtype=torch.float64)
        wrong = torch.sigmoid(-margin)
        return value, -wrong * targets, (wrong * (1 - wrong)).sum(dim=(1, 2), dtype=torch.float64)

    def _second(self, residual: Tensor) -> Tensor:
        return residual.abs() * (1 - residual.abs())


class _OwnTargets(_OneColumn):
    """Each problem is one column with its own targets (P, 1, N) of -1 and +1."""

    def keep(self, stay: Sequence[int]) -> None:
        """Keep these problems and their targets."""
        super().keep(stay)
        self.targets = self.targets[stay]

    def _of(self, problem: int) -> Tensor:
        return self.targets[problem : problem + 1]


class SquaredHinge(_OwnTargets):
    """max(0, 1 - t s)²."""

    def terms(self, scores: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return losses, residuals, and twice how many rows fall short of their margin."""
        short = scores.mul_(targets).neg_().add_(1).clamp_(min=0)
        value = short.square().sum(dim=(1, 2), dtype=torch.float64)
        active = 2.0 * (short > 0).sum(dim=(1, 2), dtype=torch.float64)
        return value, short.mul_(targets).mul_(-2), active

    def _second(self, residual: Tensor) -> Tensor:
        return 2.0 * (residual != 0)


class HalfSquares(_OwnTargets):
    """½ (s - t)²."""

    def terms(self, scores: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return losses, residuals s - t, and 1 for every row."""
        residual = scores.sub_(targets)
        value = residual.square().sum(dim=(1, 2), dtype=torch.float64) / 2
        return value, residual, torch.full_like(value, residual.shape[2])

    def _second(self, residual: Tensor) -> Tensor:
        return torch.ones_like(residual)
