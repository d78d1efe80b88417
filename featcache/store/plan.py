"""The plan: which row is which sample, and which rows form which shard. Fixed before any work."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.errors import DamagedError
from featcache.images.sample import SPLITS
from featcache.recipe import ITEMSIZES
from featcache.store.arrays import unpack

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
        first, stop = np.searchsorted(self.splits, [code, code + 1])
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
        encoded = [name.encode("utf-8", "surrogateescape") for name in self.ids]
        ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)
        blob = np.frombuffer(b"".join(encoded), dtype=np.uint8)
        buffer = io.BytesIO()
        np.savez(
            buffer,
            id_bytes=blob,
            id_ends=ends,
            label=self.labels,
            split=self.splits,
            content_hash=self.hashes,
        )
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> Plan:
        """Read a plan back.

        Raises:
            DamagedError: the bytes are no plan.
        """
        try:
            stored: dict[str, NDArray[Any]] = unpack(data)
            plan = cls(
                ids=_names(stored["id_bytes"], stored["id_ends"]),
                labels=stored["label"],
                splits=stored["split"],
                hashes=stored["content_hash"],
            )
        except (KeyError, ValueError) as error:
            raise DamagedError(f"plan.npz is damaged: {error}.", "Run: featcache verify --repair.") from error
        plan._check()
        return plan

    def _check(self) -> None:
        n = len(self.ids)
        good = (
            self.labels.shape == (n,)
            and self.labels.dtype == np.int64
            and self.splits.shape == (n,)
            and self.splits.dtype == np.uint8
            and self.hashes.shape == (n, 16)
            and self.hashes.dtype == np.uint8
            and bool(np.all(self.splits[1:] >= self.splits[:-1]))
            and bool(np.all(self.splits < len(SPLITS)))
        )
        if not good:
            raise DamagedError(
                "plan.npz is damaged: its arrays do not fit together.", "Run: featcache verify --repair."
            )


def _names(blob: NDArray[np.uint8], ends: NDArray[np.int64]) -> list[str]:
    """Return the names; `ends` must rise to the end of the blob, or few bytes could make very many."""
    starts = np.concatenate([[0], ends[:-1]]) if len(ends) else ends
    if ends.dtype != np.int64 or ends.ndim != 1 or np.any(ends < starts) or ends[-1:].sum() != blob.size:
        raise ValueError("the names do not lie one behind the other")
    data, pairs = blob.tobytes(), zip(starts.tolist(), ends.tolist(), strict=True)
    return [data[a:b].decode("utf-8", "surrogateescape") for a, b in pairs]


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
