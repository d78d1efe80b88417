"""Rows that are views of one sample: which of them an epoch takes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from featcache.errors import HeadError

if TYPE_CHECKING:
    from torch import Tensor

    from featcache.heads.base import Task


def with_views(task: Task, views: int) -> Task:
    """Return a task whose training rows come in groups of `views`, which are one sample's.

    Raises:
        HeadError: the rows cannot be so.
    """
    if views == 1:
        return task
    if views < 1 or len(task.y) % views:
        raise HeadError(f"{len(task.y)} rows cannot be groups of {views} views.", "Give views as they are.")
    groups = task.y.reshape(-1, views)
    if not np.array_equal(groups, np.broadcast_to(groups[:, :1], groups.shape)):
        raise HeadError("Views of one sample have different labels.", "Order rows by sample, then by view.")
    return replace(task, views=views)


def drawn(order: Tensor, views: int, seed: int, epoch: int) -> Tensor:
    """Return the rows that an epoch takes, in the order of samples (N,) given: one view of each.

    Which view a sample gets hangs on seed, epoch (1-based) and its number alone, not on the order.
    """
    if views == 1:
        return order
    import torch

    # torch's generator would look at 32 bits of a seed alone.
    view = np.random.default_rng([seed, epoch]).integers(views, size=len(order))
    return order * views + torch.from_numpy(view)[order]
