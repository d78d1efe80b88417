"""Nyström features: rows by their likeness to landmarks, so that a linear model can stand for a kernel's.

For landmarks z_1 … z_m drawn from the rows, phi(x) = (k(x, z_1) … k(x, z_m)) K^-1/2 with K the landmarks'
own kernel values; phi(x) · phi(x') is k(x, x') for landmarks, and close to it for rows near them.

Source: Williams and Seeger, Using the Nyström Method to Speed Up Kernel Machines, NeurIPS 2000.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featcache.heads.kernels import gaussian
from featcache.heads.scaling import Matrix, Moments, row_blocks, standardised
from featcache.selection import Selection

_LEAST = 1e-6  # eigenvalues below this share of the largest are noise, and left out


@dataclass(frozen=True)
class Nystrom:
    """Landmarks (m, D), standardised, and `root` (m, r): K^-1/2 in the r directions that are not noise."""

    landmarks: NDArray[np.float32]
    root: NDArray[np.float64]
    gamma: float

    def features(self, X: Matrix, columns: Moments | None) -> NDArray[np.float32]:
        """Return the features (N, r) of the rows X (N, D), which are read and standardised in blocks."""
        found = np.empty((len(X), self.root.shape[1]), dtype=np.float32)
        root = self.root.astype(np.float32)
        for part in row_blocks(len(X), max(X.shape[1], len(self.landmarks))):
            rows = standardised(X[part], columns, np.float32)
            np.matmul(gaussian(rows, self.landmarks, self.gamma), root, out=found[part])
        return found


def nystrom(X: Matrix, columns: Moments | None, gamma: float, count: int, seed: int) -> Nystrom:
    """Return features by `count` landmarks, or all rows, drawn evenly by `seed` out of X (N, D)."""
    count = min(count, len(X))
    rows = np.sort(np.random.default_rng(seed).choice(len(X), size=count, replace=False))
    own = Selection(X.base, X.index[rows]) if isinstance(X, Selection) else Selection(X, rows)
    landmarks = standardised(np.asarray(own), columns, np.float32)
    wide = landmarks.astype(np.float64)
    values, vectors = np.linalg.eigh(gaussian(wide, wide, gamma))
    kept = values > _LEAST * values[-1]
    return Nystrom(np.ascontiguousarray(landmarks), vectors[:, kept] / np.sqrt(values[kept]), gamma)
