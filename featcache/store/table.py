"""A table: the features, labels and ids of one split, ready for a head."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.errors import CacheError, OptionError
from featcache.images.sample import SPLITS
from featcache.selection import Selection
from featcache.store import keeping, records
from featcache.store.cache import Cache
from featcache.store.mapping import one_array
from featcache.store.plan import Plan
from featcache.store.positions import positions_of
from featcache.store.quantised import OFFSET, SCALE, QuantisedRows, QuantisedSelection, joined, name_of
from featcache.store.records import Commit
from featcache.store.shard import FEATURES, Block


@dataclass(frozen=True)
class Table:
    """Features X (N, D) in the stored dtype, labels y (N,), and which rows of the plan they are.

    `base` maps all rows of the stored split without copying them, a row for each of their views, and `index`
    finds the clean ones. `X` is a view of it where the table is the whole split or a run of it, else the
    chosen rows of it, copied at first use. With `every_view` X is (N, V, D), and `selection` and `labels`
    have a row for each view: those of a sample one behind the other, the clean one first.
    """

    base: NDArray[Any] | QuantisedRows
    index: NDArray[np.int64]  # (N,) positions in base, rising
    rows: NDArray[np.int64]  # (N,) rows of the plan
    y: NDArray[np.int64]  # (N,) class numbers
    classes: tuple[str, ...]
    split: str
    node: str
    plan: Plan = field(repr=False)
    budget: int | None = None  # bytes of the features that may be in memory; None: as many as there is room
    views: int = 1  # that a row of the stored split holds
    every_view: bool = False  # whether X, selection and labels have all of them

    def __len__(self) -> int:
        return len(self.index)

    @cached_property
    def X(self) -> NDArray[Any] | QuantisedRows:  # the field's name for features
        """The features (N, D), or (N, V, D) of every view.

        Of a cache in int8 (N, D) become floats where they are read, (N, V, D) at once.
        """
        if not self.every_view:
            return self._rows(self._run(self.views) or self.index)
        rows = self._rows(self._run(1) or self._every())
        return np.asarray(rows).reshape(len(self), self.views, self.columns)

    def _run(self, step: int) -> slice | None:
        """Return every `step`-th row of base from the first to the last sample; None if they are no run."""
        index, views = self.index, self.views
        if len(index) == 0 or index[-1] - index[0] != (len(index) - 1) * views:
            return None
        return slice(int(index[0]), int(index[-1]) + views, step)

    def _rows(self, rows: slice | NDArray[np.int64]) -> NDArray[Any] | QuantisedRows:
        return self.base.part(rows) if isinstance(self.base, QuantisedRows) else self.base[rows]

    def _every(self) -> NDArray[np.int64]:
        """Return the positions in base of all views, (N * V,)."""
        return (self.index[:, None] + np.arange(self.views)).reshape(-1)

    @property
    def selection(self) -> Selection:
        """The features without a copy of them: an array (N, D) to all that reads rows block by block.

        Of every view (N * V, D).
        """
        index = self._every() if self.every_view else self.index
        if isinstance(self.base, QuantisedRows):
            return QuantisedSelection(self.base, index)
        return Selection(self.base, index, self.budget)

    @property
    def labels(self) -> NDArray[np.int64]:
        """The class numbers of the rows of `selection`."""
        return np.repeat(self.y, self.views) if self.every_view else self.y

    @property
    def columns(self) -> int:
        """D."""
        return int(self.base.shape[1])

    def take(self, positions: NDArray[np.int64], split: str | None = None) -> Table:
        """Return the table of the rows at these rising positions (n,), named another split where given."""
        index, rows, y = self.index[positions], self.rows[positions], self.y[positions]
        return replace(self, index=index, rows=rows, y=y, split=split or self.split)

    @cached_property
    def ids(self) -> list[str]:
        """The ids of the samples."""
        return [self.plan.ids[row] for row in self.rows.tolist()]


def read_table(
    cache: Cache,
    split: str,
    *,
    node: str | None = None,
    val_fraction: float = 0.2,
    split_seed: int = 42,
    split_mode: str = "random",
    views: str = "clean",
) -> Table:
    """Return the table of a split.

    A data set with a validation split of its own is taken as it is. Otherwise the last three options
    choose the validation rows among the cached training rows, see `featcache.images.splits`; nothing is
    extracted again. With `val_fraction=0` all training rows are the training table and there is no
    validation table. Rows whose image could not be read are left out.

    Args:
        cache: a finished cache.
        split: "train", "val" or "test".
        node: one of the cache's nodes, the first by default.
        val_fraction: the share of the training rows that validate.
        split_seed: of the choice.
        split_mode: "random" (as torch.utils.data.random_split), "stratified" or "last".
        views: "clean" for the images as they are, "all" for their augmented views too: X (N, V, D), with
            V = 1 where the split has none.

    Raises:
        CacheError: the cache is not finished, or the split is empty.
        DamagedError: a shard differs from what was committed.
        OptionError: an option cannot be used.
    """
    if split not in SPLITS:
        raise OptionError(f"Unknown split {split!r}.", f"Known: {', '.join(SPLITS)}.")
    if views not in ("clean", "all"):
        raise OptionError(f"Unknown views {views!r}.", "Known: clean, all.")
    if cache.sealed() is None:
        raise CacheError(
            f"{cache.name} is not finished.", "Run the same featcache extract again: it goes on."
        )
    stored, positions = positions_of(cache.plan, split, val_fraction, split_seed, split_mode)
    first = cache.plan.range_of(stored).start
    done = cache.commits()
    positions = positions[~_is_bad(cache.plan.range_of(stored), done.values())[positions]]
    if not len(positions):
        raise _empty(cache, split)
    chosen = cache.node(node)
    parts = [part.name for part in cache.shards() if part.name.startswith(f"{stored}-")]
    keeping.bring_all([cache.path / records.SHARDS / done[name].file for name in parts])
    blocks = [cache.blocks(done[name]) for name in parts]
    rows = positions + first
    count = cache.recipe.views_in(stored)
    return Table(
        base=_base(blocks, chosen, len(cache.columns) == 1),
        index=positions * count,
        rows=rows,
        y=cache.plan.labels[rows],
        classes=cache.classes,
        split=split,
        node=chosen,
        plan=cache.plan,
        views=count,
        every_view=views == "all",
    )


def _base(blocks: list[dict[str, Block]], node: str, alone: bool) -> NDArray[Any] | QuantisedRows:
    """Return all rows of the shards of a split, a row for each view."""
    features = [block[name_of(FEATURES, node, alone)] for block in blocks]
    rows = one_array(features)
    rows = rows.reshape(-1, rows.shape[-1])
    if features[0].dtype != np.int8:
        return rows
    scale, offset = (
        np.stack([block[name_of(what, node, alone)].map() for block in blocks]) for what in (SCALE, OFFSET)
    )
    return joined(rows.view(np.int8), [block.nbytes // rows.shape[1] for block in features], scale, offset)


def has_split(cache: Cache, split: str, val_fraction: float = 0.2) -> bool:
    """Return whether the cache has rows for a split, as a stored one or as a view."""
    if split == "val" and not len(cache.plan.range_of("val")):
        return val_fraction > 0 and len(cache.plan.range_of("train")) > 1
    return len(cache.plan.range_of(split)) > 0


def _is_bad(rows: range, commits: Iterable[Commit]) -> NDArray[np.bool_]:
    bad = np.zeros(len(rows), dtype=np.bool_)
    for commit in commits:
        for row, _ in commit.bad:
            if row in rows:
                bad[row - rows.start] = True
    return bad


def _empty(cache: Cache, split: str) -> CacheError:
    there = ", ".join(f"{name} {count}" for name, count in cache.plan.counts().items())
    hint = "Give --val-fraction to take validation rows out of train." if split == "val" else ""
    return CacheError(f"{cache.name} has no rows for the split {split!r}; it has {there}.", hint)
