"""Rows and labels as scikit-learn checks them, with tables that are not copied let through as they are."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import validate_data

from featcache.errors import HeadError
from featcache.selection import Selection

_DTYPES = [np.float32, np.float64, np.float16]  # kept as they are; anything else becomes the first


def validated(estimator: BaseEstimator, blockwise: bool, data: dict[str, Any]) -> Any:
    """Return X, or X and y, as `sklearn.utils.validation.validate_data` does, without looking for NaN.

    A `Selection` comes back as it is to an estimator that reads rows `blockwise`; for others it is copied.

    Raises:
        HeadError: they cannot be used.
    """
    X = data["X"]
    as_it_is = isinstance(X, Selection) and X.dtype in _DTYPES and blockwise
    if isinstance(X, Selection):  # one row stands for all, which takes no memory
        data = {**data, "X": np.broadcast_to(X[:1], X.shape) if as_it_is else np.asarray(X)}
    try:
        checked = validate_data(estimator, dtype=_DTYPES, ensure_all_finite=False, **data)
        if "y" in data:
            check_classification_targets(checked[1])
    except HeadError:
        raise
    except ValueError as error:
        raise HeadError(str(error)) from error
    if as_it_is:
        return (X, checked[1]) if "y" in data else X
    return checked
