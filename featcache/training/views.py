"""What a head makes of a cache's augmented views: one drawn an epoch, all of them, or the clean one."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.errors import OptionError
from featcache.heads.base import Head
from featcache.heads.catalogue import options
from featcache.store.cache import Cache
from featcache.store.table import Table

MODES = ("random", "all", "clean")


def resolved(cache: Cache, head: str, mode: str | None) -> str | None:
    """Return the mode of a head on a cache, None where the training rows have no views.

    Where none is asked for, heads that are trained by epochs draw a view of each row an epoch: as many steps
    as without views. Others see all of them.

    Raises:
        OptionError: the mode is unknown, or needs what the head or the cache has not.
    """
    if mode is not None and mode not in MODES:
        raise OptionError(f"Unknown view mode {mode!r}.", f"Known: {', '.join(MODES)}.")
    by_epochs = draws_views(head)
    if cache.recipe.views_in("train") == 1:
        if mode in ("random", "all"):
            raise OptionError(
                f"{cache.name} has no augmented views.", "Add some: featcache extract --views 5."
            )
        return None
    if mode == "random" and not by_epochs:
        raise OptionError(
            f"A {head} head is not trained by epochs: there is no epoch to draw a view for.",
            "Use --view-mode all or clean.",
        )
    return mode or ("random" if by_epochs else "all")


def draws_views(head: str) -> bool:
    """Return whether heads of a kind can take another view of a row each epoch."""
    return "epochs" in options(head)


def drawn_of(table: Table, mode: str | None) -> int | None:
    """Return of how many rows one behind the other a head draws one, None where it does not draw."""
    return table.views if mode == "random" else None


def shown(every_view: bool) -> str:
    """Return what `cache.table` takes as `views`."""
    return "all" if every_view else "clean"


def forewarning(head: Head, table: Table) -> str:
    """Return what to know before a fit of a head to a table that will take long; "" mostly."""
    rows, labels = table.selection, table.labels

    def some(positions: NDArray[np.int64]) -> tuple[Any, NDArray[np.int64]]:
        return rows.base[rows.index[positions]], labels[positions]

    return head.forewarning(rows.shape, some)


def check_test(cache: Cache, tests: bool = True) -> None:
    """Refuse to average over views of test images that are not there, or where nothing `tests`.

    Raises:
        OptionError: saying what to do.
    """
    if not tests:
        raise OptionError("Views of test images are averaged over in a test.", "Give --test too.")
    if cache.recipe.views_in("test") == 1:
        raise OptionError(
            f"{cache.name} has no augmented views of test images.",
            "Extract with --views-of all; what is there already is copied.",
        )


def to_record(cache: Cache, head: str, mode: str | None) -> dict[str, Any] | None:
    """Return how a head is trained on views as a run's record holds it; None where there are none."""
    found = resolved(cache, head, mode)
    return None if found is None else {"mode": found, "count": cache.recipe.views_in("train")}
