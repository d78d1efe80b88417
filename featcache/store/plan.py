"""The plan: which row is which sample, and which rows form which shard. Fixed before any work."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.errors import DamagedError
from featcache.images.names import Names
from featcache.images.sample import SPLITS
from featcache.recipe import ITEMSIZES
from featcache.store import archive
from featcache.store.arrays import unpack

BLOCK = 1 << 20  # rows looked at at once
PAGE = 4096
SHARD_BYTES = 64 * 1024 * 1024
SHARD_ROWS = 4096  # so that a crash costs minutes at most, however narrow the rows


@dataclass(frozen=True)
class ShardPlan:
    """One shard to be: its name and the rows of the plan it holds, consecutive and of one split."""

    name: str
    first: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.first

    @property
    def split(self) -> str:
        """The stored split that the rows are of."""
        return self.name.partition("-")[0]

    @property
    def rows(self) -> NDArray[np.int64]:
        """The rows (n,)."""
        return np.arange(self.first, self.stop, dtype=np.int64)


@dataclass(frozen=True)
class Plan:
    """All rows in order: train, then val, then test; within a split in the data set's order."""

    ids: Sequence[str]
    labels: NDArray[np.int64]  # (N,)
    splits: NDArray[np.uint8]  # (N,) codes into SPLITS, never falling
    hashes: NDArray[np.uint8]  # (N, 16) content hash of each sample

    def __len__(self) -> int:
        return len(self.labels)

    def range_of(self, split: str) -> range:
        """Return the rows of a stored split, an empty range where it has none."""
        code = SPLITS.index(split)
        # Of the codes' own type: with another, all of them would be converted for it.
        first, stop = np.searchsorted(self.splits, np.array([code, code + 1], np.uint8))
        return range(int(first), int(stop))

    def counts(self) -> dict[str, int]:
        """Return the number of rows of each split that has any."""
        return {split: len(self.range_of(split)) for split in SPLITS if len(self.range_of(split))}

    def shards(self, rows_per_shard: int) -> Iterator[ShardPlan]:
        """Return the shards in order."""
        for split in SPLITS:
            rows = self.range_of(split)
            for number, first in enumerate(range(rows.start, rows.stop, rows_per_shard)):
                yield ShardPlan(f"{split}-{number:05d}", first, min(first + rows_per_shard, rows.stop))

    def to_bytes(self) -> bytes:
        """Return the plan as an .npz without pickle; equal plans give equal bytes."""
        return b"".join(self.pieces())

    def pieces(self) -> list[memoryview]:
        """Return the bytes of `to_bytes` in pieces, which are views of the plan's arrays."""
        ids = Names.packed(self.ids)
        return archive.pieces(
            {
                "id_bytes": ids.data,
                "id_ends": ids.ends,
                "label": self.labels,
                "split": self.splits,
                "content_hash": self.hashes,
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Plan:
        """Read a plan back.

        Raises:
            DamagedError: the bytes are no plan.
        """
        try:
            return cls.of_arrays(unpack(data))
        except ValueError as error:
            raise DamagedError(f"plan.npz is damaged: {error}.", "Run: featcache verify --repair.") from error

    @classmethod
    def of_arrays(
        cls, stored: Mapping[str, NDArray[Any]], looked: Callable[[], object] = lambda: None
    ) -> Plan:
        """Return the plan that arrays are, as they were stored; they are checked, and not copied.

        Args:
            stored: the arrays by name.
            looked: called whenever a block of rows has been looked at.

        Raises:
            ValueError: they are no plan.
        """
        try:
            ids = Names(stored["id_bytes"], stored["id_ends"])
            plan = cls(ids, stored["label"], stored["split"], stored["content_hash"])
        except KeyError as error:
            raise ValueError(f"it has no {error}") from error
        plan._check_shapes(ids.data, ids.ends)
        for first in range(0, len(ids), BLOCK):
            stop = min(first + BLOCK, len(ids))
            _check_rising(ids.ends, first, stop, "the names do not lie one behind the other")
            _check_rising(plan.splits, first, stop, "its splits are not in order")
            looked()
        if ids.ends[-1:].sum() != ids.data.size or (len(ids) and plan.splits[-1] >= len(SPLITS)):
            raise ValueError("its arrays do not fit together")
        return plan

    def _check_shapes(self, data: NDArray[Any], ends: NDArray[Any]) -> None:
        n = len(ends)
        wanted: list[tuple[NDArray[Any], tuple[int, ...], type]] = [
            (data, (data.size,), np.uint8),
            (ends, (n,), np.int64),
            (self.labels, (n,), np.int64),
            (self.splits, (n,), np.uint8),
            (self.hashes, (n, 16), np.uint8),
        ]
        if any(array.shape != shape or array.dtype != kind for array, shape, kind in wanted):
            raise ValueError("its arrays do not fit together")


def _check_rising(values: NDArray[Any], first: int, stop: int, what: str) -> None:
    """Refuse values that fall or are negative: of names, few bytes could then make very many."""
    block = values[max(0, first - 1) : stop]
    if block[0] < 0 or np.any(block[1:] < block[:-1]):
        raise ValueError(what)


def rows_of_shards(columns: int, store_dtype: str, views: int = 1) -> int:
    """Return how many rows of `views` times `columns` features go into a shard.

    In int8 no more than in float32, as which they are gathered: that is what takes memory. Rounded for rows
    of one view, so that the shards of splits without views can be mapped as one array too.
    """
    limit = SHARD_BYTES // 4 if store_dtype == "int8" else SHARD_BYTES
    return rows_per_shard(columns * ITEMSIZES[store_dtype], max(1, limit // views))


def rows_per_shard(row_bytes: int, limit: int = SHARD_BYTES, most: int = SHARD_ROWS) -> int:
    """Return how many rows of `row_bytes` bytes go into a shard: about 64 MiB, and at most 4096 rows.

    Rounded to whole pages where that costs little, so that the shards of a split can be mapped as one
    array. At least one row.
    """
    rows = max(1, min(limit // row_bytes, most))
    step = PAGE // math.gcd(PAGE, row_bytes)
    return rows // step * step or rows
