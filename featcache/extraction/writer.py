"""The writer: rows gathered into shards, each committed in a thread when it is whole."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from featcache.extraction.copying import Share, share_of
from featcache.extraction.reader import Bad, Batch
from featcache.extraction.views import Wanted
from featcache.store.cache import Cache
from featcache.store.plan import ShardPlan

Features = dict[str, NDArray[np.floating]]
"""Node → (n, D)."""


@dataclass
class _Shard:
    """A shard being filled: its memory, a piece for each view of rows that are computed, and bad images."""

    memory: Features
    wanted: list[Wanted]
    landed: int = 0  # rows of which all views that are computed are there
    bad: list[Bad] = field(default_factory=list)

    def view(self, which: Wanted, view: int) -> Features:
        """Return the memory of a view of some rows: node → (n, D)."""
        first = (view - which.views.start) * len(which.rows)
        for before in self.wanted:
            if before is which:
                break
            first += len(before.rows) * len(before.views)
        return {node: memory[first : first + len(which.rows)] for node, memory in self.memory.items()}

    @property
    def whole(self) -> bool:
        """Whether all that is computed is there."""
        return self.landed == sum(len(one.rows) for one in self.wanted)


class Writer:
    """Gathers features into shards and commits each in a thread.

    Args:
        cache: the cache to fill.
        parts: the shards that will come, in any order.
        room: gives memory of a shape (n, D) in the dtype of a cache's rows.
        threads: shards written at once.
        under_way: batches that may have been asked for and not been added yet.
        share: what is computed and what copied; None: all is computed.
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
        self.cache, self._room, self._share = cache, room, share or share_of(cache, ())
        self._rows = max((len(part) * cache.recipe.views_in(part.split) for part in parts), default=0)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="write")
        self._limit = threads + 1 + under_way  # each written or filled
        self._threads, self._made = threads, 0
        self._free: list[Features] = []
        self._open: dict[str, _Shard] = {}
        self._pending: deque[tuple[Features, Future[bool]]] = deque()
        self._tasks: dict[str, Future[bool]] = {}
        self._later: list[ShardPlan] = []  # copied as a whole, from shards that are still being computed

    def rows(self, batch: Batch, view: int = 0) -> Features:
        """Return where a view of a batch's rows belongs: node → (B, D), parts of the shard.

        Raises:
            SpaceError, CacheError: an earlier shard could not be written.
        """
        part = batch.part
        if part.name not in self._open:
            self._open[part.name] = _Shard(self._memory(), self._share.wanted(part))
        features = self._open[part.name].view(batch.wanted, view)
        return {node: rows[batch.first : batch.stop] for node, rows in features.items()}

    def add(self, batch: Batch, bad: Sequence[Bad]) -> None:
        """Take note that the rows of a batch are there; commit the shard when it is whole.

        Batches are added in the order in which their rows were asked for.

        Raises:
            SpaceError, CacheError: an earlier shard could not be written.
        """
        part = batch.part
        shard = self._open[part.name]
        shard.bad += bad
        shard.landed += len(batch.rows) if batch.last else 0
        if shard.whole:
            del self._open[part.name]
            self._commit(part, shard)

    def copy(self, part: ShardPlan) -> None:
        """Commit a shard of which every view is copied, as soon as those that it is copied from are written.

        Raises:
            SpaceError, CacheError: an earlier shard could not be written.
        """
        if self._share.of(part).after <= self._tasks.keys():
            self._commit(part, _Shard({}, []))
        else:
            self._later.append(part)

    def _commit(self, part: ShardPlan, shard: _Shard) -> None:
        while len(self._pending) >= self._threads:
            self._wait()
        before = [self._tasks[name] for name in sorted(self._share.of(part).after)]
        task = self._tasks[part.name] = self._pool.submit(self._write, part, shard, before)
        self._pending.append((shard.memory, task))
        later, self._later = self._later, []
        for other in later:
            self.copy(other)

    def _write(self, part: ShardPlan, shard: _Shard, before: list[Future[bool]]) -> bool:
        for task in before:
            task.result()  # handed in earlier, so begun: this thread does not wait for itself
        views = self.cache.recipe.views_in(part.split)
        found = self._rows_of(part, shard)
        rows = {node: values.reshape(len(part), views, -1) for node, values in found.items()}
        bad = self._share.fill(part, rows, shard.bad)
        features = {node: values if views > 1 else values[:, 0] for node, values in rows.items()}
        return self.cache.commit(part, features, tuple(bad))

    def _rows_of(self, part: ShardPlan, shard: _Shard) -> Features:
        """Return a shard's rows (n * V, D) or (n, V, D) with what was computed in its place."""
        views = self.cache.recipe.views_in(part.split)
        if views == 1 and len(shard.wanted) == 1 and len(shard.wanted[0].rows) == len(part):
            return shard.view(shard.wanted[0], 0)
        found: Features = {}
        for node, width in self.cache.columns.items():
            whole = np.empty((len(part), views, width), self.cache.row_dtype)
            for one in shard.wanted:
                for view in one.views:
                    whole[one.rows - part.first, view] = shard.view(one, view)[node]
            found[node] = whole
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
