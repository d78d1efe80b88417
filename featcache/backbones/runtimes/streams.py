"""Several batches under way at once on a CPU, each on threads of its own."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from types import TracebackType
from typing import Any, TypeVar

import torch

from featcache.backbones.devices import exact_float32

Item = TypeVar("Item")
Result = TypeVar("Result")


class Streams:
    """Threads that each run one batch at a time.

    float32 is exact until they are closed: the setting belongs to the process, so it is held here, and not
    set and taken back by threads that overlap.

    Args:
        count: calls at once.
        threads: torch's threads inside each.
    """

    def __init__(self, count: int, threads: int) -> None:
        self.count, self._before = count, torch.get_num_threads()
        self._settings = ExitStack()
        self._settings.enter_context(exact_float32())
        self._pool = ThreadPoolExecutor(
            count, thread_name_prefix="forward", initializer=torch.set_num_threads, initargs=(threads,)
        )

    def submit(self, function: Callable[..., Result], *arguments: Any) -> Future[Result]:
        """Call a function, which must be safe in several threads, as soon as a thread is free."""
        return self._pool.submit(function, *arguments)

    def close(self) -> None:
        """Wait for the calls that have begun, drop the others, and take back the settings."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._settings.close()
        torch.set_num_threads(self._before)  # new threads would otherwise take the streams' number

    def __enter__(self) -> Streams:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def in_streams(
    function: Callable[[Item], Result], items: Iterable[Item], streams: int, threads: int
) -> Generator[Result, None, None]:
    """Yield function(item) of each item, in order; `streams` of them are computed at once and one more waits.

    With one stream all happens in the calling thread, where the items are taken in any case.

    Raises:
        Exception: what `function` raised first, in the order of the items.
    """
    if streams == 1:
        yield from map(function, items)
        return
    ahead: deque[Future[Result]] = deque()
    with Streams(streams, threads) as under_way:
        for item in items:
            ahead.append(under_way.submit(function, item))
            if len(ahead) > streams:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
