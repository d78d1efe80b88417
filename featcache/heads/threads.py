"""How many threads the linear algebra of a solver takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

_SMALL_PASS = 1 << 31  # operations; about a tenth of a second of a core
_SMALL_MATRIX = (1 << 30) + 1  # size, cubed: 1024 rows take a quarter of a second of one core
SMALL_STEP = 1 << 25  # operations; a millisecond of a core


@contextmanager
def threads_for(operations: int) -> Iterator[None]:
    """Take one BLAS thread where a pass over the table costs few operations, else as many as there are.

    A solver makes hundreds of passes of thin products. On an idle machine a second thread gains little there;
    where other programs keep the cores busy every product waits for all its threads, which costs factors.
    The rule looks at sizes alone, so that the same call always rounds the same way.
    """
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1 if operations < _SMALL_PASS else None, user_api="blas"):
        yield


def eigenvectors(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return the eigenvalues, rising, and eigenvectors of a symmetric matrix, float64 on the CPU.

    A GPU's own solver is slower on so small matrices, and in float32 too inexact. Small ones take one thread:
    a factorisation has thousands of parts that wait for each other.
    """
    import torch

    with torch_threads_for(len(matrix) ** 3, _SMALL_MATRIX):
        values, vectors = torch.linalg.eigh(matrix.cpu().double())
    return values, vectors


@contextmanager
def torch_threads_for(operations: int, least: int = SMALL_STEP) -> Iterator[None]:
    """Take one CPU thread of torch for steps of fewer operations than `least`.

    More threads gain nothing there, and lose factors where other programs keep the cores busy, because
    every product waits for all its threads. A step in more parts has more to wait for: `least` must grow.
    """
    import torch

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1 if operations < least else before)
        yield
    finally:
        torch.set_num_threads(before)
