"""Ridge: least squares with an L2 penalty, in float64, for any number of penalties from one look at the rows.

The columns' products (D, D) where D <= N, else the rows' (N, N), are taken once; every penalty then costs
one Cholesky factorisation of them. For two dozen penalties that is less than one eigendecomposition, and a
penalty solved among others is bit for bit the one solved alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from featcache.errors import HeadError
from featcache.heads.base import Task
from featcache.heads.gram import RowSpace
from featcache.heads.scaling import Moments, row_blocks
from featcache.heads.tables import here

Weights = tuple[NDArray[np.float64], NDArray[np.float64]]


class Squares:
    """The problem min ‖Z coef' + intercept - T‖² + alpha ‖coef‖², Z the rows, T their targets -1 and +1."""

    def __init__(self, task: Task, columns: Moments | None, classes: int, device: torch.device) -> None:
        self.table, self.device = here(task.X), device
        # Centring is what takes the intercept out of the penalty, so it is done in either case.
        self.shift = self._tensor(task.columns.mean)
        self.scale = self._tensor(columns.scale if columns else np.ones_like(task.columns.mean))
        self.standardised = columns is not None
        self.rows = self.table.shape[0]
        targets = self._tensor(targets_of(task.y, classes))
        self.middle = targets.mean(dim=0)
        self.targets = targets - self.middle
        self.by_columns = self.table.shape[1] <= self.rows
        self.space = RowSpace(self.table, self.shift, self.scale)
        self.products, self.right = (
            self._by_columns() if self.by_columns else (self.space.products(), self.targets)
        )

    def solve(self, alpha: float) -> Weights:
        """Return coef (R, D) and intercept (R,).

        Raises:
            HeadError: with this alpha the problem has no solution that float64 can tell.
        """
        matrix = self.products.clone()
        matrix.diagonal().add_(alpha)
        factor, failed = torch.linalg.cholesky_ex(matrix)
        if int(failed):
            raise HeadError(
                f"ridge cannot be solved with alpha={alpha:g}: the matrix is not positive definite.",
                "Take a larger alpha.",
            )
        found = torch.cholesky_solve(self.right, factor)
        coef = (found if self.by_columns else self.space.back(found)).t().contiguous()
        intercept = self.middle if self.standardised else self.middle - coef @ self.shift
        return coef.cpu().numpy(), intercept.cpu().numpy()

    def _by_columns(self) -> tuple[Tensor, Tensor]:
        """Return Z'Z and Z'T."""
        wide = self.table.shape[1]
        products, right = self._zeros(wide, wide), self._zeros(wide, self.targets.shape[1])
        for part in row_blocks(*self.table.shape):
            block = (self.table.read(part).to(self.device).double() - self.shift).div_(self.scale)
            products.addmm_(block.t(), block)
            right.addmm_(block.t(), self.targets[part])
        return products, right

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.float64, device=self.device)

    def _tensor(self, values: NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float64)).to(self.device)


def targets_of(y: NDArray[np.int64], classes: int) -> NDArray[np.float64]:
    """Return targets -1 and +1 (N, C), one against the rest, or (N, 1) for the second of two classes."""
    wanted = np.arange(classes) if classes > 2 else np.array([1])
    return np.where(y[:, None] == wanted, 1.0, -1.0)
