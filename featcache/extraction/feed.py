"""A pipeline kept at work: shards go in one by one, each is answered when it is committed.

Between two shards nothing stops: while one is written the next is computed and another decoded. What is under
way is finished early only where nothing else has been handed in.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featcache.errors import CacheError
from featcache.store.cache import Cache
from featcache.store.plan import ShardPlan

Stream = Iterator[ShardPlan | None]
"""Shards one by one; None: for now there is no more."""


class Feed:
    """Hands shards to a pipeline that runs in a thread of its own.

    Args:
        run: the pipeline: takes the stream of shards, and returns when that ends.
    """

    def __init__(self, run: Callable[[Stream], object]) -> None:
        self._shards: queue.SimpleQueue[ShardPlan | None] = queue.SimpleQueue()
        self._waiting: dict[str, Future[None]] = {}
        self._lock, self._ended = threading.Lock(), False
        self._failed: BaseException = CacheError("The pipeline has ended.")
        self._thread = threading.Thread(target=self._work, args=(run,), name="pipeline", daemon=True)
        self._thread.start()

    def put(self, part: ShardPlan) -> Future[None]:
        """Hand in a shard; return what is done when it is committed, or has what stopped the pipeline."""
        with self._lock:
            waiting = self._waiting.get(part.name)
            if waiting is not None:
                return waiting
            waiting = Future()
            if self._ended:
                waiting.set_exception(self._failed)
                return waiting
            self._waiting[part.name] = waiting
        self._shards.put(part)
        return waiting

    def committed(self, name: str) -> None:
        """Take note that a shard is committed."""
        with self._lock:
            waiting = self._waiting.pop(name, None)
        if waiting is not None:
            waiting.set_result(None)

    def close(self) -> None:
        """Let the pipeline end with what was handed in, and wait for it."""
        self._shards.put(None)
        self._thread.join()

    def _stream(self) -> Stream:
        while True:
            try:
                part = self._shards.get(block=not self._waiting)
            except queue.Empty:
                yield None
                continue
            if part is None:
                return
            yield part

    def _work(self, run: Callable[[Stream], object]) -> None:
        failed = self._failed
        try:
            run(self._stream())
        except BaseException as error:  # told to whoever waits for a shard
            failed = error
        with self._lock:
            self._failed, self._ended = failed, True
            left, self._waiting = list(self._waiting.values()), {}
        for waiting in left:
            waiting.set_exception(failed)


class ToldCache(Cache):
    """A cache that tells of every shard that it commits.

    Args:
        path: its folder.
        tell: told the shard's name.
    """

    def __init__(self, path: Path, tell: Callable[[str], None]) -> None:
        super().__init__(path)
        self._tell = tell

    def commit(
        self,
        part: ShardPlan,
        features: Mapping[str, NDArray[np.floating]],
        bad: Sequence[tuple[int, str]] = (),
    ) -> bool:
        """Commit a shard as `Cache.commit` does, and tell of it, whoever was first."""
        won = super().commit(part, features, bad)
        self._tell(part.name)
        return won
