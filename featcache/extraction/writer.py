"""The writer: rows gathered into shards, each committed in a thread when it is whole."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from featcache.extraction.copying import Share
from featcache.extraction.reader import Bad, Batch
from featcache.store.cache import Cache
from featcache.store.plan import ShardPlan

Features = dict[str, NDArray[np.floating]]
"""Node → (n, D)."""


@dataclass
class _Shard:
    """A shard being filled: its memory, a part of it for each view that is computed, and its bad images."""

    memory: Features
    views: range
    bad: list[Bad] = field(default_factory=list)

    def view(self, view: int, rows: int) -> Features:
        """Return the memory of a view of all rows: node → (n, D)."""
        first = (view - self.views.start) * rows
        return {node: memory[first : first + rows] for node, memory in self.memory.items()}


class Writer:
    """Gathers features into shards and commits each in a thread.

    Args:
        cache: the cache to fill.
        parts: the shards that will come, in any order.
        room: gives memory of a shape (n, D) in the dtype of a cache's rows.
        threads: shards written at once.
        under_way: batches that may have been asked for and not been added yet.
        share: which views are computed and which copied; None: the one there is, computed.
    """

    def __init__(
        self,
        cache: Cache,
        parts: Sequence[ShardPlan],
        room: Callable[[tuple[int, int]], NDArray[np.floating]],
        threads: int = 1,
        under_way: int = 0,
        share: Share | None = None,
    ) -> None:
        self.cache, self._room, self._share = cache, room, share or Share(cache)
        self._rows = max((len(part) * cache.recipe.views_in(part.split) for part in parts), default=0)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="write")
        self._limit = threads + 1 + under_way  # each written or filled
        self._threads, self._made = threads, 0
        self._free: list[Features] = []
        self._open: dict[str, _Shard] = {}
        self._pending: deque[tuple[Features, Future[bool]]] = deque()

    def rows(self, batch: Batch, view: int = 0) -> Features:
        """Return where a view of a batch's rows belongs: node → (B, D), parts of the shard.

        Raises:
            SpaceError, CacheError: an earlier shard could not be written.
        """
        part = batch.part
        if part.name not in self._open:
            self._open[part.name] = _Shard(self._memory(), self._share.new(part))
        features = self._open[part.name].view(view, len(part))
        return {
            node: rows[batch.first - part.first : batch.stop - part.first] for node, rows in features.items()
        }

    def add(self, batch: Batch, bad: Sequence[Bad]) -> None:
        """Take note that the rows of a batch are there; commit the shard when it is whole.

        Batches are added in the order in which their rows were asked for.

        Raises:
            SpaceError, CacheError: an earlier shard could not be written.
        """
        part = batch.part
        shard = self._open[part.name]
        shard.bad += bad
        if batch.stop == part.stop and batch.last:
            del self._open[part.name]
            self._commit(part, shard)

    def copy(self, part: ShardPlan) -> None:
        """Commit a shard of which every view is copied.

        Raises:
            SpaceError, CacheError: an earlier shard could not be written.
        """
        self._commit(part, _Shard({}, self._share.new(part)))

    def _commit(self, part: ShardPlan, shard: _Shard) -> None:
        while len(self._pending) >= self._threads:
            self._wait()
        self._pending.append((shard.memory, self._pool.submit(self._write, part, shard)))

    def _write(self, part: ShardPlan, shard: _Shard) -> bool:
        bad = dict(sorted([*self._share.bad(part), *shard.bad]))
        features = self._whole(part, shard, [row - part.first for row in bad])
        return self.cache.commit(part, features, tuple(bad.items()))

    def _whole(self, part: ShardPlan, shard: _Shard, bad: list[int]) -> Features:
        """Return a shard's features as they are stored, zero for bad rows: node → (n, D) or (n, V, D)."""
        views, copied = self.cache.recipe.views_in(part.split), shard.views.start
        if views == 1 and not copied:
            return shard.view(0, len(part))
        found: Features = {}
        for node, width in self.cache.columns.items():
            whole = np.empty((len(part), views, width), self.cache.row_dtype)
            if copied:
                whole[:, :copied] = self._share.rows(part, node, copied)
            for view in shard.views:
                whole[:, view] = shard.view(view, len(part))[node]
            whole[bad] = 0
            found[node] = whole if views > 1 else whole[:, 0]
        return found

    def finish(self) -> None:
        """Wait for the shards being written.

        Raises:
            SpaceError, CacheError: one could not be written.
        """
        while self._pending:
            self._wait()

    def close(self) -> None:
        """Stop the threads; shards being written are finished first."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _memory(self) -> Features:
        while not self._free and self._made >= self._limit and self._pending:
            self._wait()
        if self._free:
            return self._free.pop()
        self._made += 1
        return {node: self._room((self._rows, width)) for node, width in self.cache.columns.items()}

    def _wait(self) -> None:
        memory, task = self._pending.popleft()
        task.result()
        if memory:
            self._free.append(memory)
