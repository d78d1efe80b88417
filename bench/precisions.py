"""What each precision of a pass over a table costs, and how exact its gradient is.

One pass of logistic regression at a given step: scores, residuals, gradient. Compared with float64: the
largest difference of the gradient, as a share of its largest entry. Besides the precisions that featcache
takes, `two parts` is bfloat16 rows with weights and residuals as a high and a low bfloat16 part, and `rows
too` splits the rows as well, whose float16 has three digits more than bfloat16: every product three times.
Turn by turn, medians of the rounds.

    python bench/precisions.py --table X.npy --labels y.npy
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import torch
from torch import Tensor

from featcache.heads import passes
from featcache.heads.losses import CrossEntropy
from featcache.heads.passes import Passes
from featcache.heads.precision import Precision, Products, products_for
from featcache.heads.scaling import moments
from featcache.heads.space import Space

HALF = torch.bfloat16


def two(values: Tensor) -> Tensor:
    """Return values (K, n) as bfloat16 (2 K, n): rounded, and what rounding left."""
    high = values.to(HALF)
    return torch.cat([high, (values - high.to(values.dtype)).to(HALF)])


class TwoParts(Products):
    """bfloat16 rows, the other factor as two bfloat16 parts side by side."""

    def __init__(self, weights: Tensor) -> None:
        self._parts = two(weights)
        super().__init__(self._parts.double().view(2, *weights.shape).sum(0))

    def read(self, rows: Tensor, space: Space) -> Tensor:
        """Return the rows as they go into the products."""
        return space.of("block", tuple(rows.shape), HALF).copy_(rows)

    def scores(self, block: Tensor) -> Tensor:
        """Return the scores (K, n)."""
        return (self._parts @ block.t()).float().view(2, -1, len(block)).sum(0)

    def add(self, sums: Tensor, residuals: Tensor, block: Tensor, space: Space) -> None:
        """Add residuals' · block."""
        sums += (two(residuals) @ block).float().view(2, *sums.shape).sum(0)


class RowsToo(TwoParts):
    """Rows as two bfloat16 parts as well, one after the other in a block; low times low is left out."""

    def read(self, rows: Tensor, space: Space) -> Tensor:
        """Return the rows as they go into the products."""
        block = space.of("block", (2 * len(rows), rows.shape[1]), HALF)
        high, low = block.chunk(2)
        high.copy_(rows)
        low.copy_(rows - high)  # exact in float16
        return block

    def scores(self, block: Tensor) -> Tensor:
        """Return the scores (K, n)."""
        high, low = block.chunk(2)
        coarse = len(self._parts) // 2
        return super().scores(high).add_((self._parts[:coarse] @ low.t()).float())

    def add(self, sums: Tensor, residuals: Tensor, block: Tensor, space: Space) -> None:
        """Add residuals' · block."""
        high, low = block.chunk(2)
        super().add(sums, residuals, high, space)
        sums += (residuals.to(HALF) @ low).float()


WAYS = {
    "bfloat16": lambda w, dtype: products_for(Precision.BRIEF, w, dtype),
    "two parts": lambda w, dtype: TwoParts(w),
    "rows too": lambda w, dtype: RowsToo(w),
    "float32": lambda w, dtype: products_for(Precision.SINGLE, w, dtype),
    "float64": lambda w, dtype: products_for(Precision.DOUBLE, w, dtype),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--table", required=True, help="float16 rows, .npy")
    parser.add_argument("--labels", required=True)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    X, y = np.load(options.table, mmap_mode="r"), np.load(options.labels)
    codes = torch.from_numpy(np.unique(y, return_inverse=True)[1])
    classes = int(codes.max()) + 1
    table = Passes(X, moments(X), torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    step = torch.randn(classes, X.shape[1] + 1, generator=generator, dtype=torch.float64) / X.shape[1] ** 0.5
    times: dict[str, list[float]] = {name: [] for name in WAYS}
    found: dict[str, Tensor] = {}
    for _ in range(options.rounds):
        for name, way in WAYS.items():
            passes.products_for = lambda _, weights, dtype, way=way: way(weights, dtype)
            fine = Precision.DOUBLE if name == "float64" else Precision.SINGLE
            loss = CrossEntropy(
                1, classes, codes, torch.float64 if fine is Precision.DOUBLE else torch.float32
            )
            blocks = Precision.BRIEF if name == "bfloat16" else fine
            begin = time.perf_counter()
            taken, found[name] = table.run(step, loss.residuals, blocks)
            times[name].append(time.perf_counter() - begin)
            if (
                name == "bfloat16"
            ):  # its own step is another one, which it says: compared is its gradient there
                other = CrossEntropy(1, classes, codes, torch.float64)
                passes.products_for = lambda _, weights, dtype: products_for(Precision.DOUBLE, weights, dtype)
                _, there = table.run(taken, other.residuals, Precision.DOUBLE)
    threads = torch.get_num_threads()
    print(f"{X.shape[0]} × {X.shape[1]}, {classes} classes, {threads} threads, torch {torch.__version__}")
    for name, seconds in times.items():
        exact = there if name == "bfloat16" else found["float64"]
        off = float((found[name] - exact).abs().max() / exact.abs().max())
        ratio = statistics.median(a / b for a, b in zip(seconds, times["float32"], strict=True))
        median = statistics.median(seconds)
        print(f"{name:<10} {median:7.3f} s   × {ratio:.2f} of float32   gradient off by {off:.1e}")


if __name__ == "__main__":
    main()
