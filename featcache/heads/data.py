"""Rows and labels that were checked once and may be fitted to many times."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from featcache.heads.base import Task
from featcache.heads.views import with_views


@dataclass(frozen=True)
class Data:
    """Checked rows and labels that any number of heads may be fitted to (see `check_data`).

    The rows of `blocks` may be a `featcache.selection.Selection`, which heads that read block by block
    take as it is; `task` has them as arrays.
    """

    blocks: Task
    classes: NDArray[Any]
    attributes: dict[str, Any]  # what scikit-learn's check of the rows sets on an estimator

    @cached_property
    def task(self) -> Task:
        """The rows as arrays: copied at first use, where they are not a run of the table."""
        whole, val = self.blocks.X, self.blocks.X_val
        return replace(self.blocks, X=np.asarray(whole), X_val=None if val is None else np.asarray(val))


def check_data(
    X: ArrayLike,
    y: ArrayLike,
    X_val: ArrayLike | None = None,
    y_val: ArrayLike | None = None,
    device: str = "auto",
    views: int = 1,
) -> Data:
    """Check rows X (N, D) and labels y (N,), and validation ones, once for many fits on a device.

    With `views` network heads take so many training rows one behind the other as one sample's, and one of
    them an epoch.

    Raises:
        HeadError: the data cannot be used; it is a ValueError too.
    """
    from featcache.heads.neural import LinearHead

    probe = LinearHead(device=device)
    task = with_views(probe._task(X, y, X_val, y_val), views)
    attributes = {name: value for name, value in vars(probe).items() if name.endswith("_in_")}
    return Data(task, probe.classes_, attributes)
