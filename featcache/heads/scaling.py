"""Column means and standard deviations of a table, and its standardised rows, block by block.

A table is never copied as a whole to be measured: blocks of rows are turned to float64 one after the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from featcache.errors import HeadError
from featcache.heads.threads import torch_threads_for

if TYPE_CHECKING:
    from torch import Tensor

    from featcache.heads.tables import Place

Matrix = NDArray[np.floating[Any]]
BLOCK = 1 << 22  # values in a block that is computed on: 16 MiB of float32
_CHUNK = 1 << 24  # values that one thread measures at a time
_CACHED = 1 << 18  # values in a block that is only read: 2 MiB of float64 stay in a core's cache


@dataclass(frozen=True)
class Moments:
    """Mean and scale of every column, float64 (D,); the scale of a constant column is 1."""

    mean: NDArray[np.float64]
    scale: NDArray[np.float64]
    variance: NDArray[np.float64]


def row_blocks(rows: int, columns: int, values: int = BLOCK) -> Iterator[slice]:
    """Yield slices that cover `rows` rows in order, each of about `values` values and at least one row."""
    step = max(1, values // max(1, columns))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def moments(X: Matrix) -> Moments:
    """Return the moments of X (N, D) over its rows (population variance), in one pass of float64 sums.

    Values are taken relative to the first row, so that a constant column has a variance of exactly 0 and a
    large mean costs no digits.

    Raises:
        HeadError: X holds NaN or infinity; the message names the first place.
    """
    import torch

    from featcache.heads.tables import here

    table, first = here(X), torch.from_numpy(X[:1][0].astype(np.float64))
    chunks = list(row_blocks(len(X), X.shape[1], _CHUNK))
    if len(chunks) == 1:
        sums = [_sums(table, chunks[0], first)]
    else:
        # However many threads there are, the same chunks are summed in the same order.
        with ThreadPoolExecutor(torch.get_num_threads()) as pool, torch_threads_for(0):
            sums = list(pool.map(lambda rows: _sums(table, rows, first), chunks))
    for chunk, (total, _) in zip(chunks, sums, strict=True):
        if not np.isfinite(total).all():
            check_finite(X[chunk], chunk.start)
    shift = sum(total for total, _ in sums) / len(X)
    variance = np.maximum(sum(squares for _, squares in sums) / len(X) - shift * shift, 0.0)
    return Moments(first.numpy() + shift, np.where(variance > 0, np.sqrt(variance), 1.0), variance)


def _sums(table: Place, chunk: slice, first: Tensor) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the sums (D,) of X - first and of its squares over a chunk of rows."""
    import torch

    from featcache.heads.space import Space

    total, squares = torch.zeros_like(first), torch.zeros_like(first)
    space = Space(first.device)
    for part in row_blocks(chunk.stop - chunk.start, len(first), _CACHED):
        rows = table.read(slice(chunk.start + part.start, chunk.start + part.stop), space)
        block = space.copied("block", rows, torch.float64).sub_(first)
        total += block.sum(dim=0)
        squares += block.square_().sum(dim=0)
    return total.numpy(), squares.numpy()


def check_finite(X: Matrix, first_row: int = 0, name: str = "X") -> None:
    """Refuse NaN and infinity in X (n, D), whose rows are numbered from `first_row`.

    Raises:
        HeadError: naming the first row and column.
    """
    finite = np.isfinite(X)
    if not finite.all():
        row, column = np.argwhere(~finite)[0]
        raise HeadError(
            f"Input {name} contains NaN or inf: {X[row, column]} in row {first_row + row}, column {column}.",
            "Drop such rows or extract them again.",
        )


def standardised(X: Matrix, moments: Moments | None, dtype: DTypeLike = np.float32) -> Matrix:
    """Return (X - mean) / scale as a new C-ordered array, or X itself as `dtype` without moments.

    X (N, D) is copied only where something has to change.
    """
    if moments is None:
        return np.ascontiguousarray(X, dtype=dtype)
    out = np.empty(X.shape, dtype=dtype)
    for rows in row_blocks(len(X), X.shape[1], _CACHED):
        np.divide(X[rows] - moments.mean, moments.scale, out=out[rows], casting="same_kind")
    return out
