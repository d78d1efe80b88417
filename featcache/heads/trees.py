"""Binary decision trees as plain arrays: what tree heads keep, save and walk through.

scikit-learn grows the trees. They are kept as arrays because a pickled tree could run anything, and even
skops, which refuses to unpickle, has to trust scikit-learn's own node storage, whose walk through damaged
indices leaves the array. Here every index is checked before a tree is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.heads.base import ArraySpec
from featcache.heads.scaling import Matrix, row_blocks

LEAF = -1  # in the place of a leaf's column
_WALKERS = 1 << 20  # rows times trees on their way at once: a few MiB


@dataclass(frozen=True)
class Trees:
    """M nodes of T trees, tree after tree, each beginning with its root; children come after their parents.

    `column` (M,) is what an inner node looks at, `LEAF` in a leaf; a row goes to `left` (M,) where its value
    is at most `threshold` (M,), else to `right` (M,). `value` (M, V) is what a leaf answers; `roots` (T,).
    """

    column: NDArray[np.int32]
    threshold: NDArray[np.float64]
    left: NDArray[np.int32]
    right: NDArray[np.int32]
    value: NDArray[np.float64]
    roots: NDArray[np.int64]

    def leaves(self, rows: Matrix) -> NDArray[np.int64]:
        """Return the leaf (n, T) that each row (n, D) ends in, in each tree."""
        at = np.tile(self.roots, (len(rows), 1))
        number = np.arange(len(rows))[:, None]
        while True:
            column = self.column[at]
            inner = column != LEAF
            if not inner.any():
                return at
            values = rows[number, np.maximum(column, 0)]
            child = np.where(values <= self.threshold[at], self.left[at], self.right[at])
            at = np.where(inner, child, at)

    def sums(self, rows: Matrix, per: int = 1) -> NDArray[np.float64]:
        """Return (n, per, V): the answers of rows (n, D), summed over every `per`-th tree from each of the
        first `per` on."""
        out = np.empty((len(rows), per, self.value.shape[1]))
        for part in row_blocks(len(rows), len(self.roots), _WALKERS):
            found = self.value[self.leaves(rows[part])]
            out[part] = found.reshape(len(found), -1, per, found.shape[2]).sum(axis=1)
        return out

    def damage(self, columns: int) -> str:
        """Return what is wrong with the indices, "" where they are sound for rows of so many columns."""
        roots = self.roots
        ends = np.append(roots[1:], len(self.column))
        if not len(roots) or roots[0] != 0 or (ends <= roots).any():
            return "the trees' roots do not rise from 0"
        inner = self.column != LEAF
        own = np.arange(len(self.column))
        end = np.repeat(ends, ends - roots)
        sound = (self.column >= LEAF) & (self.column < columns)
        for child in (self.left, self.right):
            sound &= ~inner | ((child > own) & (child < end))
        return (
            "" if sound.all() and np.isfinite(self.value).all() else "a tree's node points outside its tree"
        )


def specs(values: int) -> dict[str, ArraySpec]:
    """Return what the arrays of `Trees` must be, with `values` answers a leaf."""
    return {
        "column_": ArraySpec(("M",), ("int32",)),
        "threshold_": ArraySpec(("M",)),
        "left_": ArraySpec(("M",), ("int32",)),
        "right_": ArraySpec(("M",), ("int32",)),
        "value_": ArraySpec(("M", values)),
        "roots_": ArraySpec(("T",), ("int64",)),
    }


def together(trees: Sequence[dict[str, NDArray[Any]]]) -> Trees:
    """Return trees of their own arrays, with indices from 0 in each, as one."""
    sizes = [len(tree["column"]) for tree in trees]
    roots = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64)

    def joined(name: str, dtype: Any, shift: bool = False) -> NDArray[Any]:
        """Return one array of all trees behind each other; indices shifted to where each begins."""
        parts = [
            tree[name] + (root if shift else 0) for tree, root in zip(trees, roots.tolist(), strict=True)
        ]
        return np.concatenate(parts).astype(dtype)

    column = joined("column", np.int32)
    inner = column != LEAF
    return Trees(
        column,
        np.where(inner, joined("threshold", np.float64), 0.0),
        np.where(inner, joined("left", np.int32, shift=True), 0).astype(np.int32),
        np.where(inner, joined("right", np.int32, shift=True), 0).astype(np.int32),
        joined("value", np.float64),
        roots,
    )
