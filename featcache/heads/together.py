"""Heads that are fitted together, whatever their kind: the one way in for a sweep.

Networks of one shape are trained in one stack (`featcache.heads.batched`), the penalties of one convex
problem in one solve (`featcache.heads.paths`), and heads of neighbours look for them once. Any other head
is fitted alone.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from featcache.errors import HeadError
from featcache.heads.base import Head
from featcache.heads.neighbours import KNNHead
from featcache.heads.neural import NetworkHead

if TYPE_CHECKING:
    from featcache.heads.batched import Data, EpochOfMany

Finished = list[tuple[int, HeadError | None]]

_CONVEX = ("logreg", "ridge", "svm")
_PATHS = "featcache.heads.paths"
_STEPS = 48  # arrays of a convex head's size that its solver holds: steps, gradients, the solution


def key(head: Head) -> tuple[Any, ...] | None:
    """Return what heads must have in common to be fitted together: heads of equal keys can; None: alone.

    Raises:
        HeadError: an option of the head cannot be used.
    """
    head.check_options()
    if isinstance(head, NetworkHead):
        from featcache.heads.batched import shared  # torch

        return (head.KIND, *shared(head))
    if isinstance(head, KNNHead):
        return (head.KIND, *(value for name, value in sorted(head.get_params().items()) if name != "k"))
    found = None if (paths := _paths(head)) is None else paths.key(head)
    return None if found is None else (head.KIND, *found)


def bytes_of(head: Head, columns: int, classes: int, rows: int = 0) -> int:
    """Return the memory in bytes that a head takes while it is fitted with others, besides the table.

    Args:
        head: an unfitted head.
        columns: D.
        classes: C.
        rows: N; what it adds is left out where it is not known.
    """
    if isinstance(head, NetworkHead):
        from featcache.heads import batched

        return batched.bytes_of(head, columns, classes)
    if isinstance(head, KNNHead):
        return 1  # its neighbours are those of the others
    if (paths := _paths(head)) is not None:
        return int(paths.bytes_of(head, rows, columns, classes))
    return 8 * _STEPS * (columns + 1) * classes


def fit_together(
    heads: Sequence[Head], data: Data, on_epoch: Callable[[EpochOfMany], None] = lambda report: None
) -> Iterator[Finished]:
    """Fit heads of one key to the same data; yield those that are done, by their number, with what failed.

    Each comes out as its own `fit` on the same data makes it, up to rounding, and with `fit_seconds_` its
    share of the time; what all of them need, such as the check of the rows, is not in it. A head that fails
    is left unfitted; the others go on. Heads whose key is None are fitted one after the other.

    Raises:
        HeadError: an option cannot be used, or the heads have different keys.
    """
    keys = {key(head) for head in heads}
    if len(keys) > 1:
        raise HeadError("Only heads that share all but what a stack may vary can be fitted together.")
    if all(isinstance(head, NetworkHead) for head in heads):
        from featcache.heads import batched

        networks = [head for head in heads if isinstance(head, NetworkHead)]
        yield from batched.fit_together(networks, data, on_epoch)
    elif heads and keys != {None} and (paths := _paths(heads[0])) is not None:
        yield from paths.fit_path(heads, data, on_epoch)
    elif heads and isinstance(heads[0], KNNHead):
        yield [(number, _failure(head, data)) for number, head in enumerate(heads)]
    else:
        for number, head in enumerate(heads):
            yield [(number, _failure(head, data))]


def fit_alone(head: Head, data: Data) -> None:
    """Fit a head to data that was checked for many, as its own `fit` does.

    Raises:
        HeadError: an option cannot be used, or the fit failed.
    """
    head.forget()
    head.check_options()
    start = time.perf_counter()
    for name, value in data.attributes.items():
        setattr(head, name, value)
    head.classes_ = data.classes
    head._learned(data.blocks if head.BLOCKWISE else data.task, head._learn, start)


def _failure(head: Head, data: Data) -> HeadError | None:
    try:
        fit_alone(head, data)
    except HeadError as error:
        head.forget()
        return error
    return None


def _paths(head: Head) -> Any:
    """Return the module that solves for many penalties at once, None where the head is none of its kinds."""
    if head.KIND not in _CONVEX or importlib.util.find_spec(_PATHS) is None:
        return None
    return importlib.import_module(_PATHS)
