"""Tables of fewer rows than columns by their rows' products: linear problems in as many columns as rows.

A penalised linear problem's weights are combinations of its rows Z (N, D): with the singular values and
vectors Z = U S V', those are w = V v, of the same length as v, and the scores are those of the rows U S
(N, r) with weights v. U and S come out of the rows' products ZZ' (N, N): one look at the table, after which
no step depends on D.

Source: Hastie and Tibshirani, Efficient quadratic regularization for expression arrays, Biostatistics 2004.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from featcache.heads.scaling import row_blocks
from featcache.heads.tables import Made, Shared
from featcache.heads.threads import eigenvectors

_CLEAR = 1e-11  # of the largest eigenvalue; below, a direction is rounding


class RowSpace:
    """Rows (N, D) of a table, (x - shift) / scale, read in blocks of columns; sums are float64."""

    def __init__(self, table: Shared | Made, shift: Tensor, scale: Tensor) -> None:
        self.table, self.shift, self.scale = table, shift, scale

    def products(self) -> Tensor:
        """Return ZZ' (N, N)."""
        rows = self.table.shape[0]
        found = torch.zeros((rows, rows), dtype=torch.float64, device=self.shift.device)
        for block in self._blocks():
            found.addmm_(block, block.t())
        return found

    def back(self, dual: Tensor) -> Tensor:
        """Return Z' (D, N) times a matrix (N, R)."""
        return torch.cat([block.t() @ dual for block in self._blocks()])

    def _blocks(self) -> Iterator[Tensor]:
        for part in row_blocks(self.table.shape[1], self.table.shape[0]):
            block = self.table.read_columns(part).to(self.shift.device).double()
            yield (block - self.shift[part]).div_(self.scale[part])


@dataclass(frozen=True)
class Rotation:
    """What a table is in coordinates of its rows: `rows` (N, r) for Z, and `dual` (N, r), so that weights v
    (r,) there are Z' dual v here. `values` (r,) are the rows' second moments, which have no others."""

    space: RowSpace
    rows: Tensor
    dual: Tensor
    values: Tensor

    @staticmethod
    def of(space: RowSpace) -> Rotation:
        """Turn a table by one look at it."""
        products = space.products()
        values, vectors = eigenvectors(products)
        clear = values > _CLEAR * values[-1].clamp(min=0)
        roots, vectors = values[clear].sqrt().to(products.device), vectors[:, clear].to(products.device)
        return Rotation(space, vectors * roots, vectors / roots, roots.square() / len(products))

    def back(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the weights (R, D) that weights (R, r) are."""
        turned = torch.from_numpy(weights).to(self.dual.device)
        found: NDArray[np.float64] = self.space.back(self.dual @ turned.t()).t().contiguous().cpu().numpy()
        return found
