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

    `base` maps all rows of the stored split without copying them. `X` is that same array where the
    table is the whole split or a run of it, else the chosen rows of it, copied at first use.
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

    def __len__(self) -> int:
        return len(self.index)

    @cached_property
    def X(self) -> NDArray[Any] | QuantisedRows:  # the field's name for features
        """The features (N, D); of a cache in int8 they become floats where they are read."""
        if len(self.index) and self.index[-1] - self.index[0] + 1 == len(self.index):
            return self._rows(slice(int(self.index[0]), int(self.index[-1]) + 1))
        return self._rows(self.index)

    def _rows(self, rows: slice | NDArray[np.int64]) -> NDArray[Any] | QuantisedRows:
        return self.base.part(rows) if isinstance(self.base, QuantisedRows) else self.base[rows]

    @property
    def selection(self) -> Selection:
        """The features without a copy of them: an array (N, D) to all that reads rows block by block."""
        if isinstance(self.base, QuantisedRows):
            return QuantisedSelection(self.base, self.index)
        return Selection(self.base, self.index, self.budget)

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

    Raises:
        CacheError: the cache is not finished, or the split is empty.
        DamagedError: a shard differs from what was committed.
        OptionError: an option cannot be used.
    """
    if split not in SPLITS:
        raise OptionError(f"Unknown split {split!r}.", f"Known: {', '.join(SPLITS)}.")
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
    blocks = [cache.blocks(done[part.name]) for part in cache.shards() if part.name.startswith(f"{stored}-")]
    rows = positions + first
    return Table(
        base=_base(blocks, chosen, len(cache.columns) == 1),
        index=positions,
        rows=rows,
        y=cache.plan.labels[rows],
        classes=cache.classes,
        split=split,
        node=chosen,
        plan=cache.plan,
    )


def _base(blocks: list[dict[str, Block]], node: str, alone: bool) -> NDArray[Any] | QuantisedRows:
    """Return all rows of the shards of a split."""
    features = [block[name_of(FEATURES, node, alone)] for block in blocks]
    rows = one_array(features)
    if features[0].dtype != np.int8:
        return rows
    scale, offset = (
        np.stack([block[name_of(what, node, alone)].map() for block in blocks]) for what in (SCALE, OFFSET)
    )
    return joined(rows.view(np.int8), [block.shape[0] for block in features], scale, offset)


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
