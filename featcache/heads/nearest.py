"""The nearest rows of a table, by blocked products on a device."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from featcache.heads.scaling import Matrix, row_blocks
from featcache.heads.tables import shared_tensor

_VALUES = {"cpu": 1 << 22, "cuda": 1 << 26}  # of rows in a chunk, about
_ROWS = {"cpu": (512, 8192), "cuda": (2048, 65536)}  # in a chunk, at least and at most
_SPARE = 8  # places beyond the k-th that are kept, so that equally near rows can be ordered
_SHARE = 0.6  # of a GPU's free memory that the table may take


class Nearest:
    """A table (N, D) whose rows nearest to others are looked for.

    On a GPU the table is held there as it is stored (float16, mostly) where it takes at most 60 % of the free
    memory, else it is sent in chunks. Chunks are cast, standardised and compared in the type of the rows that
    are asked about; no (N, N) matrix and no copy of the table in another type is made.

    Args:
        table: the rows (N, D).
        cosine: compare directions; otherwise Euclidean distances.
        shift, scale: standardisation (D,), or None.
        device: where to compute.
    """

    def __init__(
        self,
        table: Matrix,
        cosine: bool,
        shift: NDArray[np.float64] | None,
        scale: NDArray[np.float64] | None,
        device: torch.device,
    ) -> None:
        self.table, self.cosine, self.device = shared_tensor(table), cosine, device
        if device.type == "cuda" and table.nbytes <= _SHARE * torch.cuda.mem_get_info(device)[0]:
            self.table = self.table.to(device)
        self._columns = None if shift is None or scale is None else (shift, scale)

    def find(self, queries: Matrix, k: int) -> NDArray[np.int64]:
        """Return the k nearest rows (n, k), nearest first, of standardised rows (n, D) of float32 or float64.

        Of rows equally near the earlier one comes first.
        """
        asked = self._placed(torch.from_numpy(np.ascontiguousarray(queries)).to(self.device))
        keep = min(k + _SPARE, len(self.table))
        best = asked.new_empty((len(asked), 0))
        where = torch.empty((len(asked), 0), dtype=torch.int64, device=self.device)
        for start, rows in self._chunks(asked.dtype):
            values, found = self._closeness(asked, rows).topk(min(keep, len(rows)), dim=1)
            best, where = torch.cat([best, values], 1), torch.cat([where, found + start], 1)
            best, order = best.topk(min(keep, best.shape[1]), dim=1)
            where = where.gather(1, order)
        nearest: NDArray[np.int64] = _ordered(best, where)[:, :k].cpu().numpy()
        return nearest

    def _chunks(self, dtype: torch.dtype) -> Iterator[tuple[int, Tensor]]:
        columns = [torch.from_numpy(each).to(self.device) for each in self._columns or ()]
        least, most = _ROWS[self.device.type]
        step = min(max(_VALUES[self.device.type] // self.table.shape[1], least), most)
        for part in row_blocks(len(self.table), 1, step):
            rows = self.table[part].to(self.device)
            if columns:  # in float64 as queries are, so that equal rows stay equal
                rows = rows.to(torch.float64).sub_(columns[0]).div_(columns[1])
            yield part.start, self._placed(rows.to(dtype))

    def _placed(self, rows: Tensor) -> Tensor:
        """Return rows (n, D) as they are compared: for cosine of length 1, or all zeros."""
        if not self.cosine:
            return rows
        lengths = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
        placed: Tensor = rows / lengths.where(lengths > 0, 1.0)
        return placed

    def _closeness(self, queries: Tensor, rows: Tensor) -> Tensor:
        if self.cosine:
            return queries @ rows.T
        closeness: Tensor = torch.addmm(rows.square().sum(dim=1), queries, rows.T, beta=-1, alpha=2)
        return closeness


def _ordered(values: Tensor, where: Tensor) -> Tensor:
    """Return `where` (n, m) by falling value, of equal values the smaller number first."""
    where, order = where.sort(dim=1)
    return where.gather(1, values.gather(1, order).sort(dim=1, descending=True, stable=True).indices)
