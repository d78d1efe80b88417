"""Rows by the content of their images: which row of a plan is the same image, whatever its name and label."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

NOWHERE = -1
"""Stands for a row that there is not."""


class Contents:
    """Content hashes that are looked up: 16 bytes a row beside the hashes themselves.

    Sorted by the first half of each hash, which is compared whole before anything is called equal.

    Args:
        hashes: (N, 16) content hash of every row; all zeros for an image that could not be read, which equals
            none.
        leave_out: rows that are not to be found.
    """

    def __init__(self, hashes: NDArray[np.uint8], leave_out: Sequence[int] = ()) -> None:
        self._hashes = hashes
        keys = _keys(hashes)
        there: NDArray[np.bool_] = np.any(hashes, axis=1)
        there[list(leave_out)] = False
        rows = np.flatnonzero(there)
        order = np.argsort(keys[rows], kind="stable")
        self._rows = rows[order]
        self._keys = keys[self._rows]

    def find(self, wanted: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Return for each of some hashes (n, 16) the first row with the same, or `NOWHERE`: (n,)."""
        found = np.full(len(wanted), NOWHERE, dtype=np.int64)
        if not len(self._rows):
            return found
        at = np.searchsorted(self._keys, _keys(wanted))
        rows = self._rows[np.minimum(at, len(self._rows) - 1)]
        same = (np.asarray(self._hashes[rows]) == wanted).all(axis=1)
        found[same] = rows[same]
        return found

    def repeated(self) -> list[NDArray[np.int64]]:
        """Return the rows of every content that more than one row has, each in order."""
        same = self._keys[1:] == self._keys[:-1]
        edges = np.flatnonzero(np.diff(np.concatenate([[False], same, [False]]).astype(np.int8)))
        found = []
        for first, stop in edges.reshape(-1, 2).tolist():
            rows = self._rows[first : stop + 1]
            whole = np.asarray(self._hashes[rows])
            found += [alike for alike in _alike(rows, whole) if len(alike) > 1]
        return found


def _alike(rows: NDArray[np.int64], hashes: NDArray[np.uint8]) -> list[NDArray[np.int64]]:
    """Divide rows by their hashes (n, 16), of which the first halves are equal."""
    if (hashes == hashes[:1]).all():
        return [rows]
    _, which = np.unique(hashes, axis=0, return_inverse=True)
    which = which.reshape(-1)
    return [rows[which == number] for number in range(int(which.max()) + 1)]


def _keys(hashes: Any) -> NDArray[np.uint64]:
    """Return the first half of each hash (N, 16) as a number: (N,)."""
    half = np.ascontiguousarray(np.asarray(hashes)[:, :8])
    keys: NDArray[np.uint64] = half.view(np.uint64).reshape(-1)
    return keys
