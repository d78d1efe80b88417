"""The writer: rows gathered into shards, each committed in a thread when it is whole."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from featcache.extraction.reader import Bad, Batch
from featcache.store.cache import Cache
from featcache.store.plan import ShardPlan

Features = dict[str, NDArray[np.floating]]
"""Node → (n, D)."""


@dataclass
class _Shard:
    """A shard being filled: its memory, the rows of it that it uses, and its bad images."""

    memory: Features
    features: Features
    bad: list[Bad] = field(default_factory=list)


class Writer:
    """Gathers features into shards and commits each in a thread.

    Args:
        cache: the cache to fill.
        parts: the shards that will come, in any order.
        room: gives memory of a shape (n, D) in the dtype of a cache's rows.
        threads: shards written at once.
        under_way: batches that may have been asked for and not been added yet.
    """

    def __init__(
        self,
        cache: Cache,
        parts: Sequence[ShardPlan],
        room: Callable[[tuple[int, int]], NDArray[np.floating]],
        threads: int = 1,
        under_way: int = 0,
    ) -> None:
        self.cache, self._room = cache, room
        self._rows = max((len(part) for part in parts), default=0)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="write")
        self._limit = threads + 1 + under_way  # each written or filled
        self._threads, self._made = threads, 0
        self._free: list[Features] = []
        self._open: dict[str, _Shard] = {}
        self._pending: deque[tuple[Features, Future[bool]]] = deque()

    def rows(self, batch: Batch) -> Features:
        """Return where the rows of a batch belong: node → (B, D), views of the shard.

        Raises:
            SpaceError, CacheError: an earlier shard could not be written.
        """
        part = batch.part
        if part.name not in self._open:
            memory = self._memory()
            whole = {node: rows[: len(part)] for node, rows in memory.items()}
            self._open[part.name] = _Shard(memory, whole)
        features = self._open[part.name].features
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
        if batch.stop == part.stop:
            del self._open[part.name]
            while len(self._pending) >= self._threads:
                self._wait()
            task = self._pool.submit(self.cache.commit, part, shard.features, tuple(shard.bad))
            self._pending.append((shard.memory, task))

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
        if not self._free and self._made >= self._limit and self._pending:
            self._wait()
        if self._free:
            return self._free.pop()
        self._made += 1
        return {node: self._room((self._rows, width)) for node, width in self.cache.columns.items()}

    def _wait(self) -> None:
        memory, task = self._pending.popleft()
        task.result()
        self._free.append(memory)
