"""Passes over a table for linear models: scores of a step, and the gradient of what is made of them.

A pass reads the table (N, D) once, block by block, as it is stored. For a step (K, D) in the coordinates of
standardised columns it hands every block's scores to a function that answers with residuals, and sums
residuals' · rows. Mean and scale are folded into the step and the sum, (x - m) / s · w = x · (w / s) - m ·
(w / s), so no standardised rows are ever made. Any number of problems share a pass, side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from featcache.heads.precision import Precision, Products, products_for
from featcache.heads.scaling import Matrix, Moments, row_blocks
from featcache.heads.space import Space
from featcache.heads.tables import Held, Place, Streamed, here
from featcache.heads.threads import torch_threads_for
from featcache.selection import Selection

Residuals = Callable[[slice, Tensor], Tensor]
_CPU_BLOCK = 1 << 19  # values: a block and its cast stay in the cache of the processor
_CPU_ROWS = 40  # of float32, at least: with fewer of them weights are read too often
_BRIEF_BLOCK = 1 << 21
_WIDE_BLOCK = 1 << 22
_GPU_BLOCK = 1 << 27  # values: the float64 copy of a block takes a gibibyte
NARROW = 1024  # columns up to which all of the curvature is known, see `featcache.heads.curvature`
_SMALL_LANE = 1 << 28  # operations of a pass; below, a second thread only waits


class Passes:
    """A table X (N, D) on a device, with the means and scales (D,) that its columns are read with."""

    def __init__(self, X: Matrix | Selection, columns: Moments | None, device: torch.device) -> None:
        self.rows, self.width = int(X.shape[0]), int(X.shape[1])
        self.device = device
        self.table = _placed(X, device)
        zero, one = np.zeros(self.width), np.ones(self.width)
        self.mean = _tensor(columns.mean if columns else zero, device)
        self.scale = _tensor(columns.scale if columns else one, device)
        # Threads that stay: each new one would take memory of its own from the system, and keep it.
        lanes = max(1, torch.get_num_threads())
        self._threads = ThreadPoolExecutor(lanes)
        self._spaces = [Space(device) for _ in range(lanes)]

    def precisions(self) -> list[Precision]:
        """Return the precisions worth taking for this table, coarsest first; the last is float64.

        bfloat16 saves time where reading the table costs most: wide ones. Narrow ones, whose curvature is
        known exactly, take few steps, and its rounding would cost more of them than it saves.
        """
        found = Precision.of(self.table.dtype, self.device, float((self.mean / self.scale).abs().max()))
        return [each for each in found if each is not Precision.BRIEF or self.width > NARROW]

    def run(
        self,
        step: Tensor,
        residuals: Residuals,
        precision: Precision,
    ) -> tuple[Tensor, Tensor]:
        """Return the step that was really taken and the gradient, both float64 (K, D + 1).

        The last column of the step (K, D + 1) is added to the scores, and that of the gradient is the
        residuals' sum. A coarse precision rounds the step, so that what it scored is exactly known.
        `residuals(part, scores)` gets the scores (K, n) of rows `part` and returns residuals (K, n); it is
        called from several threads.
        """
        products = products_for(precision, step[:, :-1] / self.scale, self.table.dtype)
        taken = products.weights
        shift = (step[:, -1] - taken @ self.mean).to(products.sums)
        cut = self.parts(precision, len(step))
        lanes = self._lanes(len(step))
        with torch_threads_for(0), torch.no_grad():  # each lane is one thread
            jobs = [
                (products, cut[lane::lanes], shift, residuals, self._spaces[lane]) for lane in range(lanes)
            ]
            if lanes == 1:
                sums = [self._lane(*jobs[0])]
            else:
                sums = list(self._threads.map(lambda job: self._lane(*job), jobs))
        raw = torch.stack([each for each, _ in sums]).sum(0)
        total = torch.stack([each for _, each in sums]).sum(0)
        gradient = torch.cat([(raw - total[:, None] * self.mean) / self.scale, total[:, None]], 1)
        return torch.cat([taken * self.scale, step[:, -1:]], 1), gradient

    def parts(self, precision: Precision, columns: int) -> list[slice]:
        """Return the blocks of rows of a pass of `columns` columns."""
        if self.device.type == "cpu" or isinstance(self.table, Streamed):
            # Many columns' weights are as large as a block: more rows a block read them less often. In
            # bfloat16, which only wide tables come in, sums and residuals cost more than a block that stays.
            least = _BRIEF_BLOCK if precision is Precision.BRIEF else _CPU_BLOCK
            rows = max(columns, _CPU_ROWS * (precision is Precision.SINGLE))
            values = max(least, min(rows * self.width, _WIDE_BLOCK))
            return list(row_blocks(self.rows, max(self.width, columns), values))
        casts = precision not in (Precision.SPLIT,)
        return list(row_blocks(self.rows, max(self.width if casts else 1, 4 * columns), _GPU_BLOCK))

    def _lane(
        self, products: Products, parts: Sequence[slice], shift: Tensor, residuals: Residuals, space: Space
    ) -> tuple[Tensor, Tensor]:
        """Return raw sums (K, D) and residuals' sums (K,) over some blocks, float64."""
        raw = torch.zeros_like(products.weights)
        total = torch.zeros(len(raw), dtype=torch.float64, device=self.device)
        summing = products.start()
        for part in parts:
            block = products.read(self.table.read(part, space), space)
            found = residuals(part, products.scores(block).add_(shift[:, None]))
            total += found.sum(dim=1, dtype=torch.float64)
            products.add(summing, found, block, space)
        return raw + products.finish(summing), total

    def _lanes(self, columns: int) -> int:
        if self.device.type != "cpu" or 4 * self.rows * self.width * columns < _SMALL_LANE:
            return 1
        return len(self._spaces)


def _placed(X: Matrix | Selection, device: torch.device) -> Place:
    """Return the table in the GPU's memory where half of what is free holds it, else where it is."""
    if device.type == "cpu":
        return here(X)
    return Held(X, device) if X.nbytes <= torch.cuda.mem_get_info(device)[0] // 2 else Streamed(X, device)


def _tensor(values: NDArray[Any], device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float64)).to(device)
