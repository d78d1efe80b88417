"""The scores and probabilities of one head or several on the same rows, which are read and prepared once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils.validation import check_is_fitted

from featcache.errors import HeadError
from featcache.heads.scaling import BLOCK, Matrix, check_finite, row_blocks

if TYPE_CHECKING:
    from featcache.heads.base import Head


def probabilities_of(heads: Sequence[Head], X: ArrayLike) -> list[Matrix]:
    """Return what each head's `predict_proba` returns for X (N, D), which is read and standardised once.

    Raises:
        HeadError: as `Head.predict`, or the heads do not standardise with the same mean and scale.
    """
    if any(head.mean_ is not heads[0].mean_ or head.scale_ is not heads[0].scale_ for head in heads):
        raise HeadError(
            "Heads that predict together must share the arrays mean_ and scale_.",
            "Let them predict one by one.",
        )
    scores = scores_of(heads, X) if heads else []
    return [head._probable(own) for head, own in zip(heads, scores, strict=True)]


def scores_of(heads: Sequence[Head], X: ArrayLike) -> list[Matrix]:
    """Return each head's scores (N, C) of the rows X (N, D); the heads standardise alike.

    Raises:
        HeadError: as `Head.predict`.
    """
    for head in heads:
        check_is_fitted(head)
    first = heads[0]
    rows: Matrix = first._validated(X=X, reset=False)
    dtype = np.float64 if rows.dtype == np.float64 else np.float32
    scores = [np.empty((len(rows), len(head.classes_)), dtype=dtype) for head in heads]
    parts = list(row_blocks(len(rows), rows.shape[1], max(BLOCK, first.ROWS_AT_ONCE * rows.shape[1])))
    for part, found in zip(parts, first._scores_of_blocks(heads, _blocks(first, rows, parts)), strict=True):
        for own, some in zip(scores, found, strict=True):
            own[part] = some
    return scores


def _blocks(head: Head, rows: Matrix, parts: Sequence[slice]) -> Iterator[Matrix]:
    """Yield the parts of the rows (N, D) as the head looks at them.

    Raises:
        HeadError: a part holds NaN or infinity.
    """
    dtype = np.float64 if rows.dtype == np.float64 else np.float32
    for part in parts:
        check_finite(rows[part], part.start)
        yield head._standardised_block(rows[part], dtype)
